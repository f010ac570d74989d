"""Ways from a client to replicas: which one it takes, and the connection.

Nothing is probed: where both are says it all. On the replica's host it is the Unix socket, on another node of its pilot
TCP, and from anywhere else the hub relays, because no connection is ever opened into an allocation.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from pilot_hitl.wire.current import Here
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.relay import Relayed, encode_relay
from pilot_hitl.wire.services import calling_socket, calling_tcp_socket
from pilot_hitl.wire.sockets import dealer, events_of, keep_alive

if TYPE_CHECKING:
    from pilot_hitl._requestfuture import ServiceFuture
    from pilot_hitl.wire.servicing import ReplicaView


class Kind(enum.Enum):
    """How a replica is reached."""

    HOST = "host"
    """By its Unix socket: both are on one host."""
    NODE = "node"
    """By TCP: both are on nodes of one pilot."""
    RELAY = "relay"
    """Through the hub and the pilot's agent."""


class Way(NamedTuple):
    """A way to a replica. ``key`` is another one whenever what was under way before is lost."""

    key: str
    kind: Kind


def way_to(replica: ReplicaView, here: Here, session: str) -> Way | None:
    """Return the way to a replica of a session; None while there is none."""
    if not replica.endpoint:
        return None
    # The name of a host may be another's as well, but then its socket is not here.
    if replica.host in {here.host, ""} and Path(replica.endpoint.removeprefix("ipc://")).is_socket():
        return Way(replica.endpoint, Kind.HOST)
    if replica.tcp and (here.session, here.pilot) == (session, replica.pilot):
        return Way(replica.tcp, Kind.NODE)
    if replica.link:
        # The same task may run again elsewhere: what was under way to its last process is lost.
        return Way(f"relay:{replica.task}:{replica.link}:{replica.endpoint}:{replica.tcp}", Kind.RELAY)
    return None


class Lane:
    """The connection to one replica, and what it has not answered yet.

    Attributes:
        number: of the replica.
        way: that it takes.
        pending: requests by number.
        sources: sockets to poll.
        way_time: seconds that the latest request was under way, both ways together; 0 when not known. Kept where the
            replica's clock is another one.
        up: whether it is connected; before, nothing is sent, so that nothing is lost in a connection never made.
        last_answer: number of the request that was answered last, 0 for none.
        held: a request came back unbegun: nothing is sent until the hub speaks of the replica again.
    """

    __slots__ = (
        "_monitor", "_prefix", "held", "last_answer", "number", "pending", "socket", "sources", "up", "way", "way_time"
    )  # fmt: skip

    def __init__(self, number: int, way: Way, socket: zmq.Socket[bytes], prefix: Sequence[bytes]) -> None:
        """Use a socket that is about to be connected; ``prefix`` goes before every message."""
        self.number = number
        self.way = way
        self.socket = socket
        self.pending: dict[int, ServiceFuture] = {}
        self.way_time = 0.0
        self.last_answer = 0
        self._prefix = tuple(prefix)
        # Whoever is on the same host is told by the hub when a process ends; a connection that passes other hosts may
        # break, and what was under way with it, while all processes live.
        self._monitor: zmq.Socket[bytes] | None = None
        self.up, self.held = way.kind is Kind.HOST, False
        if not self.up:
            self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.sources: list[Any] = [socket] if self._monitor is None else [socket, self._monitor]

    def send(self, head: bytes, frames: Sequence[bytes] = ()) -> None:
        """Send a message; large frames are not copied, so they must not change any more."""
        if frames or self._prefix:
            self.socket.send_multipart([*self._prefix, head, *frames], copy=False)
        else:
            self.socket.send(head)

    def look(self) -> bool:
        """Take in what happened to the connection; return whether it broke."""
        self.up = True
        return self._monitor is not None and bool(events_of(self._monitor) & zmq.EVENT_DISCONNECTED)

    def close(self) -> None:
        """Close the connection."""
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self.socket.close(linger=0)


class Lanes:
    """Opens connections to the replicas of one service."""

    def __init__(self, session: str, service: str, keys: Keyring, here: Here, hub: Callable[[], str]) -> None:
        """Know where this process is; ``hub`` returns the endpoint at which it reaches the hub."""
        self._session = session
        self._service = service
        self._keys = keys
        self._here = here
        self._hub = hub

    def way_to(self, replica: ReplicaView) -> Way | None:
        """Return the way to a replica; None while there is none."""
        return way_to(replica, self._here, self._session)

    def open(self, context: zmq.Context[zmq.Socket[bytes]], replica: ReplicaView, way: Way) -> Lane:
        """Connect; never waits."""
        if way.kind is Kind.HOST:
            return Lane(replica.number, way, calling_socket(context, self._keys, replica.endpoint), ())
        prefix: list[bytes] = []
        if way.kind is Kind.NODE:
            socket, endpoint = calling_tcp_socket(context, self._keys, replica.tcp), replica.tcp
        else:
            socket, endpoint = dealer(context, self._keys, b"r" + secrets.token_bytes(8)), self._hub()
            prefix.append(encode_relay(Relayed(self._session, self._service, replica.task)))
            if endpoint.startswith("tcp:"):
                keep_alive(socket)
        lane = Lane(replica.number, way, socket, prefix)
        socket.connect(endpoint)
        return lane
