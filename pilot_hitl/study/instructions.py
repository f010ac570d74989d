"""What the study core wants done, in this order."""

from __future__ import annotations

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Resources
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study.events import AttemptReport


class Instruction(msgspec.Struct, frozen=True):
    """Root of all instructions."""


class Dispatch(Instruction, frozen=True):
    """Bind tasks ``first … first+count-1`` (of one bulk) to a pilot, as attempt ``(epoch, run)``.

    ``condition``: the undecided one that they run under, 0 for none. ``kept``: the request whose reserved slots they
    may use, 0 for none.
    """

    pilot: int
    first: int
    count: int
    epoch: int
    run: int
    condition: int
    kept: int = 0


class RunApart(Instruction, frozen=True):
    """A pilot shall run these tasks, which follow, below processes that run nothing else."""

    pilot: int
    tasks: tuple[int, ...]


class TellCondition(Instruction, frozen=True):
    """Tell a pilot the state and score of a condition. Comes before the first task that uses it.

    ``kinds`` are the scores of single kinds of work.
    """

    pilot: int
    condition: int
    truth: Truth
    score: float
    kinds: dict[int, float] = {}


class Judged(Instruction, frozen=True):
    """Note a decision about the order of speculation, with its reason."""

    condition: int
    kind: int
    score: float
    reason: str


class RecoveryEnded(Instruction, frozen=True):
    """All agents that an earlier hub left have reconnected or ended, but those of pilots that were waited for in vain.

    From now on everything may be bound.
    """

    missing: tuple[int, ...]


class EndAttempts(Instruction, frozen=True):
    """A pilot shall end its attempts of these ``(first, count)`` runs."""

    pilot: int
    runs: tuple[tuple[int, int], ...]
    reason: str


class Record(Instruction, frozen=True):
    """Write a task's outcome: a final state, or HELD or HELD_FAILED.

    ``report`` is the deciding attempt's, None when there was none. A task gets one final record; a held one may be
    followed by one more.
    """

    task: int
    state: State
    report: AttemptReport | None
    failure: Failure | None


class Reuse(Instruction, frozen=True):
    """Record for ``task`` what was recorded for ``source``, a task of an earlier incarnation with the same key.

    ``state`` is DONE, or HELD while the condition of ``task`` is undecided or what was left is not in place; of a
    failure that is kept FAILED, or HELD_FAILED.
    """

    task: int
    source: int
    state: State


class Release(Instruction, frozen=True):
    """Tasks whose record stands now count as ``state`` (DONE or DISCARDED), because their condition was decided."""

    tasks: list[int]
    state: State


class Publish(Instruction, frozen=True):
    """Put in place what these committed tasks left in folders of their own; a ``Published`` each answers.

    Until then they are HELD, and what depends on them waits. Asked again after a restart.
    """

    tasks: list[int]


class Resolve(Instruction, frozen=True):
    """Write that a condition was decided. Also follows a DefinedCondition that was decided from the start."""

    condition: int
    truth: Truth


class DefinedCondition(Instruction, frozen=True):
    """Write that condition number ``condition`` exists (also for later ``name``s with the same terms)."""

    condition: int
    name: int


class SaveCheckpoint(Instruction, frozen=True):
    """Write a checkpoint's state and tell who asks. ``answer`` is canonical JSON; ``token`` of who answered, or 0."""

    checkpoint: int
    state: CheckpointState
    answer: str
    opened: float
    deadline: float
    generation: int
    reopened: int = 0
    token: int = 0


class RefuseAnswer(Instruction, frozen=True):
    """Tell who answered that it does not count, and why; keep it in the audit."""

    token: int
    checkpoint: int
    value: str
    code: str
    message: str


class KeepReservation(Instruction, frozen=True):
    """A pilot shall keep these resources for a checkpoint's continuation; None ends it. ``lend``: to lower tiers."""

    pilot: int
    checkpoint: int
    resources: Resources | None
    lend: bool = True
