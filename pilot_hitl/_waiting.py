"""Waiting: every blocking call of the public face sleeps in here.

So that in a body it ends with the branch, in a task it lends the task's cores, and in a ``with`` block that only
declares it is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future
from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from pilot_hitl._watchers import Watchers
from pilot_hitl.errors import PilotFailed
from pilot_hitl.wire.raised import attempt

if TYPE_CHECKING:
    from pilot_hitl._places import Place
    from pilot_hitl._silence import Silence, Want, Wanted

_log = logging.getLogger(__name__)
MOST_LOOKED_AT = 100_000
"""Of so many futures that somebody waits for at once, it is asked what they wait for."""
LEND_AFTER = 0.05
"""Seconds of waiting inside a task after which its cores are lent."""
Ready = Callable[[], bool]


class PilotsLeft:
    """Whether a pilot is left, or asked for, that could do what is waited for. Safe to use from several threads.

    When the last one ends, those who wait are told, and what they wait for is not: another pilot may do it yet.
    """

    def __init__(self, ask: Callable[[float | None], object], silence: Silence) -> None:
        """Begin as a session does: no pilot was asked for, and whoever waits, waits for that.

        ``ask(seconds)`` returns once the hub has said all that it knows, or raises TimeoutError. ``silence`` tells
        those who wait long.
        """
        self._ask = ask
        self.silence = silence
        self.why = ""
        """How the last pilot ended; empty while nobody has to be told."""
        self._listeners: dict[int, Callable[[], None]] = {}
        self._numbers = count()
        self._lock = threading.Lock()

    def lost(self, why: str) -> None:
        """The last pilot ended: wake everybody who waits."""
        with self._lock:
            self.why = why
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener()

    def found(self) -> None:
        """There is one again."""
        self.why = ""

    def error(self, what: str = "the task is unfinished, not failed") -> PilotFailed:
        """Return what whoever waits is told; ``what`` became of what is waited for."""
        return PilotFailed(
            f"no pilot is left: {self.why}; {what}: submit another pilot and wait again, or run the script again"
        )

    def hear(self, end: float | None) -> bool:
        """Let the hub have its say: what it has, or what was canceled, needs no pilot. False: not before ``end``."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        try:
            self._ask(left)
        except TimeoutError:
            return False
        return True

    def listen(self, listener: Callable[[], None]) -> int:
        """Call ``listener`` when the last pilot ends; returns a number for :meth:`ignore`."""
        with self._lock:
            number = next(self._numbers)
            self._listeners[number] = listener
        return number

    def ignore(self, number: int) -> None:
        """Undo :meth:`listen`."""
        with self._lock:
            self._listeners.pop(number, None)

    def wait(
        self, place: Place | None, condition: threading.Condition, ready: Ready, timeout: float | None, want: Want
    ) -> bool:
        """Wait as :func:`sleep` does, for what a pilot must do; ``want`` says what that is.

        Raises:
            PilotFailed: no pilot is left.
        """
        return self.wait_while(place, condition, ready, timeout, want, lambda: True)

    def wait_while(
        self,
        place: Place | None,
        condition: threading.Condition,
        ready: Ready,
        timeout: float | None,
        want: Want,
        needed: Ready,
    ) -> bool:
        """Wait as :meth:`wait` does; a pilot must do it only while ``needed()``.

        With a ``timeout`` of 0 it only looks: what no pilot will do is then not there in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        there = False

        def look() -> bool:
            nonlocal there
            there = ready()
            return there or (bool(self.why) and needed())

        def wake() -> None:
            with condition:
                condition.notify_all()

        number = self.listen(wake)
        try:
            while sleep(
                place, condition, look, None if end is None else max(0.0, end - time.monotonic()), self.silence, want
            ):
                if there:
                    return True
                if not self.hear(end):
                    return False
                with condition:
                    there = ready()
                if not there and self.why and needed():
                    raise self.error()
            return False
        finally:
            self.ignore(number)


def sleep(
    place: Place | None,
    condition: threading.Condition,
    ready: Ready,
    timeout: float | None = None,
    silence: Silence | None = None,
    want: Want | None = None,
) -> bool:
    """Wait until ``ready()``, called with the condition's lock held; return whether it is so within ``timeout`` s.

    The lock must not be held by the caller. With ``silence``, a long wait for what ``want`` adds is told of.

    Raises:
        BranchDiscarded: the body that this runs in must end.
    """
    if place is None:
        with condition:
            return _hold(condition, ready, timeout, silence, want)
    body = place.body
    if body is None:
        return _sleep_in_task(place, condition, ready, timeout, silence, want)
    with body.sleeping(condition):
        found = _sleep_in_task(place, condition, lambda: body.over is not None or ready(), timeout, silence, want)
    body.check()
    return found


def _hold(
    condition: threading.Condition, ready: Ready, timeout: float | None, silence: Silence | None, want: Want | None
) -> bool:
    if silence is None or want is None:
        return condition.wait_for(ready, timeout)
    return silence.hold(condition, ready, timeout, want)


def _sleep_in_task(
    place: Place,
    condition: threading.Condition,
    ready: Ready,
    timeout: float | None,
    silence: Silence | None,
    want: Want | None,
) -> bool:
    if place.lender is None:
        with condition:
            return _hold(condition, ready, timeout, silence, want)
    with condition:
        if condition.wait_for(ready, LEND_AFTER if timeout is None else min(LEND_AFTER, timeout)):
            return True
    left = None if timeout is None else timeout - LEND_AFTER
    if left is not None and left <= 0:
        return False
    with place.lender.lent(), condition:
        return _hold(condition, ready, left, silence, want)


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

    def __init__(self, place: Place | None, futures: Iterable[Future[Any]], *, look_into: bool = False) -> None:
        """Start with all of them left; ``look_into`` those that have ended, to see whether one failed."""
        self.condition = threading.Condition()
        self.left = set(futures)
        self.done: set[Future[Any]] = set()
        self.failed = False
        self.pilots: list[PilotsLeft] = []
        self._place = place
        self._look = True
        self._look_into = look_into

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
                self.failed = self.failed or (self._look_into and _failed(future))

    def want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`."""
        for future in list(islice(self.left, MOST_LOOKED_AT)):
            if (want := getattr(future, "_want", None)) is not None:
                want(wanted)

    def _move(self, future: Future[Any]) -> None:
        if future in self.left:
            self.left.discard(future)
            self.done.add(future)

    def hopeless(self, *, every: bool) -> PilotsLeft | None:
        """Return what tells that no pilot is left for one of those left, or for every one of them; None if not so.

        Called with the lock held.
        """
        if not any(pilots.why for pilots in self.pilots):
            return None
        found = [getattr(future, "pilots_left", None) for future in self.left]
        lost = [pilots for pilots in found if pilots is not None and pilots.why]
        return lost[0] if lost and (len(lost) == len(found) or not every) else None


