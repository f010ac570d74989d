"""What the end of a request means to whoever made it: the value, or which error and in which words."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

from pilot_hitl import errors
from pilot_hitl._results import is_control_flow
from pilot_hitl.model.services import LossCause
from pilot_hitl.wire.raised import attempt, exit_code_of, told
from pilot_hitl.wire.replicas import FINISHED_KEPT, Begun
from pilot_hitl.wire.services import Answered, Status, decode_said, unpack
from pilot_hitl.wire.servicing import ReplicaLoss

LIVES = 2
"""A request that was in the handler of so many replicas when they ended is not sent to another one."""
_WHY = {
    LossCause.ENDED: "it was ended",
    LossCause.DIED: "its process ended",
    LossCause.HUNG: "its handler did not return",
    LossCause.SILENT: "nothing was heard of it any more",
    LossCause.CUT: "the connection to it was lost",
}


class HandlerStopped(errors.HandlerFailed, RuntimeError):
    """The handler raised StopIteration, which no ``await`` could raise as it is; as Python's own generators do it."""


def about(error: BaseException, service: str, replica: int = 0, detail: str = "") -> BaseException:
    """Return an error that says which service it is about, and which replica."""
    if isinstance(error, errors.ServiceError):
        error.service, error.replica, error.detail = service, replica, detail
    return error


def look_into(answer: Answered, buffers: Sequence[Any], service: str, replica: int) -> tuple[Any, BaseException | None]:
    """Return ``(value, None)`` or ``(None, error)`` of a request that was answered."""
    if answer.status is Status.FAILED:
        name, message, detail = decode_said(answer.body)
        kind = getattr(errors, name, errors.ServiceError)
        return None, about(kind(message), service, replica, detail)
    load = partial(unpack, answer.body, buffers) if answer.status is Status.OK else partial(pickle.loads, answer.body)
    value: Any
    value, error = attempt(load, (Exception, SystemExit, GeneratorExit))
    if error is not None:
        return None, errors.PayloadError(
            f"the answer of service {service!r} cannot be loaded here: {type(error).__name__}: {error}"
        )
    return (None, _raised(value, service, replica)) if answer.status is Status.RAISED else (value, None)


def _raised(error: BaseException, service: str, replica: int) -> BaseException:
    """Return what to raise for what a handler raised: never what would steer the caller's own program instead."""
    if not is_control_flow(error):
        return error
    stops = isinstance(error, StopIteration | StopAsyncIteration)
    made = (HandlerStopped if stops else errors.HandlerFailed)(told(error, f"the handler of service {service!r}"))
    made.exit_code = exit_code_of(error)
    made.__cause__ = error
    return about(made, service, replica, "\n".join(getattr(error, "__notes__", ())))


def was_begun(begun: Begun | None, number: int, last_answer: int, *, again: bool) -> bool:
    """Return whether a lost replica may have begun a request; ``again``: and whether that matters beyond its handler.

    Args:
        begun: what is known of it.
        number: of the request.
        last_answer: number of the latest request that the replica answered on the same connection, 0 for none.
        again: the request may run again, so that only what was in the handler counts.
    """
    if begun is None or number in begun.inside:
        return True
    if again:
        return False
    # Answers come in the order in which they were given, so all that are missing here were given after this one.
    known = begun.total <= FINISHED_KEPT or last_answer in begun.finished
    return not known or number in begun.finished


def lost(
    service: str, replica: int, loss: ReplicaLoss, number: int, *, tries: int, lives: int, again: bool
) -> BaseException:
    """Return the error of a request that was with a lost replica and is not sent again.

    Args:
        service: its name.
        replica: the number of the lost one.
        loss: how it was lost.
        number: of the request.
        tries: how often it was sent.
        lives: in how many replicas' handlers it was when they ended.
        again: whether it might be sent again at all.
    """
    why = loss.message or _WHY[loss.cause]
    which = number & 0xFFFFFFFF
    if lives >= LIVES:
        text = (
            f"request {which} to service {service!r} was in the handler both times when a replica ended (the last one "
            f"was replica {replica}: {why}), so it is not sent again"
        )
    else:
        times = f" ({tries} tries)" if tries > 1 else ""
        text = f"replica {replica} of service {service!r} had request {which} when {why}{times}"
    if not again:
        text += "; the service is not idempotent, so it was not sent again"
    kind = errors.ServiceTimeout if loss.cause is LossCause.HUNG else errors.ServiceFailed
    return about(kind(text), service, replica)
