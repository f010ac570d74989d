"""What the scheduling core is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import NodeInventory, Resources, Shape
from pilot_hitl.model.states import Tier, Truth

OnPreempt = Literal["kill", "suspend", "requeue", "finish"]

STARTED = 1
FINISHED = 2
RETRACTED = 3
SUSPENDED = 4
RESUMED = 5


class NodeChange(Protocol):
    """What a node says of one attempt; ``pilot_hitl.wire.node.Change`` is one, so no copy is needed."""

    @property
    def task(self) -> int:
        """The task."""

    @property
    def epoch(self) -> int:
        """First half of the attempt's number."""

    @property
    def run(self) -> int:
        """Second half of the attempt's number."""

    @property
    def kind(self) -> int:
        """STARTED, FINISHED, RETRACTED, SUSPENDED or RESUMED."""

    @property
    def after(self) -> int:
        """STARTED only: the task whose slots it took over, 0 for none."""

    @property
    def failure(self) -> Failure | None:
        """FINISHED only: why it did not succeed."""


class Changed(msgspec.Struct, frozen=True, array_like=True):
    """The smallest :class:`NodeChange`, for simulators and tests."""

    task: int
    epoch: int
    run: int
    kind: int
    after: int = 0
    failure: Failure | None = None


class Event(msgspec.Struct, frozen=True):
    """Root of all events."""


class NodeUp(Event, frozen=True):
    """A node is ready for work."""

    node: int
    inventory: NodeInventory


class NodeDown(Event, frozen=True):
    """A node is gone with everything on it; its attempts are given back."""

    node: int
    reason: str = ""


class Bulk(msgspec.Struct, frozen=True):
    """Attempts of the tasks ``first … first+count-1``, alike in everything that scheduling looks at.

    Attributes:
        first, count: the tasks, in order of arrival.
        epoch, run: number of the attempt, the same for all of them.
        shape: what each asks for.
        tier: the tier once its condition is true. While the condition is undecided it is at most SPECULATIVE; a
            SPECULATIVE bulk becomes NEEDED when its condition is true.
        priority: higher goes first within its tier.
        condition: 0 for always.
        on_preempt, grace: how it gives way.
        expected_runtime: seconds, 0 for unknown.
        kind: score group, e.g. the template.
        parent: the task that submitted them, 0 for none: while that one lends its cores, they may use them.
        kept: the checkpoint whose reservation they may use, whatever their condition; 0 for none.
    """

    first: int
    count: int
    epoch: int
    run: int
    shape: Shape
    tier: Tier = Tier.NEEDED
    priority: int = 0
    condition: int = 0
    on_preempt: OnPreempt = "kill"
    grace: float = 5.0
    expected_runtime: float = 0.0
    kind: int = 0
    parent: int = 0
    kept: int = 0


class Submit(Event, frozen=True):
    """New work. A task that is here already is ignored (same attempt) or given back (another attempt)."""

    bulks: list[Bulk]


class Condition(Event, frozen=True):
    """State and score of a condition; ``kinds`` overrides the score for single score groups."""

    condition: int
    truth: Truth
    score: float = 0.0
    kinds: dict[int, float] = {}


class NodeChanges(Event, frozen=True):
    """What happened on a node, in order.

    A STARTED that follows ``after`` must stand in the same event as that one's FINISHED, behind it: at the end of the
    event the core takes the slots of what finished as free.
    """

    node: int
    changes: Sequence[NodeChange]


class Cancel(Event, frozen=True):
    """End these attempts, given as ``(first, count)`` runs of tasks."""

    runs: list[tuple[int, int]]
    reason: str = ""


class Reserve(Event, frozen=True):
    """Keep slots for the continuation of a checkpoint; sent again, it replaces amount and conditions.

    Attributes:
        conditions: tasks under these may use the slots once they are needed; all others only if they are preemptible.
        lend: whether preemptible ones may borrow them.
    """

    checkpoint: int
    resources: Resources
    conditions: list[int] = []
    lend: bool = True


class Unreserve(Event, frozen=True):
    """End a reservation."""

    checkpoint: int


class Lend(Event, frozen=True):
    """A running task waits for something and lends its cores to preemptible tiers (True), or wants them back."""

    task: int
    on: bool


class WalltimeEnds(Event, frozen=True):
    """When the pilot ends, on the clock of ``now``; 0 for never."""

    at: float


class Drain(Event, frozen=True):
    """Start nothing any more: what is queued or held ahead is given back, what runs may finish."""

    reason: str = ""


class Tick(Event, frozen=True):
    """Only time passed."""
