"""Finds the tasks that have a resume key, among millions, with little memory.

The index is made from the session's file when it is first asked, which only happens once a script runs again or two
share a session, and lies in a file without a name: what is lost with it is made again. An entry is one number, the
beginning of the key and the place of its task, so what it finds is a guess; the whole keys are compared then.
"""

from __future__ import annotations

import io
import logging
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

_log = logging.getLogger(__name__)
KEY_BYTES = 16
PLACE_BITS = 28
"""Of an entry: the place of its task in the run. The rest of its 64 bits are the first ones of the key."""
PLACES = 1 << PLACE_BITS
PART_BITS = 6
"""Entries are sorted in so many parts, by the first bits of the key: only one part at a time is a list of objects."""
FENCE = 512
"""Entries in one read."""
TAIL = 1 << 16
"""Keys that may lie in a dictionary before they become a run."""
RUNS = 8
"""Runs that are looked through one by one before all are made one."""
_WORD = 8
Keyed = Iterable[tuple[int, bytes]]
"""``(first task, its key and those of the tasks after it)``."""


class Source(Protocol):
    """Where the keys are."""

    def incarnations(self) -> list[int]:
        """Return the incarnations that submitted anything."""

    def keyed(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield the keys of all bulks that begin between two ids; of tasks that took their value over, none."""

    def key_at(self, task: int) -> bytes:
        """Return the key of a task, empty for none."""


class _Run:
    """Sorted entries, on disk where there is room."""

    def __init__(self, folder: Path, keyed: Keyed) -> None:
        self._firsts: list[int] = []
        """First task of each stretch of consecutive ones; ``_places`` has the place of it."""
        self._places: list[int] = []
        self._fences = array("Q")
        self._data = self._file(folder)
        written = 0
        for part in self._parts(keyed):
            ordered = array("Q", sorted(part))
            self._fences.extend(ordered[-written % FENCE :: FENCE])
            self._write(ordered.tobytes(), written * _WORD)
            written += len(ordered)
            del part[:]

    @staticmethod
    def _file(folder: Path) -> BinaryIO:
        try:
            return tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            return _in_memory(error, b"")

    def _write(self, data: bytes, before: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._data.write(rest) :]
        except OSError as error:
            self._data.seek(0)
            there, self._data = self._data, _in_memory(error, self._data.read(before) + data)
            there.close()

    def _parts(self, keyed: Keyed) -> list[array[int]]:
        parts = [array("Q") for _ in range(1 << PART_BITS)]
        add = [part.append for part in parts]
        place, after, low, shift = 0, -1, PLACES - 1, 64 - PART_BITS
        for first, keys in keyed:
            count = len(keys) // KEY_BYTES
            if place + count > PLACES:
                _log.warning("more than %d tasks have resume keys: what is beyond them runs again", place)
                break
            if first != after:
                self._firsts.append(first)
                self._places.append(place)
            after = first + count
            for head in memoryview(keys)[: count * KEY_BYTES].cast("Q")[::2]:
                add[head >> shift](head & ~low | place)
                place += 1
        return parts

    def find(self, head: int) -> Iterator[int]:
        """Yield the tasks whose keys may begin with these eight bytes."""
        low = head & ~(PLACES - 1)
        at = max(0, bisect_right(self._fences, low) - 1)
        while at < len(self._fences) and (at == 0 or self._fences[at] < low + PLACES):
            self._data.seek(at * FENCE * _WORD)
            block = array("Q", self._data.read(FENCE * _WORD))
            for entry in block[bisect_left(block, low) : bisect_left(block, low + PLACES)]:
                place = entry & (PLACES - 1)
                stretch = bisect_right(self._places, place) - 1
                yield self._firsts[stretch] + place - self._places[stretch]
            at += 1

    def close(self) -> None:
        self._data.close()


def _in_memory(error: OSError, data: bytes) -> BinaryIO:
    _log.warning("the index of resume keys stays in memory, because it cannot be written: %s", error)
    made = io.BytesIO(data)
    made.seek(0, io.SEEK_END)
    return made


class KeyIndex:
    """Resume keys of all incarnations of a session.

    Keys are only looked at when *another* incarnation submits with keys: most sessions never pay for them.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        """Know nothing yet; ``folder`` is where there is room."""
        self._source = source
        self._folder = folder
        self._runs: list[_Run] = []
        self._tail: dict[int, list[int]] = {}
        self._unread: dict[int, tuple[int, int]] | None = None
        """By incarnation, the first and last id of bulks that were not read. None: nothing was."""

    def note(self, first: int) -> None:
        """Note that there is a new bulk with keys."""
        if self._unread is not None:
            low, high = self._unread.get(first >> 32, (first, first))
            self._unread[first >> 32] = (min(low, first), max(high, first))

    def sources(self, first: int, keys: bytes) -> tuple[tuple[int, int], ...]:
        """Return ``(offset, task)`` of the tasks of other incarnations that have the keys of a new bulk."""
        self._read(first >> 32)
        if not self._runs and not self._tail:
            return ()
        return tuple(self._find(first >> 32, keys))

    def _find(self, incarnation: int, keys: bytes) -> Iterator[tuple[int, int]]:
        count = len(keys) // KEY_BYTES
        for offset, head in enumerate(memoryview(keys)[: count * KEY_BYTES].cast("Q")[::2]):
            key = keys[offset * KEY_BYTES : (offset + 1) * KEY_BYTES]
            for task in chain(self._tail.get(head, ()), *(run.find(head) for run in self._runs)):
                if task >> 32 != incarnation and self._source.key_at(task) == key:
                    yield offset, task

    def _read(self, incarnation: int) -> None:
        """Read what other incarnations submitted since the last time."""
        if self._unread is None:
            self._unread = {each: (each << 32, (each + 1 << 32) - 1) for each in self._source.incarnations()}
        todo = [each for each in self._unread if each != incarnation]
        if not todo:
            return
        keyed = self._keyed([self._unread.pop(each) for each in sorted(todo)])
        few: list[tuple[int, bytes]] = []
        count = 0
        for first, keys in keyed:
            few.append((first, keys))
            count += len(keys) // KEY_BYTES
            if count > TAIL:
                self._runs.append(_Run(self._folder, chain(few, keyed)))
                break
        else:
            for first, keys in few:
                for at, head in enumerate(memoryview(keys).cast("Q")[::2]):
                    self._tail.setdefault(head, []).append(first + at)
        if len(self._tail) > TAIL or len(self._runs) > RUNS:
            self._make_one()

    def _make_one(self) -> None:
        self.close()
        self._tail, self._unread = {}, {}
        every = [(each << 32, (each + 1 << 32) - 1) for each in self._source.incarnations()]
        self._runs = [_Run(self._folder, self._keyed(every))]

    def _keyed(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        return chain.from_iterable(self._source.keyed(*each) for each in ranges)

    def close(self) -> None:
        """Give the files up."""
        for run in self._runs:
            run.close()
        self._runs = []
