"""What a task's outcome means: a value, a :class:`Completed`, or an error to raise."""

from __future__ import annotations

import contextlib
import linecache
import re
import signal
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl import errors
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire import raised, values
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.completed import NOTHING_LEFT, Completed
from pilot_hitl.wire.messages import Outcome
from pilot_hitl.wire.outputs import Written, bare, outputs_of

if TYPE_CHECKING:
    from pilot_hitl.futures import Origin

TAIL = 2000
"""Bytes of a program's output that its error tells."""
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


SHOWN = 8000
"""Characters of a remote traceback that are shown; the middle of a longer one is left out."""
_FRAME = re.compile(r'^(?P<before>[ |]*)File "(?P<file>.+)", line (?P<line>\d+)(?:, in .*)?$')


class RemoteTraceback(Exception):
    """The traceback of an error where it happened, as text."""

    def __str__(self) -> str:
        """Show it as it was."""
        text = str(self.args[0]) if self.args else ""
        if len(text) > SHOWN:
            first, last = text[: SHOWN // 4], text[-3 * SHOWN // 4 :]
            text = f"{first}\n  … {len(text) - len(first) - len(last)} characters are left out …\n{last}"
        return f'\n"""\n{text}"""'


def value_of(payload: bytes, executable: bool, blobs: BlobStore) -> Any:
    """Return the value of a task that is DONE.

    Raises:
        Whatever unpickling raises; BlobMissing.
    """
    if not payload:  # of a no-op pilot, which runs nothing
        return Completed(NOTHING_LEFT) if executable else None
    return Completed(payload) if executable else values.loads(payload, blobs)


def error_of(outcome: Outcome, origin: Origin, blobs: BlobStore) -> BaseException:
    """Return the error that ``result()`` raises for a task that is not DONE."""
    said = outcome.failure
    if outcome.state is State.DISCARDED and said is not None and said.cause is not Cause.DISCARDED:
        said = None  # how an attempt failed before it was discarded says nothing any more
    failure = said or _FAILURES.get(outcome.state) or Failure(Cause.NONE, f"it ended as {outcome.state.name}")
    failure = _with_output(failure, outcome.payload)
    where: dict[str, Any] = {
        "task": task_name(outcome.task),
        "attempt": (outcome.epoch, outcome.run),
        "host": failure.host or outcome.host,
        "name": origin.name,
    }
    if failure.cause is Cause.EXCEPTION and (original := _original(outcome.payload, blobs)) is not None:
        return _of_function(original, failure, where)
    if failure.cause is Cause.UNFIT:
        unfit = errors.CannotFit(f"{origin.name}: {failure.message}")
        unfit.add_note(errors.where_it_was(where["task"], outcome.run, where["host"], origin.name))
        return unfit
    error = _ERRORS.get(failure.cause, errors.TaskFailed)(failure.message, **where)
    error.cause = failure.cause.name
    if failure.note:
        error.add_note(failure.note)
    if isinstance(error, errors.TaskFailed) and failure.cause is Cause.EXCEPTION:
        error.exit_code = failure.exit_code or None
        _tell_output(error, failure)
    elif isinstance(error, errors.TaskFailed):
        _tell_program(error, failure, outcome.payload if origin.executable else b"", origin.program)
    else:
        if failure.detail:
            error.add_note(with_source(failure.detail))
        if failure.stdout.strip():
            error.add_note(f"the end of its stdout:\n{failure.stdout.rstrip()}")
    return error


def payload_error(task: int, error: BaseException) -> errors.PayloadError:
    """Return what ``result()`` raises for a value that cannot be loaded here."""
    made = errors.PayloadError(
        f"the result cannot be loaded here: {raised.summary(error)}; the class it is of must be importable "
        "by this script, and the session's files must still be there",
        task=task_name(task),
    )
    made.__cause__ = error
    return made


def is_control_flow(error: BaseException) -> bool:
    """Return whether Python, or who waits, would take this for something else than the failure of a task."""
    return not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration | CancelledError)


