"""What a task's outcome means: a value, a :class:`Completed`, or an error to raise."""

from __future__ import annotations

from typing import Any

import msgspec

from pilot_hitl import errors
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire import values
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.completed import Completed
from pilot_hitl.wire.messages import Outcome

_decoder = msgspec.msgpack.Decoder(ExecutableResult)
_ERRORS: dict[Cause, type[errors.TaskError]] = {
    Cause.TIMEOUT: errors.TaskTimeout,
    Cause.WORKER_DIED: errors.WorkerDied,
    Cause.OUT_OF_MEMORY: errors.OutOfMemory,
    Cause.OOM_KILLED: errors.OutOfMemory,
    Cause.CANCELED: errors.TaskCanceled,
    Cause.SUPERSEDED: errors.TaskCanceled,
    Cause.PREEMPTED: errors.TaskLost,
    Cause.PILOT_ENDED: errors.TaskLost,
    Cause.NODE_LOST: errors.TaskLost,
    Cause.WALLTIME: errors.TaskLost,
    Cause.DEPENDENCY: errors.DependencyFailed,
    Cause.PAYLOAD: errors.PayloadError,
    Cause.DISCARDED: errors.Discarded,
}
"""Everything else is :class:`TaskFailed`; UNFIT is no task's error and becomes :class:`CannotFit`."""


_FAILURES = {
    State.CANCELED: Failure(Cause.CANCELED, "it was canceled"),
    State.DISCARDED: Failure(Cause.DISCARDED, "it is part of a branch that was not chosen"),
}


class RemoteTraceback(Exception):
    """The traceback of an error where it happened, as text."""

    def __str__(self) -> str:
        """Show it as it was."""
        return f'\n"""\n{self.args[0] if self.args else ""}"""'


def value_of(payload: bytes, executable: bool, blobs: BlobStore) -> Any:
    """Return the value of a task that is DONE.

    Raises:
        Whatever unpickling raises; BlobMissing.
    """
    if not payload:  # of a no-op pilot, which runs nothing
        return Completed(ExecutableResult(0, "")) if executable else None
    return Completed(_decoder.decode(payload)) if executable else values.loads(payload, blobs)


def error_of(outcome: Outcome, executable: bool, blobs: BlobStore) -> BaseException:
    """Return the error that ``result()`` raises for a task that is not DONE."""
    said = outcome.failure
    if outcome.state is State.DISCARDED and said is not None and said.cause is not Cause.DISCARDED:
        said = None  # how an attempt failed before it was discarded says nothing any more
    failure = said or _FAILURES.get(outcome.state) or Failure(Cause.NONE, f"ended as {outcome.state.name}")
    if failure.cause is Cause.EXCEPTION:
        original = _original(outcome.payload, blobs)
        if original is not None:
            return _with_traceback(original, failure, outcome)
    if failure.cause is Cause.UNFIT:
        return errors.CannotFit(f"{task_name(outcome.task)}: {failure.message}")
    kind = _ERRORS.get(failure.cause, errors.TaskFailed)
    where: dict[str, Any] = {
        "task": task_name(outcome.task),
        "attempt": (outcome.epoch, outcome.run),
        "host": failure.host or outcome.host,
    }
    error = kind(failure.message, **where)
    if isinstance(error, errors.TaskFailed):
        error.exit_code = failure.exit_code
        error.stderr = failure.detail or (_stderr(outcome.payload) if executable else "")
    if failure.detail:
        error.add_note(failure.detail)
    return error


def payload_error(task: int, error: BaseException) -> errors.PayloadError:
    """Return what ``result()`` raises for a value that cannot be loaded here."""
    made = errors.PayloadError(
        f"the result cannot be loaded here: {type(error).__name__}: {error}; the class it is of must be importable "
        "by this script, and the session's files must still be there",
        task=task_name(task),
    )
    made.__cause__ = error
    return made


def _original(payload: bytes, blobs: BlobStore) -> BaseException | None:
    if not payload:
        return None
    try:
        value = values.loads(payload, blobs)
    except Exception:  # boundary: unpickling runs anybody's code; the text of the failure is shown instead
        return None
    return value if isinstance(value, BaseException) else None


def _with_traceback(error: BaseException, failure: Failure, outcome: Outcome) -> BaseException:
    if failure.detail and error.__cause__ is None:
        error.__cause__ = RemoteTraceback(failure.detail)
    elif failure.detail:
        error.add_note(failure.detail)
    where = f" on {failure.host or outcome.host}" if failure.host or outcome.host else ""
    error.add_note(f"raised by {task_name(outcome.task)}, attempt {outcome.epoch}.{outcome.run}{where}")
    return error


def _stderr(payload: bytes) -> str:
    try:
        return Completed(_decoder.decode(payload)).stderr[-4096:] if payload else ""
    except (msgspec.MsgspecError, OSError):
        return ""
