"""Every error that this package raises.

::

    PilotHitlError
    ├── DescriptionError (ValueError)        a description cannot be meant
    │   ├── CannotFit                        no pilot of the session could ever hold it
    │   └── ContradictoryCondition           it would need two different answers to one checkpoint
    ├── SessionError
    │   ├── SessionBusy                      another live script owns the session
    │   ├── SessionClosed                    used after it was closed
    │   ├── HubUnreachable                   the hub cannot be started or does not answer
    │   └── UnknownSession (LookupError)
    ├── TaskError                            raised by ``TaskFuture.result()``
    │   ├── TaskFailed                       non-zero exit, signal, or a function's error that is not re-raised
    │   │   ├── IterationStopped (RuntimeError)  the function raised StopIteration or StopAsyncIteration
    │   │   └── OutOfMemory                  it used more memory than it asked for, or than there was
    │   ├── TaskTimeout (TimeoutError)       the task's own ``timeout`` passed
    │   ├── WorkerDied                       the process that ran the function ended
    │   ├── TaskLost                         pilot or node ended, and it may not run again
    │   ├── DependencyFailed                 a task that it depends on did not succeed; names the first that failed
    │   ├── TaskCanceled
    │   ├── Discarded                        its branch was not chosen
    │   └── PayloadError                     arguments, function or result could not be moved
    ├── Undecided                            waited for a value that depends on an open decision
    ├── PilotError
    │   ├── PilotFailed
    │   └── UnknownPlatform (LookupError)
    ├── CheckpointError
    │   ├── CheckpointExists                 the same name twice without ``iteration``
    │   ├── UnknownCheckpoint (LookupError)
    │   ├── AnswerRefused                    the answer was not accepted, and why
    │   ├── CheckpointExpired                nobody answered in time and there is no default
    │   └── CheckpointWithdrawn
    ├── ServiceError
    │   ├── UnknownService (LookupError)
    │   ├── Overloaded                       its queue is full
    │   ├── ServiceTimeout (TimeoutError)    no answer in time
    │   ├── ServiceFailed                    its replicas cannot be started, or died with the request
    │   ├── ServiceStopped                   it was stopped
    │   ├── HandlerFailed                    the handler raised something that is not re-raised here
    │   └── BadReply                         the handler returned something else than one result an item
    └── MissingExtra (ImportError)           an optional dependency is not installed

    BranchDiscarded (BaseException)          ends a body whose branch was not chosen

All of them pickle and copy with their fields, their notes and their ``__cause__``.

An exception of a function arrives as itself, with one kind left out: what Python takes for control flow. That is what
is no :class:`Exception` (``SystemExit``, ``KeyboardInterrupt``, ``GeneratorExit``, ``asyncio.CancelledError``, classes
of your own), ``StopIteration``, ``StopAsyncIteration`` and ``concurrent.futures.CancelledError``. Raised again where
the result is asked for, it would end the script, or look like something that happened there. It arrives as
:class:`TaskFailed`, of a service's handler as :class:`HandlerFailed`, and is the ``__cause__``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from pilot_hitl.model.ids import try_number


def _rebuild(
    cls: type[BaseException], args: tuple[object, ...], fields: dict[str, object], cause: bytes = b""
) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    if cause:
        error.__cause__ = _attempted(lambda: pickle.loads(cause))  # as trusted as what holds it
    return error


def _packed_cause(error: BaseException) -> bytes:
    """Return the cause of an error apart from it: one that does not pickle must not keep the error from doing so."""
    if error.__cause__ is None:
        return b""
    import cloudpickle  # a cause may be of a class of the script

    return _attempted(lambda: cloudpickle.dumps(error.__cause__)) or b""


def _attempted(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:  # boundary: pickling runs anybody's code; without its cause the error still tells itself
        return None


def where_it_was(task: str, run: int, host: str, name: str = "") -> str:
    """Return a note that says which task failed, where, and on which try if not on the first."""
    tries = try_number(run)
    again = f", attempt {tries}" if tries > 1 else ""
    on = f" on {host}" if host else ""
    return f"raised by {name or 'the task'} [{task}{again}{on}]"


class PilotHitlError(Exception):
    """Root of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with fields and cause."""
        return _rebuild, (type(self), self.args, self.__dict__, _packed_cause(self))

    def __copy__(self) -> PilotHitlError:
        """Copy with fields, notes and cause, without the traceback."""
        error = type(self).__new__(type(self), *self.args)
        error.args = self.args
        error.__dict__.update(self.__dict__)
        if (notes := getattr(self, "__notes__", None)) is not None:
            error.__notes__ = list(notes)
        error.__cause__ = self.__cause__
        return error


def fresh(error: BaseException) -> BaseException:
    """Return an error to raise now that may be raised several times, and by several threads.

    A traceback belongs to one raising: an error of ours is copied, and one of the user's loses that of the last time.
    """
    return error.__copy__() if isinstance(error, PilotHitlError) else error.with_traceback(None)


class DescriptionError(PilotHitlError, ValueError):
    """A description cannot be meant; the message names the field and the remedy."""


class CannotFit(DescriptionError):
    """The request exceeds every pilot of the session, whatever is running."""


class ContradictoryCondition(DescriptionError):
    """The task would need two different answers to one checkpoint, so it could never count."""


class SessionError(PilotHitlError):
    """The session cannot do this now."""


class SessionBusy(SessionError):
    """Another live script owns the session (and namespace)."""


class SessionClosed(SessionError):
    """The session was closed, here or by the hub."""


class HubUnreachable(SessionError):
    """The hub could not be started, or does not answer."""


class UnknownSession(SessionError, LookupError):
    """There is no such session in this home."""


class TaskError(PilotHitlError):
    """A task did not end well. Which one, where, and on which try, is in a note, and in these attributes.

    Attributes:
        task: its name, such as ``task.1.000017``.
        name: what people call it: the description's ``name``, the function's or the program's.
        attempt: ``(binding epoch, run)`` of the attempt that decided.
        host: where it ran, if it did.
        cause: what kind of end it was, a name of :class:`~pilot_hitl.model.failures.Cause`; empty when nobody said.
    """

    cause: str = ""

    def __init__(
        self, message: str, *, task: str = "", attempt: tuple[int, int] = (0, 0), host: str = "", name: str = ""
    ) -> None:
        """Keep where and which attempt beside the message."""
        super().__init__(message)
        self.task = task
        self.attempt = attempt
        self.host = host
        self.name = name
        if task:
            self.add_note(where_it_was(task, attempt[1], host))

    def __str__(self) -> str:
        """Name and message: the same for the same failure in every run, so that it can be shown and compared."""
        message, name = str(self.args[0]) if self.args else "", self.__dict__.get("name", "")
        return f"{name}: {message}" if name and not message.startswith(name) else message


_SHOWN_LINES, _SHOWN = 10, 2000


def _shown(what: str, text: str) -> str:
    """Return the end of an output for a message; empty when there was none."""
    lines = text[-_SHOWN:].rstrip().splitlines()[-_SHOWN_LINES:]
    return "".join([f"\n  the end of its {what}:", *(f"\n    {line}" for line in lines)]) if lines else ""


class TaskFailed(TaskError):
    """An executable did not succeed, or a function raised an error that is not re-raised: see the module.

    Attributes:
        program: the executable; empty of a function.
        exit_code: of the program, or of ``sys.exit`` in a function (as Python has it: 0 for None, 1 for a text); of a
            program that a signal ended its negative number; None where nothing exited.
        signal: the signal that ended the program, a :class:`signal.Signals` where it has a name; else None.
        sandbox: absolute path of the program's working directory, if it got one.
        stdout, stderr: the end of what it wrote; a function's traceback is the end of its ``stderr``.
        traceback: of a function, as text, where it ran.
    """

    program: str = ""
    exit_code: int | None = None
    signal: int | None = None
    sandbox: str = ""
    stdout: str = ""
    stderr: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        """What failed, then the program and the end of the output, in which SANDBOX stands for the sandbox."""
        text = super().__str__()
        if self.program and self.program not in text:
            text += f"\n  program: {self.program}"
        written = self.stderr.removesuffix(self.traceback) if self.traceback else self.stderr
        text += f"{_shown('stdout', self.stdout)}{_shown('stderr', written)}"
        return text.replace(self.sandbox, "SANDBOX") if len(self.sandbox) > 1 else text


class IterationStopped(TaskFailed, RuntimeError):
    """The function raised StopIteration or StopAsyncIteration, which is the ``__cause__``.

    A RuntimeError, as Python makes of the same inside a generator; awaiting the original would never end.
    """


class OutOfMemory(TaskFailed):
    """It used more than its ``mem_per_rank``, or the kernel ran out of memory and killed it: the message says which."""


class TaskTimeout(TaskError, TimeoutError):
    """The task's own ``timeout`` passed and it was ended."""


