"""Waiting: every blocking call of the public face sleeps in here.

So that in a body it ends with the branch, in a task it lends the task's cores, and in a ``with`` block that only
declares it is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pilot_hitl.wire.raised import attempt

if TYPE_CHECKING:
    from pilot_hitl._places import Place

_log = logging.getLogger(__name__)
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


def run_callbacks(callbacks: Iterable[Callable[[], object]]) -> None:
    """Run callbacks, one after the other; what one of them raises is logged, and ends neither others nor the thread.

    The base class of futures lets through what is no Exception: a ``sys.exit`` would silence all callbacks after it.
    """
    for callback in callbacks:
        _, error = attempt(callback, BaseException)
        if error is not None:
            _log.error("a callback raised %s; nobody takes that", type(error).__name__, exc_info=error)


class Gong:
    """Waits for some of many futures: a waiter of :mod:`concurrent.futures`, told by each future that it ended.

    Each future is looked at once in the beginning, once when it ends, and whenever a held value comes; so the cost does
    not grow with the square of their number.

    Attributes:
        condition: notified when there is news.
        left, done: the futures by whether ``result()`` would wait here.
    """

    def __init__(self, place: Place, futures: Iterable[Future[Any]]) -> None:
        """Start with all of them left."""
        self.condition = threading.Condition()
        self.left = set(futures)
        self.done: set[Future[Any]] = set()
        self.failed = False
        self._place = place
        self._look = True

    def add_result(self, future: Future[Any]) -> None:
        """Take the end of a future, which is locked."""
        self._ended(future, failed=False)

    def add_exception(self, future: Future[Any]) -> None:
        """Take the bad end of a future."""
        self._ended(future, failed=True)

    def add_cancelled(self, future: Future[Any]) -> None:
        """Take the end of a canceled future."""
        self._ended(future, failed=False)

    def _ended(self, future: Future[Any], *, failed: bool) -> None:
        with self.condition:
            self._move(future)
            self.failed = self.failed or failed
            self.condition.notify_all()

    def look(self) -> None:
        """Let whoever waits look at all that is left: a held value came."""
        with self.condition:
            self._look = True
            self.condition.notify_all()

    def gather(self) -> None:
        """Move what is ready; called with the lock held."""
        if self._look:
            self._look = False
            for future in [each for each in self.left if is_ready(self._place, each)]:
                self._move(future)
                self.failed = self.failed or _failed(future)

    def _move(self, future: Future[Any]) -> None:
        if future in self.left:
            self.left.discard(future)
            self.done.add(future)


@contextmanager
def _listening(place: Place, futures: set[Future[Any]]) -> Iterator[Gong]:
    gong = Gong(place, futures)
    heard: list[Any] = list(futures)  # the stubs leave out what the futures' own module uses
    for future in heard:
        with future._condition:
            if not future.done():
                future._waiters.append(gong)
    place.client.held.listen(gong)
    try:
        yield gong
    finally:
        place.client.held.ignore(gong)
        for future in heard:
            with future._condition:
                if gong in future._waiters:
                    future._waiters.remove(gong)


def wait_many(
    place: Place, futures: set[Future[Any]], timeout: float | None, return_when: str
) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Wait as :func:`concurrent.futures.wait` does, in a place; a held value that is seen there counts as done."""
    begin(place, futures)
    with _listening(place, futures) as gong:

        def enough() -> bool:
            gong.gather()
            if not gong.left or (return_when == FIRST_COMPLETED and gong.done):
                return True
            return return_when == FIRST_EXCEPTION and gong.failed

        sleep(place, gong.condition, enough, timeout)
        with gong.condition:
            return set(gong.done), set(gong.left)


def complete_many(place: Place, futures: set[Future[Any]], timeout: float | None) -> Iterator[Future[Any]]:
    """Yield futures as they end, or have a value that is seen here; call :func:`begin` first.

    Raises:
        TimeoutError: not all within ``timeout`` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    with _listening(place, futures) as gong:
        told: set[Future[Any]] = set()

        def news() -> bool:
            gong.gather()
            return len(gong.done) > len(told)

        while len(told) < len(futures):
            remaining = None if end is None else max(0.0, end - time.monotonic())
            if not sleep(place, gong.condition, news, remaining):
                raise TimeoutError(f"{len(futures) - len(told)} (of {len(futures)}) futures did not end in {timeout} s")
            with gong.condition:
                new = gong.done - told
            told |= new
            yield from new


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
