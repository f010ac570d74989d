"""Bodies: code of the script that assumes an answer, in a thread of its own, begun when cores are free."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from pilot_hitl import _places, _waiting, errors
from pilot_hitl._places import Ground, Place
from pilot_hitl._results import contained, is_control_flow
from pilot_hitl._watchers import watch_quietly
from pilot_hitl.futures import Canceled, LocalFuture, TaskFuture
from pilot_hitl.model.states import Truth
from pilot_hitl.study.policies import policy_named

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Wanted
    from pilot_hitl.branches import Branch

R = TypeVar("R")
LOOK_AGAIN = 1.0
"""Seconds between two questions whether cores are free, at least, when they are not."""

_log = logging.getLogger(__name__)


class Body(LocalFuture[R], Generic[R]):
    """What ``@cp.on(…)`` returns: the future of what the decorated function returns, once its branch is real.

    A future that the function returns is followed to its value. ``result()`` raises the function's own error, or
    :class:`~pilot_hitl.errors.Discarded` when the answer is another one. Can be an entry of ``cp.select``.

    Attributes:
        branch: the handle that the function gets.
        thread: in which it runs.
    """

    def __init__(self, client: Client, branch: Branch, function: Callable[[Branch], R | Future[R]]) -> None:
        """Made by :meth:`Checkpoint.on`."""
        name = str(getattr(function, "__name__", "body"))
        super().__init__(client, f"the body {name}()")
        self.branch = branch
        self._function = function
        self._inside = _places.Body()
        self._started = False
        self._provisional: Future[R] | None = None
        self._followed = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name=f"pilot-hitl body {name}", daemon=True)

    # --- the face -----------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R:
        """Return what the function returned; in bodies of the same branch also before the answer.

        Raises:
            Discarded: its branch was not chosen.
            TimeoutError: it did not return, or nobody answered, within ``timeout`` seconds.
            The function's own error.
        """
        self._wait(timeout)
        if not self.done() and (there := self._provisional) is not None:
            return there.result(timeout)
        return super().result(0)

    @property
    def pilots_left(self) -> _waiting.PilotsLeft | None:
        """Whether anything is left that could do the task that it returned; None while the function runs."""
        return getattr(self._provisional, "pilots_left", None)

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`: the answer, or what the function returned; it runs meanwhile."""
        if (there := self._provisional) is not None and (want := getattr(there, "_want", None)) is not None:
            want(wanted)
        if self.truth is Truth.UNDECIDED:
            who = self._client.describe(self.branch.condition)
            wanted.said[f"people {who}"] = f"{self._name} counts once {who} is answered ('pilot-hitl inbox list')"

    def _prepare(self, place: Place) -> None:
        place.refuse_wait(self.branch.condition, self._name)

    def _held_here(self, place: Place) -> bool:
        return self._provisional is not None and place.sees(self.branch.condition)

    def _wait(self, timeout: float | None) -> None:
        place = _places.here(self._client)
        if self.done():
            return
        if place is None:
            there = self._sleep(None, self.done, timeout)
        else:
            self._prepare(place)
            there = self._sleep(place, lambda: self.done() or self._held_here(place), timeout)
        if not there:
            why = "it has not returned"
            if self.truth is Truth.UNDECIDED:
                why = f"{self._client.describe(self.branch.condition)} is not answered"
            elif self._provisional is not None:
                why = "the future that it returned has not ended"
            raise TimeoutError(f"{self._name} has no result within {timeout} s: {why}")

    # --- its life -----------------------------------------------------------------------------------------------

    @property
    def truth(self) -> Truth:
        """Whether its branch is real, as far as this client has heard."""
        return self._client.truth(self.branch.condition)

    def running(self) -> bool:
        """Return whether the function was called and has not returned."""
        return self._started and self._provisional is None

    def start(self) -> None:
        """Call the function, in a thread of its own, once."""
        with self._lock:
            if self._started or self.done():
                return
            self._started = True
        try:
            self.thread.start()
        except RuntimeError as error:  # the interpreter is ending
            self._finish(None, error)

    def look(self) -> None:
        """Act on the answer, if there is one: start or settle it. Does not block."""
        truth = self.truth
        if truth is Truth.TRUE:
            self.start()
            self._settle()
        elif truth is Truth.FALSE:
            why = self._client.conditions.why_false(self.branch.condition)
            self._inside.end(errors.BranchDiscarded(f"{self._name} ends: {why}"))
            self.settle(None, errors.Discarded(f"{self._name} does not count: {why}"))

    def abandon(self, reason: BaseException) -> None:
        """End it with the session."""
        if self.truth is not Truth.TRUE:
            self._inside.end(errors.BranchDiscarded(f"{self._name} ends: {reason}"))
        self.settle(None, reason)

    def _run(self) -> None:
        branch = self.branch
        terms = branch.condition
        place = Place(self._client, branch._ground, terms, body=self._inside, values=terms)
        token = _places.enter(place)
        value: R | Future[R] | None = None
        error: BaseException | None = None
        try:
            self._inside.check()
            value = self._function(branch)
            if isinstance(value, Coroutine):
                from asyncio import run  # not for everybody who has bodies

                value = run(value)
        except errors.BranchDiscarded as discarded:
            error = discarded
        except BaseException as raised:  # boundary: code of the user; its error is the result
            error = contained(raised, self._name) if is_control_flow(raised) else raised
        finally:
            _places.leave(token)
        self._finish(value, error)

    def _finish(self, value: R | Future[R] | None, error: BaseException | None) -> None:
        provisional: Future[R]
        if isinstance(value, Future):
            provisional = value
        else:
            provisional = Future()
            if error is None:
                provisional.set_result(cast("R", value))  # None is what the function returned
            else:
                provisional.set_exception(error)
        with self._condition:
            self._provisional = provisional
            self._condition.notify_all()
        self.look()
        self._client.bodies.notify()

    def _settle(self) -> None:
        with self._lock:
            provisional = self._provisional
            if provisional is None or self._followed:
                return
            self._followed = True
        if isinstance(provisional, TaskFuture | LocalFuture):
            # Its value may have to be unpacked, which is not for the link's thread.
            self._client.call_back(lambda: watch_quietly(provisional, self._follow))
        else:
            provisional.add_done_callback(self._follow)

    def _follow(self, ended: Future[R]) -> None:
        error: BaseException | None
        try:
            error = ended.exception()
        except CancelledError:  # futures of others raise it themselves
            error = Canceled(f"{self._name} returned a future that was canceled")
        if isinstance(error, errors.BranchDiscarded):
            error = errors.Discarded(str(error))
        self.settle(None if error is not None else ended.result(), error)