def contained(error: BaseException, who: str, **where: Any) -> errors.TaskFailed:
    """Return what is raised instead of control flow of the user's code, ``who`` being the code: see ``errors``."""
    stopped = isinstance(error, StopIteration | StopAsyncIteration)
    made = (errors.IterationStopped if stopped else errors.TaskFailed)(raised.told(error, who), **where)
    made.exit_code = raised.exit_code_of(error)
    made.cause = Cause.EXCEPTION.name
    made.__cause__ = error
    return made


def with_source(text: str) -> str:
    """Return a traceback with the source lines that were not to be seen where it happened, as in a notebook's cell."""
    lines = text.splitlines(keepends=True)
    found: list[str] = []
    for at, line in enumerate(lines):
        found.append(line)
        frame = _FRAME.match(line.rstrip("\n"))
        if frame is None:
            continue
        deeper = f"{frame['before']}  "
        if at + 1 < len(lines) and lines[at + 1].startswith(deeper):
            continue
        if source := linecache.getline(frame["file"], int(frame["line"])).strip():
            found.append(f"{deeper}{source}\n")
    return "".join(found)


def _original(payload: bytes, blobs: BlobStore) -> BaseException | None:
    packed = bare(payload)
    if not packed:
        return None
    value, refused = raised.attempt(lambda: values.loads(packed, blobs), BaseException)
    if isinstance(refused, KeyboardInterrupt):  # the person's own
        raise refused
    # What cannot be loaded here is shown as the text of the failure.
    return value if isinstance(value, BaseException) else None


def _of_function(original: BaseException, failure: Failure, where: dict[str, Any]) -> BaseException:
    """Return what a function's own exception is here: itself, or for control flow :class:`TaskFailed`."""
    trace = with_source(failure.detail)
    if trace and original.__cause__ is None:
        original.__cause__ = RemoteTraceback(trace)
    elif trace:
        _note(original, trace)
    if is_control_flow(original):
        error = contained(original, where["name"] or "it", **where)
        _tell_output(error, failure)
        return error
    for what, text in (("stdout", failure.stdout), ("stderr", failure.stderr)):
        if text.strip():
            _note(original, f"the end of its {what}:\n{text.rstrip()}")
    _note(original, errors.where_it_was(where["task"], where["attempt"][1], where["host"], where["name"]))
    return original


def _with_output(failure: Failure, payload: bytes) -> Failure:
    """Return the failure with the end of what its call wrote, which travels with the outcome; what is lost is empty."""
    outputs = outputs_of(payload)
    if not outputs:
        return failure
    written, found = Written(outputs), []
    for read in (written.stdout, written.stderr):
        try:
            found.append(_end(read(TAIL)))
        except OSError:
            found.append("")
    return msgspec.structs.replace(failure, stdout=failure.stdout or found[0], stderr=failure.stderr or found[1])


def _note(error: BaseException, text: str) -> None:
    with contextlib.suppress(TypeError, AttributeError):  # a class of the user may have other ideas of notes
        error.add_note(text)


def _tell_output(error: errors.TaskFailed, failure: Failure) -> None:
    """Let the error of a function tell what it wrote, and where it was."""
    error.traceback = with_source(failure.detail)
    error.stdout, error.stderr = failure.stdout, failure.stderr + error.traceback
    if error.traceback and error.__cause__ is None:
        error.__cause__ = RemoteTraceback(error.traceback)


def _tell_program(error: errors.TaskFailed, failure: Failure, payload: bytes, program: str) -> None:
    """Let the error of a program tell how it ended, and what it left."""
    error.program = program
    error.exit_code = failure.exit_code or None
    if failure.exit_code < 0:
        error.signal = _signal(-failure.exit_code)
    error.stdout, error.stderr = failure.stdout, failure.detail
    with contextlib.suppress(msgspec.MsgspecError):
        result = _decoder.decode(payload or NOTHING_LEFT)
        error.sandbox = result.sandbox
        if error.sandbox:
            error.add_note(f"its sandbox is {error.sandbox}")
        error.stdout = error.stdout or _end(result.stdout)
        error.stderr = error.stderr or _end(result.stderr)


def _end(output: bytes) -> str:
    return output[-TAIL:].decode(errors="replace")


def _signal(number: int) -> int:
    try:
        return signal.Signals(number)
    except ValueError:  # one of those without a name
        return number
