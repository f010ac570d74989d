"""CPU time and memory of all processes of a session, by kind: read from ``/proc``, so nothing is added to them."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("client", "hub", "agent", "spawner", "nursery", "worker")


def of_home(home: Path) -> dict[int, str]:
    """Return the kind of every process of ours that serves ``home``, and of their children, by process number."""
    lines = {int(each.name): _command(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdecimal()}
    parents = {pid: _parent(pid) for pid in lines}
    found: dict[int, str] = {}
    for pid, line in lines.items():
        if str(home) in line and pid != os.getpid():
            found[pid] = _kind(line)
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if pid not in found and parent in found and "pilot_hitl" in lines[pid]:
                found[pid] = "worker" if "nursery" in lines.get(parent, "") else _kind(lines[pid])
                grown = True
    return {pid: kind for pid, kind in found.items() if kind}


def _kind(line: str) -> str:
    for mark, kind in (
        ("pilot_hitl.hub", "hub"),
        ("nursery", "nursery"),
        ("spawner_main.py", "spawner"),
        ("pilot_hitl_agent.node.spawner", "spawner"),
        ("pilot_hitl_agent", "agent"),
    ):
        if mark in line:
            return kind
    return ""


def cpu_seconds(home: Path) -> dict[str, float]:
    """Return what each kind of process has used so far (user and system), the calling one as ``client``."""
    used = dict.fromkeys(KINDS, 0.0)
    used["client"] = _cpu(os.getpid())
    for pid, kind in of_home(home).items():
        used[kind] += _cpu(pid)
    return used


def cpu_between(before: dict[str, float], after: dict[str, float], tasks: int) -> dict[str, float]:
    """Return microseconds a task by kind."""
    return {kind: max(0.0, after[kind] - before[kind]) / tasks * 1e6 for kind in KINDS}


def pss_mb(home: Path) -> dict[str, float]:
    """Return the proportional share of memory by kind of process, in MB, without the client."""
    found = dict.fromkeys(KINDS[1:], 0.0)
    for pid, kind in of_home(home).items():
        found[kind] += _pss(pid)
    return found


def peak_mb() -> float:
    """Return the most memory that this process ever had resident since :func:`forget_peak`, in MB."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    return 0.0


def forget_peak() -> None:
    """Let :func:`peak_mb` count from now."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _cpu(pid: int) -> float:
    """Return seconds over all threads; from the scheduler's own account, which counts in nanoseconds."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_bytes().split()[0]) for thread in threads) / 1e9
    except (OSError, IndexError):
        return 0.0


def _pss(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii", "replace").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    return 0.0
