"""Facts about processes of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    # The command's name may hold blanks and brackets, so count from its last bracket.
    return int(text.rpartition(")")[2].split()[19])


def began_at(pid: int) -> float:
    """Return when a process started, in seconds since 1970 to the clock tick (10 ms); now when there is none."""
    ticks = start_time(pid)
    now = time.time()
    if not ticks:
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)
