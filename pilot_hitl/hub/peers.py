"""Who is connected to the hub, and what is to be sent to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.messages import AgentAck, HeldOutcomes, Message, Outcome, Outcomes

if TYPE_CHECKING:
    from pilot_hitl.hub.live import LiveSession
    from pilot_hitl.wire.waits import Waits

OUTCOMES_A_MESSAGE = 1000


class Peer:
    """One connection. ``outbox`` leaves at the end of the turn."""

    def __init__(self, identity: bytes) -> None:
        """Start unknown: who it is comes with its hello."""
        self.identity = identity
        self.outbox: list[Message] = []

    def tell(self, *messages: Message) -> None:
        """Send messages at the end of the turn."""
        self.outbox.extend(messages)


class Client(Peer):
    """A script, a tool of the command line, or a session opened inside a task.

    Attributes:
        session: None for a tool.
        incarnation: 0 for a tool or an observer.
        frames: how many arrived since its hello.
        acknowledged: how many of them are on disk.
        resent: how many of them, the first ones, an earlier hub was sent as well.
        urgent: what is told whether or not anything can be written.
        watched: tasks whose values it wants while they only count under a condition; ``held`` are such values.
        waits: for what the task waits in which it was opened, while that is long.
    """

    def __init__(self, identity: bytes, role: str, session: LiveSession | None, incarnation: int) -> None:
        """Welcome it."""
        super().__init__(identity)
        self.role = role
        self.session = session
        self.incarnation = incarnation
        self.namespace = ""
        self.on_exit = "stop"
        self.pid = 0
        self.started = 0
        self.host = ""
        self.frames = self.resent = 0
        self.acknowledged = 0
        self.outcomes: list[Outcome] = []
        self.held: list[Outcome] = []
        self.urgent: list[Message] = []
        self.watched: set[int] = set()
        self.flushes: list[int] = []
        self.leaving = False
        self.waits: Waits | None = None

    def reply(self, message: Message) -> None:
        """Tell what is known; of a session that cannot be written, without waiting until it can."""
        if self.session is not None and self.session.unwritten:
            self.urgent.append(message)
        else:
            self.tell(message)

    def gather(self) -> list[Message]:
        """Return what is to be sent now; outcomes first, so nothing overtakes the results it speaks of."""
        messages: list[Message] = []
        if self.outcomes:
            starts = range(0, len(self.outcomes), OUTCOMES_A_MESSAGE)
            messages.extend(Outcomes(self.outcomes[start : start + OUTCOMES_A_MESSAGE]) for start in starts)
            self.outcomes = []
        if self.held:
            messages.append(HeldOutcomes(self.held))
            self.held = []
        messages.extend(self.outbox)
        self.outbox = []
        return messages


class Agent(Peer):
    """An agent.

    Attributes:
        templates: those that it knows.
        reported: the last sequence number that arrived; ``durable`` the last on disk, ``acknowledged`` the last told.
        heard: when it last said anything, on the steady clock.
        acknowledge_at: when it is told at the latest; before that, with whatever else there is to tell.
    """

    def __init__(self, identity: bytes, session: LiveSession, pilot: int) -> None:
        """Welcome it."""
        super().__init__(identity)
        self.session = session
        self.pilot = pilot
        self.templates: set[int] = set()
        self.reported = 0
        self.durable = 0
        self.acknowledged = 0
        self.acknowledge_at = 0.0
        self.heard = steady()
        self.pid = 0
        self.host = ""

    def gather(self, now: float) -> list[Message]:
        """Return what is to be sent now."""
        behind = self.durable > self.acknowledged
        if behind and (self.outbox or self.acknowledge_at <= now):
            self.acknowledged = self.durable
            self.outbox.append(AgentAck(self.durable))
        messages, self.outbox = self.outbox, []
        return messages
