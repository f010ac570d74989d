"""The agent's connection to the hub: where it is, whether it lives, and that it is found again when it moved."""

from __future__ import annotations

import logging
import os
import secrets
import socket as sockets_of_host
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_AGENT, FrameError, encode
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.places import hub_address
from pilot_hitl.wire.sockets import dealer, events_of, keep_alive, rest_of
from pilot_hitl_agent.relay import Frames, is_relayed

_log = logging.getLogger(__name__)
FRAMES_A_TURN = 500
SEEK = 1.0
"""Seconds between looks at where the hub is, while it is away."""


class HubLink:
    """One socket to the hub. After :meth:`connect` poll :attr:`descriptors`, then call :meth:`readable`.

    Attributes:
        heard_at: when the hub last said anything, monotonic.
        lost_at: since when there is no hub, monotonic; None while there is one.
        fresh: a connection was made, and the hub must be told who is here. That is said on each connection: whichever
            hub an earlier one led to may have ended with the greeting unread.
        relayed: takes what callers outside the allocation sent to replicas, unread.
    """

    def __init__(self, context: zmq.Context[Any], keys: Keyring, config: PilotConfig, poller: zmq.Poller) -> None:
        """Connect to nothing yet."""
        self._context = context
        self._keys = keys
        self._config = config
        self._poller = poller
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._endpoint = ""
        self._process = -1
        self._seek_at = 0.0
        self.lost_at: float | None = time.monotonic()
        self.heard_at = time.monotonic()
        self.fresh = False
        self.relayed: Callable[[bytes, Frames], None] = lambda _frame, _rest: None

    def connect(self) -> None:
        """Begin a new connection; what the old one had not sent is lost."""
        self._close_sockets()
        self._socket = dealer(self._context, self._keys, secrets.token_bytes(8))
        self._endpoint = self._find()
        if self._config.system:
            # The hub may be on another host, or in another container of this one: no process of ours can be watched.
            keep_alive(self._socket)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(self._endpoint)
        self._poller.register(self._socket, zmq.POLLIN)
        self._seek_at = time.monotonic() + SEEK
        self.fresh = False

    def owns(self, ready: object) -> bool:
        """Return whether something that is readable is the link's."""
        return ready is self._socket or ready is self._monitor or ready == self._process

    def readable(self, ready: object) -> bool:
        """Act upon a readable descriptor; return whether there are frames to take."""
        if ready is self._socket:
            return True
        if self._monitor is not None and ready is self._monitor:
            self._look(self._monitor)
        elif ready == self._process:
            self.lose()
        return False

    def _look(self, monitor: zmq.Socket[bytes]) -> None:
        """See what became of the connection."""
        events = events_of(monitor)
        if self.lost_at is not None:
            self.fresh = self.fresh or bool(events & zmq.EVENT_HANDSHAKE_SUCCEEDED)
        elif self._config.system and events & zmq.EVENT_DISCONNECTED:
            # Of a hub on this host the process is watched.
            self.lose()

    def frames(self) -> Iterator[Sequence[m.Message]]:
        """Yield the messages of each frame that is there."""
        for _ in range(FRAMES_A_TURN):
            # A message may end this connection, and the next frame is then the next connection's.
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.heard_at = time.monotonic()
            if is_relayed(frame):
                self.relayed(frame, rest_of(self._socket))
                continue
            try:
                yield TO_AGENT.decode(frame)
            except FrameError as error:
                _log.warning("dropped a frame of the hub: %s", error)

    def send(self, messages: Sequence[m.Message]) -> None:
        """Send messages in one frame."""
        if self._socket is not None:
            self._socket.send(encode(messages))

    def send_frames(self, frames: Frames) -> None:
        """Send the frames of a message of the relay, uncopied; nothing while there is no hub."""
        if self._socket is not None and self.lost_at is None:
            self._socket.send_multipart(list(frames), copy=False)

    def welcome(self, hub_pid: int) -> None:
        """The hub is there; from now on its end is noticed."""
        self.lost_at = None
        if self._config.system or self._process >= 0:
            return
        try:
            self._process = os.pidfd_open(hub_pid)
        except OSError:
            self.lose()
            return
        self._poller.register(self._process, zmq.POLLIN)

    def lose(self) -> None:
        """The hub is gone: connect to whatever comes after it."""
        _log.warning("the hub is gone; going on without it")
        if self._process >= 0:
            self._poller.unregister(self._process)
            os.close(self._process)
            self._process = -1
        if self.lost_at is None:
            self.lost_at = time.monotonic()
        self.connect()

    def next_deadline(self) -> float | None:
        """Return when :meth:`seek` is due, monotonic."""
        return self._seek_at if self.lost_at is not None and self._config.system else None

    def seek(self) -> None:
        """See whether the hub is somewhere else by now."""
        now = time.monotonic()
        if now < self._seek_at or self.lost_at is None:
            return
        self._seek_at = now + SEEK
        if self._find() != self._endpoint:
            self.connect()

    def close(self) -> None:
        """End; what was sent last still leaves."""
        self._close_sockets(linger=500)

    def _find(self) -> str:
        config = self._config
        if not config.system:
            return config.endpoint
        address = hub_address(Path(config.home))
        if address is None:
            return config.endpoint
        return address.ipc if address.host == sockets_of_host.gethostname() else address.tcp or config.endpoint

    def _close_sockets(self, linger: int = 0) -> None:
        if self._socket is None:
            return
        self._poller.unregister(self._socket)
        if self._monitor is not None:
            self._poller.unregister(self._monitor)
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self._socket.close(linger=linger)
        self._socket = None
