"""Futures of tasks, and waiting for many of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from concurrent import futures as _std
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast

from pilot_hitl import _waiting, errors
from pilot_hitl._places import Place, here, staging_here
from pilot_hitl._results import contained, is_control_flow
from pilot_hitl._watchers import Watchers
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.ids import parse_task, task_name
from pilot_hitl.model.states import State
from pilot_hitl.wire.completed import Completed, written_of
from pilot_hitl.wire.messages import Outcome
from pilot_hitl.wire.outputs import ENVELOPE, Written, text_of

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Silence, Wanted

T = TypeVar("T")
V_co = TypeVar("V_co", covariant=True)
Ended = bytes | Outcome | BaseException
"""How a task ended, not yet looked into: the payload of a success, another outcome, or an error of this side."""

PENDING = "PENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"
_DONE = frozenset({CANCELLED, FINISHED})
_ENVELOPE = bytes([ENVELOPE])
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
        program: of an executable.
    """

    __slots__ = ("deps", "executable", "name", "program", "terms")

    def __init__(
        self,
        name: str,
        *,
        executable: bool = False,
        program: str = "",
        terms: frozenset[Term] = frozenset(),
        deps: tuple[TaskFuture[Any], ...] = (),
    ) -> None:
        """Keep them."""
        self.name = name
        self.executable = executable
        self.program = program
        self.terms = terms
        self.deps = deps

    def equals(self, other: Origin) -> bool:
        """Return whether both say the same."""
        mine = (self.name, self.executable, self.program, self.terms)
        same = mine == (other.name, other.executable, other.program, other.terms)
        return same and [dep._id for dep in self.deps] == [dep._id for dep in other.deps]


