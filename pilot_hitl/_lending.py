"""Lending: while code inside a task waits, others use the task's cores: its own work, and what can give them back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pilot_hitl.errors import PilotHitlError
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.current import RANKS_VARIABLE, CurrentAttempt, current_attempt

if TYPE_CHECKING:
    from pilot_hitl._client import Client


class Lender:
    """Lends the cores of one attempt as long as at least one of its threads waits.

    An attempt of several ranks lends nothing: the other ranks may well compute.

    When the last one stops to wait, the cores are wanted back, and it goes on only when they are there. So a thread
    that computes beside one that waits may have to share its cores meanwhile.
    """

    def __init__(self, client: Client, attempt: CurrentAttempt) -> None:
        """Lend nothing yet."""
        self._client = client
        self._attempt = attempt
        self._alone = os.environ.get(RANKS_VARIABLE, "1") == "1"
        self._waiting = 0
        self._lock = threading.Lock()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Lend in the block; may be nested, and entered by several threads."""
        if not self._alone:
            yield
            return
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                with suppress(PilotHitlError):  # a session that is gone lends nothing
                    self._client.tell(self._message(self._client.new_token(), on=True))
        try:
            yield
        finally:
            # The lock is kept while the cores come back: who begins to wait now must not lend them in between.
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    with suppress(PilotHitlError):
                        self._client.request(lambda token: self._message(token, on=False), None)

    def _message(self, token: int, *, on: bool) -> m.Lend:
        attempt = self._attempt
        return m.Lend(token, attempt.task, attempt.epoch, attempt.run, on)


@contextmanager
def lend_resources() -> Iterator[None]:
    """Lend the cores of the running task in the block: to its own work, and to what can give them back at once.

    For waits that are not ours, such as a subprocess or a file that somebody writes. After the block the task has its
    cores again. May be nested; does nothing outside of a task.
    """
    attempt = current_attempt()
    if attempt is None:
        yield
        return
    with _lender().lent():
        yield


def pause(condition: threading.Condition, ready: Callable[[], bool], timeout: float | None = None) -> bool:
    """Wait as ``condition.wait_for`` does (the lock not held); inside a task, lend its cores when that takes long.

    For waits that belong to no session. Returns whether ``ready()`` within ``timeout`` seconds.
    """

    def wait(seconds: float | None) -> bool:
        with condition:
            return condition.wait_for(ready, seconds)

    return patiently(wait, timeout)


def patiently(wait: Callable[[float | None], bool], timeout: float | None = None) -> bool:
    """Call ``wait(seconds)``, which says whether what it waits for is there; lend inside a task when that is long."""
    from pilot_hitl._waiting import LEND_AFTER

    if current_attempt() is None:
        return wait(timeout)
    if wait(LEND_AFTER if timeout is None else min(LEND_AFTER, timeout)):
        return True
    left = None if timeout is None else timeout - LEND_AFTER
    if left is not None and left <= 0:
        return False
    with _lender().lent():
        return wait(left)


def _lender() -> Lender:
    from pilot_hitl.session import current_session

    place = current_session().task_place()
    if place is None or place.lender is None:
        raise RuntimeError("the attempt that waits has ended")
    return place.lender
