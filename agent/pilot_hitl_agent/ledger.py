"""The ledger: what every core of a pilot did at every moment, from its own timestamps. Pure: times are arguments.

Each core has a *track*, a sequence of stretches without gaps: idle, reserved (idle, but kept by a reservation),
overhead (given to an attempt that does not run yet or any more) and busy. Busy stretches are what the process that ran
the attempt measured; all others are what the agent decided and when. Nothing is computed as the rest of something.
Where the two clocks contradict each other (an overlap on one core, a clock that was set) both are kept and a fault is
counted with its seconds, so the sum shows it.

Short stretches are summed up into one span, so that 50,000 calls a second cost a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pilot_hitl.model.ledger import Account
from pilot_hitl.wire.node import Change, ChangeKind

OWN = 0.05
"""Seconds from which on a stretch gets a span of its own."""
LONGEST = 5.0
"""Seconds after which a span of short stretches ends."""
NOTHING = int(Account.NOTHING)
_FINISHED, _STARTED, _SUSPENDED, _RESUMED = (
    ChangeKind.FINISHED,
    ChangeKind.STARTED,
    ChangeKind.SUSPENDED,
    ChangeKind.RESUMED,
)
DOWN = -1
"""Holds the cores of a node that is gone, in place of a task."""
FAULTS_KEPT = 20
"""So many faults between two flushes are described; all are counted."""


def key_of(account: Account, condition: int = 0) -> int:
    """Return account and condition as one number."""
    return condition << 3 | account


class Booked(Protocol):
    """What the ledger must know of a task."""

    @property
    def tier(self) -> int:
        """Its tier, which is also the account it is booked on."""

    @property
    def condition(self) -> int:
        """The condition it was sent under while that was undecided, else 0."""


class Entry(NamedTuple):
    """A stretch of one core, or the sum of short ones. Fields as in :class:`~pilot_hitl.wire.messages.Span`."""

    node: int
    core: int
    began: float
    ended: float
    busy: float
    overhead: float
    idle: float
    reserved: float
    key: int
    attempts: int
    attempt: tuple[int, int, int]
    failed: bool


class Ongoing(NamedTuple):
    """What one core does that is in no entry yet; ``until`` 0 for what goes on, ``task`` 0 for nobody."""

    node: int
    core: int
    since: float
    until: float
    what: str
    task: int


class Fault(NamedTuple):
    """Two timestamps that contradict each other, by ``seconds``."""

    what: str
    node: int
    core: int
    task: int
    seconds: float


class Track:
    """One core: told up to ``since``, known up to ``cursor``; between them lie the sums of short stretches."""

    __slots__ = (
        "attempts", "busy", "core", "cursor", "idle", "kept", "key", "lane", "node", "overhead", "reserved", "since",
    )  # fmt: skip

    def __init__(self, node: int, core: int, began: float, lane: Lane) -> None:
        self.node = node
        self.core = core
        self.cursor = self.since = began
        self.lane: Lane | None = lane
        self.kept = False
        self.busy = self.overhead = self.idle = self.reserved = 0.0
        self.key = NOTHING
        self.attempts = 0


class Lane:
    """The cores of one node that an attempt, or one after the other, holds.

    Attributes:
        away: why it holds them no longer although it has not ended (SUSPENDED or LENT), NOTHING while it does.
        left: since when.
        alone: it has one core, and was never away.
        holes: times in which it held its cores before it was away: they are told when it is known when it ran.
    """

    __slots__ = ("alone", "away", "holes", "left", "task", "tracks")

    def __init__(self, task: int, tracks: tuple[Track, ...]) -> None:
        self.task = task
        self.tracks = tracks
        self.alone = len(tracks) == 1
        self.away = Account.NOTHING
        self.left = 0.0
        self.holes: list[tuple[float, float]] = []


class Ledger:
    """The tracks of one pilot.

    Args:
        cores: number of cores of each node, by its index in the pilot.
        began: when the accounts begin; until :meth:`ready` all is overhead.

    Attributes:
        faults, fault_seconds: contradictions so far.
        fresh: whether something happened since the last :meth:`take`.
        described: the first faults since the last :meth:`take`.
    """

    def __init__(self, cores: Mapping[int, int], began: float) -> None:
        self.faults = 0
        self.fault_seconds = 0.0
        self.described: list[Fault] = []
        self.fresh = True
        self._nobody = Lane(0, ())
        self._began = began
        self._tracks: dict[int, list[Track]] = {}
        self._lanes: dict[int, dict[int, Lane]] = {}
        self._ended: dict[int, dict[int, Lane]] = {}
        self._kept: dict[int, int] = {}
        self._lending: dict[int, frozenset[int]] = {}
        for node, count in cores.items():
            self._add(node, count)
        self._astray: set[int] = set()
        self._out: list[Entry] = []

    # --- the pilot ----------------------------------------------------------------------------------------------------

    def ready(self, now: float) -> None:
        """From now on the cores may be used."""
        for tracks in self._tracks.values():
            for track in tracks:
                if track.lane is self._nobody:
                    self._pass(track, now)
                    track.lane = None

    def closing(self, now: float) -> None:
        """Nothing starts any more: what is free is overhead from now on."""
        for tracks in self._tracks.values():
            for track in tracks:
                if track.lane is None:
                    self._pass(track, now)
                    track.lane = self._nobody

    def end(self, now: float) -> None:
        """End everything: what holds cores still is lost, as far as anybody knows."""
        for node, lanes in self._lanes.items():
            for task in list(lanes):
                self.gone(node, task, now)
            self.settle(node, now)
        for tracks in self._tracks.values():
            for track in tracks:
                self._pass(track, now)

    def node_up(self, node: int, cores: int, now: float) -> bool:
        """A node may be used; return whether it is a new one, whose cores were overhead until now.

        One that was down and has other cores now counts as another.
        """
        tracks = self._tracks.get(node)
        if tracks is not None and len(tracks) == cores:
            self.gone(node, DOWN, now)
            self.settle(node, now)
            return False
        if tracks is not None:
            for track in tracks:
                self._cut(track)
        self._add(node, cores)
        for track in self._tracks[node]:
            self._pass(track, now)
            track.lane = None
        return True

    def node_down(self, node: int, now: float) -> None:
        """A node is gone: what ran there and all its cores' time is lost until it is back."""
        for task in list(self._lanes[node]):
            self.gone(node, task, now)
        self.settle(node, now)
        self.reserve(node, 0, now)
        self.placed(node, (1 << len(self._tracks[node])) - 1, DOWN, now)

    def _add(self, node: int, cores: int) -> None:
        self._tracks[node] = [Track(node, core, self._began, self._nobody) for core in range(cores)]
        self._lanes[node], self._ended[node] = {}, {}
        self._kept[node], self._lending[node] = 0, frozenset()

    # --- attempts -----------------------------------------------------------------------------------------------------

    def placed(self, node: int, mask: int, task: int, now: float) -> None:
        """An attempt got cores, given as a bit set of indices."""
        self.fresh = True
        tracks = self._tracks[node]
        mine = tuple(tracks[core] for core in bits(mask))
        lane = self._lanes[node][task] = Lane(task, mine)
        ended = self._ended[node]
        for track in mine:
            before = track.lane
            if before is not None and before.task not in ended and before is not self._nobody:
                self._fault("cores that somebody holds were given away", track, task, max(0.0, now - track.cursor))
            self._pass(track, now)
            track.lane = lane

    def hear(
        self,
        node: int,
        changes: Sequence[Change],
        tasks: Mapping[int, Booked],
        booked: Callable[[Change], tuple[int, bool]],
        now: float,
    ) -> None:
        """Take what a node says, in order: like :meth:`finished` and the others, but cheap for short calls.

        ``booked`` says what an attempt is booked on, and whether it failed; it is not asked for a needed one that
        succeeded. What nobody follows is free at :meth:`settle`.
        """
        self.fresh = True
        lanes, gone = self._lanes[node], self._ended[node]
        for change in changes:
            kind = change.kind
            if kind is _STARTED:
                if change.after:
                    lane = gone.pop(change.after, None)
                    if lane is not None:
                        lane.task = change.task
                        lanes[change.task] = lane
                    else:
                        self._astray.add(change.task)
            elif kind is _FINISHED:
                task = change.task
                lane, work = lanes.get(task), tasks.get(task)
                if lane is not None and lane.alone and change.failure is None and work and not work.condition:
                    track, began, ended = lane.tracks[0], change.began, change.ended
                    if (
                        track.key == work.tier
                        and track.lane is lane
                        and track.cursor <= began <= ended <= began + OWN
                        and ended - track.since <= LONGEST
                    ):
                        track.overhead += began - track.cursor
                        track.busy += ended - began
                        track.attempts += 1
                        track.cursor = ended
                        del lanes[task]
                        gone[task] = lane
                        continue
                times = (change.began, change.ended)
                self.finished(node, (task, change.epoch, change.run), times, *booked(change), now)
            elif kind is _SUSPENDED:
                self._leave(node, change.task, Account.SUSPENDED, now)
            elif kind is _RESUMED:
                self._return(node, change.task, now)

    def finished(
        self, node: int, attempt: tuple[int, int, int], times: tuple[float, float], key: int, failed: bool, now: float
    ) -> None:
        """An attempt ended; ``times`` are those of its process, 0 when there was none."""
        self.fresh = True
        task = attempt[0]
        lane = self._lanes[node].pop(task, None)
        began, ended = times
        if lane is None:
            # Either it never had cores as far as anybody was told (its worker died before it could say so: then it is
            # overhead of what holds them), or it took over cores that were given away already.
            if task in self._astray:
                self._astray.discard(task)
                seconds = max(0.0, (ended or now) - began) if began else 0.0
                self._fault("it ran on cores that somebody else had", self._tracks[node][0], task, seconds)
            return
        self._ended[node][task] = lane
        if not began:
            ended = 0.0
        elif not ended:
            ended = now
        if lane.holes or lane.away != NOTHING:
            began, ended = self._fill(lane, attempt, (began, ended), key, failed, now)
            if lane.away != NOTHING:
                lane.away = Account.NOTHING
                return
        for track in lane.tracks:
            if track.lane is lane:
                self._work(track, key, began or track.cursor, ended, attempt, failed)

    def gone(self, node: int, task: int, now: float) -> None:
        """An attempt is given up without a word of its process: all its time is lost."""
        lane = self._lanes[node].get(task)
        if lane is not None:
            at = lane.holes[0][0] if lane.holes else min((track.cursor for track in lane.tracks), default=now)
            self.finished(node, (task, 0, 0), (at, max(at, now)), key_of(Account.LOST), True, now)

    def settle(self, node: int, now: float) -> None:
        """Nobody follows what ended: its cores are free."""
        ended = self._ended[node]
        if not ended:
            return
        for lane in ended.values():
            for track in lane.tracks:
                if track.lane is lane:
                    self._pass(track, now)
                    track.lane = None
        ended.clear()

    def lending(self, node: int, tasks: frozenset[int], now: float) -> None:
        """These attempts of a node, and no others, lend their cores or wait to get them back."""
        before = self._lending[node]
        if tasks == before:
            return
        self._lending[node] = tasks
        for task in before - tasks:
            self._return(node, task, now)
        for task in tasks - before:
            self._leave(node, task, Account.LENT, now)

    def reserve(self, node: int, mask: int, now: float) -> None:
        """Reservations keep these cores of a node, and no others."""
        changed = mask ^ self._kept[node]
        if not changed:
            return
        self.fresh = True
        self._kept[node] = mask
        for core in bits(changed):
            track = self._tracks[node][core]
            if track.lane is None:
                self._pass(track, now)
            track.kept = not track.kept

    # --- out ----------------------------------------------------------------------------------------------------------

    def take(self) -> list[Entry]:
        """Return what was measured since the last call, and forget it."""
        for tracks in self._tracks.values():
            for track in tracks:
                self._cut(track)
        out, self._out = self._out, []
        self.fresh = False
        return out

    def ongoing(self) -> list[Ongoing]:
        """Return what goes on, and the holes of what holds cores no longer."""
        found: list[Ongoing] = []
        for tracks in self._tracks.values():
            for track in tracks:
                lane = track.lane
                what = "busy"
                if lane is None:
                    what = "reserved" if track.kept else "idle"
                elif lane is self._nobody:
                    what = "overhead"
                task = lane.task if lane else 0
                found.append(Ongoing(track.node, track.core, track.cursor, 0.0, what, task))
        for lanes in self._lanes.values():
            for lane in lanes.values():
                for began, ended in lane.holes:
                    found += [Ongoing(it.node, it.core, began, ended, "busy", lane.task) for it in lane.tracks]
        return found

    # --- inside -------------------------------------------------------------------------------------------------------

    def _work(
        self, track: Track, key: int, began: float, ended: float, attempt: tuple[int, int, int], failed: bool
    ) -> None:
        """Book a busy stretch, and as overhead what lies before it."""
        gap, took = began - track.cursor, ended - began
        if gap < 0.0:
            self._fault("it began before what was there had ended", track, attempt[0], -gap)
            gap = 0.0
        if took < 0.0:
            if ended:
                self._fault("it ended before it began", track, attempt[0], -took)
            took = 0.0
            ended = began
        if took > OWN or (failed and took > 0.0):
            if track.key != NOTHING or track.idle or track.reserved:
                self._cut(track)
            # What held the core for a moment before it ran is its overhead too.
            since, gap, track.overhead = track.since, gap + track.overhead, 0.0
            ended = max(ended, track.cursor)
            entry = (track.node, track.core, since, ended, took, gap, 0.0, 0.0, key, 1, attempt, failed)
            self._out.append(Entry(*entry))
            track.cursor = track.since = ended
            return
        if track.key != key or ended - track.since > LONGEST:
            if track.key != NOTHING:
                self._cut(track)
            track.key = key
        track.overhead += gap
        track.busy += took
        track.attempts += 1
        track.cursor = max(track.cursor, ended)

    def _pass(self, track: Track, now: float) -> None:
        """Book the time up to now on what the track did without being busy."""
        took = now - track.cursor
        if took <= 0.0:
            if took < 0.0:
                self._fault("the clock of the node went back", track, track.lane.task if track.lane else 0, -took)
            return
        self.fresh = True
        if took > OWN:
            self._cut(track)
        if track.lane is not None:
            track.overhead += took
        elif track.kept:
            track.reserved += took
        else:
            track.idle += took
        track.cursor = now
        if took > OWN or now - track.since > LONGEST:
            self._cut(track)

    def _cut(self, track: Track) -> None:
        if track.cursor > track.since or track.attempts:
            self._out.append(
                Entry(
                    track.node,
                    track.core,
                    track.since,
                    track.cursor,
                    track.busy,
                    track.overhead,
                    track.idle,
                    track.reserved,
                    track.key,
                    track.attempts,
                    (0, 0, 0),
                    False,
                )
            )
        track.since = track.cursor
        track.busy = track.overhead = track.idle = track.reserved = 0.0
        track.key, track.attempts = NOTHING, 0

    def _leave(self, node: int, task: int, why: Account, now: float) -> None:
        """An attempt holds its cores no longer: what it held them for is told once it is known when it ran."""
        lane = self._lanes[node].get(task)
        if lane is None or lane.away != NOTHING:
            return
        self.fresh = True
        lane.away, lane.left, lane.alone = why, now, False
        held = [track for track in lane.tracks if track.lane is lane]
        if held:
            lane.holes.append((held[0].cursor, max(now, held[0].cursor)))
        for track in held:
            self._cut(track)
            track.cursor = track.since = max(now, track.cursor)
            track.lane = None

    def _return(self, node: int, task: int, now: float) -> None:
        lane = self._lanes[node].get(task)
        if lane is None or lane.away == NOTHING:
            return
        self._remember(lane, (task, 0, 0), now)
        lane.away = Account.NOTHING
        ended = self._ended[node]
        for track in lane.tracks:
            before = track.lane
            if before is not None and before.task not in ended:
                self._fault("cores were given back that somebody holds", track, task, max(0.0, now - track.cursor))
            self._pass(track, now)
            track.lane = lane

    def _remember(self, lane: Lane, attempt: tuple[int, int, int], now: float) -> None:
        """Book memory that was held without cores."""
        took = max(0.0, now - lane.left)
        key = key_of(lane.away)
        for track in lane.tracks:
            entry = (track.node, track.core, lane.left, lane.left + took, took, 0.0, 0.0, 0.0, key, 0, attempt, False)
            self._out.append(Entry(*entry))

    def _fill(
        self,
        lane: Lane,
        attempt: tuple[int, int, int],
        times: tuple[float, float],
        key: int,
        failed: bool,
        now: float,
    ) -> tuple[float, float]:
        """Tell the times before an attempt was away; return when it ran since then."""
        began, ended = times
        alone = 0 if lane.away == NOTHING else 1
        for since, until in lane.holes:
            busy = max(0.0, min(until, ended) - max(since, began))
            rest = until - since - busy
            for track in lane.tracks:
                entry = (track.node, track.core, since, until, busy, rest, 0.0, 0.0, key, alone, attempt, failed)
                self._out.append(Entry(*entry))
            alone = 0
        if lane.away != NOTHING:
            self._remember(lane, attempt, min(now, ended) if ended else now)
        elif lane.holes and ended:
            again = lane.tracks[0].cursor
            began, ended = max(began, again), max(ended, again)
        lane.holes = []
        return began, ended

    def _fault(self, what: str, track: Track, task: int, seconds: float) -> None:
        self.faults += 1
        self.fault_seconds += seconds
        if len(self.described) < FAULTS_KEPT:
            self.described.append(Fault(what, track.node, track.core, task, seconds))


def bits(mask: int) -> list[int]:
    """Return the indices of the bits of a set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
