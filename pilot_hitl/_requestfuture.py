"""The future of a request to a service."""

from __future__ import annotations

import threading
import time
from _thread import LockType
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pilot_hitl._lending import patiently
from pilot_hitl._silence import AFTER
from pilot_hitl._waiting import run_callbacks
from pilot_hitl._watchers import Watchers
from pilot_hitl.errors import fresh
from pilot_hitl.futures import in_loop

if TYPE_CHECKING:
    from pilot_hitl._channel import Channel
    from pilot_hitl._client import Client
    from pilot_hitl._lanes import Lane
    from pilot_hitl._silence import Silence, Wanted
    from pilot_hitl._waiting import PilotsLeft

PENDING = "PENDING"
FINISHED = "FINISHED"
_making = threading.Lock()  # guards what futures make on demand; held for a few instructions only


class _Watchers(Watchers):
    """The list to which ``wait()`` and ``as_completed()`` add themselves: then the channel goes on by itself."""

    __slots__ = ("_request",)

    def __init__(self, future: ServiceFuture) -> None:
        super().__init__(future)
        self._request = future

    def append(self, watcher: Any) -> None:
        super().append(watcher)
        self._request.watch()

    def add_heard(self, watcher: Any) -> None:
        super().add_heard(watcher)
        self._request.watch()


