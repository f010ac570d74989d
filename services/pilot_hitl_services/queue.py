"""The queue of a replica: what waits, in which order it is served, and what is served together. No clock, no socket.

Batching is greedy: whatever waits already is taken, up to ``max_batch``. A lone request is never held for company,
unless ``max_wait`` is set. Needed requests go before speculative ones, and the latter fill what the former leave free.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Verdict(enum.Enum):
    """What became of a request that arrived."""

    ACCEPTED = 0
    OVERLOADED = 1
    """As many wait as may."""
    CLOSED = 2
    """Nothing new is taken."""
    DROPPED = 3
    """The condition that it assumes is false."""


class Waiting(Generic[T]):
    """One request that waits.

    Attributes:
        what: whose it is and what is to be done; opaque here.
        arrived: when.
        deadline: when it is too late, 0 for never.
        alone: never served together with others.
        condition: that must be true before it may be served at all; 0 for none.
    """

    __slots__ = ("alone", "arrived", "condition", "deadline", "what")

    def __init__(
        self, what: T, arrived: float, *, deadline: float = 0.0, alone: bool = False, condition: int = 0
    ) -> None:
        """Keep them."""
        self.what = what
        self.arrived = arrived
        self.deadline = deadline
        self.alone = alone
        self.condition = condition


class Taken(Generic[T]):
    """What :meth:`ReplicaQueue.take` gives: a batch to serve, and what came too late."""

    __slots__ = ("batch", "late")

    def __init__(self, batch: list[Waiting[T]], late: list[Waiting[T]]) -> None:
        """Keep both."""
        self.batch = batch
        self.late = late


class ReplicaQueue(Generic[T]):
    """Requests that wait at one replica. Moments are seconds of any clock that does not go back.

    Attributes:
        closed: nothing new is taken; what waits is still served.
    """

    def __init__(self, max_batch: int, max_wait: float, max_queue: int) -> None:
        """Start empty; ``max_queue`` bounds what waits, served requests do not count."""
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._needed: deque[Waiting[T]] = deque()
        self._speculative: deque[Waiting[T]] = deque()
        self._deferred: dict[int, list[Waiting[T]]] = {}
        self._held = 0
        self._decided: dict[int, bool] = {}
        self.closed = False

    def __len__(self) -> int:
        """Return how many wait, deferred ones included."""
        return len(self._needed) + len(self._speculative) + self._held

    def add(self, item: Waiting[T], *, speculative: bool = False) -> tuple[Verdict, Waiting[T] | None]:
        """Let a request wait; return what became of it, and a speculative one that had to make room for it."""
        if self.closed:
            return Verdict.CLOSED, None
        if item.condition and (holds := self._decided.get(item.condition)) is not None:
            if not holds:
                return Verdict.DROPPED, None
            item.condition, speculative = 0, False
        out: Waiting[T] | None = None
        if len(self._needed) + len(self._speculative) + self._held >= self._max_queue:
            if speculative or item.condition or not self._speculative:
                return Verdict.OVERLOADED, None
            out = self._speculative.pop()
        if item.condition:
            self._deferred.setdefault(item.condition, []).append(item)
            self._held += 1
        elif speculative:
            self._speculative.append(item)
        else:
            self._needed.append(item)
        return Verdict.ACCEPTED, out

    def ready_at(self, now: float) -> float | None:
        """Return when :meth:`take` has something: a moment that is not after ``now`` means at once, None means never.

        A request that arrives may change it.
        """
        waiting = len(self._needed) + len(self._speculative)
        if not waiting:
            return None
        first = self._needed[0] if self._needed else self._speculative[0]
        if not self._max_wait or waiting >= self._max_batch or first.alone or self.closed:
            return now
        due = first.arrived + self._max_wait
        return min(due, first.deadline) if first.deadline else due

    def take(self, now: float) -> Taken[T]:
        """Take the next batch out, and what came too late. Call it when :meth:`ready_at` says so."""
        taken: Taken[T] = Taken([], [])
        for queue in (self._needed, self._speculative):
            if self._fill(queue, taken, now):
                break
        return taken

    def _fill(self, queue: deque[Waiting[T]], taken: Taken[T], now: float) -> bool:
        """Move requests into the batch; return whether nothing more may join it."""
        batch, room = taken.batch, self._max_batch
        while queue:
            item = queue[0]
            if item.deadline and item.deadline <= now:
                taken.late.append(queue.popleft())
            elif len(batch) >= room or (item.alone and batch):
                return True
            else:
                batch.append(queue.popleft())
                if item.alone:
                    return True
        return len(batch) >= room

    def decide(self, condition: int, *, holds: bool) -> list[Waiting[T]]:
        """Let what waited for a condition wait for its turn, or return it when the condition is false."""
        self._decided[condition] = holds
        items = self._deferred.pop(condition, [])
        self._held -= len(items)
        if not holds:
            return items
        self._needed.extend(items)
        return []

    def close(self) -> list[Waiting[T]]:
        """Take nothing new; return the deferred requests, which will not be served here."""
        self.closed = True
        items = [item for waiting in self._deferred.values() for item in waiting]
        self._deferred.clear()
        self._held = 0
        return items

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[Waiting[T]]:
        """Take out the requests that nobody waits for any more, as ``unwanted(what)`` says."""
        out: list[Waiting[T]] = []
        for queue in (self._needed, self._speculative):
            for _ in range(len(queue)):
                item = queue.popleft()
                (out if unwanted(item.what) else queue).append(item)
        for condition, items in list(self._deferred.items()):
            kept = [item for item in items if not unwanted(item.what)]
            out += [item for item in items if item not in kept]
            self._deferred[condition] = kept
        self._held = sum(map(len, self._deferred.values()))
        return out
