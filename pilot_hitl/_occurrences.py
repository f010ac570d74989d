"""Counts how often each piece of work was submitted, among millions, with little memory.

What was met lately lies in a table. When that is full, it is written as a *run*, sorted by heads (the first eight
bytes of a digest), to a file without a name. A filter says of nearly all that is new that no run holds it, so the file
is only read for what comes again. When that has been read a lot, all runs are made one.

The table is two arrays and holds no objects. Digests that were kept would lie among all that is made for a burst of
submits and is gone soon after; each would keep a piece of memory from being given back, for as long as it is recent.

Two digests with one head are counted together. That is harmless: no digest is given a number twice, and the same script
is given the same numbers again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from itertools import compress, repeat
from operator import or_
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

RECENT = 1 << 16
"""Heads in the table before it is written."""
_FIRST_SLOTS = 1 << 6
FILTER_BYTES = 1 << 23
BITS_A_HEAD = 16
"""The filter is made larger before it has fewer: about five of a thousand new digests look as if they were known."""
_MARK_BITS = 12
_MARK_MASK = (1 << _MARK_BITS) - 1
"""What of a head says which bits are set for it in a word of the filter; the bits before say in which word."""
_BITS_A_MARK = 5
READS = 1 << 14
"""All runs are made one after so many reads, and after no fewer than one for every fourth head in them."""
_PART_BITS = 10
_PARTS = 1 << _PART_BITS
"""A run is read in so many parts, by the first bits of the heads."""
_ENTRY = 12
"""Bytes of a head and its count. A part has its heads first and then their counts."""
_MOST = (1 << 32) - 1
_BLOCK = 1 << 16
_Part = tuple["array[int]", "array[int]"]
"""Heads in order, and the counts of each."""


class _File:
    """A file without a name, which is gone with this object."""

    def __init__(self, folder: Path) -> None:
        try:
            self.descriptor, path = tempfile.mkstemp(dir=folder)
        except OSError:
            self.descriptor, path = tempfile.mkstemp()
        finalize(self, os.close, self.descriptor)
        os.unlink(path)


class _Run(NamedTuple):
    """A place of a file. ``starts``: how many heads lie before each part, and how many there are."""

    file: _File
    at: int
    starts: array[int]

    @property
    def length(self) -> int:
        return self.starts[-1]

    @property
    def end(self) -> int:
        return self.at + self.length * _ENTRY

    def part(self, number: int) -> _Part:
        """Return the heads of a part, and their counts."""
        low, high = self.starts[number], self.starts[number + 1]
        data = os.pread(self.file.descriptor, (high - low) * _ENTRY, self.at + low * _ENTRY)
        if len(data) != (high - low) * _ENTRY:
            raise OSError("the file in which this session counts equal tasks was cut off: open the session again")
        heads = (high - low) * 8
        return array("Q", data[:heads]), array("I", data[heads:])


class _Table:
    """How often heads were met: open addressing, so that a head lies in the first free slot from its own on.

    Attributes:
        heads: by slot.
        counts: by slot; 0 where it is free.
        mask: the slots are a power of two; what this leaves of a head is its own slot.
        used: how many slots are not free.
    """

    __slots__ = ("counts", "heads", "mask", "used")

    def __init__(self) -> None:
        """Be empty, and small."""
        self._with_slots(_FIRST_SLOTS)

    def _with_slots(self, slots: int) -> None:
        self.heads = array("Q", [0]) * slots
        self.counts = array("I", [0]) * slots
        self.mask = slots - 1
        self.used = 0

    def slot(self, head: int) -> int:
        """Return where a head is, or would be."""
        slot = head & self.mask
        while self.counts[slot] and self.heads[slot] != head:
            slot = slot + 1 & self.mask
        return slot

    def make_room(self, more: int) -> None:
        """Have so many slots that a third of them stays free when ``more`` heads have come."""
        slots = len(self.counts)
        while (self.used + more) * 3 > slots * 2:
            slots *= 2
        if slots == len(self.counts):
            return
        heads, counts, used = self.heads, self.counts, self.used
        self._with_slots(slots)
        self.used = used
        for head, count in zip(compress(heads, counts), filter(None, counts), strict=True):
            slot = self.slot(head)
            self.heads[slot], self.counts[slot] = head, count

    def ordered(self) -> _Part:
        """Return the heads in order, and their counts."""
        ordered = array("Q", sorted(compress(self.heads, self.counts)))
        if max(self.counts) == 1:  # mostly
            return ordered, array("I", [1]) * len(ordered)
        return ordered, array("I", [self.counts[self.slot(head)] for head in ordered])

    def clear(self) -> None:
        """Free all slots; the memory stays, since as much is needed again."""
        free = array("I", [0]) * _FIRST_SLOTS
        for at in range(0, len(self.counts), _FIRST_SLOTS):
            self.counts[at : at + _FIRST_SLOTS] = free
        self.used = 0


class Occurrences:
    """How often each digest was met. Not safe to use from several threads."""

    def __init__(self, folder: Path, recent: int = RECENT, filter_bytes: int = FILTER_BYTES) -> None:
        """Know nothing; ``folder`` is where there is room, and is not touched before it is needed.

        ``filter_bytes`` is a power of two.
        """
        self._folder = folder
        self._limit = recent
        self._recent = _Table()
        self._runs: list[_Run] = []
        self._filter = array("Q")
        """Words in each of which a few bits are set for a head; none while there are no runs."""
        self._marks: Sequence[int] = ()
        self._filter_bytes = filter_bytes
        self._reads = 0
        self._length = 0
        """Of all runs together."""

    def count(self, digests: Sequence[bytes]) -> list[int]:
        """Return how often each was met before, and note that it is met now; a digest has 16 bytes.

        Raises:
            OSError: what was written cannot be read any more.
        """
        recent, known, marks = self._recent, self._filter, self._marks
        recent.make_room(len(digests))
        heads, counts, mask, words = recent.heads, recent.counts, recent.mask, len(known) - 1
        found: list[int] = []
        for head in _heads(digests):
            # As _Table.slot and _mark; written out here, since this is done for every call.
            slot = head & mask
            while (before := counts[slot]) and heads[slot] != head:
                slot = slot + 1 & mask
            if not before:
                if known and known[head >> _MARK_BITS & words] & (bits := marks[head & _MARK_MASK]) == bits:
                    before = self._read(head)
                heads[slot] = head
                recent.used += 1
            counts[slot] = before + 1
            found.append(before)
        if recent.used > self._limit:
            self._spill()
        return found

    def count_one(self, digest: bytes) -> int:
        """As :meth:`count`, of one: calls are submitted one by one."""
        recent = self._recent
        head = int.from_bytes(digest[:8], sys.byteorder)
        counts, slot = recent.counts, head & recent.mask
        while (before := counts[slot]) and recent.heads[slot] != head:
            slot = slot + 1 & recent.mask
        if before:
            counts[slot] = before + 1
            return before
        known = self._filter
        if known and known[head >> _MARK_BITS & len(known) - 1] & (bits := self._marks[head & _MARK_MASK]) == bits:
            before = self._read(head)
        recent.heads[slot] = head
        counts[slot] = before + 1
        recent.used = used = recent.used + 1
        if used > self._limit:
            self._spill()
        elif used * 3 > len(counts) * 2:
            recent.make_room(1)
        return before

    def _read(self, head: int) -> int:
        self._reads += len(self._runs)
        if len(self._runs) > 1 and self._reads > max(READS, self._length // 4):
            self._reads = 0
            self._make_one()
        for run in reversed(self._runs):
            heads, counts = run.part(head >> 64 - _PART_BITS)
            at = bisect_left(heads, head)
            if at < len(heads) and heads[at] == head:
                return counts[at]
        return 0

    # --- writing ------------------------------------------------------------------------------------------------------

    def _spill(self) -> None:
        """Write what is in the table. It stays there, and may become more, where it cannot be written."""
        recent = self._recent
        heads, counts = recent.ordered()
        try:
            file, at = (self._runs[-1].file, self._runs[-1].end) if self._runs else (_File(self._folder), 0)
            self._runs.append(_write(file, at, _parts(heads, counts)))
        except OSError:
            self._limit *= 2
            recent.make_room(1)
            return
        recent.clear()
        self._length += len(heads)
        if self._length * BITS_A_HEAD > len(self._filter) * 64:
            self._marks = _marks()
            self._filter = array("Q", [0]) * max(1, self._filter_bytes // 8, 2 * len(self._filter))
            for run in self._runs:
                for number in range(_PARTS):
                    self._mark(run.part(number)[0])
        else:
            self._mark(heads)

    def _make_one(self) -> None:
        """Write all runs as one; where that cannot be done they stay."""
        try:
            self._runs[:] = [_write(_File(self._folder), 0, _merged(self._runs))]
        except OSError:
            return
        self._length = self._runs[0].length

    def _mark(self, heads: array[int]) -> None:
        """Set the bits of heads: all of a head are in one word, so one look into the filter finds them."""
        known, mask, marks = self._filter, len(self._filter) - 1, self._marks
        for head in heads:
            known[head >> _MARK_BITS & mask] |= marks[head & _MARK_MASK]


@cache
def _marks() -> Sequence[int]:
    """Return the bits of a word that are set for a head, by its last bits. Made late: it takes a moment."""
    found: list[int] = []
    mixed = 0
    for _ in range(_MARK_MASK + 1):
        mixed = mixed * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1  # Knuth's generator: any bits do
        found.append(reduce(or_, (1 << (mixed >> 58 - 6 * each & 63) for each in range(_BITS_A_MARK))))
    return found


def _heads(digests: Iterable[bytes]) -> array[int]:
    return array("Q", b"".join(digests))[::2]


def _ordered(counts: Mapping[int, int]) -> _Part:
    ordered = sorted(counts)
    if max(counts.values(), default=1) == 1:  # mostly
        return array("Q", ordered), array("I", [1]) * len(ordered)
    return array("Q", ordered), array("I", map(min, map(counts.__getitem__, ordered), repeat(_MOST)))


def _parts(heads: array[int], values: array[int]) -> Iterator[_Part]:
    """Yield what is counted, part by part."""
    low = 0
    for number in range(1, _PARTS + 1):
        high = bisect_left(heads, number << 64 - _PART_BITS, low)
        yield heads[low:high], values[low:high]
        low = high


def _merged(runs: Iterable[_Run]) -> Iterator[_Part]:
    """Yield the parts of all runs; the newest count of a head is the highest."""
    for number in range(_PARTS):
        together: dict[int, int] = {}
        for run in runs:
            together.update(zip(*run.part(number), strict=True))
        yield _ordered(together)


def _write(file: _File, at: int, parts: Iterable[_Part]) -> _Run:
    starts = array("Q", [0])
    block = bytearray()
    place = at
    for heads, counts in parts:
        block += heads.tobytes()
        block += counts.tobytes()
        starts.append(starts[-1] + len(heads))
        if len(block) > _BLOCK:
            place = _put(file, place, block)
            block.clear()
    _put(file, place, block)
    return _Run(file, at, starts)


def _put(file: _File, place: int, block: bytearray) -> int:
    rest = memoryview(block)
    try:
        while rest:
            written = os.pwrite(file.descriptor, rest, place)
            place += written
            rest = rest[written:]
    finally:
        rest.release()
    return place