class WorkerDied(TaskError):
    """The process that ran the function ended while it ran."""


class TaskLost(TaskError):
    """Its pilot or node ended and the task may not run again."""


class DependencyFailed(TaskError):
    """A task that it depends on, directly or through others, did not succeed.

    The message says what failed first and its error; that error is the ``__cause__``, at any depth.

    Attributes:
        root: the name of that task, such as ``task.1.000017``; empty when it is not known.
    """

    root: str = ""


class TaskCanceled(TaskError):
    """Somebody canceled it."""


class Discarded(TaskError):
    """The person decided otherwise: its branch was not chosen."""


class PayloadError(TaskError):
    """Arguments, function or result could not be pickled, moved or loaded."""


class Undecided(PilotHitlError):
    """A value was waited for that depends on a decision which is still open."""


class PilotError(PilotHitlError):
    """A pilot cannot be had."""


class PilotFailed(PilotError):
    """The pilot could not be started or ended badly; the message carries the batch system's own words."""


class UnknownPlatform(PilotError, LookupError):
    """No description of this resource is known."""


class CheckpointError(PilotHitlError):
    """Something about a request to people."""


class CheckpointExists(CheckpointError):
    """The same checkpoint name was used twice without ``iteration``."""


class UnknownCheckpoint(CheckpointError, LookupError):
    """There is no such request."""


