"""A session as a :class:`concurrent.futures.Executor`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, Executor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet

from pilot_hitl.futures import TaskFuture

if TYPE_CHECKING:
    from pilot_hitl._maps import MapSequence
    from pilot_hitl.branches import Scope
    from pilot_hitl.session import Session

P = ParamSpec("P")
T = TypeVar("T")


class PilotExecutor(Executor):
    """Runs calls on a session's pilots. The session stays open when the executor is shut down."""

    def __init__(self, session: Session | Scope) -> None:
        """Use a session, a branch, or what ``options(…)`` returned."""
        self._session = session
        self._lock = threading.Lock()
        self._futures: WeakSet[TaskFuture[Any]] = WeakSet()
        self._maps: WeakSet[MapSequence[Any]] = WeakSet()
        self._shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Run a call; see :meth:`Session.call`.

        Raises:
            RuntimeError: after :meth:`shutdown`.
        """
        with self._lock:
            self._check()
            future = self._session.call(fn, *args, **kwargs)
            self._futures.add(future)
            return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Run a call for each element and yield the values in order. ``chunksize`` is ignored: maps travel as bulks.

        Raises:
            TimeoutError: a value is not there ``timeout`` seconds after this call.
            RuntimeError: after :meth:`shutdown`.
        """
        del chunksize
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._check()
            sequence = self._session.map(fn, *iterables)
            self._maps.add(sequence)

        def values() -> Iterator[T]:
            try:
                yield from sequence.iter_results(None if end is None else max(0.0, end - time.monotonic()))
            finally:
                # As the standard library does: whoever stops looking does not want the rest.
                sequence.cancel()

        return values()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; wait for what was submitted; ``cancel_futures`` ends what has not ended."""
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
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")


def _wait(futures: list[TaskFuture[Any]], maps: list[MapSequence[Any]]) -> None:
    wait(futures, return_when=ALL_COMPLETED)
    for sequence in maps:
        sequence.wait()
