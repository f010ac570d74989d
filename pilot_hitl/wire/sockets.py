"""ZeroMQ sockets as this project uses them: ROUTER at the hub, DEALER at everybody else, CURVE on all."""

from __future__ import annotations

import sys

import zmq
import zmq.utils.z85

from pilot_hitl.wire.codec import MAX_FRAME
from pilot_hitl.wire.keys import Keyring

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
HANDSHAKE = 10_000
"""Milliseconds that a connection has to say who it is."""
HEARTBEAT = 2000
"""Milliseconds between heartbeats of a TCP connection; a peer that misses three is disconnected."""


def router(context: zmq.Context[zmq.Socket[bytes]], keys: Keyring) -> zmq.Socket[bytes]:
    """Return an unbound ROUTER that takes only peers with the home's key (see :class:`Doorkeeper`)."""
    socket = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.hub_secret)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, "pilot-hitl")
    return socket


def dealer(context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, identity: bytes) -> zmq.Socket[bytes]:
    """Return an unconnected DEALER that talks only to this home's hub."""
    socket = context.socket(zmq.DEALER)
    _common(socket)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt_string(zmq.CURVE_SERVERKEY, keys.hub_public)
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.peer_public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.peer_secret)
    return socket


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Let a socket notice that a peer on another host is gone; call it before connecting or binding over TCP."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 3 * HEARTBEAT)


def rest_of(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Return the frames that follow the one that was received last, without copying them."""
    frames: list[zmq.Frame] = []
    while socket.getsockopt(zmq.RCVMORE):
        frames.append(socket.recv(copy=False))
    return frames


def events_of(monitor: zmq.Socket[bytes]) -> int:
    """Return what happened to a connection since the last look: ``zmq.EVENT_…``, combined; 0 for nothing.

    The first frame of such a message begins with 16 bits of the event, as zmq_socket_monitor(3) has it. pyzmq can read
    them too, but its module loads asyncio, which is a tenth of the time that a hub or an agent needs to start.
    """
    found = 0
    while monitor.poll(0):
        found |= int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
    return found


class Doorkeeper:
    """Answers ZeroMQ's authentication requests: only the home's own key may come in.

    Poll ``socket`` for reading and call :meth:`answer` when it is ready.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keyring) -> None:
        """Bind the in-process endpoint that libzmq asks; must come before the first peer."""
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ENDPOINT)
        self._allowed = zmq.utils.z85.decode(keys.peer_public)
        self.refused = 0

    def answer(self) -> None:
        """Answer the requests that wait."""
        while self.socket.poll(0):
            version, request, _domain, _address, _identity, mechanism, *credentials = self.socket.recv_multipart()
            good = mechanism == b"CURVE" and bool(credentials) and credentials[0] == self._allowed
            self.refused += not good
            status = (b"200", b"OK") if good else (b"400", b"unknown key")
            self.socket.send_multipart([version, request, *status, b"owner" if good else b"", b""])


def _common(socket: zmq.Socket[bytes]) -> None:
    # Queues are unbounded here and bounded by credit one floor up: a ROUTER at its limit drops silently.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME + 1)
