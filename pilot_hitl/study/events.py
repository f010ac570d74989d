"""What can happen to a study. Frozen; the core takes one at a time and answers with instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pilot_hitl.model.conditions import Term
from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import NodeInventory, Resources, Shape
from pilot_hitl.model.states import CheckpointState, State, Truth


class Event(msgspec.Struct, frozen=True):
    """Root of all events."""


class SubmitTasks(Event, frozen=True):
    """Tasks ``first … first+count-1`` exist from now on. Fields as in the ``Submit`` message.

    ``deps`` and ``condition`` are ids of this core: a task, a condition made with :class:`DefineCondition`. ``parent``
    is the task whose code submitted these, 0 for a script: they assume what it assumes. ``service``: the highest tier.
    ``kind``: what people call this work, as a number; run times are learned by it. ``pilot``: they must run on this one
        or on a successor of it, 0 for any; ``site``: on a pilot of this site, empty for any. ``sources``:
    ``(offset, task)`` of earlier tasks that are the same as one of these, by resume key; of several for one offset that
    counts which is DONE, else the latest.
    ``keeps_failures``: they take over failures as well. ``resent``: an earlier hub may have dispatched them already.
    """

    first: int
    count: int
    shape: Shape
    sources: tuple[tuple[int, int], ...] = ()
    priority: int = 0
    backfill: bool = False
    pilot: int = 0
    retries: int = 0
    outside: bool = False
    deps: tuple[int, ...] = ()
    condition: int = 0
    service: bool = False
    parent: int = 0
    kind: int = 0
    site: str = ""
    keeps_failures: bool = False
    resent: bool = False


class RestoreTasks(Event, frozen=True):
    """Tasks of an earlier life of the hub, with the states that were recorded.

    ``states`` has a byte a task; whatever is not recorded is :attr:`State.NEW` and sleeps until it is revived, needed
    by a task that is awake, claimed by key, or known to an agent. ``tasks.condition`` is best the *number* that the
    bulk had (``Bulk.condition.number``, restored before); a name is joined with the conditions of ``deps`` again.
    ``unpublished``: those of them that are HELD and left something that is not in place yet.
    """

    tasks: SubmitTasks
    states: bytes
    unpublished: tuple[int, ...] = ()


class RestoreBindings(Event, frozen=True):
    """Attempts of an agent's life that were under way by an earlier hub's last word, of tasks that act outside.

    Restored already, they may be running: they stay bound until that agent says what it knows, or is gone.

    Attributes:
        attempts: ``(task, run)``.
    """

    pilot: int
    binding: int
    attempts: tuple[tuple[int, int], ...]


class Revive(Event, frozen=True):
    """The client that submitted these is back: its sleeping tasks are wanted."""

    incarnation: int


class CancelTasks(Event, frozen=True):
    """Somebody wants these ``(first, count)`` runs to end."""

    runs: tuple[tuple[int, int], ...]
    reason: str = ""


class DefineCondition(Event, frozen=True):
    """A condition exists: all terms must hold. ``name`` is the definer's id of it."""

    name: int
    terms: tuple[Term, ...]
    probability: float = -1.0


class AgentReady(Event, frozen=True):
    """An agent reports for duty.

    Attributes:
        pilot: which.
        binding: number of the agent's life, never used before unless it comes back.
        nodes: what it has now.
        known: ``(task, epoch, run)`` that it holds.
        window: how many unfinished tasks of one (tier, shape) it wants.
        expected: how many nodes the pilot is to have; 0 for the most that were seen of it.
        ran: tasks that ran when the agent before it, and all below it, died.
        acted: ``(task, epoch, run)`` of what acts outside, has begun in this life or an earlier one, and did not end as
            far as the agent knows; None when it keeps no account of that.
    """

    pilot: int
    binding: int
    nodes: tuple[NodeInventory, ...]
    known: tuple[tuple[int, int, int], ...] = ()
    window: int = 4096
    expected: int = 0
    ran: tuple[int, ...] = ()
    acted: tuple[tuple[int, int, int], ...] | None = None


class PilotNodes(Event, frozen=True):
    """The nodes of an active pilot are these from now on: one was lost, or came (back).

    What fits on fewer nodes no longer waits while the missing ones may come back, which is until the pilot ends.
    """

    pilot: int
    nodes: tuple[NodeInventory, ...]


class PilotAsked(Event, frozen=True):
    """A pilot was asked for; its size is not known yet. Sent again, it tells site and lineage anew.

    Attributes:
        pilot: its number, above those of all pilots that were asked for before.
        lineage: the first pilot of the row in which it succeeds another one, 0 for none: what was to run on a pilot
            of the row may run on every later one of it.
        site: the label by which tasks ask for it.
    """

    pilot: int
    lineage: int = 0
    site: str = ""


