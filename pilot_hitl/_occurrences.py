"""Counts how often each piece of work was submitted, among millions, with little memory.

What was met lately lies in a dictionary. When that is full, it is written as a *run*, sorted by heads (the first eight
bytes of a digest), to a file without a name. A filter says of nearly all that is new that no run holds it, so the file
is only read for what comes again. When that has been read a lot, all runs are made one.

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
from itertools import repeat
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

RECENT = 1 << 16
"""Digests in the dictionary."""
FILTER_BYTES = 1 << 23
BITS_A_HEAD = 16
"""The filter is made larger before it has fewer: about five of a thousand new digests look as if they were known."""
READS = 1 << 14
"""All runs are made one after so many reads, and after no fewer than one for every fourth head in them."""
_PART_BITS = 10
_PARTS = 1 << _PART_BITS
"""A run is read in so many parts, by the first bits of the heads."""
_ENTRY = 12
"""Bytes of a head and its count. A part has its heads first and then their counts."""
_MOST = (1 << 32) - 1
_BLOCK = 1 << 16
_BITS = tuple(1 << bit for bit in range(8))
_LOW = 0 if sys.byteorder == "little" else 1
"""Which of the two words of a head is the lower one."""
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


class Occurrences:
    """How often each digest was met. Not safe to use from several threads."""

    def __init__(self, folder: Path, recent: int = RECENT, filter_bytes: int = FILTER_BYTES) -> None:
        """Know nothing; ``folder`` is where there is room, and is not touched before it is needed.

        ``filter_bytes`` is a power of two.
        """
        self._folder = folder
        self._limit = recent
        self._recent: dict[bytes, int] = {}
        self._runs: list[_Run] = []
        self._filter = bytearray()
        self._filter_bytes = filter_bytes
        self._reads = 0
        self._length = 0
        """Of all runs together."""

    def count(self, digests: Sequence[bytes]) -> list[int]:
        """Return how often each was met before, and note that it is met now; a digest has 16 bytes.

        Raises:
            OSError: what was written cannot be read any more.
        """
        found = self._met(digests) if self._runs else self._met_lately(digests)
        if len(self._recent) > self._limit:
            self._spill()
        return found

    def count_one(self, digest: bytes) -> int:
        """As :meth:`count`, of one: calls are submitted one by one."""
        before = self._recent.get(digest)
        if before is None:
            before = self._before(int.from_bytes(digest[:8], sys.byteorder)) if self._runs else 0
        self._recent[digest] = before + 1
        if len(self._recent) > self._limit:
            self._spill()
        return before

    def _before(self, head: int) -> int:
        known, mask = self._filter, len(self._filter) - 1
        # As _mark sets them.
        both = head ^ head >> 32
        if (
            known[head >> 3 & mask] >> (head & 7) & 1
            and known[head >> 32 & mask] >> (head >> 61) & 1
            and known[both >> 3 & mask] >> (both & 7) & 1
        ):
            return self._read(head)
        return 0

    def _met_lately(self, digests: Sequence[bytes]) -> list[int]:
        recent = self._recent
        found: list[int] = []
        for digest in digests:
            before = recent.get(digest, 0)
            recent[digest] = before + 1
            found.append(before)
        return found

    def _met(self, digests: Sequence[bytes]) -> list[int]:
        recent, known = self._recent, self._filter
        mask = len(known) - 1
        found: list[int] = []
        for digest, head in zip(digests, _heads(digests), strict=True):
            before = recent.get(digest)
            if before is None:
                # As _mark sets them; written out here, since this is done for every call.
                looks_known = (
                    known[head >> 3 & mask] >> (head & 7) & 1
                    and known[head >> 32 & mask] >> (head >> 61) & 1
                    and known[(head ^ head >> 32) >> 3 & mask] >> ((head ^ head >> 32) & 7) & 1
                )
                before = self._read(head) if looks_known else 0
            recent[digest] = before + 1
            found.append(before)
        return found

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
        """Write what is in the dictionary. It stays there, and may become more, where it cannot be written."""
        heads = _heads(self._recent)
        counts = dict(zip(heads, self._recent.values(), strict=True))
        if len(counts) < len(heads):
            for head, count in zip(heads, self._recent.values(), strict=True):
                counts[head] = max(count, counts[head])
        try:
            file, at = (self._runs[-1].file, self._runs[-1].end) if self._runs else (_File(self._folder), 0)
            self._runs.append(_write(file, at, _parts(counts)))
        except OSError:
            self._limit *= 2
            return
        self._recent.clear()
        self._length += len(counts)
        if self._length * BITS_A_HEAD > len(self._filter) * 8:
            self._filter = bytearray(max(self._filter_bytes, 2 * len(self._filter)))
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
        """Set three bits a head. Their places come from its lower half, its upper half, and where the two differ."""
        known, mask, bits = self._filter, len(self._filter) - 1, _BITS
        words = array("I", heads.tobytes())
        for low, high in zip(words[_LOW::2], words[1 - _LOW :: 2], strict=True):
            known[low >> 3 & mask] |= bits[low & 7]
            known[high & mask] |= bits[high >> 29]
            both = low ^ high
            known[both >> 3 & mask] |= bits[both & 7]


def _heads(digests: Iterable[bytes]) -> array[int]:
    return array("Q", b"".join(digests))[::2]


def _ordered(counts: Mapping[int, int]) -> _Part:
    ordered = sorted(counts)
    if max(counts.values(), default=1) == 1:  # mostly
        return array("Q", ordered), array("I", [1]) * len(ordered)
    return array("Q", ordered), array("I", map(min, map(counts.__getitem__, ordered), repeat(_MOST)))


def _parts(counts: Mapping[int, int]) -> Iterator[_Part]:
    """Yield what is counted, part by part."""
    heads, values = _ordered(counts)
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
