"""Which tasks have ended for good, as runs of ids: what is kept of them when their bulks are forgotten."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk


class Range(msgspec.Struct):
    """Tasks ``first … first+count-1``, all of which ended; ``states`` says how many in which state."""

    first: int
    count: int
    states: dict[int, int]

    @property
    def end(self) -> int:
        """Return the first id after it."""
        return self.first + self.count


class Ended:
    """Runs of ended tasks, in order; neighbours are one run.

    Attributes:
        changed: runs that are new or longer since somebody looked last, by first id; whoever looks empties it.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._ranges: list[Range] = []
        self._firsts: list[int] = []
        self.changed: dict[int, Range] = {}

    def add(self, bulk: Bulk) -> None:
        """Note a bulk all of whose tasks have ended. It overlaps with none that is there."""
        states = {state: bulk.states.count(state) for state in set(bulk.states)}
        self._put(Range(bulk.first, bulk.count, states))

    def restore(self, found: Range) -> None:
        """Take in a run as it was told by :attr:`changed` before."""
        self._put(found)
        self.changed.clear()

    def _put(self, new: Range) -> None:
        at = bisect_right(self._firsts, new.first)
        before = self._ranges[at - 1] if at else None
        if before is not None and before.end == new.first and before.first >> 32 == new.first >> 32:
            before.count += new.count
            self._count(before, new)
            new, at = before, at - 1
        else:
            self._ranges.insert(at, new)
            insort(self._firsts, new.first)
        after = self._ranges[at + 1] if at + 1 < len(self._ranges) else None
        if after is not None and new.end == after.first and after.first >> 32 == new.first >> 32:
            new.count += after.count
            self._count(new, after)
            del self._ranges[at + 1], self._firsts[at + 1]
            self.changed.pop(after.first, None)
        self.changed[new.first] = new

    @staticmethod
    def _count(into: Range, other: Range) -> None:
        for state, count in other.states.items():
            into.states[state] = into.states.get(state, 0) + count

    def __contains__(self, task: int) -> bool:
        """Return whether a task lies in a run."""
        at = bisect_right(self._firsts, task) - 1
        return at >= 0 and task < self._ranges[at].end

    def __iter__(self) -> Iterator[Range]:
        """Yield the runs by id."""
        return iter(self._ranges)

    def overlapping(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield ``(first, end)`` of what lies between two ids."""
        at = max(0, bisect_right(self._firsts, first) - 1)
        while at < len(self._ranges) and self._firsts[at] < first + count:
            begin, end = max(first, self._firsts[at]), min(first + count, self._ranges[at].end)
            if begin < end:
                yield begin, end
            at += 1