class AnswerRefused(CheckpointError):
    """The answer was not accepted.

    Attributes:
        code: ``invalid``, ``already-answered``, ``expired``, ``withdrawn``, ``pending``, ``not-allowed``,
            ``asked-again`` (it is to an earlier version of the question).
    """

    code: str = "invalid"


class CheckpointExpired(CheckpointError):
    """Nobody answered before the deadline, and the checkpoint has no default."""


class CheckpointWithdrawn(CheckpointError):
    """The request was taken back before anybody answered."""


class ServiceError(PilotHitlError):
    """A service cannot be had, or did not answer a request well.

    Attributes:
        service: its name.
        replica: number of the replica that decided, 0 for none.
        detail: remote traceback, or the last words of the replica.
    """

    service: str = ""
    replica: int = 0
    detail: str = ""


class UnknownService(ServiceError, LookupError):
    """The session has no such service."""


class Overloaded(ServiceError):
    """As many requests wait at the replica as its queue holds: try again later, or start more replicas."""


class ServiceTimeout(ServiceError, TimeoutError):
    """The request's own ``timeout`` passed, or the handler did not return within ``request_timeout``."""


class ServiceFailed(ServiceError):
    """No replica can be kept running, or the one that had the request died and the request may not run again."""


class ServiceStopped(ServiceError):
    """The service was stopped before the request was answered."""


class HandlerFailed(ServiceError):
    """The handler raised an error that is not re-raised here: see the module; the message and ``detail`` tell it.

    Attributes:
        exit_code: of ``sys.exit`` in the handler; else None.
    """

    exit_code: int | None = None


class BadReply(ServiceError):
    """The handler returned something else than a list with one result an item."""


class MissingExtra(PilotHitlError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class BranchDiscarded(BaseException):
    """Raised at the next call of a branch body whose branch was not chosen, to end it."""
