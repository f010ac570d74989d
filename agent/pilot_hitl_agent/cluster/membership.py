"""What a member of a pilot does about its agent: join, keep the lease, stop when it ends, follow another, elect. Pure.

A lease lasts from the moment at which the ping was *sent* that was answered, so it always ends before the agent, which
counts from when it *received* that ping, gives the node's tasks to others. Clocks are compared with nothing but
themselves; they need only run equally fast.

Whether an agent lives shows in its *beat*, which it writes to the file system that all nodes share. A member that
cannot reach an agent whose beat goes on is cut off, and leaves; when the beat has stopped for a lease, members elect.
"""

from __future__ import annotations

import enum

import msgspec

LOOKS = 10
"""Looks at the shared file system in one lease."""
PINGS = 3
"""Pings in one lease."""
STAGGER, STAGGERED = 0.1, 20
"""Part of a lease by which each member waits longer than the one before it until it elects: the first usually wins.
Beyond so many members they wait no longer; only one of them can win."""
CUT_OFF = 0.4
"""Part of a lease for which a member that lost its agent looks for it before it leaves: two beats."""
STARTING = 6.0
"""Leases for which a member that was never in waits for an agent that beats."""


class Phase(enum.Enum):
    """Whether the agent knows this member."""

    JOINING = "joining"
    IN = "in"


class Event(msgspec.Struct, frozen=True):
    """Root of all events."""


class Tick(Event, frozen=True):
    """Only time passed."""


class Welcomed(Event, frozen=True):
    """The agent of this term took the node in, in answer to the hello with this number."""

    term: int
    number: int


class Ponged(Event, frozen=True):
    """The agent answered a ping."""

    number: int


class Forgotten(Event, frozen=True):
    """The agent says that it does not know the node (any more)."""


class Looked(Event, frozen=True):
    """What the shared file system says: the highest term (0: none), whose it is, and its beat."""

    term: int
    mine: bool
    beat: int


class Instruction(msgspec.Struct, frozen=True):
    """Root of all instructions."""


class Hello(Instruction, frozen=True):
    """Say hello to the agent of this term, over a connection of its own."""

    term: int
    number: int


class Ping(Instruction, frozen=True):
    """Send a ping."""

    number: int


class Fence(Instruction, frozen=True):
    """End all that runs on the node; it is nobody's any more."""

    reason: str


class Look(Instruction, frozen=True):
    """Look at the shared file system; the answer is a :class:`Looked`."""


class Elect(Instruction, frozen=True):
    """Try to become the agent of this term."""

    term: int


class Leave(Instruction, frozen=True):
    """End: this node is no part of the pilot any more."""

    reason: str


