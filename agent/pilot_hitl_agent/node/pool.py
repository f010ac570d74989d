"""Which function worker serves which lane. Pure bookkeeping.

A worker belongs to a *place* (cores, GPUs, environment) for life. It carries the tag of a condition from the first call
that it runs under that condition until the condition is decided: what speculation left in its memory is seen by nobody
else. Beside a call that may be told to give way, an idle *spare* waits at the same place: a discarded branch takes its
workers with it, and whoever comes next must not wait until a new one has imported what it needs.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from pilot_hitl_agent.node.events import must


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where and how a worker runs. ``group`` numbers its environment; ``apart`` is the task that it is for, 0: any."""

    cores: int
    gpus: tuple[int, ...]
    gpu_shares: int
    group: int
    apart: int = 0


class Seat(msgspec.Struct, gc=False):
    """One worker: its place, its tag (0 for none) and the lane it serves (0 while idle)."""

    place: Place
    tag: int = 0
    lane: int = 0


class Pool:
    """Workers by number. Decides nothing about processes: it says which to use, which to make and which to end."""

    def __init__(self, most_idle: int) -> None:
        """Keep up to ``most_idle`` idle workers; beyond that the one idle for longest goes."""
        self.most_idle = most_idle
        self.seats: dict[int, Seat] = {}
        self.by_lane: dict[int, int] = {}
        self._true: set[int] = set()
        self._idle: dict[Place, OrderedDict[int, None]] = {}
        self._idle_order: OrderedDict[int, None] = OrderedDict()

    def take(self, lane: int, place: Place, condition: int) -> int:
        """Return an idle worker for a lane, 0 when one must be made (and then :meth:`add` be called)."""
        condition = self._tag(condition)
        found = 0
        for worker in reversed(self._idle.get(place, ())):
            tag = self.seats[worker].tag
            if tag == condition:
                found = worker
                break
            if not tag and not found:
                found = worker
        if found:
            self._unidle(found)
            seat = self.seats[found]
            seat.lane = lane
            seat.tag = condition
            self.by_lane[lane] = found
        return found

    def add(self, worker: int, lane: int, place: Place, condition: int) -> None:
        """Note a worker that was just made for a lane."""
        self.seats[worker] = Seat(place, self._tag(condition), lane)
        self.by_lane[lane] = worker

    def lacks_spare(self, place: Place) -> bool:
        """Return whether no idle worker at a place could serve anybody who comes."""
        return all(self.seats[worker].tag for worker in self._idle.get(place, ()))

    def add_spare(self, worker: int, place: Place) -> list[int]:
        """Note a worker that was made in reserve. Returns the workers to end, which are forgotten."""
        self.seats[worker] = Seat(place)
        return self._idles(worker)

    def release(self, lane: int) -> list[int]:
        """The lane is over: its worker is idle. Returns the workers to end, which are forgotten."""
        worker = self.by_lane.pop(lane, 0)
        if not worker:
            return []
        self.seats[worker].lane = 0
        return self._idles(worker)

    def idle(self, group: int) -> list[int]:
        """Return the idle workers of an environment."""
        return [worker for worker in self._idle_order if self.seats[worker].place.group == group]

    def _idles(self, worker: int) -> list[int]:
        self._idle.setdefault(self.seats[worker].place, OrderedDict())[worker] = None
        self._idle_order[worker] = None
        surplus = []
        while len(self._idle_order) > self.most_idle:
            oldest = next(iter(self._idle_order))
            surplus.append(oldest)
            self.drop(oldest)
        return surplus

    def settle(self, condition: int, *, truth: bool) -> list[int]:
        """A condition was decided. Returns the idle workers to end, which are forgotten.

        Busy ones are ended with their attempts by the core, and dropped when they are gone.
        """
        if truth:
            # Launches that were held ahead still name it.
            self._true.add(condition)
        gone = []
        for worker, seat in list(self.seats.items()):
            if seat.tag != condition:
                continue
            if truth:
                seat.tag = 0
            elif not seat.lane:
                gone.append(worker)
                self.drop(worker)
        return gone

    def drop(self, worker: int) -> None:
        """Forget a worker that is gone or about to be ended."""
        seat = self.seats.pop(worker, None)
        if seat is None:
            return
        if seat.lane:
            del self.by_lane[seat.lane]
        else:
            self._unidle(worker, seat)

    def _tag(self, condition: int) -> int:
        return 0 if condition in self._true else condition

    def _unidle(self, worker: int, seat: Seat | None = None) -> None:
        place = (seat or self.seats[worker]).place
        idle = self._idle[place]
        del idle[worker]
        if not idle:
            del self._idle[place]
        del self._idle_order[worker]

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for lane, worker in self.by_lane.items():
            must(self.seats[worker].lane == lane, "self.seats[worker].lane == lane")
        idle = {worker for worker, seat in self.seats.items() if not seat.lane}
        must(len(self.by_lane) == len(self.seats) - len(idle), "a worker serves one lane or none")
        must(idle == set(self._idle_order), "the idle are known as idle")
        must(
            idle == {worker for group in self._idle.values() for worker in group},
            "idle == {worker for group in self._idle.values() for worker in group}",
        )
        for place, workers in self._idle.items():
            must(workers, "workers")
            must(
                all(self.seats[worker].place == place for worker in workers),
                "all(self.seats[worker].place == place for worker in workers)",
            )
        must(len(idle) <= self.most_idle, "len(idle) <= self.most_idle")