class _Room:
    """Made when somebody first waits: most futures of a large study never need one."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: Watchers | None = None
        self.callbacks: Watchers | None = None


class TaskFuture(Future[T], Generic[T]):
    """The result of a task, once there is one.

    A :class:`concurrent.futures.Future` that can also be awaited. Values are loaded by the first thread that asks for
    them. Callbacks run in a thread of the session's own, one after the other; they may submit and wait.
    """

    __slots__ = ("_client", "_ended", "_exception", "_id", "_key", "_origin", "_result", "_room", "_state", "_written")

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

    # The base assigns these in its __init__ only, which is not called: so they can be made on demand. It reaches for
    # the lists with the condition's lock held.
    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._waiting_room().condition

    @property
    def _waiters(self) -> Watchers:  # type: ignore[override]
        room = self._waiting_room()
        if room.waiters is None:
            room.waiters = self._watchers()
        return room.waiters

    @property
    def _done_callbacks(self) -> Watchers:
        room = self._waiting_room()
        if room.callbacks is None:
            room.callbacks = self._watchers()
        return room.callbacks

    def _watchers(self) -> Watchers:
        return Watchers(None if self._state in _DONE else self)

    # --- the face -----------------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """The task's name, such as ``task.1.000017``."""
        return task_name(self._id)

    @property
    def condition(self) -> frozenset[Term]:
        """The answers that the task assumes; empty when it is needed anyway."""
        return self._origin.terms

    @property
    def pilots_left(self) -> _waiting.PilotsLeft:
        """Whether anything is left that could do the work."""
        return self._client.pilots_left

    @property
    def stdout(self) -> str:
        """What the task wrote on standard output, as text; bytes that are not UTF-8 become surrogate escapes.

        Of a call that is what it printed and what its libraries and the processes that it waited for wrote.

        Raises:
            concurrent.futures.InvalidStateError: the task has not ended.
            OSError: it was too much to travel, and its file does not hold it any more.
        """
        return text_of(self._output().stdout())

    @property
    def stderr(self) -> str:
        """What the task wrote on standard error, see :attr:`stdout`."""
        return text_of(self._output().stderr())

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
        self._client.cancel([(self._id, 1)], staging=staging_here(self._client))
        return True

    def result(self, timeout: float | None = None) -> T:
        """Return the task's value; wait up to ``timeout`` seconds for it.

        In the body of an ``@cp.on`` this is also the held value of a task of that branch.

        Raises:
            TimeoutError: it did not end in time.
            PilotFailed: no pilot is left that could do it. The task is unfinished: another pilot may do it yet.
            TaskError: it did not end well; a function's own exception is raised as it is, control flow
                (``sys.exit``, ``StopIteration``, …) as :class:`~pilot_hitl.errors.TaskFailed`.
            Undecided: in a ``with`` block of a branch, when it depends on an answer that is not there.
            BranchDiscarded: in a body whose branch was not chosen.
        """
        if self._wait(timeout):
            return cast("T", self._held_value())
        error = self._load()
        if error is not None:
            try:
                raise errors.fresh(error)
            finally:
                error = None
                del self  # breaks the cycle through the traceback
        return cast("T", self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, None for a success; wait up to ``timeout`` seconds.

        Raises:
            TimeoutError: it did not end in time.
            PilotFailed, Undecided, BranchDiscarded: as :meth:`result`.
        """
        return None if self._wait(timeout) else self._load()

    def explain(self) -> str:
        """Return what the task waits for, in words."""
        if self.done() and isinstance(error := self._load(), errors.Discarded):
            return str(error)  # the hub may never have heard of it
        return self._client.explain(self._id)

    def __await__(self) -> Generator[Any, None, T]:
        return awaited(self, self._client)

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
            for waiter in room.waiters or ():
                if state == CANCELLED:
                    waiter.add_cancelled(self)
                elif type(ended) is bytes:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            for watchers in (room.waiters, room.callbacks):
                if watchers is not None:
                    watchers.over()
            room.condition.notify_all()
        return self._call_back if room.callbacks else None

    def _call_back(self) -> None:
        _waiting.run_callbacks(partial(each, self) for each in self._done_callbacks)

    def _wait(self, timeout: float | None) -> bool:
        """Wait for the end; return whether it is a held value instead, that counts where this is called."""
        place = here(self._client)
        if self._state in _DONE:
            return False
        pilots = self.pilots_left
        if place is None:
            ended = pilots.wait(None, self._condition, lambda: self._state in _DONE, timeout, self._want)
        else:
            self._prepare(place)
            there = partial(self._there, place)
            ended = pilots.wait(place, self._condition, there, timeout, self._want)
        if not ended:
            raise TimeoutError(f"{self.task} ({self._origin.name}) did not end within {timeout} s; explain() says why")
        return self._state not in _DONE

    def _silence(self) -> Silence:
        return self._client.silence

    def _prepare(self, place: Place) -> None:
        """Get ready to wait in a place; raises Undecided where that is not allowed."""
        place.refuse_wait(self.condition, repr(self), staged=self._client.staged(self._id))
        if place.sees(self.condition):
            self._client.held.watch([(self._id, 1)])

    def _there(self, place: Place) -> bool:
        return self._state in _DONE or self._held_here(place)

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`."""
        if self._state not in _DONE:
            wanted.tasks.append((self._id, 1))

    def _held_here(self, place: Place) -> bool:
        return self._id in self._client.held.payloads and place.sees(self.condition)

    def _held_value(self) -> object:
        def load(payload: bytes) -> object:
            value, error = self._client.look_into(self._id, payload, self._origin)
            if error is not None:
                raise error
            return value

        try:
            return self._client.held.value(self._id, load)
        except KeyError:  # it ended for good meanwhile
            return self.result(0)

    def wake(self) -> None:
        """Let whoever waits look again; called by the session."""
        if self._room is not None:
            with self._room.condition:
                self._room.condition.notify_all()

    @property
    def blamed(self) -> int:
        """The id of the task that is to blame for the failure of this one, itself or another; 0 when it did not fail.

        Looks at no value and loads no error.
        """
        if self._state not in _DONE:
            return 0
        ended = self._ended
        if ended is None:  # it was looked into
            error = self._exception
            if error is None or isinstance(error, errors.Discarded | errors.SessionError | errors.PilotError):
                return 0
            root = error.root if isinstance(error, errors.DependencyFailed) else ""
            return parse_task(root) if root else self._id
        if type(ended) is not Outcome or ended.state not in (State.FAILED, State.CANCELED):
            return 0
        return (ended.failure.root if ended.failure is not None else 0) or self._id

    def _load(self) -> BaseException | None:
        """Look into the end, once; return the error, None for a success."""
        ended = self._ended
        if ended is not None:
            value, error = self._client.look_into(self._id, ended, self._origin)
            written = self._written_in(ended)
            with _making:
                if self._ended is not None:  # another thread may have been faster; then its object is the value
                    self._result, self._exception = value, error
                    self._written = written
                    self._ended = None
        return self._exception

    def _output(self) -> Written:
        if self._state not in _DONE:
            raise _std.InvalidStateError(
                f"{self.task} ({self._origin.name}) has not ended, so what it writes is not complete: call result(), "
                "exception() or wait() first"
            )
        self._load()
        if self._written is not None:
            return self._written
        result: object = self._result
        return result.written if isinstance(result, Completed) else Written([])

    @staticmethod
    def _written_in(ended: Ended) -> Written | None:
        """Return what to keep of a task's output beside its value, mostly nothing."""
        if isinstance(ended, BaseException):
            return None
        if isinstance(ended, bytes):
            return written_of(ended) if ended[:1] == _ENVELOPE else None
        return written_of(ended.payload) if ended.payload else None


def to_blame(origin: Origin, root: int) -> TaskFuture[Any] | None:
    """Return the future of the task ``root``, which failed first of all that tasks of an origin depend on.

    Goes from one future to the next without looking into any. None when it was not submitted here.
    """
    deps = origin.deps
    while deps:
        for dep in deps:
            if dep._id == root:
                return dep
        deps = next((dep._origin.deps for dep in deps if dep.blamed == root), ())
    return None


def explain_inherited(
    error: errors.DependencyFailed, origin: Origin, root: int, known: MutableMapping[int, TaskFuture[Any]]
) -> None:
    """Give an inherited failure its cause, and say how many more tasks failed that it depends on.

    ``known`` remembers where roots were found, so that the futures of a long chain can all be asked.
    """
    root = root or next((blamed for dep in origin.deps if (blamed := dep.blamed)), 0)
    if not root:
        return
    error.root = task_name(root)
    error.add_note(f"what failed first is {error.root}")
    found = known.get(root) or to_blame(origin, root)
    if found is not None and found.done():
        known[root] = found
        error.__cause__ = found._load()
    more = len({dep.blamed for dep in origin.deps} - {0, root})
    if more:
        others = "1 more task" if more == 1 else f"{more} more tasks"
        so_far = "" if all(dep.done() for dep in origin.deps) else " so far"
        error.add_note(f"{others} that it depends on did not succeed{so_far}")


class LocalFuture(Future[T], Generic[T]):
    """A future of something that no task computes by itself: a selection, a body."""

    _late = "is not decided"
    """What is said of it when it is not there in time."""

    def __init__(self, client: Client, name: str) -> None:
        """Start pending; ``name`` is for messages."""
        super().__init__()
        base: Any = self  # the stubs leave the base's own parts out
        base._waiters, base._done_callbacks = Watchers(self), Watchers(self)
        self._client = client
        self._name = name

    @property
    def pilots_left(self) -> _waiting.PilotsLeft | None:
        """Whether anything is left that could do the work; None while no pilot is what it waits for."""
        return None

    def cancel(self) -> bool:
        """Return False: there is nothing to cancel here; cancel the futures of tasks."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Return the value; wait up to ``timeout`` seconds for it; raises what became of it instead.

        Raises:
            TimeoutError: it is not there in time.
            PilotFailed: the task that it follows has not ended, and no pilot is left.
            Undecided: in a ``with`` block of a branch, before it is there.
            BranchDiscarded: in a body whose branch was not chosen.
        """
        self._wait(timeout)
        return self._value()

    def _value(self) -> T:
        error = super().exception(0)
        if error is not None:
            try:
                raise errors.fresh(error)
            finally:
                error = None
                del self  # breaks the cycle through the traceback
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, None for a value; wait and raise as it does."""
        self._wait(timeout)
        return super().exception(0)

    def __await__(self) -> Generator[Any, None, T]:
        return awaited(self, self._client)

    def _silence(self) -> Silence:
        return self._client.silence

    def _prepare(self, place: Place) -> None:
        place.refuse_wait(frozenset(), self._name, staged=True)

    def _wait(self, timeout: float | None) -> None:
        place = here(self._client)
        if self.done():
            return
        if place is not None:
            self._prepare(place)
        if not self._sleep(place, self.done, timeout):
            raise TimeoutError(f"{self._name} {self._late} within {timeout} s")

    def _sleep(self, place: Place | None, ready: Callable[[], bool], timeout: float | None) -> bool:
        return self._client.pilots_left.wait_while(
            place, self._condition, ready, timeout, self._want, lambda: self.pilots_left is not None
        )

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`; by itself nothing that is known not to move."""

    def settle(self, value: T | None, error: BaseException | None) -> None:
        """End it, once; whoever waits is woken now, callbacks run in the session's callback thread."""
        base: Any = self  # the stubs leave the base's own parts out
        if error is not None and is_control_flow(error) and not isinstance(error, errors.PilotHitlError):
            error = contained(error, self._name)
        with self._condition:
            if self.done():
                return
            base._exception, base._result, base._state = error, value, "FINISHED"
            for waiter in base._waiters:
                if error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self.unwatch()
            self._condition.notify_all()
        if callbacks := [partial(each, self) for each in base._done_callbacks]:
            self._client.call_back(partial(_waiting.run_callbacks, callbacks))

    def unwatch(self) -> None:
        """It ended: nobody waits for it any more."""
        base: Any = self
        base._waiters.over()
        base._done_callbacks.over()


def awaited(future: TaskFuture[T] | LocalFuture[T], client: Client) -> Generator[Any, None, T]:
    """Return what ``await future`` does: in a body or a task it sees held values as ``result()`` does.

    Raises:
        Undecided: in a ``with`` block of a branch, when the future depends on an answer that is not there.
    """
    import asyncio

    place = here(client)
    if place is not None and not future.done():
        future._prepare(place)
        if place.values is not None:
            return asyncio.to_thread(future.result).__await__()
    return in_loop(future, client.pilots_left).__await__()


class _Awaitable(Protocol[V_co]):
    """A future of a session that can be awaited."""

    @property
    def pilots_left(self) -> _waiting.PilotsLeft | None: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> V_co: ...
    def cancel(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[Any], object], /) -> object: ...


