"""A session as a :class:`concurrent.futures.Executor`."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from uuid import uuid4
from weakref import WeakSet

from pilot_hitl._watchers import watch_quietly
from pilot_hitl.futures import LocalFuture, TaskFuture, wait
from pilot_hitl.wire.current import EXECUTOR_VARIABLE
from pilot_hitl.wire.initialized import Initialized, InitializerFailed
from pilot_hitl.wire.raised import attempt

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._maps import MapSequence
    from pilot_hitl._silence import Wanted
    from pilot_hitl._waiting import PilotsLeft
    from pilot_hitl.branches import Scope
    from pilot_hitl.session import Session

P = ParamSpec("P")
T = TypeVar("T")
_REMEDIES = {
    "mp_context": "workers are started by the pilot; variables for them go to session.options(environment=…)",
    "max_tasks_per_child": "what a call leaves behind is put back, and where it cannot be the worker is replaced",
    "thread_name_prefix": "calls run in processes of the pilot, not in threads",
}


class PilotExecutor(Executor):
    """Runs calls on a session's pilots. The session stays open when the executor is shut down."""

    def __init__(
        self,
        session: Session | Scope,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **others: Any,
    ) -> None:
        """Use a session, a branch, or what ``options(…)`` returned.

        Args:
            session: where calls are submitted.
            max_workers: how many of the executor's calls run at the same time, at most; None for as many as the pilots
                have room for. With a number, calls leave one by one as others end, and the futures are no
                :class:`TaskFuture`: one that was sent can no longer be cancelled.
            initializer: called once in each worker before the executor's first call there. Such workers run calls of
                this executor alone. When it raises, the executor is broken, as in :mod:`concurrent.futures`.
            initargs: its arguments.
            others: refused.

        Raises:
            TypeError: an argument of another executor, or of a wrong type; the remedy is named.
            ValueError: ``max_workers`` is not positive.
        """
        for name in others:
            remedy = _REMEDIES.get(name, "it takes max_workers, initializer and initargs")
            raise TypeError(f"PilotExecutor takes no {name}: {remedy}")
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"max_workers: {max_workers!r} is not a whole number")
            if max_workers <= 0:
                raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._lock = threading.Lock()
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._maps: WeakSet[MapSequence[Any]] = WeakSet()
        self._shut = False
        self._initializer, self._initargs = initializer, tuple(initargs)
        self._wrapped: dict[Any, Initialized] = {}
        scope: Any = session
        scope = getattr(scope, "_scope", scope)
        if initializer is not None:
            scope = scope.options(environment={**scope._options.environment, EXECUTOR_VARIABLE: uuid4().hex})
        self._scope: Scope = scope
        self._window = (
            None if max_workers is None and initializer is None else _Window(self._scope._client, max_workers)
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call; see :meth:`Session.call`.

        What it returns is a :class:`TaskFuture` unless ``max_workers`` or an ``initializer`` was given.

        Raises:
            RuntimeError: after :meth:`shutdown`.
            BrokenExecutor: the initializer failed.
        """
        with self._lock:
            self._check()
            future: Future[T]
            if self._window is None:
                future = self._scope.call(fn, *args, **kwargs)
            else:
                future = self._window.add(self._scope.prepared(self._with_initializer(fn), args, kwargs))
            self._futures.add(future)
        if self._window is not None:
            self._window.send()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Run a call for each element and yield the values in order.

        ``chunksize`` changes nothing: calls travel in bulks anyway. With ``buffersize`` the iterables are taken in as
        values are taken out, that many elements ahead.

        Raises:
            TimeoutError: a value is not there ``timeout`` seconds after this call.
            RuntimeError: after :meth:`shutdown`.
            TypeError, ValueError: ``chunksize`` or ``buffersize`` is not a positive number.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int)):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        if self._window is None and buffersize is None and iterables:
            return self._map_at_once(fn, iterables, end)
        return self._map_one_by_one(fn, zip(*iterables, strict=False), end, buffersize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; wait for what was submitted; ``cancel_futures`` ends what has not ended.

        With ``max_workers`` or an ``initializer`` it ends what has not begun.

        Raises:
            PilotFailed: no pilot is left that could do what it waits for.
        """
        with self._lock:
            self._shut = True
            futures, maps = list(self._futures), list(self._maps)
        if cancel_futures:
            for future in futures:
                future.cancel()
            for sequence in maps:
                sequence.cancel()
        if wait:
            _wait(futures, maps)

    def _check(self) -> None:
        if self._window is not None and self._window.broken:
            raise InitializerFailed(self._window.broken)
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _with_initializer(self, function: Callable[..., T]) -> Callable[..., T]:
        if self._initializer is None:
            return function
        # One object a function, so that it is packed once.
        known = self._wrapped.get(id(function))
        if known is None or known.func is not function:
            known = self._wrapped[id(function)] = Initialized(function, self._initializer, self._initargs)
        return known

    def _map_at_once(
        self, function: Callable[..., T], iterables: tuple[Iterable[Any], ...], end: float | None
    ) -> Iterator[T]:
        with self._lock:
            self._check()
            sequence = self._scope.map(function, *iterables)
            self._maps.add(sequence)

        def values() -> Iterator[T]:
            try:
                yield from sequence.iter_results(None if end is None else max(0.0, end - time.monotonic()))
            finally:
                # As the standard library does: whoever stops looking does not want the rest.
                sequence.cancel()

        return values()

    def _map_one_by_one(
        self, function: Callable[..., T], rows: Iterator[tuple[Any, ...]], end: float | None, ahead: int | None
    ) -> Iterator[T]:
        waiting = deque(self.submit(function, *row) for row in itertools.islice(rows, ahead))

        def values() -> Iterator[T]:
            try:
                while waiting:
                    value = waiting[0].result(None if end is None else max(0.0, end - time.monotonic()))
                    waiting.popleft()
                    if ahead is not None:
                        waiting.extend(self.submit(function, *row) for row in itertools.islice(rows, 1))
                    yield value
            finally:
                for future in waiting:
                    future.cancel()

        return values()


class _WindowFuture(LocalFuture[T]):
    """The future of a call that waits for room, and then for its task."""

    _late = "did not end"

    def __init__(self, client: Client, window: _Window) -> None:
        super().__init__(client, "a call of the executor")
        self._window = window
        self.task: TaskFuture[Any] | None = None

    @property
    def pilots_left(self) -> PilotsLeft | None:
        """Whether anything is left that could do it, or those that it waits behind."""
        return self._client.pilots_left

    def cancel(self) -> bool:
        """Cancel it and return True, unless it was sent or has ended."""
        ended = Future.cancel(self)
        if ended:
            self.unwatch()
        return ended

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`: its task, or those that have the room."""
        for task in (self.task,) if self.task is not None else self._window.sent():
            task._want(wanted)


class _Window:
    """Sends prepared calls, so many at a time. Safe to use from several threads."""

    def __init__(self, client: Client, width: int | None) -> None:
        self.broken = ""
        self._client = client
        self._tasks: set[TaskFuture[Any]] = set()
        self._width = width
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[tuple[_WindowFuture[Any], Callable[[], TaskFuture[Any]]]] = deque()

    def add(self, start: Callable[[], TaskFuture[T]]) -> Future[T]:
        """Return the future of a call that is sent by :meth:`send` when there is room."""
        future: _WindowFuture[T] = _WindowFuture(self._client, self)
        with self._lock:
            self._waiting.append((future, start))
        return future

    def sent(self) -> list[TaskFuture[Any]]:
        """Return those that have been sent and have not ended."""
        with self._lock:
            return list(self._tasks)

    def send(self) -> None:
        """Send what there is room for; of a broken executor nothing is sent, and all that waits is told so."""
        while True:
            with self._lock:
                if not self._waiting or (self._width is not None and self._running >= self._width):
                    return
                future, start = self._waiting.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._running += 1
            if self.broken:
                self._end(future, InitializerFailed(self.broken), None)
                continue
            task, error = attempt(start)
            if task is None:
                # Whatever refuses it is told where it is waited for.
                self._end(future, error, None)
                continue
            future.task = task
            with self._lock:
                self._tasks.add(task)
            watch_quietly(task, functools.partial(self._ended, future))

    def _ended(self, future: _WindowFuture[Any], task: Future[Any]) -> None:
        with self._lock:
            self._tasks.discard(cast("TaskFuture[Any]", task))
        future.task = None  # which calls this one back: a cycle
        value, error = attempt(task.result, BaseException)
        if isinstance(error, InitializerFailed):
            self.broken = self.broken or str(error)
        self._end(future, error, value)
        self.send()

    def _end(self, future: _WindowFuture[Any], error: BaseException | None, value: Any) -> None:
        with self._lock:
            self._running -= 1
        future.settle(value, error)


def _wait(futures: list[Future[Any]], maps: list[MapSequence[Any]]) -> None:
    wait(futures)
    for sequence in maps:
        sequence.wait()
