"""Why a task never ran: the words for a failure that it inherited from one that it depends on."""

from __future__ import annotations

import msgspec

from pilot_hitl.hub.store import OutcomeRow
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State

NAME_LIMIT = 100
MESSAGE_LIMIT = 600
"""Characters of another task's name and error in a message."""
LINE_LIMIT = 200
"""Characters of the last line that a program wrote to standard error."""


def explained(inherited: Failure, row: OutcomeRow, name: str) -> Failure:
    """Return an inherited failure that names the task that failed first, at any depth.

    ``row`` is what became of the task that ``inherited`` blames, and ``name`` what people call that task. When that one
    inherited its failure itself, its words hold here as well.
    """
    outcome = row.outcome()
    failure = outcome.failure
    if failure is not None and failure.cause is Cause.DEPENDENCY and failure.root:
        return failure
    who = f"{_cut(name, NAME_LIMIT)} ({task_name(row.task)})"
    if outcome.state is State.CANCELED:
        text = f"it depends on {who}, which was canceled"
    else:
        text = f"it depends on {who}, which failed: {_why(failure)}"
    return msgspec.structs.replace(inherited, message=text, root=row.task)


def _why(failure: Failure | None) -> str:
    if failure is None:
        return "nobody said why"
    text = _cut(failure.message, MESSAGE_LIMIT)
    last = failure.detail.rstrip().rpartition("\n")[2].strip()
    if failure.cause in (Cause.EXIT, Cause.SETUP) and last and last not in text:
        text = f"{text} ({_cut(last, LINE_LIMIT)})"
    return text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
