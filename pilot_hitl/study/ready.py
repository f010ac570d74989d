"""Queues of tasks that may be bound, and the choice of what goes next."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from pilot_hitl.model.states import Truth
from pilot_hitl.study.bulk import tier_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilot_hitl.model.resources import Shape
    from pilot_hitl.study.bulk import Bulk


class Run(NamedTuple):
    """A slice of a bulk that waits; ``arrival`` orders it among its equals."""

    arrival: int
    bulk: Bulk
    offset: int
    length: int


class Key(NamedTuple):
    """What one queue's tasks have in common.

    ``rank`` is tier and negated priority; ``tier`` is the one that counts against an agent's window, so that a
    queue's head speaks for all of it. ``inherited``: an earlier hub may have dispatched it, see
    :mod:`~pilot_hitl.study.recovery`.
    """

    rank: tuple[int, int]
    tier: int
    condition: int
    pilot: int
    site: str
    shape: Shape
    inherited: bool = False


class Ready:
    """Queues by key. The number of keys is small: it follows shapes and conditions, not tasks."""

    def __init__(self) -> None:
        """Start empty."""
        self._queues: dict[Key, deque[Run]] = {}
        self._by_condition: dict[int, set[Key]] = {}
        self._arrivals = 0
        self._orders: list[Key] | None = []
        self.count = 0

    def push(self, bulk: Bulk, offset: int, count: int, *, inherited: bool = False) -> None:
        """Queue a slice of a bulk behind its equals."""
        self._arrivals += 1
        self._queue(self.key(bulk, inherited=inherited)).append(Run(self._arrivals, bulk, offset, count))
        self.count += count

    def push_back(self, key: Key, run: Run) -> None:
        """Put what is left of a run back to the front of its queue."""
        self._queue(key).appendleft(run)
        self.count += run.length

    def ordered_keys(self) -> list[Key]:
        """Return the keys of all queues, higher tiers and priorities first."""
        if self._orders is None:
            self._orders = sorted(self._queues, key=lambda key: key.rank)
        return self._orders

    def head(self, key: Key) -> Run | None:
        """Return the run that waits longest in a queue."""
        queue = self._queues.get(key)
        return queue[0] if queue else None

    def next_key(self, blocked: set[Key]) -> Key | None:
        """Return the queue whose head goes next, passing over some; None when there is no other."""
        best: Key | None = None
        place = (0.0, 0)
        for key in self.ordered_keys():
            if key in blocked:
                continue
            if best is not None and key.rank != best.rank:
                break
            head = self.head(key)
            if head is None:
                continue
            # Under one rank the likelier condition first, so that a window is not full of what will hardly come true.
            mine = (-head.bulk.condition.weight if key.condition else 0.0, head.arrival)
            if best is None or mine < place:
                best, place = key, mine
        return best

    def pop(self, key: Key) -> Run:
        """Take the run that waits longest in a queue."""
        queue = self._queues[key]
        run = queue.popleft()
        self.count -= run.length
        if not queue:
            self._drop(key)
        return run

    def take_condition(self, condition: int) -> list[Run]:
        """Take everything that waits under a condition, in order of arrival."""
        runs: list[Run] = []
        for key in list(self._by_condition.get(condition, ())):
            runs.extend(self._queues[key])
            self._drop(key)
        self.count -= sum(run.length for run in runs)
        return sorted(runs, key=lambda run: run.arrival)

    def __iter__(self) -> Iterator[tuple[Key, Run]]:
        """Yield everything that waits."""
        for key, queue in self._queues.items():
            for run in queue:
                yield key, run

    def key(self, bulk: Bulk, *, inherited: bool) -> Key:
        """Return the queue in which tasks of a bulk wait now."""
        undecided = bulk.condition.truth is Truth.UNDECIDED
        rank = (int(tier_of(bulk.condition, backfill=bulk.backfill, service=bulk.service)), -bulk.priority)
        number = bulk.condition.number if undecided else 0
        return Key(rank, bulk.tier, number, bulk.pilot, bulk.site, bulk.shape, inherited)

    def _queue(self, key: Key) -> deque[Run]:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            self._by_condition.setdefault(key.condition, set()).add(key)
            self._orders = None
        return queue

    def _drop(self, key: Key) -> None:
        del self._queues[key]
        self._by_condition[key.condition].discard(key)
        if not self._by_condition[key.condition]:
            del self._by_condition[key.condition]
        self._orders = None
