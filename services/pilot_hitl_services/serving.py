"""The serving thread of a replica: takes requests in, lets the handler answer, replies.

One thread does all three, so a lone request is handed to nobody: while the handler runs, what arrives waits in the
socket and is taken in together right after. What must go on meanwhile is the reporter's (:mod:`.reporting`). Only a
handler that is awaited has another thread, the main one with its event loop, and several requests at a time.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.raised import attempt
from pilot_hitl.wire.relay import RELAY
from pilot_hitl.wire.services import (
    Answered,
    Buffer,
    Cancelled,
    Porter,
    ReplicaConfig,
    Replies,
    Request,
    Requests,
    Status,
    bind_tcp,
    decode_requests,
    encode_head,
    encode_said,
    serving_socket,
    serving_tcp_socket,
)
from pilot_hitl_services.handlers import Handler, Packed, Work
from pilot_hitl_services.looping import Loops
from pilot_hitl_services.metrics import Metrics
from pilot_hitl_services.queue import ReplicaQueue, Verdict, Waiting
from pilot_hitl_services.reporting import Pulse

if TYPE_CHECKING:
    from asyncio import Future

MESSAGES_AT_ONCE = 512
PATIENCE = 1.0
"""Seconds more than ``request_timeout`` before a replica is ended whose calls are awaited: they are ended first."""
LAST_WORDS = 2000
"""Milliseconds that the last replies may take."""
_RETURNED = Packed(Status.RETURNED, b"")
_NOT_CHOSEN = Packed(
    Status.FAILED, encode_said("ServiceError", "the branch that the request was made in was not chosen")
)


class Caller(NamedTuple):
    """Whoever asks: the socket it came by, and the frames that lead back to it.

    One frame names a connection of ours; a second one was put there by the relay, and means nothing here.
    """

    socket: zmq.Socket[bytes]
    path: tuple[bytes, ...]

    @property
    def relayed(self) -> bool:
        """Whether hub and agent stand between."""
        return len(self.path) > 1


class Call(NamedTuple):
    """A request and whose it is. ``suspect``: nothing else may be in the handler with it."""

    caller: Caller
    number: int
    work: Work
    suspect: bool = False


Batch = list[Waiting[Call]]


class Finished(NamedTuple):
    """A call of the handler that was awaited ended. ``answers`` is None: each request is to be tried alone."""

    batch: Batch
    answers: list[Packed] | None


class Server:
    """Serves one handler until it is told to end."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keyring,
        config: ReplicaConfig,
        endpoint: str,
        pulse: Pulse,
        loops: Loops,
        address: str = "",
    ) -> None:
        """Prepare; :meth:`open` binds ``endpoint``, and with an ``address`` of this host also a TCP port there."""
        self.endpoint = endpoint
        self.tcp = ""
        self._address = address
        self.metrics = Metrics()
        self._config = config
        self._pulse = pulse
        self._queue: ReplicaQueue[Call] = ReplicaQueue(config.max_batch, config.max_wait, config.max_queue)
        self._orders: SimpleQueue[Any] = SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._over = False
        self._porter = Porter(context, keys, endpoint)
        self._sockets = [serving_socket(context)]
        if address:
            self._sockets.append(serving_tcp_socket(context, keys))
        self._poller = zmq.Poller()
        for source in (*self._sockets, self._porter.socket):
            self._poller.register(source, zmq.POLLIN)
        self._poller.register(self._bell, zmq.POLLIN)
        self._loops = loops
        self._inside = pulse.inside
        self._room = config.max_concurrency if config.max_batch == 1 else 1
        self._calls: dict[int, tuple[Batch, float]] = {}
        """Calls that are awaited, by the number of their first request, and when they began."""
        self._alone = False
        self._next: deque[Batch] = deque()
        """Batches that go before what waits in the queue."""
        self._tasks: set[Future[list[Packed]]] = set()

    def open(self, handler: Handler, take_in_kept: Callable[[sv.ReplicaReplay], bool]) -> None:
        """Bind, for a handler. Not earlier than needed: a process that is killed leaves its socket behind.

        Args:
            handler: that is to serve.
            take_in_kept: lets it take in broadcasts that were kept, by :meth:`serve_kept`, and says so to the hub;
                returns False when that failed, and with it the replica.

        Raises:
            ValueError, zmq.ZMQError: the address cannot be used.
        """
        self.handler, self._take_in_kept = handler, take_in_kept
        if self._address:
            self.tcp = bind_tcp(self._sockets[1], self._address)
        self._sockets[0].bind(self.endpoint)

    def order(self, message: Any) -> None:
        """Hand over what the hub wants; called in another thread."""
        self._orders.put(message)
        os.eventfd_write(self._bell, 1)

    def run(self) -> None:
        """Serve until the hub says that it is over; a handler that is awaited has the main thread to itself."""
        if self.handler.concurrent:
            self._pulse.patience = PATIENCE
            self._loops.run_beside(self._run)
        else:
            self._run()

    def _run(self) -> None:
        queue = self._queue
        while not self._over:
            now = time.monotonic()
            due = self._due(now)
            if due is None or due > now:
                wait = None if due is None else int((due - now) * 1000) + 1
                for ready, _mask in self._poller.poll(wait):
                    if ready not in self._sockets:
                        self._look_up(ready)
            for source in self._sockets:
                self._take_in(source)
            due = self._due(time.monotonic())
            if due is not None and due <= time.monotonic():
                self._serve()
            elif queue.closed and not len(queue) and not self._next and not self._calls:
                self._over = True
        self._leave()

    def _due(self, now: float) -> float | None:
        """Return when the handler is to be called: None while it has its hands full, or nothing waits."""
        if not self._calls:
            return now if self._next else self._queue.ready_at(now)
        if len(self._calls) >= self._room or self._next or self._alone:
            return None  # what is next, or in the handler, wants to be alone
        return self._queue.ready_at(now)

    def _look_up(self, ready: Any) -> None:
        if ready is self._porter.socket:
            self._porter.answer()
            return
        os.eventfd_read(self._bell)
        while not self._orders.empty():
            self._obey(self._orders.get())

    def _obey(self, order: Any) -> None:
        if isinstance(order, sv.ReplicaStop):
            for source in self._sockets if order.drain else ():
                self._take_in(source)  # what was sent before waits already
            self._answer([(item.what, _RETURNED) for item in self._queue.close()])
            self._over = self._over or not order.drain
        elif isinstance(order, sv.ReplicaDecide):
            items = self._queue.decide(order.condition, holds=order.holds)
            self._answer([(item.what, _NOT_CHOSEN) for item in items])
        elif isinstance(order, Finished):
            self._finish(order)
        elif isinstance(order, sv.ReplicaReplay):
            self._over = not self._take_in_kept(order) or self._over

    # --- in -----------------------------------------------------------------------------------------------------------

    def _take_in(self, sock: zmq.Socket[bytes]) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                path: tuple[bytes, ...] = (sock.recv(zmq.NOBLOCK),)
            except zmq.Again:
                return
            head = sock.recv()
            if head[:1] == RELAY and sock.getsockopt(zmq.RCVMORE):
                path, head = (*path, head), sock.recv()
            caller = Caller(sock, path)
            frames: list[Any] = []
            while sock.getsockopt(zmq.RCVMORE):
                frames.append(sock.recv(copy=False).buffer)
            try:
                message = decode_requests(head)
            except FrameError:
                continue  # a malformed frame never stops a loop
            if isinstance(message, Cancelled):
                self._forget(caller, frozenset(message.numbers))
            else:
                self._enqueue(caller, message, frames)

    def _forget(self, caller: Caller, numbers: frozenset[int]) -> None:
        self._queue.withdraw(lambda call: call.caller == caller and call.number in numbers)

    def _enqueue(self, caller: Caller, message: Requests, frames: list[Any]) -> None:
        now = time.monotonic()
        self._measure_way(caller, message, now)
        queue = self._queue
        refused: list[tuple[Call, Packed]] = []
        at = 0
        for request in message.requests:
            count = request.buffers
            call = Call(
                caller,
                request.number,
                Work(request.method, request.body, frames[at : at + count] if count else ()),
                request.suspect,
            )
            at += count
            if request.method and (why := self.handler.refuses(request.method)):
                refused.append((call, _said("HandlerFailed", why)))
                continue
            verdict, out = queue.add(_waiting(call, request, now), speculative=request.speculative)
            if verdict is Verdict.OVERLOADED:
                refused.append((call, self._overloaded()))
            elif verdict is Verdict.DROPPED:
                refused.append((call, _NOT_CHOSEN))
            elif verdict is Verdict.CLOSED:
                refused.append((call, _RETURNED))
            if out is not None:
                refused.append((out.what, self._overloaded()))
        if refused:
            self.metrics.refused += len(refused)
            self._answer(refused)

    def _measure_way(self, caller: Caller, message: Requests, now: float) -> None:
        there = now - message.sent
        way = there + (message.return_time or there) if message.sent else message.way_time
        if way > 0:
            measured = self.metrics.relayed if caller.relayed else self.metrics.communication
            measured.add(way, len(message.requests))

    def _overloaded(self) -> Packed:
        config = self._config
        return _said(
            "Overloaded",
            f"{config.max_queue} requests wait at replica {config.number} of service {config.service!r} already: send "
            "fewer at once (requests() does), start more replicas, or raise max_queue",
        )

    # --- serving ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        began = time.monotonic()
        if self._next:
            batch = self._next.popleft()
        else:
            taken = self._queue.take(began)
            if taken.late:
                self.metrics.late += len(taken.late)
                self._answer([(item.what, self._late()) for item in taken.late])
            batch = taken.batch
            if not batch:
                return
            if self._calls and batch[0].what.suspect:
                self._next.append(batch)
                return
        handler = self.handler
        self._calls[batch[0].what.number] = batch, began
        self._look_inside()
        if self._pulse.over:
            self._calls.clear()
            self._next.append(batch)
            self._over = True
            return
        works = [item.what.work for item in batch]
        if handler.concurrent:
            self._loops.loop.call_soon_threadsafe(self._begin, handler, batch, works)
        else:
            self._finish(Finished(batch, handler.serve(works)))

    def _begin(self, handler: Handler, batch: Batch, works: list[Work]) -> None:
        """Let the loop await a call; in its thread."""
        task = self._loops.loop.create_task(handler.serve_on_loop(works))
        self._tasks.add(task)

        def ended(task: Future[list[Packed]]) -> None:
            self._tasks.discard(task)
            answers, _overdue = attempt(task.result, BaseException)
            self.order(Finished(batch, answers))

        task.add_done_callback(ended)

    def _finish(self, finished: Finished) -> None:
        """Answer what a call of the handler gave."""
        batch, answers = finished
        ended = time.monotonic()
        _batch, began = self._calls.pop(batch[0].what.number)
        if answers is None:
            self._next.extend([item] for item in batch)
        else:
            self._inside.finished([item.what.number for item in batch])
            self._answer(
                [(item.what, packed) for item, packed in zip(batch, answers, strict=True)],
                began - batch[0].arrived,
                ended - began,
            )
        self._look_inside()
        if answers is not None:
            self._measure(batch, answers, began, ended)

    def _look_inside(self) -> None:
        """Let others know what is in the handler, and since when."""
        calls = self._calls.values()
        self._alone = any(batch[0].what.suspect for batch, _began in calls)
        self._inside.are([item.what.number for batch, _began in calls for item in batch])
        self._pulse.busy_since = min((began for _batch, began in calls), default=0.0)

    def serve_kept(self, work: Work) -> Packed:
        """Let the handler take in a broadcast that was kept; while it serves nobody, or in the serving thread."""
        handler = self.handler
        if not self._loops.running:
            return handler.serve([work])[0]
        from asyncio import run_coroutine_threadsafe  # a loop runs, so it is loaded

        return run_coroutine_threadsafe(handler.serve_on_loop([work]), self._loops.loop).result()[0]

    def _measure(self, batch: list[Waiting[Call]], answers: list[Packed], began: float, ended: float) -> None:
        metrics, size = self.metrics, len(batch)
        metrics.batches[size] = metrics.batches.get(size, 0) + 1
        metrics.inference.add(ended - began, size)
        for item in batch:
            metrics.service.add(began - item.arrived)
        metrics.failed += sum(1 for packed in answers if packed.status is not Status.OK)

    def _late(self) -> Packed:
        name = self._config.service
        return _said("ServiceTimeout", f"the request waited at service {name!r} for longer than its timeout")

    # --- out ----------------------------------------------------------------------------------------------------------

    def _answer(self, answers: Sequence[tuple[Call, Packed]], service: float = 0.0, inference: float = 0.0) -> None:
        """Send answers: those of one client together."""
        by_caller: dict[Caller, tuple[list[Answered], list[Buffer]]] = {}
        for call, (status, body, buffers) in answers:
            replies, frames = by_caller.setdefault(call.caller, ([], []))
            replies.append(Answered(call.number, body, len(buffers), status))
            frames.extend(buffers)
        for caller, (replies, frames) in by_caller.items():
            head = encode_head(Replies(replies, time.monotonic(), service, inference))
            # Copied: the handler may write into its arrays again as soon as it is called again.
            caller.socket.send_multipart([*caller.path, head, *frames])

    def _leave(self) -> None:
        for source in self._sockets:
            self._take_in(source)
        self._queue.closed = True
        waiting = [item for batch in self._next for item in batch] + self._queue.withdraw(lambda _call: True)
        self._answer([(item.what, _RETURNED) for item in waiting])
        self._poller = zmq.Poller()
        for source in self._sockets:
            source.close(linger=LAST_WORDS)
        self._porter.socket.close(linger=0)


def _waiting(call: Call, request: Request, now: float) -> Waiting[Call]:
    return Waiting(
        call,
        now,
        deadline=now + request.timeout if request.timeout else 0.0,
        alone=bool(request.method) or request.suspect,
        condition=request.condition if request.deferred else 0,
    )


def _said(kind: str, message: str) -> Packed:
    return Packed(Status.FAILED, encode_said(kind, message))
