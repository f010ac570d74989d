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
    │   ├── TaskFailed                       non-zero exit, signal, or a function's error that cannot be re-raised
    │   │   └── OutOfMemory                  it used more memory than it asked for, or than there was
    │   ├── TaskTimeout (TimeoutError)       the task's own ``timeout`` passed
    │   ├── WorkerDied                       the process that ran the function ended
    │   ├── TaskLost                         pilot or node ended, and it may not run again
    │   ├── DependencyFailed                 a task that it depends on did not succeed
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
    │   ├── HandlerFailed                    the handler raised something that cannot be re-raised here
    │   └── BadReply                         the handler returned something else than one result an item
    └── MissingExtra (ImportError)           an optional dependency is not installed

    BranchDiscarded (BaseException)          ends a body whose branch was not chosen

All of them pickle with their fields.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[BaseException], args: tuple[object, ...], fields: dict[str, object]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class PilotHitlError(Exception):
    """Root of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with fields."""
        return _rebuild, (type(self), self.args, self.__dict__)


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
    """A task did not end well.

    Attributes:
        task: its name, such as ``task.1.000017``.
        attempt: ``(binding epoch, run)`` of the attempt that decided.
        host: where it ran, if it did.
    """

    def __init__(self, message: str, *, task: str = "", attempt: tuple[int, int] = (0, 0), host: str = "") -> None:
        """Keep where and which attempt beside the message."""
        super().__init__(message)
        self.task = task
        self.attempt = attempt
        self.host = host

    def __str__(self) -> str:
        """Message with task, attempt and host."""
        where = f" on {self.host}" if self.host else ""
        attempt = f", attempt {self.attempt[0]}.{self.attempt[1]}" if any(self.attempt) else ""
        which = f" [{self.task}{attempt}{where}]" if self.task else ""
        return f"{self.args[0] if self.args else ''}{which}"


class TaskFailed(TaskError):
    """An executable ended with a non-zero exit code or a signal, or a function's own error could not be re-raised.

    Attributes:
        exit_code: the code; negative is the signal that ended it.
        stderr: the tail of standard error, or the remote traceback.
    """

    exit_code: int = 0
    stderr: str = ""


class OutOfMemory(TaskFailed):
    """It used more than its ``mem_per_rank``, or the kernel ran out of memory and killed it: the message says which."""


class TaskTimeout(TaskError, TimeoutError):
    """The task's own ``timeout`` passed and it was ended."""


class WorkerDied(TaskError):
    """The process that ran the function ended while it ran."""


class TaskLost(TaskError):
    """Its pilot or node ended and the task may not run again."""


class DependencyFailed(TaskError):
    """A task that it depends on did not succeed; that task's own error is the ``__cause__``."""


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
        code: ``invalid``, ``already-answered``, ``expired``, ``withdrawn``, ``pending``, ``not-allowed``.
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
    """The handler raised an error that cannot be re-raised here; the message and ``detail`` tell it."""


class BadReply(ServiceError):
    """The handler returned something else than a list with one result an item."""


class MissingExtra(PilotHitlError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class BranchDiscarded(BaseException):
    """Raised at the next call of a branch body whose branch was not chosen, to end it."""
