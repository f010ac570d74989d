"""The way from a client to the replicas of one service, direct or relayed (:mod:`pilot_hitl._lanes`).

There is no thread that every request passes through. Whoever waits for a result *drives*: it sends, receives and
resolves, for itself and for everybody else, until its own result is there; the others sleep until they are resolved or
asked to drive. A background thread drives only for those who do not wait in ``result()``: callbacks, ``await``,
``wait()``, and requests that nobody looks at yet. So a lone request is handed to no other thread.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zmq

from pilot_hitl import errors
from pilot_hitl._lanes import Kind, Lane, Lanes, Way
from pilot_hitl._replies import LIVES, about, look_into, lost, was_begun
from pilot_hitl._requestfuture import PENDING, ServiceFuture
from pilot_hitl.model.services import LossCause, ReplicaState, ServiceState
from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.relay import OVERLOADED, RELAY, Bounced, RelayMessage, decode_relay
from pilot_hitl.wire.services import (
    Cancelled,
    Replies,
    Request,
    Requests,
    Status,
    decode_replies,
    decode_requests,
    encode_head,
)
from pilot_hitl.wire.servicing import ReplicaLoss

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Want
    from pilot_hitl.wire.servicing import ReplicaView, ServiceUpdate

RESENDS = 10
"""A request is sent elsewhere at most this often when nobody knows whether it had to do with the end of its replica."""
RECEIVE_AT_ONCE = 64
FLUSH_AT = 32
"""So many requests that gathered are sent even if nobody waits for any."""
_now = time.monotonic


class Channel:
    """Requests to one service, from all threads of this process.

    Attributes:
        name: of the service.
        client: whose it is; want: says what requests wait for that no replica has.
    """

    def __init__(self, name: str, lanes: Lanes, client: Client, want: Want) -> None:
        """Start without replicas; :meth:`update` tells of them."""
        self.name = name
        self.client = client
        self.want = want
        self.call_back = client.call_back
        self._listening = client.pilots_left.listen(self.look)
        self._opener = lanes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._io = allocate_lock()  # whoever holds it drives: sockets, lanes and the poller are its own
        self._numbers = secrets.randbits(30) << 32  # no two clients' requests have the same number
        self._count = allocate_lock()
        self._outbox: deque[ServiceFuture] = deque()
        self._backlog: deque[ServiceFuture] = deque()
        self._lanes: dict[str, Lane] = {}
        self._sources: dict[Any, Lane] = {}
        self._replicas: dict[str, ReplicaView] = {}
        self._ready: list[Lane] = []
        self._updates: deque[ServiceUpdate] = deque()
        self._unwanted: deque[ServiceFuture] = deque()
        self._blamed: set[str] = set()
        self._given_up: frozenset[int] = frozenset()
        self._failure: BaseException | None = None
        self._refusal: BaseException | None = None
        self._window = 64
        self._idempotent = True
        self._draining = False
        self._return_time = 0.0
        self._deadlines: dict[int, ServiceFuture] = {}
        self._followers: dict[int, ServiceFuture] = {}
        self._watching = 0
        self._asleep = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = zmq.Poller()
        self._poller.register(self._bell, zmq.POLLIN)
        self._wanted = threading.Semaphore(0)
        self._called = False
        self._closed = False
        self._background: threading.Thread | None = None

    # --- requests -----------------------------------------------------------------------------------------------

    def send(
        self,
        body: bytes,
        buffers: Sequence[bytes],
        *,
        method: str = "",
        timeout: float | None = None,
        replica: int = 0,
        gather: bool = False,
        speculative: str = "",
        condition: int = 0,
    ) -> ServiceFuture:
        """Send a request, or let it wait for a replica.

        Args:
            body: the packed item.
            buffers: its large parts, not to be changed any more.
            method: of the handler.
            timeout: seconds after which it ends with :class:`ServiceTimeout`.
            replica: number of the one that must answer, 0 for any.
            gather: more come at once: they leave together, and only as many as the replicas want.
            speculative: ``allow`` or ``defer`` when it is made in a task that speculates.
            condition: that the request assumes.
        """
        with self._count:
            self._numbers += 1
            number = self._numbers
        future = ServiceFuture(self, number, body, buffers)
        future._method, future._replica = method, replica
        if speculative:
            future._speculative, future._deferred = True, speculative == "defer"
            future._condition_number = condition
        if timeout is not None:
            future._deadline = _now() + timeout
            self._deadlines[number] = future
        if (reason := self._failure or self._refusal) is not None:
            self._deadlines.pop(number, None)
            future.end(None, reason)
            return future
        if gather:
            self._backlog.append(future)
            return future
        busy = bool(self._outbox) or self._is_busy()
        self._outbox.append(future)
        if not busy or len(self._outbox) >= FLUSH_AT:
            self.push()
        else:
            self._call_background()
        return future

    def _is_busy(self) -> bool:
        """Whether answers are awaited, so that somebody will drive soon and take along what gathered meanwhile."""
        return any(lane.pending for lane in self._ready)

    def push(self) -> None:
        """Send what waits: in this thread, or by whoever drives."""
        if self._io.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._release()
        elif self._asleep:
            self._ring()

    def _ring(self) -> None:
        self._asleep = False
        os.eventfd_write(self._bell, 1)

    def forget(self, future: ServiceFuture) -> None:
        """Nobody waits for it any more."""
        self._deadlines.pop(future.number, None)
        self._unwanted.append(future)
        self.push()

    # --- waiting ------------------------------------------------------------------------------------------------

    def wait(self, future: ServiceFuture, timeout: float | None) -> None:
        """Return once a future is done, ``timeout`` seconds passed, or no pilot is left on which it could be done."""
        end = None if timeout is None else _now() + timeout
        while future._state == PENDING and (end is None or _now() < end):
            if self._deserted(future):
                break
            if self._closed:
                # It was sent while the channel was being closed.
                self._end(future, None, self._failure)
                break
            if self._io.acquire(blocking=False):
                try:
                    self._drive(future, end)
                finally:
                    self._release()
                continue
            parked = allocate_lock()
            parked.acquire()
            future._parked = parked
            self._followers[future.number] = future
            # It may have ended, or whoever drove may have left, before this follower could be seen.
            if future._state == PENDING and self._io.locked() and not self._deserted(future):
                parked.acquire(timeout=-1 if end is None else max(0.0, end - _now()))
            future._parked = None
            self._followers.pop(future.number, None)
        if self._followers and not self._io.locked():
            # It may have been asked to drive just when it had no reason any more.
            self._wake_follower()

    def _release(self) -> None:
        """Stop driving, and let somebody else go on who wants to."""
        self._io.release()
        if self._outbox and self._io.acquire(blocking=False):
            # It was put there between the last look and the release.
            try:
                self._flush()
            finally:
                self._io.release()
        if self._followers and self._wake_follower():
            return
        if self._watching > 0:
            self._call_background()

    def _wake_follower(self) -> bool:
        """Let one of those who wait drive; return whether there was one."""
        return any(future.unpark() and future._state == PENDING for future in list(self._followers.values()))

    def _deserted(self, future: ServiceFuture) -> bool:
        """Return whether no replica has it, and no pilot is left for one."""
        return future._lane is None and bool(self.client.pilots_left.why)

    def look(self) -> None:
        """Let everybody who waits look again: the last pilot ended."""
        if self._asleep:
            self._ring()
        for future in list(self._followers.values()):
            future.unpark()

    def watch(self, future: ServiceFuture) -> None:
        """Drive in the background until this future is done."""
        with self._count:
            self._watching += 1
        if future._state != PENDING:
            return
        self._call_background()
        self.push()

    def _call_background(self) -> None:
        if self._called or self._closed:
            return
        self._called = True
        if self._background is None:
            with self._count:
                if self._background is None:
                    self._background = threading.Thread(
                        target=self._run_background, name=f"pilot-hitl-service-{self.name}", daemon=True
                    )
                    self._background.start()
        self._wanted.release()

    def _run_background(self) -> None:
        while True:
            self._wanted.acquire()
            self._called = False
            if self._closed:
                return
            while (self._watching > 0 or self._outbox) and not self._closed:
                with self._io:
                    self._drive(None, None)
                # Followers drive themselves when they can; here it goes on only for those who do not.
                self._wake_follower()

    # --- driving: everything from here on needs the lock --------------------------------------------------------

    def _drive(self, future: ServiceFuture | None, end: float | None) -> None:
        """Send and receive until a future is done; without one, until nobody is left to drive for."""
        while not self._closed:
            self._flush()
            if future is None:
                if self._watching <= 0:
                    return
            elif future._state != PENDING or self._deserted(future):
                return
            now = _now()
            if end is not None and now >= end:
                return
            wait = self._poll_time(now, end)
            self._asleep = True
            if self._outbox or self._updates or self._unwanted or (future is not None and self._deserted(future)):
                self._asleep = False
                continue
            ready = self._poller.poll(wait)
            self._asleep = False
            for source, _mask in ready:
                if source == self._bell:
                    os.eventfd_read(self._bell)
                elif (lane := self._sources.get(source)) is None:
                    continue  # another source of its lane said that it is over
                elif source is lane.socket:
                    self._receive(lane)
                elif lane.look():
                    self._mend(lane)
                else:
                    self._find_ready()

    def _poll_time(self, now: float, end: float | None) -> int | None:
        due = end
        if self._deadlines:
            first = min(future._deadline for future in list(self._deadlines.values()))
            due = first if due is None else min(due, first)
        return None if due is None else int(max(0.0, due - now) * 1000) + 1

    def _flush(self) -> None:
        """Do what others asked for: new endpoints, requests, cancellations; and end what is too late."""
        while self._updates:
            self._follow(self._updates.popleft())
        if self._unwanted:
            self._drop_unwanted()
        if self._deadlines:
            self._end_late()
        if self._outbox:
            self._send_outbox()
        if self._backlog and self._ready:
            self._send_backlog()

    def _send_outbox(self) -> None:
        if self._backlog or not self._ready:
            # In order: what waited for a replica goes first.
            while self._outbox:
                self._backlog.append(self._outbox.popleft())
            return
        groups: dict[Lane, list[ServiceFuture]] = {}
        while self._outbox:
            future = self._outbox.popleft()
            if future._state != PENDING:
                continue
            lane = self._choose(future)
            if lane is None:
                self._backlog.append(future)
                continue
            lane.pending[future.number] = future
            groups.setdefault(lane, []).append(future)
        for lane, futures in groups.items():
            self._transmit(lane, futures)

    def _send_backlog(self) -> None:
        window = self._window
        groups: dict[Lane, list[ServiceFuture]] = {}
        skipped: list[ServiceFuture] = []
        while self._backlog:
            future = self._backlog.popleft()
            if future._state != PENDING:
                continue
            lane = self._choose(future)
            if lane is None:
                if future._replica in self._given_up:
                    self._end(future, None, self._no_replica(future))
                else:
                    skipped.append(future)
                continue
            if len(lane.pending) >= window:
                lane = min(self._ready, key=lambda each: len(each.pending)) if not future._replica else lane
                if len(lane.pending) >= window:
                    skipped.append(future)
                    if future._replica:
                        continue
                    break
            lane.pending[future.number] = future
            groups.setdefault(lane, []).append(future)
        self._backlog.extendleft(reversed(skipped))
        for lane, futures in groups.items():
            self._transmit(lane, futures)

    def _choose(self, future: ServiceFuture) -> Lane | None:
        """Return the less busy of two lanes chosen by chance; the asked one when a replica is named."""
        ready = self._ready
        if future._replica:
            return next((lane for lane in ready if lane.number == future._replica), None)
        if len(ready) == 1:
            return ready[0]
        if not ready:
            return None
        first, second = random.sample(ready, 2) if len(ready) > 2 else ready
        return first if len(first.pending) <= len(second.pending) else second

    def _no_replica(self, future: ServiceFuture) -> BaseException:
        message = f"replica {future._replica} of service {self.name!r}, which was to answer, cannot be kept running"
        return about(errors.ServiceFailed(message), self.name, future._replica)

    def _transmit(self, lane: Lane, futures: list[ServiceFuture]) -> None:
        now = _now()
        requests: list[Request] = []
        frames: list[bytes] = []
        for future in futures:
            future._lane = lane
            future._sent = now
            future._tries += 1
            buffers = future._buffers
            timeout = max(1e-6, future._deadline - now) if future._deadline else 0.0
            requests.append(
                Request(
                    future.number,
                    future._body,
                    len(buffers),
                    timeout,
                    future._method,
                    future._speculative,
                    future._deferred,
                    future._condition_number,
                    future._suspicions > 0,
                )
            )
            if buffers:
                frames.extend(buffers)
        times = (now, self._return_time, 0.0) if lane.way.kind is Kind.HOST else (0.0, 0.0, lane.way_time)
        lane.send(encode_head(Requests(requests, *times)), frames)

    def _receive_all(self, lane: Lane) -> None:
        while self._receive(lane):
            pass

    def _receive(self, lane: Lane) -> bool:
        """Take in what came; return whether there may be more."""
        socket = lane.socket
        for _ in range(RECEIVE_AT_ONCE):
            try:
                head = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            frames: list[Any] = []
            while socket.getsockopt(zmq.RCVMORE):
                frames.append(socket.recv(copy=False).buffer)
            try:
                if head[:1] == RELAY:
                    self._take_back(lane, decode_relay(head), frames)
                else:
                    self._take_in(lane, decode_replies(head), frames)
            except FrameError:
                continue  # a malformed frame never stops a loop
        return True

    def _take_back(self, lane: Lane, message: RelayMessage, frames: list[Any]) -> None:
        """Requests did not get to the replica; the message's second frame is the head that we sent."""
        if not isinstance(message, Bounced) or not frames:
            return
        head = decode_requests(bytes(frames[0]))
        numbers = [request.number for request in head.requests] if isinstance(head, Requests) else []
        futures = [future for number in numbers if (future := lane.pending.pop(number, None)) is not None]
        if message.kind == OVERLOADED:
            for future in futures:
                self._end(future, None, about(errors.Overloaded(message.message), self.name, lane.number))
        else:
            self._give_back(lane, futures)

    def _take_in(self, lane: Lane, replies: Replies, frames: list[Any]) -> None:
        now = _now()
        if lane.way.kind is Kind.HOST:
            self._return_time = max(0.0, now - replies.sent)
        timing = (replies.service, replies.inference)
        returned: list[ServiceFuture] = []
        at, at_first = 0, True
        for answer in replies.replies:
            buffers = frames[at : at + answer.buffers] if answer.buffers else ()
            at += answer.buffers
            future = lane.pending.pop(answer.number, None)
            if future is None:
                continue
            if answer.status is Status.RETURNED:
                returned.append(future)
                continue
            future.timing = timing
            lane.last_answer = answer.number
            if at_first:
                at_first, lane.way_time = False, max(0.0, now - future._sent - replies.service - replies.inference)
            value, error = look_into(answer, buffers, self.name, lane.number)
            self._end(future, value, error)
        if returned:
            self._give_back(lane, returned)

    def _give_back(self, lane: Lane, futures: list[ServiceFuture]) -> None:
        """Requests were not begun, so anything may be sent elsewhere; here nothing is until the hub speaks of it."""
        lane.held = True
        self._find_ready()
        self._put_back(futures)

    def _put_back(self, futures: list[ServiceFuture]) -> None:
        """Let requests wait for a replica again, before all others."""
        for future in futures:
            future._lane = None
            if self.client.pilots_left.why:
                future.unpark()
        self._backlog.extendleft(reversed(futures))

    def _end(self, future: ServiceFuture, value: Any, error: BaseException | None) -> None:
        self._deadlines.pop(future.number, None)
        if future._watched:
            with self._count:
                self._watching -= 1
        future.end(value, error)

    # --- what changes -------------------------------------------------------------------------------------------

    def update(self, update: ServiceUpdate) -> None:
        """Take in what the hub says; called in any thread."""
        self._updates.append(update)
        self.push()

    def _follow(self, update: ServiceUpdate) -> None:
        self._window = min(max(64, 2 * update.max_batch), update.max_queue)
        self._idempotent = update.idempotent
        self._draining = update.state is ServiceState.DRAINING
        wanted: dict[str, tuple[ReplicaView, Way]] = {}
        for replica in update.replicas:
            if (way := self._opener.way_to(replica)) is not None:
                wanted[way.key] = (replica, way)
        gone = [lane for key, lane in self._lanes.items() if key not in wanted]
        for lane in gone:
            self._receive_all(lane)  # its last words
        self._blame(update)
        losses = {replica.loss.endpoint: replica.loss for replica in update.replicas if replica.loss is not None}
        present = {replica.endpoint for replica in update.replicas}
        for lane in gone:
            endpoint = self._replicas[lane.way.key].endpoint
            cause = LossCause.CUT if endpoint in present else LossCause.DIED
            del self._lanes[lane.way.key]
            self._lose(lane, losses.get(endpoint) or ReplicaLoss(0, endpoint, cause, ""))
        self._given_up = frozenset(each.number for each in update.replicas if each.state is ReplicaState.STOPPED)
        for key, (replica, way) in wanted.items():
            if key not in self._lanes:
                self._open(replica, way)
            self._lanes[key].held = False
        self._find_ready()
        if update.state is ServiceState.FAILED:
            message = f"service {self.name!r} failed: {update.message}"
            self._fail(about(errors.ServiceFailed(message), self.name, 0, update.detail))
        elif update.state is ServiceState.STOPPED:
            self._fail(about(errors.ServiceStopped(f"service {self.name!r} was stopped: {update.message}"), self.name))
        elif update.state is ServiceState.DRAINING:
            stopped = about(
                errors.ServiceStopped(f"service {self.name!r} is being stopped: {update.message}"), self.name
            )
            self._failure = stopped
            for future in [*self._outbox, *self._backlog]:
                self._end(future, None, stopped)
            self._outbox.clear()
            self._backlog.clear()
        else:
            self._failure = None

    def _find_ready(self) -> None:
        self._ready = [] if self._draining else [lane for lane in self._lanes.values() if lane.up and not lane.held]

    def _blame(self, update: ServiceUpdate) -> None:
        """Let those requests bear a replica's death that were in its handler, wherever they wait now."""
        for replica in update.replicas:
            loss = replica.loss
            if loss is None or loss.begun is None or loss.endpoint in self._blamed:
                continue
            self._blamed.add(loss.endpoint)
            inside = frozenset(loss.begun.inside)
            if not inside:
                continue
            held = [future for lane in self._lanes.values() for future in lane.pending.values()]
            for future in [*held, *self._backlog, *self._outbox]:
                if future.number not in inside or future._state != PENDING:
                    continue
                future._suspicions += 1
                if not self._idempotent or future._suspicions >= LIVES:
                    if future._lane is not None:
                        future._lane.pending.pop(future.number, None)
                    self._end(future, None, self._lost(replica.number, loss, future))

    def _open(self, replica: ReplicaView, way: Way) -> None:
        lane = self._lanes[way.key] = self._opener.open(self._context, replica, way)
        self._replicas[way.key] = replica
        for source in lane.sources:
            self._sources[source] = lane
            self._poller.register(source, zmq.POLLIN)

    def _close(self, lane: Lane) -> None:
        for source in lane.sources:
            self._poller.unregister(source)
            del self._sources[source]
        lane.close()

    def _mend(self, lane: Lane) -> None:
        """A connection broke, and what was under way is lost; what it leads to may live, so make another one."""
        replica = self._replicas[lane.way.key]
        del self._lanes[lane.way.key]
        self._receive_all(lane)
        self._lose(lane, ReplicaLoss(0, replica.endpoint, LossCause.CUT, "the connection to it broke"))
        self._open(replica, lane.way)

    def _lose(self, lane: Lane, loss: ReplicaLoss) -> None:
        """A replica does not serve any more: send elsewhere what it did not answer, unless it had begun it."""
        self._close(lane)
        self._replicas.pop(lane.way.key, None)
        self._find_ready()
        again: list[ServiceFuture] = []
        for future in lane.pending.values():
            if future._state != PENDING:
                continue
            if not was_begun(loss.begun, future.number, lane.last_answer, again=self._idempotent):
                future._tries -= 1
                again.append(future)
            elif self._idempotent and future._tries <= RESENDS:
                again.append(future)
            else:
                self._end(future, None, self._lost(lane.number, loss, future))
        lane.pending.clear()
        self._put_back(again)

    def _lost(self, replica: int, loss: ReplicaLoss, future: ServiceFuture) -> BaseException:
        tries, lives = future._tries, future._suspicions
        return lost(self.name, replica, loss, future.number, tries=tries, lives=lives, again=self._idempotent)

    def _fail(self, reason: BaseException) -> None:
        """End everything that waits: no future stays pending for ever."""
        self._failure = reason
        for lane in list(self._lanes.values()):
            self._receive_all(lane)
            for future in list(lane.pending.values()):
                self._end(future, None, reason)
            lane.pending.clear()
        for future in [*self._outbox, *self._backlog]:
            self._end(future, None, reason)
        self._outbox.clear()
        self._backlog.clear()

    def _end_late(self) -> None:
        now = _now()
        for future in [f for f in list(self._deadlines.values()) if f._deadline <= now]:
            lane = future._lane
            if lane is not None:
                lane.pending.pop(future.number, None)
            where = f"replica {lane.number}" if lane is not None else "no replica that was ready"
            message = f"service {self.name!r} did not answer within the request's timeout; it was with {where}"
            self._end(future, None, about(errors.ServiceTimeout(message), self.name))

    def _drop_unwanted(self) -> None:
        by_lane: dict[Lane, list[int]] = {}
        while self._unwanted:
            future = self._unwanted.popleft()
            if future._watched:
                with self._count:
                    self._watching -= 1
            lane = future._lane
            if lane is not None and lane.pending.pop(future.number, None) is not None:
                by_lane.setdefault(lane, []).append(future.number)
        for lane, numbers in by_lane.items():
            if self._lanes.get(lane.way.key) is lane:
                lane.send(encode_head(Cancelled(numbers)))

    def settle(self, timeout: float | None) -> None:
        """Take nothing new, and wait until everything is answered or no replica is ready any more.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds.
        """
        self._refusal = about(
            errors.ServiceStopped(f"service {self.name!r} is being stopped by this script"), self.name
        )
        end = None if timeout is None else _now() + timeout
        self.push()
        while self._hopeful:
            if (future := self._some_pending() or self._some_moving(end)) is None:
                return
            self.wait(future, None if end is None else max(0.0, end - _now()))
            if self._deserted(future):
                return
            if end is not None and _now() >= end:
                raise TimeoutError(f"{self.pending} requests to service {self.name!r} were not answered in time")

    @property
    def _hopeful(self) -> bool:
        """Whether a replica takes requests, or will as soon as the connection to it is made."""
        if self._updates:
            return True  # nobody has looked yet
        return not self._draining and any(not lane.held for lane in list(self._lanes.values()))

    def _some_moving(self, end: float | None) -> ServiceFuture | None:
        """Look again once nobody drives: whoever does may just hold a request between two queues."""
        if self._asleep:
            self._ring()
        if not self._io.acquire(timeout=-1 if end is None else max(0.0, end - _now())):
            raise TimeoutError(f"requests to service {self.name!r} were not answered in time")
        try:
            if self._closed:
                return None
            self._flush()
            return self._some_pending()
        finally:
            self._release()

    def _some_pending(self) -> ServiceFuture | None:
        lanes = [list(lane.pending.values()) for lane in list(self._lanes.values())]
        waiting = [*self._outbox, *self._backlog, *(future for futures in lanes for future in futures)]
        return next((future for future in reversed(waiting) if future._state == PENDING), None)

    def close(self, reason: BaseException) -> None:
        """End everything with this reason; later requests end with it too. Harmless when it is closed."""
        if self._closed:
            return
        self._failure = reason
        self._closed = True
        self.client.pilots_left.ignore(self._listening)
        if self._asleep:
            self._ring()
        with self._io:
            self._fail(reason)
            for lane in self._lanes.values():
                self._close(lane)
            self._lanes.clear()
            self._ready = []
        self._wanted.release()
        self._context.term()

    def abandon(self, reason: BaseException) -> None:
        """Give up in a forked child: sockets and threads are the parent's."""
        self._io = allocate_lock()
        self._closed, self._failure = True, reason
        lanes = [list(lane.pending.values()) for lane in self._lanes.values()]
        for future in [*self._outbox, *self._backlog, *(future for futures in lanes for future in futures)]:
            self._end(future, None, reason)

    @property
    def pending(self) -> int:
        """How many requests are not answered yet."""
        lanes = list(self._lanes.values())
        return len(self._outbox) + len(self._backlog) + sum(len(lane.pending) for lane in lanes)
