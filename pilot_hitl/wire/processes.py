"""Facts about processes of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def runs(pid: int, started: int) -> bool:
    """Return whether a process that started then has not ended; one that nobody has asked for its end yet has."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in {"Z", "X"} and int(fields[19]) == started


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process after its name: state, parent, …; nothing when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # The command's name may hold blanks and brackets, so count from its last bracket.
    return text.rpartition(")")[2].split()


def began_at(pid: int) -> float:
    """Return when a process started, in seconds since 1970 to the clock tick (10 ms); now when there is none."""
    ticks = start_time(pid)
    now = time.time()
    if not ticks:
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)
