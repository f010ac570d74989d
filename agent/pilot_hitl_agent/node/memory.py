"""How much memory attempts use, looked at while any has a limit, and whether the kernel ran out of it.

``mem_per_rank`` is held by looking: the memory of a rank's whole process tree that belongs to nobody else (anonymous
and shared memory, each page divided among those who map it; neither mapped files nor the page cache). What a tree
takes and gives back between two looks is not seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

MB = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
FIRST_LOOK, SELDOM, OFTEN = 0.05, 0.25, 0.02
"""Seconds until an attempt is first looked at, and between two looks at most and at least."""
SHARE = 0.05
"""Part of a core that looking may cost; where there is much to look at, it is looked at less often."""
_COUNTED = (b"Pss_Anon:", b"Pss_Shmem:")
FORGET = 10.0
"""Seconds after which a kill of the kernel's is not taken for the cause of an end any more."""


def used(pids: Iterable[int], beyond: int = 0) -> int:
    """Return the bytes of memory that processes use; those that are gone use none.

    What is shared is counted exactly only when they might use more than ``beyond``, because that costs more.
    """
    pids = list(pids)
    rough = sum(map(_resident, pids))
    return sum(map(_own, pids)) if rough > beyond else rough


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _own(pid: int) -> int:
    """Return a process's part of anonymous and shared memory; its own resident part where the kernel says no more."""
    found, said = 0, False
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(_COUNTED):
                    found += int(line.split()[1]) * 1024
                    said = True
    except (OSError, IndexError, ValueError):
        said = False
    if said:
        return found
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            words = file.read().split()
        return max(0, int(words[1]) - int(words[2])) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


class Lookout:
    """When to look at the lanes whose attempts have a limit. Knows no process."""

    def __init__(self) -> None:
        """Begin with nothing to look at."""
        self.limits: dict[int, int] = {}
        """Bytes that a rank of a lane may use."""
        self.due: float | None = None
        self._fullest: dict[int, tuple[float, float]] = {}

    def add(self, lane: int, megabytes: int, now: float) -> None:
        """Look at a lane from now on."""
        self.limits[lane] = megabytes * MB
        self.due = now + FIRST_LOOK if self.due is None else min(self.due, now + FIRST_LOOK)

    def drop(self, lane: int) -> None:
        """Look at a lane no more."""
        self.limits.pop(lane, None)
        self._fullest.pop(lane, None)

    def looked(self, fullness: dict[int, float], now: float, cost: float) -> None:
        """Take in how full lanes are (1: at their limit) and decide when to look next; a look took ``cost`` seconds."""
        if not self.limits:
            self.due = None
            return
        wait = SELDOM
        for lane, full in fullness.items():
            at, before = self._fullest.get(lane, (now - SELDOM, 0.0))
            growth = (full - before) / max(now - at, 1e-3)
            self._fullest[lane] = (now, full)
            if growth > 0:
                # Half of the time that is left at this pace.
                wait = min(wait, max(0.0, 1.0 - full) / growth / 2)
        self.due = now + max(OFTEN, wait, cost / SHARE)


class KernelKills:
    """Whether the kernel killed something because memory ran out."""

    def __init__(self, path: str = "/proc/vmstat") -> None:
        """Count from now on."""
        self._path = Path(path)
        self._known = self._next = self._count()
        self._read = time.monotonic()

    def refresh(self) -> None:
        """Forget what happened before: it explains no end that comes later."""
        if time.monotonic() - self._read > FORGET:
            self._known, self._read = self._next, time.monotonic()
            self._next = self._count()

    def took(self) -> bool:
        """Return whether it killed something lately that explains no other end yet."""
        if self._count() <= self._known:
            return False
        self._known += 1
        return True

    def _count(self) -> int:
        try:
            for line in self._path.read_bytes().splitlines():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return 0