class ServiceFuture(Future[Any]):
    """The result of a request, once there is one.

    A :class:`concurrent.futures.Future` that can also be awaited. Callbacks run in a thread of the session's own.

    Attributes:
        number: of the request, in its channel.
        timing: ``(service, inference)`` in seconds, once it is answered: what it waited at the replica, and what the
            handler took for its batch.
    """

    def __init__(self, channel: Channel, number: int, body: bytes, buffers: Sequence[bytes]) -> None:
        # The base's __init__ is left out on purpose: its Condition is most of a future's cost. See __getattr__.
        self._state = PENDING
        self._result = self._exception = None
        self.number = number
        self.timing = (0.0, 0.0)
        self._channel = channel
        self._body = body
        self._buffers = buffers
        self._method = ""
        self._deadline = 0.0
        self._replica = 0
        self._speculative = self._deferred = False
        self._condition_number = 0
        self._tries = self._suspicions = 0
        self._sent = 0.0
        self._lane: Lane | None = None
        self._parked: LockType | None = None
        self._watched = False

    def __getattr__(self, name: str) -> Any:
        """Make what the base class keeps, when it is first reached for: most futures need none of it."""
        with _making:
            made: Any = self.__dict__.get(name)
            if made is None:
                if name == "_condition":
                    made = threading.Condition()
                elif name == "_waiters":
                    made = _Watchers(self)
                elif name == "_done_callbacks":
                    made = Watchers(self)
                else:
                    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
                self.__dict__[name] = made
        return made

    # --- the face -----------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """Return what the handler returned; wait up to ``timeout`` seconds for it.

        Raises:
            TimeoutError: it is not there in time; the request goes on.
            PilotFailed: no pilot is left on which a replica could answer it; the request goes on.
            ServiceError: the request was not answered well; the handler's own exception is raised as it is.
        """
        if self._state == PENDING:
            patiently(self._wait, timeout)
        if self._state == PENDING:
            raise self._too_late(timeout)
        if self._state != FINISHED:
            return super().result(0)
        if self._exception is not None:
            try:
                raise fresh(self._exception)
            finally:
                del self  # breaks the cycle through the traceback
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, None for a success.

        Raises:
            TimeoutError, PilotFailed: as :meth:`result`.
        """
        if self._state == PENDING:
            patiently(self._wait, timeout)
        if self._state == PENDING:
            raise self._too_late(timeout)
        return self._exception if self._state == FINISHED else super().exception(0)

    def _too_late(self, timeout: float | None) -> TimeoutError:
        lane = self._lane
        where = "no replica is ready" if lane is None else f"replica {lane.number} has it"
        return TimeoutError(
            f"service {self._channel.name!r} did not answer within {timeout} s; {where}, and the request goes on"
        )

    def _wait(self, timeout: float | None) -> bool:
        """Wait up to ``timeout`` seconds; return whether it ended.

        Raises:
            PilotFailed: no pilot is left, and no replica has it.
        """
        pilots, end = self._channel.client.pilots_left, None if timeout is None else time.monotonic() + timeout
        while not self._wait_told(timeout):
            if end is not None and time.monotonic() >= end:
                return False
            if self._deserted and pilots.hear(end) and self._deserted:
                raise pilots.error("no replica can answer the request")
            timeout = None if end is None else max(0.0, end - time.monotonic())
        return True

    @property
    def _deserted(self) -> bool:
        pilots = self.pilots_left
        return pilots is not None and bool(pilots.why)

    def _wait_told(self, timeout: float | None) -> bool:
        """Wait as :meth:`_wait`, but return early when no pilot is left; long waits are told of."""
        channel, silence = self._channel, self._channel.client.silence
        if timeout is not None and timeout <= AFTER:
            channel.wait(self, timeout)
            if self._state == PENDING and timeout and not self._deserted:
                silence.missed(self._want, timeout)
            return self._state != PENDING
        channel.wait(self, AFTER)
        if self._state == PENDING:
            with silence.waiting(self._want, AFTER):
                channel.wait(self, None if timeout is None else timeout - AFTER)
        return self._state != PENDING

    @property
    def _client(self) -> Client:
        return self._channel.client

    @property
    def pilots_left(self) -> PilotsLeft | None:
        """Whether a pilot is left on which a replica could answer; None while one has it."""
        return None if self._lane is not None or self._state != PENDING else self._channel.client.pilots_left

    def _silence(self) -> Silence:
        return self._channel.client.silence

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`; a replica that has it works at it."""
        if self._lane is not None:
            wanted.moves = True
        elif self._state == PENDING:
            self._channel.want(wanted)

    def done(self) -> bool:
        """Return whether it is there."""
        if self._state == PENDING:
            self.watch()
        return super().done()

    def running(self) -> bool:
        """Return False: a client is told of ends, not of starts."""
        return False

    def cancel(self) -> bool:
        """Forget the request, and return True; False when it ended before. A handler that has it goes on."""
        ended = super().cancel()
        if ended:
            self._unwatch()
            self._channel.forget(self)
        return ended

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(future)`` in the session's callback thread once it is there."""
        super().add_done_callback(fn)
        if self._state == PENDING:
            self.watch()

    def __await__(self) -> Generator[Any, None, Any]:
        return in_loop(self, self._channel.client.pilots_left).__await__()

    # --- what the channel does ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """Let the channel go on by itself until this one is there."""
        if not self._watched:
            self._watched = True
            self._channel.watch(self)

    def unpark(self) -> bool:
        """Wake the thread that sleeps for it; return whether there was one."""
        parked, self._parked = self._parked, None
        if parked is None:
            return False
        with suppress(RuntimeError):  # another thread was faster
            parked.release()
        return True

    def end(self, value: Any, error: BaseException | None) -> None:
        """Take the end in; called once, by whoever drives."""
        with _making:
            # Whoever waits in the base's way made a condition first.
            waited = "_condition" in self.__dict__
            if not waited:
                if self._state != PENDING:
                    return
                self._result, self._exception, self._state = value, error, FINISHED
        if waited and not self._end_loudly(value, error):
            return
        self._body, self._buffers, self._lane = b"", (), None
        self.unpark()
        if waited:
            base: Any = self  # the stubs leave the base's own parts out
            if callbacks := [partial(each, self) for each in base._done_callbacks]:
                self._channel.call_back(partial(run_callbacks, callbacks))

    def _end_loudly(self, value: Any, error: BaseException | None) -> bool:
        with self._condition:
            if self._state != PENDING:
                return False
            self._result, self._exception, self._state = value, error, FINISHED
            for waiter in self._waiters:
                if error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._unwatch()
            self._condition.notify_all()
        return True

    def _unwatch(self) -> None:
        """It ended: nobody waits for it any more."""
        for name in ("_waiters", "_done_callbacks"):
            if (made := self.__dict__.get(name)) is not None:
                made.over()
