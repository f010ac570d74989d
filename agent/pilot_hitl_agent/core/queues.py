"""Queues: attempts that wait, as runs of numbers. A million queued attempts of one bulk are one object."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core.attempt import Attempt
from pilot_hitl_agent.core.chains import Chain
from pilot_hitl_agent.core.events import Bulk
from pilot_hitl_agent.core.shapes import Form

if TYPE_CHECKING:
    from pilot_hitl_agent.core.claims import Reservation

Level = tuple[int, int, float]
"""``(tier, -priority, -score)``: the smaller one goes first, strictly."""


class Run:
    """The tasks ``next … end-1`` without ``holes``; the order of arrival of a task is ``base + task``."""

    __slots__ = ("base", "bulk", "end", "holes", "next", "queue")

    def __init__(self, bulk: Bulk, first: int, end: int, base: int, queue: Queue) -> None:
        self.bulk = bulk
        self.next = first
        self.end = end
        self.base = base
        self.queue = queue
        self.holes: set[int] = set()

    def __len__(self) -> int:
        return self.end - self.next - len(self.holes)

    def remove(self, task: int) -> None:
        """Take one task out; it must be in."""
        self.holes.add(task)
        self.tidy()

    def tidy(self) -> None:
        """Make ``next`` a task that is in, and ``end`` one more than such a task."""
        holes = self.holes
        while self.next in holes:
            holes.remove(self.next)
            self.next += 1
        while self.end - 1 in holes:
            self.end -= 1
            holes.remove(self.end)

    def tasks(self) -> Iterator[int]:
        """Yield the tasks in order."""
        for task in range(self.next, self.end):
            if task not in self.holes:
                yield task

    def spans(self) -> list[tuple[int, int]]:
        """Return the tasks as ``(first, count)`` runs."""
        found = []
        first = self.next
        for hole in (*sorted(self.holes), self.end):
            if hole > first:
                found.append((first, hole - first))
            first = hole + 1
        return found


def slips_in(new: Bulk, old: Bulk) -> bool:
    """Return whether the new bulk may have, for a while, slots that a plan waits for and the old one may not.

    The bulks are of one queue. It is what else a plan looks at, beside the queue: see ``placement.yields``.
    """
    if old.on_preempt == "finish" and new.on_preempt != "finish":
        return True
    before, now = old.expected_runtime, new.expected_runtime
    return now > 0 and (not before or now < before)


class Queue:
    """Attempts that are alike for scheduling.

    Attributes:
        base_tier: as submitted; tier, level, preemptible and chain follow from it and the condition.
        fresh: it may fit somewhere that did not change; else only nodes that changed need a look.
        running: its attempts that have slots, in order of start; victims: those that may be told to give way.
        held: its attempts that are held ahead.
        runs: in order of arrival; back: a heap of those that came back and are older than the last of ``runs``.
        late: runs that cannot end before the pilot does.
        hopeless: ``World.changes`` when no slots could be planned for it.
        reservation: slots that it may use once it is needed.
        parent: the task whose lent cores it may use although it is needed, 0 for none.
        kept: the checkpoint whose reservation it may use whatever its condition, 0 for none.
    """

    __slots__ = (
        "back", "base_tier", "chain", "condition", "count", "form", "fresh", "held", "hopeless", "kept", "kind", "late",
        "level", "parent", "preemptible", "priority", "reservation", "running", "runs", "slowest", "tier", "victims",
    )  # fmt: skip

    def __init__(self, tier: Tier, priority: int, condition: int, form: Form, kind: int, chain: Chain) -> None:
        self.base_tier = self.tier = tier
        self.priority = priority
        self.condition = condition
        self.form = form
        self.kind = kind
        self.chain = chain
        self.level: Level = (tier, -priority, 0.0)
        self.preemptible = tier >= Tier.SPECULATIVE
        self.runs: deque[Run] = deque()
        self.back: list[tuple[int, Run]] = []
        self.count = 0
        self.fresh = True
        self.running: dict[int, Attempt] = {}
        self.victims: dict[int, Attempt] = {}
        self.held: dict[int, Attempt] = {}
        self.late: list[Run] = []
        self.reservation: Reservation | None = None
        self.parent = 0
        self.kept = 0
        self.slowest = 0.0
        self.hopeless = -1

    @property
    def head(self) -> int:
        """Order of arrival of the first; the queue must not be empty."""
        run = self.first
        return run.base + run.next

    @property
    def first(self) -> Run:
        """The run that comes first; the queue must not be empty."""
        runs, back = self.runs, self.back
        if back and not (runs and runs[0].base + runs[0].next < back[0][0]):
            return back[0][1]
        return runs[0]

    def waiting(self) -> list[Run]:
        """Return all runs that are not late, in no particular order."""
        return [*self.runs, *(run for _, run in self.back)]

    def settle_first(self, run: Run) -> None:
        """Put the first run where it belongs after its first task was taken, or forget it when it is empty."""
        back = self.back
        if back and back[0][1] is run:
            if run.next >= run.end:
                heappop(back)
            else:
                heapreplace(back, (run.base + run.next, run))
        elif run.next >= run.end:
            self.runs.popleft()

    def remove(self, run: Run) -> None:
        """Take a whole run out; ``count`` is the caller's."""
        if run in self.late:
            self.late.remove(run)
        elif run in self.runs:
            self.runs.remove(run)
        else:
            self.back = [(start, other) for start, other in self.back if other is not run]
            heapify(self.back)

    def reorder(self) -> None:
        """Bring the order of what came back up to date after runs lost tasks."""
        self.back = [(run.base + run.next, run) for _, run in self.back]
        heapify(self.back)

    def clear(self) -> None:
        """Forget all runs."""
        self.runs.clear()
        self.back.clear()
        self.late.clear()
        self.count = 0

    def insert(self, run: Run) -> None:
        """Queue a run in order of arrival."""
        if not self.count:
            self.fresh = True
        self.count += len(run)
        runs = self.runs
        start = run.base + run.next
        if not runs or runs[-1].base + runs[-1].next < start:
            runs.append(run)
            return
        heappush(self.back, (start, run))
        if self.first is run:
            # Another first one: it may take less time than the one that did not fit.
            self.fresh = True

    def park(self, now: float, ends: float) -> None:
        """Put runs aside that cannot end in time, until the first one can."""
        while self.count:
            run = self.first
            if now + run.bulk.expected_runtime <= ends or not run.bulk.expected_runtime:
                return
            self.remove(run)
            self.late.append(run)
            self.fresh = True
            self.count -= len(run)

    def unpark(self) -> None:
        """Take everything that was put aside back."""
        late, self.late = self.late, []
        for run in late:
            self.insert(run)


