"""Ends that no attempt reports, and their words."""

from __future__ import annotations

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State

LOST = Failure(Cause.PILOT_ENDED, "its pilot ended while it ran")
DECIDED_OTHERWISE = Failure(Cause.DISCARDED, "the person decided otherwise")


def inherited(state: State, failure: Failure | None, task: int) -> tuple[State, Failure]:
    """Return how a task ends that depends on ``task``, which ended so; it names the first that failed, at any depth."""
    if state is State.DISCARDED:
        return State.DISCARDED, DECIDED_OTHERWISE
    verb = "was canceled" if state is State.CANCELED else "failed"
    root = failure.root if failure is not None else 0
    return State.FAILED, Failure(Cause.DEPENDENCY, f"a task that it depends on {verb}", root=root or task)


def unsaid(state: State) -> Failure:
    """Return the failure of a report that does not say why."""
    if state is State.QUEUED:
        return Failure(Cause.PILOT_ENDED, "the agent gave it back")
    return Failure(Cause.NONE, "it failed, and its agent did not say why")
