"""Facts of the layout that ruff, mypy and import-linter do not check."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "pilot_hitl": ROOT / "pilot_hitl",
    "pilot_hitl_agent": ROOT / "agent" / "pilot_hitl_agent",
    "pilot_hitl_services": ROOT / "services" / "pilot_hitl_services",
    "pilot_hitl_benchmarks": ROOT / "benchmarks" / "pilot_hitl_benchmarks",
}
PURE = [ROOT / "pilot_hitl" / "study", ROOT / "agent" / "pilot_hitl_agent" / "core"]
MAX_LINES = 800

# What a pure core has no business with: clocks, sockets, files, threads, processes, chance.
IMPURE = {
    "asyncio", "concurrent", "glob", "io", "mmap", "multiprocessing", "os", "pathlib", "psutil", "queue", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading",
    "time", "uuid", "zmq",
}  # fmt: skip


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _modules() -> list[str]:
    names = []
    for package, folder in PACKAGES.items():
        for path in _sources(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__main__":
                continue  # importing it is running it
            names.append(".".join((package, *(part for part in parts if part != "__init__"))))
    return names


def _loaded_by(statement: str) -> set[str]:
    """Names of our modules that are loaded in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport json, sys; print(json.dumps([m for m in sys.modules if m.startswith('pilot_hitl')]))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(ended.stdout))


@pytest.mark.parametrize("module", _modules())
def test_every_module_imports(module: str) -> None:
    # Without extras as well: what needs one is imported where it is used.
    importlib.import_module(module)


def test_every_folder_of_modules_is_a_package() -> None:
    # import-linter passes over a folder without __init__.py inside a package, so the rule would not hold there.
    bare = {
        folder.relative_to(ROOT).as_posix()
        for package in PACKAGES.values()
        for path in _sources(package)
        if not (folder := path.parent).joinpath("__init__.py").exists()
    }
    assert bare == set()


def test_every_package_says_that_it_is_typed() -> None:
    assert [name for name, folder in PACKAGES.items() if not (folder / "py.typed").exists()] == []


def test_no_file_is_too_long() -> None:
    folders = [*PACKAGES.values(), ROOT / "tests", ROOT / "tools"]
    lines = {path: len(path.read_text().splitlines()) for folder in folders for path in _sources(folder)}
    too_long = {path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > MAX_LINES}
    assert too_long == {}


def test_pure_cores_touch_nothing() -> None:
    touched = []
    for path in (path for folder in PURE for path in _sources(folder)):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            touched += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.split(".")[0] in IMPURE]
    assert touched == []


def test_no_relaxation_for_package_code() -> None:
    # The strict settings hold for all package code alike; the tools obey whatever their configuration says.
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "overrides" not in tool["mypy"]
    assert set(tool["ruff"]["lint"]["per-file-ignores"]) == {"tests/**"}
    assert [contract["name"] for contract in tool["importlinter"]["contracts"] if "ignore_imports" in contract] == []


def test_public_names_resolve_and_are_listed() -> None:
    public = importlib.import_module("pilot_hitl")
    names: list[str] = list(getattr(public, "__all__", []))
    if not names:
        pytest.skip("pilot_hitl exports no names yet")
    assert len(names) == len(set(names))
    assert set(names) <= set(dir(public))
    assert [name for name in names if getattr(public, name, None) is None] == []
    with pytest.raises(AttributeError):
        _ = public.no_such_public_name


def test_importing_the_package_loads_none_of_its_parts() -> None:
    loaded = _loaded_by("import pilot_hitl")
    assert loaded == {"pilot_hitl"}


def test_what_runs_in_the_allocation_does_not_load_the_client() -> None:
    allowed = ("pilot_hitl.model.", "pilot_hitl.wire.", "pilot_hitl_agent.", "pilot_hitl_services.")
    ours = [name for name in _modules() if name.split(".")[0] in {"pilot_hitl_agent", "pilot_hitl_services"}]
    loaded = _loaded_by("\n".join(f"import {name}" for name in ours))
    # The parent package itself is loaded with any of its parts; that it loads nothing more is the test above.
    assert {name for name in loaded - {"pilot_hitl"} if not f"{name}.".startswith(allowed)} == set()
