"""Futures of tasks, and waiting for many of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures as _std
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from pilot_hitl import errors
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.wire.messages import Outcome

if TYPE_CHECKING:
    from pilot_hitl._client import Client

T = TypeVar("T")
Ended = bytes | Outcome | BaseException
"""How a task ended, not yet looked into: the payload of a success, another outcome, or an error of this side."""

PENDING = "PENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"
_DONE = frozenset({CANCELLED, FINISHED})
_making = threading.Lock()  # guards the creation of waiting rooms; held for a few instructions only

ALL_COMPLETED = _std.ALL_COMPLETED
FIRST_COMPLETED = _std.FIRST_COMPLETED
FIRST_EXCEPTION = _std.FIRST_EXCEPTION


class Canceled(errors.TaskCanceled, CancelledError):
    """The error of a task that was canceled; also what :mod:`concurrent.futures` calls it."""


class Origin:
    """What futures of one submit share.

    Attributes:
        executable: whether the payload is an executable's.
        terms: the answers that the tasks assume.
        deps: futures that they wait for.
        name: what people call the work.
    """

    __slots__ = ("deps", "executable", "name", "terms")

    def __init__(
        self,
        name: str,
        *,
        executable: bool = False,
        terms: frozenset[Term] = frozenset(),
        deps: tuple[TaskFuture[Any], ...] = (),
    ) -> None:
        """Keep them."""
        self.name = name
        self.executable = executable
        self.terms = terms
        self.deps = deps


class _Room:
    """Made when somebody first waits: most futures of a large study never need one."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Future[Any]], object]] = []


class TaskFuture(Future[T], Generic[T]):
    """The result of a task, once there is one.

    A :class:`concurrent.futures.Future` that can also be awaited. Values are loaded by the first thread that asks for
    them. Callbacks run in a thread of the session's own, one after the other; they may submit and wait.
    """

    __slots__ = ("_client", "_ended", "_exception", "_id", "_key", "_origin", "_result", "_room", "_state")

    def __init__(self, client: Client, identifier: int, key: bytes, origin: Origin) -> None:
        # The base's __init__ is left out on purpose: it makes a Condition, which is most of a future's cost.
        self._client = client
        self._id = identifier
        self._key = key
        self._origin = origin
        self._state = PENDING
        self._ended: Ended | None = None
        self._room: _Room | None = None

    # --- what the base class reaches for ------------------------------------------------------------------------

    def _waiting_room(self) -> _Room:
        room = self._room
        if room is None:
            with _making:
                room = self._room
                if room is None:
                    room = self._room = _Room()
        return room

    # The base assigns these in its __init__ only, which is not called: so they can be made on demand.
    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._waiting_room().condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self._waiting_room().waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:
        return self._waiting_room().callbacks

    # --- the face -----------------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """The task's name, such as ``task.1.000017``."""
        return task_name(self._id)

    @property
    def condition(self) -> frozenset[Term]:
        """The answers that the task assumes; empty when it is needed anyway."""
        return self._origin.terms

    def done(self) -> bool:
        """Return whether the task ended, in whatever way."""
        return self._state in _DONE

    def cancelled(self) -> bool:
        """Return whether the task was canceled."""
        return self._state == CANCELLED

    def running(self) -> bool:
        """Return False: a client is told of ends, not of starts; see :meth:`explain`."""
        return False

    def cancel(self) -> bool:
        """Ask for the task's end, whether it runs or not, and return True; False when it ended before.

        The future ends when the hub has recorded what became of the task, which may still be a result.
        """
        if self._state in _DONE:
            return False
        self._client.cancel([(self._id, 1)])
        return True

    def result(self, timeout: float | None = None) -> T:
        """Return the task's value; wait up to ``timeout`` seconds for it.

        Raises:
            TimeoutError: it did not end in time.
            TaskError: it did not end well; a function's own exception is raised as it is.
        """
        self._wait(timeout)
        error = self._load()
        if error is not None:
            try:
                raise error
            finally:
                error = None
                del self  # breaks the cycle through the traceback
        return cast("T", self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, None for a success; wait up to ``timeout`` seconds.

        Raises:
            TimeoutError: it did not end in time.
        """
        self._wait(timeout)
        return self._load()

    def explain(self) -> str:
        """Return what the task waits for, in words."""
        return self._client.explain(self._id)

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __repr__(self) -> str:
        return f"<TaskFuture {self.task} {self._origin.name} {'ended' if self.done() else 'pending'}>"

    def __reduce__(self) -> NoReturn:
        raise errors.PayloadError(
            "a future cannot be captured by a function or stored: pass it as an argument, and the function gets its "
            "value",
            task=self.task,
        )

    # --- what the session does ----------------------------------------------------------------------------------

    def end(self, ended: Ended) -> Callable[[], None] | None:
        """Take the end in; called once, by the session. Returns what to do for its callbacks, if any."""
        state = CANCELLED if type(ended) is Outcome and ended.state is State.CANCELED else FINISHED
        with _making:
            room = self._room
            if room is None:
                if self._state == PENDING:
                    self._ended = ended
                    self._state = state
                return None
        with room.condition:
            if self._state in _DONE:
                return None
            self._ended = ended
            self._state = state
            for waiter in room.waiters:
                if state == CANCELLED:
                    waiter.add_cancelled(self)
                elif type(ended) is bytes:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            room.condition.notify_all()
        return self._call_back if room.callbacks else None

    def _call_back(self) -> None:
        base: Any = self  # the stubs leave the base's own parts out
        base._invoke_callbacks()

    def _wait(self, timeout: float | None) -> None:
        if self._state in _DONE:
            return
        condition = self._condition
        with condition:
            if not condition.wait_for(lambda: self._state in _DONE, timeout):
                raise TimeoutError(
                    f"{self.task} ({self._origin.name}) did not end within {timeout} s; explain() says why"
                )

    def _load(self) -> BaseException | None:
        """Look into the end, once; return the error, None for a success."""
        ended = self._ended
        if ended is not None:
            value, error = self._client.look_into(self._id, ended, self._origin)
            with _making:
                if self._ended is not None:  # another thread may have been faster; then its object is the value
                    self._result, self._exception = value, error
                    self._ended = None
        return self._exception


Waitable = Future[Any] | Iterable[Future[Any]]


def flatten(fs: Waitable | Iterable[Waitable]) -> Iterator[Future[Any]]:
    """Yield the futures in a future, a sequence of futures, or a mix of both."""
    if isinstance(fs, Future):
        yield fs
        return
    for item in fs:
        if isinstance(item, Future):
            yield item
        else:
            yield from flatten(item)


def wait(
    fs: Waitable | Iterable[Waitable], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Wait for futures and sequences of futures; return ``(done, not_done)``, see :func:`concurrent.futures.wait`."""
    done, not_done = _std.wait(set(flatten(fs)), timeout, return_when)
    return done, not_done


def as_completed(fs: Waitable | Iterable[Waitable], timeout: float | None = None) -> Iterator[Future[Any]]:
    """Yield futures, also of sequences, as they end.

    Raises:
        TimeoutError: not all ended within ``timeout`` seconds.
    """
    return _std.as_completed(set(flatten(fs)), timeout)
