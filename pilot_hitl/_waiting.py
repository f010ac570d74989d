"""Waiting: every blocking call of the public face sleeps in here.

So that in a body it ends with the branch, in a task it lends the task's cores, and in a ``with`` block that only
declares it is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot_hitl._places import Place

LEND_AFTER = 0.05
"""Seconds of waiting inside a task after which its cores are lent."""
Ready = Callable[[], bool]


def sleep(place: Place | None, condition: threading.Condition, ready: Ready, timeout: float | None = None) -> bool:
    """Wait until ``ready()``, called with the condition's lock held; return whether it is so within ``timeout`` s.

    The lock must not be held by the caller.

    Raises:
        BranchDiscarded: the body that this runs in must end.
    """
    if place is None:
        with condition:
            return condition.wait_for(ready, timeout)
    body = place.body
    if body is None:
        return _sleep_in_task(place, condition, ready, timeout)
    with body.sleeping(condition):
        found = _sleep_in_task(place, condition, lambda: body.over is not None or ready(), timeout)
    body.check()
    return found


def _sleep_in_task(place: Place, condition: threading.Condition, ready: Ready, timeout: float | None) -> bool:
    if place.lender is None:
        with condition:
            return condition.wait_for(ready, timeout)
    with condition:
        if condition.wait_for(ready, LEND_AFTER if timeout is None else min(LEND_AFTER, timeout)):
            return True
    left = None if timeout is None else timeout - LEND_AFTER
    if left is not None and left <= 0:
        return False
    with place.lender.lent(), condition:
        return condition.wait_for(ready, left)


class _Gong:
    """A waiter of :mod:`concurrent.futures`: told by a future, under the future's lock, that it ended."""

    def __init__(self, condition: threading.Condition) -> None:
        self._condition = condition

    def _ring(self, _future: Future[Any]) -> None:
        with self._condition:
            self._condition.notify_all()

    add_result = add_exception = add_cancelled = _ring


@contextmanager
def _listening(place: Place, futures: Iterable[Future[Any]]) -> Iterator[threading.Condition]:
    """Yield a condition that is notified whenever one of the futures ends or has a held value."""
    condition = threading.Condition()
    gong = _Gong(condition)
    heard: list[Any] = list(futures)  # the stubs leave out what the futures' own module uses
    for future in heard:
        with future._condition:
            future._waiters.append(gong)
    place.client.held.listen(condition)
    try:
        yield condition
    finally:
        place.client.held.ignore(condition)
        for future in heard:
            with future._condition:
                future._waiters.remove(gong)


def wait_many(
    place: Place, futures: set[Future[Any]], timeout: float | None, return_when: str
) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Wait as :func:`concurrent.futures.wait` does, in a place; a held value that is seen there counts as done."""

    def enough() -> bool:
        done = [future for future in futures if is_ready(place, future)]
        if len(done) == len(futures) or (return_when == FIRST_COMPLETED and done):
            return True
        return return_when == FIRST_EXCEPTION and any(_failed(future) for future in done)

    begin(place, futures)
    with _listening(place, futures) as condition:
        sleep(place, condition, enough, timeout)
    done = {future for future in futures if is_ready(place, future)}
    return done, futures - done


def complete_many(place: Place, futures: set[Future[Any]], timeout: float | None) -> Iterator[Future[Any]]:
    """Yield futures as they end, or have a value that is seen here; call :func:`begin` first.

    Raises:
        TimeoutError: not all within ``timeout`` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    left = set(futures)
    with _listening(place, futures) as condition:
        while left:
            remaining = None if end is None else max(0.0, end - time.monotonic())
            if not sleep(place, condition, lambda: any(is_ready(place, each) for each in left), remaining):
                raise TimeoutError(f"{len(left)} (of {len(futures)}) futures did not end within {timeout} s")
            for future in [each for each in left if is_ready(place, each)]:
                left.discard(future)
                yield future


def begin(place: Place, futures: Iterable[Future[Any]]) -> None:
    """Get ready to wait for futures in a place.

    Raises:
        Undecided: in a block that only declares.
    """
    for future in futures:
        prepare = getattr(future, "_prepare", None)  # other futures than ours have no condition
        if prepare is not None and not future.done():
            prepare(place)


def is_ready(place: Place, future: Future[Any]) -> bool:
    """Return whether a future's ``result()`` would not wait here."""
    if future.done():
        return True
    held = getattr(future, "_held_here", None)
    return held is not None and bool(held(place))


def _failed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception(0) is not None
