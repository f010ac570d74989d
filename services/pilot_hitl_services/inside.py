"""Which requests are in the handler, in a file that outlives the process: whoever looks after its death is told.

The file is mapped, so that saying it costs a lone request a microsecond and no system call. The hub reads it once the
process is gone (:func:`pilot_hitl.wire.replicas.read_begun`); on another host that is right because the file was closed
before.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pilot_hitl.wire.replicas import BEGUN_HEAD, BEGUN_NUMBER, FINISHED_KEPT, Begun


class Inside:
    """The numbers of the requests that are in the handler, and of those that were answered last.

    An answer may be lost with the process that gave it. Where a request may run again that does no harm; where it may
    not, the numbers of the latest answers let its client know that it ran.
    """

    def __init__(self, path: Path | None, most: int, *, finished: bool) -> None:
        """Make the file, for at most ``most`` numbers at once, and with ``finished`` for the latest answers.

        Without a path, or where no file can be made, nobody is told.
        """
        self._numbers: tuple[int, ...] = ()
        self._finished: list[int] = []
        self._total = 0
        self._kept = FINISHED_KEPT if finished else 0
        self._most = most
        self._map: mmap.mmap | None = None
        if path is None:
            return
        size = struct.calcsize(BEGUN_HEAD) + (most + self._kept) * struct.calcsize(BEGUN_NUMBER)
        with suppress(OSError, ValueError):
            # Never closed: the file system of another host has it whole once the last descriptor is closed.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(file, 0, size)  # or a full disk would end the process when it is first written
            self._map = mmap.mmap(file, size)
            struct.pack_into(BEGUN_HEAD, self._map, 0, 0, most, self._kept, 0)

    def are(self, numbers: Collection[int]) -> None:
        """Take note that these, and no others, are in the handler."""
        self._numbers = tuple(numbers)
        if self._map is not None:
            head = struct.calcsize(BEGUN_HEAD)
            # The count last: whoever reads in between sees too few, and asks only once the process is gone.
            struct.pack_into(f"={len(self._numbers)}q", self._map, head, *self._numbers)
            struct.pack_into(BEGUN_NUMBER, self._map, 0, len(self._numbers))

    def finished(self, numbers: Collection[int]) -> None:
        """Take note that these are about to be answered, in this order; called before :meth:`are` leaves them out."""
        if not self._kept:
            return
        size = struct.calcsize(BEGUN_NUMBER)
        for number in numbers:
            at = self._total % self._kept
            self._total += 1
            self._finished[at : at + 1] = [number]
            if self._map is not None:
                where = struct.calcsize(BEGUN_HEAD) + (self._most + at) * size
                struct.pack_into(BEGUN_NUMBER, self._map, where, number)
                struct.pack_into(BEGUN_NUMBER, self._map, 3 * size, self._total)

    def begun(self) -> Begun:
        """Return what the file says; in any thread."""
        return Begun(self._numbers, tuple(self._finished), self._total)