class RunFinder:
    """Finds the run of a queued task."""

    def __init__(self) -> None:
        self._single: dict[int, Run] = {}
        self._starts: list[int] = []
        self._long: dict[int, Run] = {}
        self._keys: dict[int, int] = {}

    def add(self, run: Run) -> None:
        """Remember a run; runs do not overlap."""
        if run.end - run.next == 1:
            self._single[run.next] = run
            return
        start = run.next
        self._long[start] = run
        self._keys[id(run)] = start
        if not self._starts or self._starts[-1] < start:
            self._starts.append(start)
        else:
            self._starts.insert(bisect_right(self._starts, start), start)

    def drop(self, run: Run) -> None:
        """Forget a run that has become empty or is taken out."""
        start = self._keys.pop(id(run), None)
        if start is None:
            for task in (run.next, run.next - 1):
                if self._single.get(task) is run:
                    del self._single[task]
            return
        del self._long[start]
        del self._starts[bisect_right(self._starts, start) - 1]

    def find(self, task: int) -> Run | None:
        """Return the run that a queued task is in."""
        run = self._single.get(task)
        if run is None:
            place = bisect_right(self._starts, task)
            if not place:
                return None
            run = self._long[self._starts[place - 1]]
        return run if run.next <= task < run.end and task not in run.holes else None

    def overlapping(self, first: int, count: int) -> list[Run]:
        """Return the runs with a task in ``first … first+count-1`` (or a hole there)."""
        if count <= len(self._single):
            found = [self._single[task] for task in range(first, first + count) if task in self._single]
        else:
            found = [run for task, run in self._single.items() if first <= task < first + count]
        place = max(0, bisect_right(self._starts, first) - 1)
        while place < len(self._starts) and self._starts[place] < first + count:
            run = self._long[self._starts[place]]
            if run.next < first + count and run.end > first:
                found.append(run)
            place += 1
        return found
