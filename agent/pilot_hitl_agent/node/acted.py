"""Which attempts that act outside have begun and may not be known to have ended: they must not begin again.

An entry is there before its process is started, and until the hub has the end on disk. The table is a mapped file, so
it outlives the agent, and the next one tells the hub what stands there. A pilot of many nodes has none: its folder is
on a shared file system.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from pilot_hitl.model.states import State
from pilot_hitl.wire.messages import Report

_ENTRY = struct.Struct("<QQQ")
_FIRST = 1024
"""Entries at first; it doubles when they are taken."""

Attempt = tuple[int, int, int]
"""Task, epoch, run."""


class Acted:
    """The table of one node. A disk without room for it is no reason not to work: then it is in memory."""

    def __init__(self, path: Path) -> None:
        """Go on with what an earlier life left at a path."""
        self._path = path
        self._table: mmap.mmap | None = None
        self._free: list[int] = []
        self._places: dict[Attempt, int] = {}
        if path.exists():
            self._map(path.stat().st_size // _ENTRY.size)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._places)

    def attempts(self) -> list[Attempt]:
        """Return all that have begun, in this life or an earlier one."""
        return list(self._places)

    def begin(self, attempt: Attempt) -> None:
        """Write down that an attempt is about to begin."""
        if attempt in self._places:
            return
        if not self._free:
            self._map(max(_FIRST, 2 * len(self._places)))
        place = self._free.pop() if self._free else -1
        self._places[attempt] = place
        if self._table is not None and place >= 0:
            _ENTRY.pack_into(self._table, place, *attempt)

    def ended(self, attempt: Attempt) -> None:
        """Strike out what is known to have ended."""
        place = self._places.pop(attempt, -1)
        if self._table is not None and place >= 0:
            _ENTRY.pack_into(self._table, place, 0, 0, 0)
            self._free.append(place)

    def told(self, reports: Iterable[Report]) -> None:
        """Strike out what reports tell the end of; the hub has them on disk."""
        for report in reports:
            if report.state is not State.RUNNING:
                self.ended((report.task, report.epoch, report.run))

    def close(self) -> None:
        """Remove the table, unless somebody still has to be told."""
        if not self._places:
            with contextlib.suppress(OSError):  # mostly it was never made
                self._path.unlink()

    def _map(self, entries: int) -> None:
        """Take a table of at least so many entries in, or make it so large."""
        size = max(entries, _FIRST) * _ENTRY.size
        with contextlib.suppress(OSError, ValueError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Now, because a full disk is a SIGBUS later.
                os.posix_fallocate(fd, 0, size)
                self._table = mmap.mmap(fd, size)
            finally:
                os.close(fd)
            self._places = dict.fromkeys(self._places, -1)
            self._free = []
            for place in range(0, size, _ENTRY.size):
                if (found := _ENTRY.unpack_from(self._table, place))[0]:
                    self._places[found] = place
                else:
                    self._free.append(place)
