"""Test the bounds of run-time dependencies: with the lowest versions that pyproject.toml allows, and with the newest.

    tools/test-bounds [lowest|newest …] [-- pytest arguments]

Each end gets a virtual environment of its own, that the test tools join in the versions of constraints.txt. A lower
bound is a version that exists: it is installed as it is written.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENDS = ("lowest", "newest")
PACKAGES = ("agent", "cli", "client", "hub", "inbox", "launch", "model", "report", "services", "study", "wire")
TESTS = (
    *(f"tests/unit/{package}" for package in PACKAGES),
    "tests/behaviour/test_calls.py",
    "tests/behaviour/test_executables.py",
    "tests/behaviour/test_gates.py",
    "tests/behaviour/services/test_services.py",
)
_LOWER = re.compile(r"^([A-Za-z0-9._-]+)(\[[^\]]*\])?>=([0-9.]+)")


class BoundError(Exception):
    """A dependency has no lower bound, or none that names a version."""


def lowest(dependencies: Iterable[str]) -> list[str]:
    """Return the requirements that pin each dependency to its lower bound.

    Raises:
        BoundError: one has none.
    """
    found = []
    for dependency in dependencies:
        match = _LOWER.match(dependency.replace(" ", ""))
        if match is None:
            raise BoundError(f"pyproject.toml: {dependency!r} has no lower bound: write name>=version")
        found.append(f"{match[1]}=={match[3]}")
    return found


def others(constraints: Iterable[str], installed: Iterable[str]) -> list[str]:
    """Return the constraints on what is not installed yet."""
    known = {_name(line) for line in installed}
    return [line for line in constraints if line and not line.startswith("#") and _name(line) not in known]


def _name(line: str) -> str:
    return re.sub(r"[-_.]+", "-", line.partition("==")[0].strip()).lower()


def prepare(end: str, folder: Path) -> str:
    """Make a virtual environment with the run-time dependencies at one end and the test tools; return its python.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
    python = f"{folder}/venv/bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = lowest(project["dependencies"]) if end == "lowest" else []
    subprocess.run([*pip, "install", "-q", "-e", str(ROOT), *pins], check=True)
    frozen = subprocess.run([*pip, "freeze", "--exclude-editable"], check=True, capture_output=True, text=True)
    installed = frozen.stdout.splitlines()
    print(f"{end}: {' '.join(installed)}", flush=True)
    together = [*installed, *others((ROOT / "constraints.txt").read_text().splitlines(), installed)]
    (folder / "constraints.txt").write_text("\n".join(together) + "\n")
    subprocess.run([*pip, "install", "-q", "-c", f"{folder}/constraints.txt", "-e", f"{ROOT}[test]"], check=True)
    return python


def main(arguments: Sequence[str]) -> int:
    """Run the tests at the ends that are named, both by default; return 1 when one of them fails."""
    ends, tests = _split(arguments)
    failed = []
    for end in ends or ENDS:
        if end not in ENDS:
            print(f"tools/test-bounds: {end!r} is neither of {', '.join(ENDS)}", file=sys.stderr)
            return 2
        with tempfile.TemporaryDirectory(prefix="bounds-") as folder:
            python = prepare(end, Path(folder))
            command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *(tests or TESTS)]
            print(f"{end}: {' '.join(command)}", flush=True)
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                failed.append(end)
    print(f"bounds: failed with the {' and the '.join(failed)} versions" if failed else "bounds: all passed")
    return 1 if failed else 0


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return what stands before and behind the first ``--``."""
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