class Decorator(Protocol):
    """What ``cp.on(…)`` is: takes the function, returns its :class:`Body`."""

    @overload
    def __call__(self, function: Callable[[Branch], Coroutine[Any, Any, Future[R]]], /) -> Body[R]: ...
    @overload
    def __call__(self, function: Callable[[Branch], Coroutine[Any, Any, R]], /) -> Body[R]: ...
    @overload
    def __call__(self, function: Callable[[Branch], Future[R]], /) -> Body[R]: ...
    @overload
    def __call__(self, function: Callable[[Branch], R], /) -> Body[R]: ...


class Bodies:
    """The bodies of one client, and the thread that starts them when cores are free. Safe to use from several threads.

    The likeliest one goes first; each answer of the hub that cores are free starts one, because what that one submits
    may use them up.
    """

    def __init__(self, client: Client) -> None:
        """Start without any."""
        self._client = client
        self._all: list[Body[Any]] = []
        self._waiting: list[Body[Any]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._over = False

    def add(self, body: Body[Any]) -> None:
        """Take a body: started now, when cores are free, or never."""
        with self._changed:
            self._all.append(body)
        body.look()
        if body.done() or body._started or not policy_named(self._client.policy).speculates:
            return
        with self._changed:
            self._waiting.append(body)
            self._waiting.sort(key=lambda each: -self._client.conditions.expected(each.branch.condition))
            if self._thread is None:
                self._thread = threading.Thread(target=self._launch, name="pilot-hitl bodies", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def look(self) -> None:
        """Let every body act on the answers that are there; called in the link's thread."""
        if not self._all:
            return
        for body in list(self._all):
            body.look()
        with self._changed:
            self._all = [body for body in self._all if not body.done()]
            self._waiting = [body for body in self._waiting if not body.done() and not body._started]
            self._changed.notify_all()

    def notify(self) -> None:
        """Wake whoever waits for bodies."""
        with self._changed:
            self._changed.notify_all()

    def join(self) -> bool:
        """Wait until the bodies whose branches are real have returned; return whether there were any to wait for."""
        me = threading.current_thread()

        def over() -> bool:
            return self._over or not any(
                body.running() and body.truth is Truth.TRUE and body.thread is not me for body in self._all
            )

        with self._changed:
            if over():
                return False
            self._changed.wait_for(over)
        return True

    def end(self, reason: BaseException) -> None:
        """End all of them with the session."""
        with self._changed:
            self._over = True
            bodies, self._all, self._waiting = self._all, [], []
            self._changed.notify_all()
        for body in bodies:
            body.abandon(reason)

    def _launch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._waiting)
                if self._over:
                    return
            asked = time.monotonic()
            try:
                idle = self._client.query("idle", {"session": self._client.name}, None)
            except errors.PilotHitlError as error:
                _log.info("bodies are not started ahead any more: %s", error)
                return
            with self._changed:
                if idle.get("idle") and self._waiting:
                    body = self._waiting.pop(0)
                else:
                    left = asked + LOOK_AGAIN - time.monotonic()
                    self._changed.wait_for(lambda: self._over, max(0.0, left))
                    continue
            body.start()


def ground_of(client: Client, branch: Branch, name: str) -> Ground:
    """Return the ground of a body: its keys follow from its branch and name, so that no other code shifts them."""
    around = _places.ground_here(client)
    parts = (branch.gate.key.hex(), str(int(branch.term.test)), branch.term.operand, name)
    content = b"".join(b"%d:%b" % (len(part.encode()), part.encode()) for part in parts)
    namespace = f"body {around.keys.content(b'body', content).hex()}"
    return Ground(lambda: client.new_keys(namespace), around.asks)