class Membership:
    """State machine of one member: ``step(event, now)`` returns what to do, in order.

    Args:
        node: index of the node; 0 is the first to become agent.
        lease: seconds.
    """

    def __init__(self, node: int, lease: float, now: float) -> None:
        """Begin without an agent."""
        self.node = node
        self.lease = lease
        self.phase = Phase.JOINING
        self.term = 0
        self.busy = False
        """Whether anything may run here: from a welcome to the next fence."""
        self.valid_until = 0.0
        self.left = False
        self._was_in = False
        self._since = now
        self._beat = -1
        self._beat_at = now
        self._beaten = False
        self._number = 0
        self._sent: dict[int, float] = {}
        self._greeted: dict[int, float] = {}
        self._hello_at = now
        self._ping_at = now
        self._look_at = now
        self._out: list[Instruction] = []

    def step(self, event: Event, now: float) -> list[Instruction]:
        """Take one event at ``now`` (seconds, monotonic); return what to do."""
        if self.left:
            return []
        if self.busy and now >= self.valid_until:
            # First of all, whatever the event says: an answer that comes too late extends nothing.
            self._lose(now, "no word of the agent within the lease")
        if isinstance(event, Welcomed):
            self._welcomed(event, now)
        elif isinstance(event, Ponged):
            sent = self._sent.pop(event.number, None)
            if sent is not None and self.phase is Phase.IN:
                self.valid_until = max(self.valid_until, sent + self.lease)
                self._sent = {number: at for number, at in self._sent.items() if at > sent}
        elif isinstance(event, Forgotten):
            self._lose(now, "the agent does not know this node any more")
            self._say_hello(now)
        elif isinstance(event, Looked):
            self._looked(event, now)
        self._timers(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """Return when a :class:`Tick` is due."""
        moments = [self._look_at] if self._looks else []
        if self.phase is Phase.IN:
            moments += [self._ping_at, self.valid_until]
        elif self.term:
            moments.append(self._hello_at)
        return min(moments, default=self._look_at)

    @property
    def _looks(self) -> bool:
        """Whether the file system is to be looked at: while there is no agent, or it is late with an answer."""
        return self.phase is not Phase.IN or any(self._sent)

    def _timers(self, now: float) -> None:
        if self.left:
            return
        if self.phase is Phase.IN:
            if now >= self._ping_at:
                self._ping(now)
        elif self.term and now >= self._hello_at:
            self._say_hello(now)
        late = self.phase is not Phase.IN or any(at + self.lease / PINGS <= now for at in self._sent.values())
        if now >= self._look_at:
            self._look_at = now + self.lease / LOOKS
            if late:
                self._out.append(Look())

    def _ping(self, now: float) -> None:
        self._ping_at = now + self.lease / PINGS
        self._number += 1
        self._sent[self._number] = now
        self._out.append(Ping(self._number))

    def _say_hello(self, now: float) -> None:
        self._hello_at = now + self.lease / 2
        self._number += 1
        self._greeted[self._number] = now
        self._out.append(Hello(self.term, self._number))

    def _welcomed(self, event: Welcomed, now: float) -> None:
        sent = self._greeted.pop(event.number, None)
        if event.term != self.term or sent is None or now >= sent + self.lease or self.phase is Phase.IN:
            return
        self._greeted.clear()
        self.valid_until = sent + self.lease
        self.phase = Phase.IN
        self.busy = self._was_in = True
        self._sent.clear()
        self._ping(now)

    def _lose(self, now: float, reason: str) -> None:
        if self.busy:
            self._out.append(Fence(reason))
        self.busy = False
        self._sent.clear()
        self._greeted.clear()
        if self.phase is Phase.IN:
            self.phase = Phase.JOINING
            self._since = now
            self._beaten = False
            self._hello_at = now
            self._look_at = now

    def _looked(self, event: Looked, now: float) -> None:
        if event.term > self.term:
            self._lose(now, "another agent took over")
            self.term = event.term
            self._since, self._beat, self._beat_at, self._beaten = now, event.beat, now, False
            if event.mine:
                # An earlier life of this very node was the agent: it is not any more.
                self._elect()
            else:
                self._say_hello(now)
            return
        if not event.term:
            # Nobody was agent yet: the first node begins, the others give it some time.
            if self.node == 0 or now - self._since >= self.lease * (1 + min(self.node, STAGGERED) * STAGGER):
                self._elect()
            return
        if event.beat != self._beat:
            self._beat, self._beat_at, self._beaten = event.beat, now, True
        if self.phase is Phase.IN:
            return
        if now - self._beat_at >= self.lease * (1 + min(self.node, STAGGERED) * STAGGER):
            self._elect()
            return
        patience = self.lease * (CUT_OFF if self._was_in else STARTING)
        if self._beaten and now - self._since >= patience:
            self.left = True
            self._out.append(Leave("it is cut off from an agent that goes on"))

    def _elect(self) -> None:
        self._out.append(Elect(self.term + 1))

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        if self.busy and self.phase is not Phase.IN:
            raise AssertionError("what runs here runs under a lease")
        if self.phase is Phase.IN and not self.busy:
            raise AssertionError("a member that is in may be given work")
