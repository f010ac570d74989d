"""States of tasks, pilots and checkpoints, and which may follow which."""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """Execution state of a task, partially ordered as in PSI/J.

    ``HELD`` and ``HELD_FAILED`` are attempts that ended while their condition is undecided; the *effective* state
    follows from them and the condition (:func:`effective`).
    """

    NEW = 0
    QUEUED = 1
    STAGING_IN = 2
    SCHEDULED = 3
    RUNNING = 4
    SUSPENDED = 5
    STAGING_OUT = 6
    HELD = 7
    HELD_FAILED = 8
    DONE = 10
    FAILED = 11
    CANCELED = 12
    DISCARDED = 13

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self >= State.DONE


class Truth(enum.IntEnum):
    """State of a condition."""

    UNDECIDED = 0
    TRUE = 1
    FALSE = 2


class PilotState(enum.IntEnum):
    """State of a pilot."""

    NEW = 0
    PENDING = 1
    ACTIVE = 2
    DONE = 3
    FAILED = 4
    CANCELED = 5

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self >= PilotState.DONE


class CheckpointState(enum.IntEnum):
    """State of a request to people."""

    PENDING = 0
    OPEN = 1
    ANSWERED = 2
    EXPIRED = 3
    WITHDRAWN = 4

    @property
    def closed(self) -> bool:
        """Whether no answer is taken any more."""
        return self >= CheckpointState.ANSWERED


class Tier(enum.IntEnum):
    """Strict order of service: a lower number goes first."""

    SERVICE = 0
    NEEDED = 1
    SPECULATIVE = 2
    BACKFILL = 3


_AFTER: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.QUEUED, State.CANCELED, State.DISCARDED, State.FAILED, State.DONE}),
    State.QUEUED: frozenset({State.STAGING_IN, State.SCHEDULED, State.RUNNING, State.HELD, State.HELD_FAILED}),
    State.STAGING_IN: frozenset({State.QUEUED, State.SCHEDULED, State.RUNNING}),
    State.SCHEDULED: frozenset({State.QUEUED, State.RUNNING, State.HELD, State.HELD_FAILED}),
    State.RUNNING: frozenset({State.QUEUED, State.SUSPENDED, State.STAGING_OUT, State.HELD, State.HELD_FAILED}),
    State.SUSPENDED: frozenset({State.QUEUED, State.RUNNING}),
    State.STAGING_OUT: frozenset({State.QUEUED, State.HELD, State.HELD_FAILED}),
    State.HELD: frozenset({State.STAGING_OUT}),
    State.HELD_FAILED: frozenset({State.QUEUED}),
}


def may_follow(before: State, after: State) -> bool:
    """Return whether ``after`` may directly follow ``before``. Any live state may end."""
    if before.final:
        return False
    return after.final or after in _AFTER[before]


def effective(state: State, condition: Truth) -> State:
    """Return what a task's state means once its condition is taken into account."""
    if condition is Truth.FALSE and state is not State.CANCELED:
        return State.DISCARDED
    if condition is Truth.TRUE and state is State.HELD:
        return State.DONE
    return state
