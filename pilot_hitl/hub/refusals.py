"""What a client is told of a message that the hub cannot take, so that nobody waits for it."""

from __future__ import annotations

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import Unreadable

_Bulk = tuple[m.Number, m.Count]


def token_of(message: m.Message) -> int:
    """Return the number by which the sender of a message waits for its answer; 0 for none."""
    token: int = message.handle if isinstance(message, m.Ask) else getattr(message, "token", 0)
    return token


def needs_no_word(message: m.Message | Unreadable) -> bool:
    """Return whether nobody waits for a refused message: the tasks that use what it says fail, and say why."""
    kind = message.kind if isinstance(message, Unreadable) else type(message)
    return kind in (m.PutTemplate, m.PutCondition)


def refused_tasks(message: m.Message | Unreadable, why: str) -> list[m.Outcome]:
    """Return the ends of the tasks that a refused message asks for; none when it asks for something else."""
    if isinstance(message, Unreadable):
        if message.kind is not m.Submit:
            return []
        first, count = message.facts.get("first"), message.facts.get("count")
    elif isinstance(message, m.Submit):
        first, count = message.first, message.count
    else:
        return []
    # What could not be read may say anything; what is told must be of a kind that can be sent.
    try:
        first, count = msgspec.convert((first, count), _Bulk)
        msgspec.convert(first + count - 1, m.Number)
    except msgspec.ValidationError:
        return []
    failure = Failure(Cause.PAYLOAD, f"it was not taken: {why}")
    return [m.Outcome(task, State.FAILED, failure=failure) for task in range(first, first + count)]
