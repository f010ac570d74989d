"""The parts of a machine that some tests need, and how to find out whether they are here.

A probe returns None when the part works, else the reason in words. Where a part can be installed and still not work
(user namespaces switched off, a wrapper without its program) the probe tries it instead of looking for a file.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache

Probe = Callable[[], str | None]

REQUIRE_ALL = "PILOT_HITL_REQUIRE_ALL"
LONG = "PILOT_HITL_LONG"


class UnknownPartError(Exception):
    """A test asks for a part that has no probe: a misspelt name must not become a skip."""


def programs(*names: str) -> Probe:
    """All of these are on PATH (or where Debian puts daemons)."""

    def probe() -> str | None:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
        absent = [name for name in names if shutil.which(name, path=path) is None]
        return f"not on PATH: {', '.join(absent)}" if absent else None

    return probe


def works(*command: str) -> Probe:
    """This command exits with 0 within ten seconds."""

    def probe() -> str | None:
        absent = programs(command[0])()
        if absent is not None:
            return absent
        try:
            # USER: Charliecloud refuses to start without it, and CI often has none.
            env = {"USER": "nobody", **os.environ}
            ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=env)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if ended.returncode == 0:
            return None
        said = (ended.stderr or ended.stdout).strip().splitlines()
        return f"{' '.join(command)} exits with {ended.returncode}: {said[-1] if said else 'no output'}"

    return probe


def modules(*names: str) -> Probe:
    """These Python packages are installed; they are not imported, that may take seconds."""

    def probe() -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        return f"Python packages not installed: {', '.join(absent)}" if absent else None

    return probe


def every(*probes: Probe) -> Probe:
    """All of these hold; the first that does not gives the reason."""

    def probe() -> str | None:
        return next((reason for each in probes if (reason := each()) is not None), None)

    return probe


def inotify() -> str | None:
    """The kernel tells which files come into being, and has an instance of that to give."""
    descriptor: int = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return f"inotify_init1: {os.strerror(ctypes.get_errno())} (fs.inotify.max_user_instances?)"
    os.close(descriptor)
    return None


PROBES: Mapping[str, Probe] = {
    "slurm": programs("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "munged"),
    # Accounts that Slurm enforces.
    "slurmdbd": programs("slurmdbd", "sacctmgr", "mariadbd", "mariadb", "mariadb-admin", "mariadb-install-db"),
    # A "node" with a network of its own takes root, or at least the right to make namespaces.
    "netns": every(programs("ip"), works("unshare", "--net", "true")),
    # A file system of its own that can be filled.
    "mounts": works("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"),
    "openmpi": every(programs("mpicc", "gcc"), works("ompi_info", "--version")),
    "mpich": every(programs("mpicc.mpich", "gcc"), works("mpiexec.mpich", "--version")),
    "chromium": every(works("chromium", "--version"), works("chromedriver", "--version")),
    "sshd": programs("sshd", "ssh", "ssh-keygen"),
    "charliecloud": every(works("ch-run", "--version"), works("unshare", "--user", "true")),
    "bubblewrap": works("bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"),
    "torch": modules("torch"),
    "mpi4py": modules("mpi4py"),
    "inotify": inotify,
    "web": modules("starlette", "uvicorn", "jinja2"),
}


@cache
def missing(part: str) -> str | None:
    """Why ``part`` cannot be used here, or None when it can.

    Raises:
        UnknownPartError: no probe has that name.
    """
    try:
        probe = PROBES[part]
    except KeyError:
        known = ", ".join(sorted(PROBES))
        raise UnknownPartError(f"no probe for the part {part!r}; tests/parts.py knows {known}") from None
    reason = probe()
    return None if reason is None else f"{part}: {reason}"


def long_ones() -> bool:
    """True where tests that take minutes are wanted too (CI)."""
    return os.environ.get(LONG, "") not in {"", "0"}


def all_required() -> bool:
    """True where every part has been installed, so that a missing one is a fault (CI)."""
    return os.environ.get(REQUIRE_ALL, "") not in {"", "0"}
