"""The agent's part of the relay: callers outside the allocation reach replicas of services inside it.

Requests come from the hub, each behind a frame that says where the replica is; they go on, behind the same frame, by a
connection that is kept as long as the replica's task is here. Replies come back with that frame, and go on to the hub.
Frames are neither read nor copied.
"""

from __future__ import annotations

import logging
import socket as sockets_of_host
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.relay import (
    OVERLOADED,
    RELAY,
    UNREACHABLE,
    Bounced,
    Broken,
    Relayed,
    Taken,
    decode_relay,
    encode_relay,
    weight,
)
from pilot_hitl.wire.services import calling_socket, calling_tcp_socket

_log = logging.getLogger(__name__)
Frames = Sequence[bytes | zmq.Frame]
WAITING = 1000
"""Messages that may wait for the connection to a replica; what comes then is sent back as Overloaded."""
REPLIES_AT_ONCE = 200
TELL_EVERY = 4 * 1024 * 1024
"""Bytes after which the hub is told that they were taken."""


def is_relayed(frame: bytes) -> bool:
    """Return whether a frame of the hub begins a message for the relay."""
    return frame[:1] == RELAY


class Relay:
    """Connections to the replicas that are asked through this agent."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keyring,
        poller: zmq.Poller,
        alive: Callable[[int], bool],
        send: Callable[[Frames], None],
    ) -> None:
        """Connect to nothing yet.

        Args:
            context: for the sockets.
            keys: of the home.
            poller: of the agent's loop, which gives sockets that are readable to :meth:`bring_back`.
            alive: whether a task, by its number, is this agent's.
            send: sends a message to the hub.
        """
        self._context = context
        self._keys = keys
        self._poller = poller
        self._alive = alive
        self._send = send
        self._host = sockets_of_host.gethostname()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._ends: dict[int, tuple[str, str]] = {}
        self._tasks: dict[zmq.Socket[bytes], int] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        self._watched: dict[zmq.Socket[bytes], Relayed] = {}
        self._taken = 0

    def take(self, frame: bytes, rest: Frames) -> None:
        """Pass a message of the hub on to its replica. Never raises, never waits."""
        self._taken += weight([len(each) for each in rest])
        if self._taken >= TELL_EVERY:
            self._send([encode_relay(Taken(self._taken))])
            self._taken = 0
        try:
            message = decode_relay(frame)
        except FrameError as error:
            _log.warning("dropped a frame of the hub: %s", error)
            return
        if not isinstance(message, Relayed) or not rest:
            return
        if self._ends.get(message.task, (message.ipc, message.tcp)) != (message.ipc, message.tcp):
            self._close(message.task)  # the task runs again, in another process
        socket = self._sockets.get(message.task) or self._connect(message)
        if socket is None:
            text = f"task {message.task} is not with the agent on {self._host} any more"
            self._send([encode_relay(Bounced(message.client, UNREACHABLE, text)), rest[0]])
            return
        try:
            socket.send_multipart([frame, *rest], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            text = f"{WAITING} messages wait for the connection from {self._host} to the replica on {message.host}"
            self._send([encode_relay(Bounced(message.client, OVERLOADED, text)), rest[0]])

    def _connect(self, message: Relayed) -> zmq.Socket[bytes] | None:
        """Return a connection to a replica; None when its task is not here any more."""
        for task in [task for task in self._sockets if not self._alive(task)]:
            self._close(task)
        if not self._alive(message.task):
            return None
        here = message.host == self._host and Path(message.ipc.removeprefix("ipc://")).is_socket()
        if here or not message.tcp:
            socket = calling_socket(self._context, self._keys, message.ipc, waiting=WAITING)
        else:
            socket = calling_tcp_socket(self._context, self._keys, message.tcp, waiting=WAITING)
            self._watch(message, socket)
            socket.connect(message.tcp)
        self._sockets[message.task] = socket
        self._ends[message.task] = (message.ipc, message.tcp)
        self._tasks[socket] = message.task
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _watch(self, message: Relayed, socket: zmq.Socket[bytes]) -> None:
        """Notice when a connection to another host breaks, and with it what is under way: both ends may live on."""
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitors[message.task] = monitor
        self._watched[monitor] = message
        self._poller.register(monitor, zmq.POLLIN)

    def _broke(self, message: Relayed) -> None:
        self._close(message.task)
        self._send([encode_relay(Broken(message.session, message.service, message.task))])

    def bring_back(self, ready: zmq.Socket[bytes]) -> None:
        """Pass what a replica said on to the hub; harmless for a socket that is not of the relay (any more)."""
        if (message := self._watched.get(ready)) is not None:
            self._broke(message)
            return
        for _ in range(REPLIES_AT_ONCE if ready in self._tasks else 0):
            try:
                frames = ready.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._send(frames)

    def _close(self, task: int) -> None:
        socket = self._sockets.pop(task)
        del self._ends[task]
        del self._tasks[socket]
        self._poller.unregister(socket)
        if (monitor := self._monitors.pop(task, None)) is not None:
            del self._watched[monitor]
            self._poller.unregister(monitor)
            socket.disable_monitor()
            monitor.close(linger=0)
        socket.close(linger=0)

    def close(self) -> None:
        """Close all connections."""
        for task in list(self._sockets):
            self._close(task)
