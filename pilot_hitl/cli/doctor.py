"""``pilot-hitl doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import msgspec
import typer

from pilot_hitl.cli._home import JsonOption, home
from pilot_hitl.cli._show import put_json, put_rows
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire.places import HOME_VARIABLE, SOCKET_PATH_LIMIT, private_folder, runtime_folder

app = typer.Typer(add_completion=False)

OK, WARN, BROKEN, ABSENT = "ok", "warning", "broken", "absent"
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


class Check(msgspec.Struct, frozen=True):
    """One finding. ``broken`` is something without which nothing works; ``absent`` something that may be missing."""

    name: str
    state: str
    found: str
    remedy: str = ""


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Check this machine; exit code 1 when something necessary is broken."""
    checks = [check for part in CHECKS for check in _careful(part)]
    rows: list[dict[str, Json]] = [msgspec.to_builtins(check) for check in checks]
    broken = any(check.state == BROKEN for check in checks)
    if as_json:
        put_json({"ok": not broken, "checks": [dict(row) for row in rows]})
    else:
        put_rows(rows, ("name", "state", "found", "remedy"), "")
    if broken:
        raise typer.Exit(1)


def python() -> Iterator[Check]:
    """Version and system."""
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} ({sys.executable})"
    yield Check("python", OK if good else BROKEN, found, "" if good else "use Python 3.11 or later")
    linux = sys.platform == "linux"
    yield Check("system", OK if linux else BROKEN, platform.platform(), "" if linux else "only Linux is supported")


def packages() -> Iterator[Check]:
    """What the distribution requires; extras are not looked at."""
    for line in requires("pilot-hitl") or []:
        match = _NAME.match(line)
        if match is None or "extra ==" in line:
            continue
        try:
            yield Check(f"package {match[0]}", OK, version(match[0]))
        except PackageNotFoundError:
            yield Check(f"package {match[0]}", BROKEN, "not installed", f"pip install '{line}'")
    import zmq

    curve = zmq.has("curve")
    remedy = "" if curve else "install the pyzmq wheel from PyPI, or a libzmq with libsodium"
    yield Check("zmq curve", OK if curve else BROKEN, f"libzmq {zmq.zmq_version()}", remedy)
    yield Check("sqlite", OK, sqlite3.sqlite_version)


def home_folder() -> Iterator[Check]:
    """Permissions and file system of the home."""
    where = home()
    if where.exists():
        try:
            private_folder(where)
            yield Check("home", OK, str(where))
        except PermissionError as error:
            yield Check("home", BROKEN, str(where), str(error))
    else:
        yield Check("home", OK, f"{where} (not made yet)")
    parent = where
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(parent).free >> 20
        little = free < 1024
        remedy = f"make room, or set {HOME_VARIABLE} to another place" if little else ""
        yield Check("home writable", WARN if little else OK, f"{free} MB free", remedy)
    except OSError as error:
        yield Check("home writable", BROKEN, str(error), f"set {HOME_VARIABLE} to a place that you can write")
    yield _file_system(parent)


def _file_system(where: Path) -> Check:
    from pilot_hitl.hub.filesystem import is_local, kind_of

    kind = kind_of(where)
    if is_local(where):
        return Check("home file system", OK, f"{kind}: local, write-ahead log")
    return Check("home file system", OK, f"{kind}: shared, rollback journal with full sync (slower commits)")


def sockets() -> Iterator[Check]:
    """Length of the socket path, and the folder for temporary files."""
    path = runtime_folder(home()) / "hub.sock"
    length = len(os.fsencode(path))
    good = length <= SOCKET_PATH_LIMIT
    remedy = "" if good else "set XDG_RUNTIME_DIR or TMPDIR to a shorter path"
    yield Check("socket path", OK if good else BROKEN, f"{length} of {SOCKET_PATH_LIMIT} bytes: {path}", remedy)
    base = path.parent.parent
    able = os.access(base, os.W_OK | os.X_OK)
    yield Check("socket folder", OK if able else BROKEN, str(base), "" if able else f"make {base} writable")
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free >> 20
    little = free < 256
    remedy = "make room, or set TMPDIR to another place" if little else ""
    yield Check("temporary folder", WARN if little else OK, f"{temporary}, {free} MB free", remedy)


def cores() -> Iterator[Check]:
    """Cores that this process may use, and limits on processes and files."""
    total, mine = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    found = f"{mine} of {total} usable"
    if quota and quota < mine:
        found += f"; a control group allows the time of {quota:g}"
    yield Check("cores", WARN if quota and quota < mine else OK, found)
    for name, what, least in (
        ("open files", resource.RLIMIT_NOFILE, 1024),
        ("processes", resource.RLIMIT_NPROC, 1024),
    ):
        soft, hard = resource.getrlimit(what)
        unlimited = soft == resource.RLIM_INFINITY
        few = not unlimited and soft < least
        remedy = "raise it with ulimit, or ask the administrators" if few else ""
        limit = "unlimited" if unlimited else str(soft)
        ceiling = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        yield Check(f"limit of {name}", WARN if few else OK, f"{limit} (at most {ceiling})", remedy)


def _cpu_quota() -> float:
    """Cores' worth of time that the control group allows; 0 for no limit."""
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        for folder in (Path("/sys/fs/cgroup" + group), Path("/sys/fs/cgroup")):
            limit = folder / "cpu.max"
            if limit.exists():
                share, period = limit.read_text().split()
                return 0.0 if share == "max" else int(share) / int(period)
    except (OSError, ValueError):
        pass
    return 0.0


def programs() -> Iterator[Check]:
    """Batch system, MPI launchers, containers, GPUs."""
    slurm = {name: shutil.which(name) for name in ("sbatch", "srun", "squeue", "scancel")}
    missing = [name for name, path in slurm.items() if path is None]
    if not missing:
        yield Check("slurm", OK, _first_line("sbatch", "--version"))
    elif len(missing) == len(slurm):
        yield Check("slurm", ABSENT, "no commands", "pilots run here (local) or on a host that has them")
    else:
        yield Check("slurm", WARN, f"missing: {', '.join(missing)}", "load the site's slurm module")
    yield _any_of("mpi launcher", ("srun", "mpirun", "mpiexec", "prterun", "flux"), "only single-rank tasks run")
    engines = ("apptainer", "singularity", "ch-run", "podman", "docker", "enroot")
    yield _any_of("containers", engines, "TaskDescription(container=…) cannot be used")
    yield _any_of("gpu tools", ("nvidia-smi", "rocm-smi", "xpu-smi"), "no GPUs are found")


def _any_of(name: str, commands: tuple[str, ...], without: str) -> Check:
    found = [command for command in commands if shutil.which(command)]
    return (
        Check(name, OK, ", ".join(found)) if found else Check(name, ABSENT, f"none of {', '.join(commands)}", without)
    )


def _first_line(*command: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (ended.stdout or ended.stderr).strip().splitlines()
    return lines[0] if lines else f"exit code {ended.returncode}"


def _careful(part: Callable[[], Iterator[Check]]) -> list[Check]:
    """Run one part; what goes wrong in it is a finding and not the end of the others."""
    found: list[Check] = []
    try:
        found.extend(part())
    except Exception as error:  # boundary: a doctor must not die of the patient
        found.append(Check(part.__name__, BROKEN, f"{type(error).__name__}: {error}"))
    return found


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (python, packages, home_folder, sockets, cores, programs)
"""The parts of the examination, in the order in which they are shown."""