@contextmanager
def _listening(place: Place | None, futures: set[Future[Any]], *, look_into: bool = False) -> Iterator[Gong]:
    gong = Gong(place, futures, look_into=look_into)
    heard: list[Any] = list(futures)  # the stubs leave out what the futures' own module uses
    for future in heard:
        with future._condition:
            if not future.done():
                waiters = future._waiters  # those of ours are told of long waits by the gong, once for all of them
                (waiters.add_heard if isinstance(waiters, Watchers) else waiters.append)(gong)
    if place is not None:
        place.client.held.listen(gong)
    clients = {getattr(future, "_client", None) for future in heard}
    gong.pilots = list({client.pilots_left for client in clients if client is not None})
    numbers = [pilots.listen(gong.look) for pilots in gong.pilots]
    try:
        yield gong
    finally:
        for pilots, number in zip(gong.pilots, numbers, strict=True):
            pilots.ignore(number)
        if place is not None:
            place.client.held.ignore(gong)
        for future in heard:
            with future._condition:
                if gong in future._waiters:
                    future._waiters.remove(gong)


def wait_many(
    place: Place | None, futures: set[Future[Any]], timeout: float | None, return_when: str
) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Wait as :func:`concurrent.futures.wait` does; a held value that is seen in this place counts as done.

    Raises:
        PilotFailed: it would wait for ever, because no pilot is left.
    """
    begin(place, futures)
    with _listening(place, futures, look_into=return_when == FIRST_EXCEPTION) as gong:

        def enough() -> bool:
            gong.gather()
            if not gong.left or (return_when == FIRST_COMPLETED and gong.done):
                return True
            return return_when == FIRST_EXCEPTION and gong.failed

        _sleep_for_pilots(place, gong, enough, timeout, every=return_when != ALL_COMPLETED)
        with gong.condition:
            return set(gong.done), set(gong.left)


def _sleep_for_pilots(place: Place | None, gong: Gong, ready: Ready, timeout: float | None, *, every: bool) -> bool:
    """Wait as :func:`sleep` does, but not for ever.

    Raises:
        PilotFailed: no pilot is left for any of those left, or for ``every`` one of them.
    """
    end = None if timeout is None else time.monotonic() + timeout
    there, lost = False, None
    silence = gong.pilots[0].silence if gong.pilots else None

    def look() -> bool:
        nonlocal there, lost
        there = ready()
        lost = None if there else gong.hopeless(every=every)
        return there or lost is not None

    while sleep(
        place, gong.condition, look, None if end is None else max(0.0, end - time.monotonic()), silence, gong.want
    ):
        if there:
            return True
        if lost is None or not lost.hear(end):
            return False
        gong.look()
        if sleep(place, gong.condition, look, 0) and not there:
            raise lost.error()
    return False


def complete_many(place: Place | None, futures: set[Future[Any]], timeout: float | None) -> Iterator[Future[Any]]:
    """Yield futures as they end, or have a value that is seen here; call :func:`begin` first.

    Raises:
        TimeoutError: not all within ``timeout`` seconds.
        PilotFailed: no pilot is left for any of those that have not ended.
    """
    end = None if timeout is None else time.monotonic() + timeout
    with _listening(place, futures) as gong:
        told: set[Future[Any]] = set()

        def news() -> bool:
            gong.gather()
            return len(gong.done) > len(told)

        while len(told) < len(futures):
            remaining = None if end is None else max(0.0, end - time.monotonic())
            if not _sleep_for_pilots(place, gong, news, remaining, every=True):
                raise TimeoutError(f"{len(futures) - len(told)} (of {len(futures)}) futures did not end in {timeout} s")
            with gong.condition:
                new = gong.done - told
            told |= new
            yield from new


def begin(place: Place | None, futures: Iterable[Future[Any]]) -> None:
    """Get ready to wait for futures in a place.

    Raises:
        Undecided: in a block that only declares.
    """
    if place is None:
        return
    for future in futures:
        prepare = getattr(future, "_prepare", None)  # other futures than ours have no condition
        if prepare is not None and not future.done():
            prepare(place)


def is_ready(place: Place | None, future: Future[Any]) -> bool:
    """Return whether a future's ``result()`` would not wait here."""
    if future.done() or place is None:
        return future.done()
    held = getattr(future, "_held_here", None)
    return held is not None and bool(held(place))


def _failed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception(0) is not None