class AgentExpected(Event, frozen=True):
    """The agent of a pilot may hold work of an earlier hub, and has not reconnected.

    Comes after everything is restored. Until that agent reports, its pilot ends, or
    :data:`~pilot_hitl.study.recovery.GRACE` seconds went by, nothing is bound that it may be running.
    """

    pilot: int


class PilotEnded(Event, frozen=True):
    """A pilot, or the life of its agent, ended: nothing of it runs any more. ``final``: it will not come back."""

    pilot: int
    final: bool
    reason: str = ""


class AttemptReport(Protocol):
    """What the core reads of a report; the payload passes through it untouched."""

    @property
    def task(self) -> int:
        """The task."""

    @property
    def epoch(self) -> int:
        """Binding epoch of the attempt."""

    @property
    def run(self) -> int:
        """Run number of the attempt."""

    @property
    def state(self) -> State:
        """RUNNING, DONE, FAILED, CANCELED or QUEUED (given back); anything else is ignored."""

    @property
    def failure(self) -> Failure | None:
        """Why not DONE."""

    @property
    def began(self) -> float:
        """When the attempt began, in seconds."""

    @property
    def ended(self) -> float:
        """When it ended."""

    @property
    def unpublished(self) -> str:
        """Not empty when it ran apart from where a needed attempt runs.

        One that succeeded left something that is put in place once it counts (:class:`Published`); one that failed is
        tried again once it counts.
        """


class Reported(Event, frozen=True):
    """An agent reports."""

    reports: Sequence[AttemptReport]


class Published(Event, frozen=True):
    """What a committed task left is in place now, or cannot be put there (``failure``)."""

    task: int
    failure: Failure | None = None


class AskPeople(Event, frozen=True):
    """A checkpoint is asked. ``checkpoint`` is 0 for a new one, or its number, also when the same was asked before.

    ``parent`` is the task whose code asks, 0 for a script: the request waits for that task's condition and is withdrawn
    when it ends. ``name``: earlier answers under it are counted. ``choices``: how many there are, 0 for a form.
    ``expected``: ``(answer, probability)`` that the asker predicts.
    """

    checkpoint: int
    asker: int
    fingerprint: bytes = b""
    on_change: str = "ask"
    deadline: float = 0.0
    default: str = ""
    deps: tuple[int, ...] = ()
    condition: int = 0
    reserve: Resources | None = None
    linger: float = 5.0
    parent: int = 0
    name: str = ""
    choices: int = 0
    expected: tuple[tuple[str, float], ...] = ()


class RestoreCheckpoint(Event, frozen=True):
    """A checkpoint of an earlier life of the hub. ``opened`` is 0 while it never was; ``deadline`` -1 for "as asked".

    A PENDING one is looked at by the next :class:`Tick` (``backlog`` says so), when everything is restored.
    """

    ask: AskPeople
    state: CheckpointState
    answer: str = ""
    opened: float = 0.0
    generation: int = 1
    reopened: int = 0
    deadline: float = -1.0


class RestoreCondition(Event, frozen=True):
    """A condition of an earlier life of the hub, with what was recorded of it.

    ``terms`` are those of the core's own condition (they say how often a checkpoint was reopened), ``number`` its
    number; 0: the next one.
    """

    name: int
    terms: tuple[Term, ...]
    truth: Truth
    probability: float = -1.0
    number: int = 0


class AnswerGiven(Event, frozen=True):
    """Somebody answers; ``value`` is canonical JSON and valid under the form. ``at``: when, in seconds.

    ``generation``: of the question that they saw.
    """

    token: int
    checkpoint: int
    generation: int
    value: str
    at: float


class ExtendDeadline(Event, frozen=True):
    """Move the deadline of a request that is not closed to ``seconds`` from now (or from its opening), 0 for none.

    ``generation``: of the question that is meant, 0 for the present one.
    """

    token: int
    checkpoint: int
    seconds: float
    generation: int = 0


class UsePolicy(Event, frozen=True):
    """Lend idle cores by another policy from now on; an unknown or empty name changes nothing."""

    policy: str


class WithdrawCheckpoint(Event, frozen=True):
    """The request is taken back, or only its reservation ends."""

    checkpoint: int
    reservation_only: bool = False


class Tick(Event, frozen=True):
    """Time passed, or there is a backlog: see :meth:`StudyCore.next_deadline` and :attr:`StudyCore.backlog`."""