async def in_loop(future: _Awaitable[V_co], pilots: _waiting.PilotsLeft) -> V_co:
    """Wait as :func:`asyncio.wrap_future` does; but when no pilot is left, this ends and the future does not."""
    import asyncio

    if future.done():
        return future.result(0)
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_future: object = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(woken.set)

    number = pilots.listen(wake)
    future.add_done_callback(wake)  # that is how silence learns of it
    try:
        while not future.done():
            if pilots.why and future.pilots_left is not None:
                await asyncio.to_thread(pilots.hear, None)
                if not future.done() and pilots.why and future.pilots_left is not None:
                    raise pilots.error()
                continue
            woken.clear()
            if not future.done():
                await woken.wait()
        return future.result(0)
    except asyncio.CancelledError:
        if not (pilots.why and future.pilots_left is not None):
            # Otherwise it is what it gathers with that was told that no pilot is left, and this one would be next.
            future.cancel()
        raise
    finally:
        pilots.ignore(number)
        base: Any = future  # the stubs leave the base's own parts out
        with base._condition:
            if not future.done() and wake in base._done_callbacks:
                base._done_callbacks.remove(wake)


def _place_of(futures: Iterable[Future[Any]]) -> Place | None:
    """Return the place in which futures are waited for, None for nowhere special."""
    for future in futures:
        client: Client | None = getattr(future, "_client", None)  # others' futures have none
        if client is not None and (place := here(client)) is not None:
            return place
    return None


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
    """Wait for futures and sequences of futures; return ``(done, not_done)``, see :func:`concurrent.futures.wait`.

    In a body, a held value of its branch counts as done.

    Raises:
        PilotFailed: it would wait for ever for one of them, because no pilot is left; none of them has ended for that.
        Undecided: in a ``with`` block of a branch, when one of them depends on an answer that is not there.
        ValueError: ``return_when`` is none of the three.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"return_when={return_when!r}: ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION is meant")
    futures = set(flatten(fs))
    return _waiting.wait_many(_place_of(futures), futures, timeout, return_when)


def as_completed(fs: Waitable | Iterable[Waitable], timeout: float | None = None) -> Iterator[Future[Any]]:
    """Yield futures, also of sequences, as they end; in a body also as soon as a held value of its branch is there.

    Raises:
        TimeoutError: not all ended within ``timeout`` seconds.
        PilotFailed: no pilot is left for any of those that have not ended.
        Undecided: in a ``with`` block of a branch, when one of them depends on an answer that is not there.
    """
    futures = set(flatten(fs))
    place = _place_of(futures)
    _waiting.begin(place, futures)
    return _waiting.complete_many(place, futures, timeout)
