"""Facts of the layout that ruff, mypy and import-linter do not check."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import subprocess
import sys
import tokenize
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


# A line may carry several; `type: ignore` and `noqa` count alike.
IGNORE = re.compile(r"#\s*(?:noqa\b|type:\s*ignore\b)", re.IGNORECASE)
BARE_IGNORE = re.compile(
    r"#\s*(?:noqa(?!:\s*[A-Z]+\d)|type:\s*ignore(?!\[)|(?:ruff|flake8)\s*:\s*\w|mypy:\s*\w)", re.IGNORECASE
)
MAX_IGNORES = 21
MAX_BROAD = 21


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


def _folders() -> list[Path]:
    """The root and every folder of ours below it, without what is built, installed or hidden."""
    folders, todo = [], [ROOT]
    while todo:
        folder = todo.pop()
        folders.append(folder)
        todo += [
            below
            for below in folder.iterdir()
            if below.is_dir()
            and not below.is_symlink()
            and not below.name.startswith(".")
            and not (below / "pyvenv.cfg").exists()
            and not (folder == ROOT and below.name in {"build", "dist", "site", "shared"})
        ]
    return folders


def _all_sources() -> list[Path]:
    return sorted(path for folder in _folders() for pattern in ("*.py", "*.pyi") for path in folder.glob(pattern))


def _comments(path: Path) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def _is_broad(caught: ast.expr | None) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or ast.unparse(kind).split(".")[-1] in {"Exception", "BaseException"} for kind in kinds)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> list[str]:
    """Public definitions without a docstring, ``node`` itself included."""
    missing = [] if ast.get_docstring(node) else [prefix or "the module"]
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not _is_private(part.name):
            missing += _undocumented(part, f"{prefix}.{part.name}".lstrip("."))
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and not part.name.startswith("_"):
            # An override or overload has the docstring of what it belongs to, a setter that of its property.
            marks = {ast.unparse(mark).split(".")[-1] for mark in part.decorator_list}
            if not marks & {"overload", "override", "setter", "deleter"} and not ast.get_docstring(part):
                missing.append(f"{prefix}.{part.name}".lstrip("."))
    return missing


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


def test_no_relaxation_for_any_module() -> None:
    # The strict settings hold for all code alike; the tools obey whatever their configuration says.
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "overrides" not in tool["mypy"]
    assert not {"per-file-ignores", "extend-per-file-ignores"} & set(tool["ruff"]["lint"])
    assert [contract["name"] for contract in tool["importlinter"]["contracts"] if "ignore_imports" in contract] == []
    # Such a file would overrule pyproject.toml for its folder.
    names = ("ruff.toml", ".ruff.toml", "mypy.ini", ".mypy.ini", "setup.cfg")
    assert [path for folder in _folders() for name in names if (path := folder / name).exists()] == []


def test_coded_ignores_are_few() -> None:
    found, bare = [], []
    for path in _all_sources():
        source = path.read_text()
        if IGNORE.search(source) is BARE_IGNORE.search(source) is None:
            continue  # to take a file apart takes longer
        for number, text in _comments(path):
            where = f"{path.relative_to(ROOT)}:{number}: {text}"
            found += [where] * len(IGNORE.findall(text))
            # One for a whole file is a relaxation per module by another name.
            if BARE_IGNORE.search(text):
                bare.append(where)
    assert bare == []
    assert len(found) <= MAX_IGNORES, "\n".join(found)


def test_broad_excepts_are_named_boundaries() -> None:
    broad, unnamed = [], []
    for path in (path for folder in PACKAGES.values() for path in _sources(folder)):
        handlers = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler))
        if lines := [handler.lineno for handler in handlers if _is_broad(handler.type)]:
            comments = dict(_comments(path))
            broad += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
            unnamed += [
                f"{path.relative_to(ROOT)}:{line}" for line in lines if "boundary" not in comments.get(line, "")
            ]
    assert unnamed == []
    assert len(broad) <= MAX_BROAD, "\n".join(broad)


def test_public_parts_of_the_packages_have_docstrings() -> None:
    missing = []
    for folder in PACKAGES.values():
        for path in _sources(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            if not any(map(_is_private, parts)):
                missing += [f"{path.relative_to(ROOT)}: {name}" for name in _undocumented(ast.parse(path.read_text()))]
    assert missing == []


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
