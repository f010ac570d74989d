"""A bulk: tasks with consecutive ids that differ only in their bodies, kept as arrays instead of objects."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State, Tier, Truth
from pilot_hitl.study.ended import Ended

if TYPE_CHECKING:
    from pilot_hitl.model.resources import Shape
    from pilot_hitl.study.conditions import Condition
    from pilot_hitl.study.events import SubmitTasks

NEW, QUEUED, SCHEDULED = int(State.NEW), int(State.QUEUED), int(State.SCHEDULED)
HELD, FINAL = int(State.HELD), int(State.DONE)
RECALLED = 16
"""How many retired bulks are kept at hand: who asks for one often asks for its neighbours."""


class Bulk:
    """What a study knows of tasks ``first … first+count-1``.

    ``states`` holds a byte a task. ``epochs`` holds the binding a task is under (0: none). ``runs`` has only the tasks
    whose run number is not ``base``, ``tries`` only those that used up retries, ``strays`` those that lost a worker
    once, ``deaths`` how often what ran a task died, ``ending`` those whose attempt was told to end. ``missing`` counts
    unmet dependencies, which all tasks of a bulk share. ``tier`` is the tier under which it is counted against an
    agent's window: the one of its submission, also after a commit. ``asleep``: restored, and nobody has asked for it
    since. ``resent``: its script submitted it to an earlier hub as well. ``tail``: seconds of the longest chain of
    speculative work that waits for one of its tasks. ``at``: when it was submitted.
    """

    __slots__ = (
        "asleep",
        "at",
        "backfill",
        "base",
        "condition",
        "count",
        "deaths",
        "deps",
        "ending",
        "epochs",
        "first",
        "kind",
        "live",
        "missing",
        "outside",
        "pilot",
        "priority",
        "resent",
        "restored",
        "retries",
        "runs",
        "service",
        "shape",
        "site",
        "states",
        "strays",
        "tail",
        "tier",
        "tries",
    )

    def __init__(self, tasks: SubmitTasks, condition: Condition, base: int = 0, at: float = 0.0) -> None:
        """Start with everything NEW; the first attempt of each task has run number ``base``."""
        self.first = tasks.first
        self.count = tasks.count
        self.shape: Shape = tasks.shape
        self.priority = tasks.priority
        self.backfill = tasks.backfill
        self.service = tasks.service
        self.pilot = tasks.pilot
        self.site = tasks.site
        self.retries = tasks.retries
        self.outside = tasks.outside
        self.deps = tasks.deps
        self.base = base
        self.condition = condition
        self.tier = int(tier_of(condition, backfill=tasks.backfill, service=tasks.service))
        self.states = bytearray(tasks.count)
        self.epochs = array("I", bytes(4 * tasks.count))
        self.runs: dict[int, int] = {}
        self.tries: dict[int, int] = {}
        self.strays: set[int] = set()
        self.deaths: dict[int, int] = {}
        self.ending: set[int] = set()
        self.missing = 0
        self.live = tasks.count
        self.asleep = False
        self.restored = False
        self.resent = tasks.resent
        self.kind = tasks.kind
        self.tail = 0.0
        self.at = at

    def run(self, at: int) -> int:
        """Return the run number of a task's present or next attempt."""
        return self.runs.get(at, self.base)

    def pieces(self, start: int, count: int, state: int) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, count)`` of the longest runs in a slice that have this state and one run number."""
        states = self.states
        if not self.runs and states.count(state, start, start + count) == count:
            yield start, count
            return
        end, at = start + count, start
        while at < end:
            if states[at] != state:
                at += 1
                continue
            begin, run = at, self.run(at)
            while at < end and states[at] == state and self.run(at) == run:
                at += 1
            yield begin, at - begin

    def unfinished(self) -> Iterator[int]:
        """Yield the offsets of the tasks that have no final state."""
        states = self.states
        return (offset for offset in range(self.count) if states[offset] < FINAL)

    def open(self) -> Iterator[int]:
        """Yield the offsets of the tasks that are still to end, for now or for good."""
        states = self.states
        return (offset for offset in range(self.count) if states[offset] < HELD)


def tier_of(condition: Condition, *, backfill: bool, service: bool = False) -> Tier:
    """Return the tier in which a task under this condition waits now."""
    if service:
        return Tier.SERVICE
    if condition.truth is Truth.UNDECIDED:
        return Tier.SPECULATIVE
    return Tier.BACKFILL if backfill else Tier.NEEDED


class Table:
    """Finds the bulk of a task: reports come in order mostly, so the last answer is tried first.

    A bulk whose tasks have all ended can be *retired*: it is forgotten but for its ids, and made again from what is
    on disk when somebody asks for it. What has ended never changes, so that makes no difference to anybody.
    """

    def __init__(self, recall: Callable[[int], Bulk | None]) -> None:
        """Start empty. ``recall`` makes the bulk of a task again that was retired; None when its record is gone."""
        self._by_incarnation: dict[int, tuple[list[int], list[Bulk]]] = {}
        self._last: Bulk | None = None
        self._recall = recall
        self._recalled: dict[int, Bulk] = {}
        self.ended = Ended()
        """What was retired."""

    def add(self, bulk: Bulk) -> None:
        """Add a bulk; ids must not overlap with one that is there.

        Raises:
            ValueError: they do.
        """
        if next(self.ended.overlapping(bulk.first, bulk.count), None) is not None:
            raise ValueError(f"tasks of {bulk.first}…{bulk.first + bulk.count - 1} have ended already")
        firsts, bulks = self._by_incarnation.setdefault(bulk.first >> 32, ([], []))
        if not firsts or firsts[-1] + bulks[-1].count <= bulk.first:
            firsts.append(bulk.first)
            bulks.append(bulk)
            return
        at = _position(firsts, bulk.first) + 1
        before = bulks[at - 1] if at else None
        if (before and before.first + before.count > bulk.first) or (
            at < len(firsts) and firsts[at] < bulk.first + bulk.count
        ):
            raise ValueError(f"tasks {bulk.first}…{bulk.first + bulk.count - 1} exist already")
        firsts.insert(at, bulk.first)
        bulks.insert(at, bulk)

    def retire(self, ended: Iterable[Bulk]) -> None:
        """Forget bulks all of whose tasks have ended, and are recorded where ``recall`` finds them.

        Costs time in proportion to what stays: call it for many at once. One that may still change is kept.
        """
        gone: dict[int, set[int]] = {}
        for bulk in ended:
            if (
                not bulk.live
                and not bulk.service
                and bulk.condition.truth is not Truth.UNDECIDED
                and bulk.first not in self.ended
            ):
                gone.setdefault(bulk.first >> 32, set()).add(bulk.first)
                self.ended.add(bulk)
        for incarnation, firsts in gone.items():
            left = [bulk for bulk in self._by_incarnation.pop(incarnation)[1] if bulk.first not in firsts]
            if left:
                self._by_incarnation[incarnation] = ([bulk.first for bulk in left], left)
        self._last = None

    def find(self, task: int) -> Bulk | None:
        """Return the bulk that a task belongs to, None for an unknown task."""
        last = self._last
        if last is not None and 0 <= task - last.first < last.count:
            return last
        entry = self._by_incarnation.get(task >> 32)
        at = _position(entry[0], task) if entry is not None else -1
        if entry is None or at < 0 or task - entry[0][at] >= entry[1][at].count:
            return self._find_ended(task) if task in self.ended else None
        self._last = entry[1][at]
        return self._last

    def _find_ended(self, task: int) -> Bulk | None:
        for bulk in self._recalled.values():
            if 0 <= task - bulk.first < bulk.count:
                return bulk
        found = self._recall(task)
        if found is not None:
            if len(self._recalled) >= RECALLED:
                del self._recalled[next(iter(self._recalled))]
            self._last = self._recalled[found.first] = found
        return found

    def state_of(self, task: int) -> int | None:
        """Return the state of a task, None for an unknown task."""
        bulk = self.find(task)
        return None if bulk is None else bulk.states[task - bulk.first]

    def incarnations(self) -> Iterable[int]:
        """Return the incarnations that submitted something."""
        return self._by_incarnation.keys() | {over.first >> 32 for over in self.ended}

    def of(self, incarnation: int) -> list[Bulk]:
        """Return the bulks of one incarnation that were not retired, by id."""
        entry = self._by_incarnation.get(incarnation)
        return entry[1] if entry else []

    def overlapping(self, first: int, count: int, *, ended: bool = True) -> Iterator[tuple[Bulk, int, int]]:
        """Yield ``(bulk, offset, count)`` of everything that lies in a run of ids; what was retired comes last.

        ``ended=False``: without what was retired.
        """
        firsts, bulks = self._by_incarnation.get(first >> 32, ([], []))
        at = max(0, _position(firsts, first))
        while at < len(bulks) and bulks[at].first < first + count:
            if (part := _part(bulks[at], first, first + count)) is not None:
                yield part
            at += 1
        for begin, end in list(self.ended.overlapping(first, count)) if ended else ():
            task = begin
            while task < end and (bulk := self.find(task)) is not None:
                if (part := _part(bulk, begin, end)) is not None:
                    yield part
                task = bulk.first + bulk.count

    def __len__(self) -> int:
        """Return how many bulks there are that were not retired."""
        return sum(len(bulks) for _firsts, bulks in self._by_incarnation.values())

    def __iter__(self) -> Iterator[Bulk]:
        """Yield all bulks that were not retired, by incarnation and id."""
        for _firsts, bulks in self._by_incarnation.values():
            yield from bulks


def _part(bulk: Bulk, first: int, end: int) -> tuple[Bulk, int, int] | None:
    """Return which part of a bulk lies between two ids, None when none does."""
    begin, stop = max(first, bulk.first), min(end, bulk.first + bulk.count)
    return (bulk, begin - bulk.first, stop - begin) if begin < stop else None


def _position(firsts: list[int], task: int) -> int:
    """Return the index of the last entry that is not above ``task``, -1 when there is none."""
    low, high = 0, len(firsts)
    while low < high:
        middle = (low + high) // 2
        if firsts[middle] <= task:
            low = middle + 1
        else:
            high = middle
    return low - 1
