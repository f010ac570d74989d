"""The hub's part of the relay: requests for replicas inside an allocation go on to its agent, replies come back.

Nothing is kept but how many bytes each agent has not yet taken, and nothing is read but the frame in front: what
clients and replicas say to each other passes as it came, without being copied.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

from pilot_hitl.hub.peers import Agent
from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.relay import (
    OVERLOADED,
    UNREACHABLE,
    Bounced,
    Broken,
    Relayed,
    Taken,
    decode_relay,
    encode_relay,
    weight,
)

if TYPE_CHECKING:
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
Frames = Sequence[bytes | zmq.Frame]
BOUND = 256 * 1024 * 1024
"""Bytes that may be on the way to one agent; what comes then is sent back as Overloaded."""
FREE = 16 * 1024 * 1024
"""While fewer bytes than these are on the way, the next message goes on however large it is."""


class Relay:
    """Passes on what begins with :data:`~pilot_hitl.wire.relay.RELAY`."""

    def __init__(self, hub: Hub, socket: zmq.Socket[bytes]) -> None:
        """Pass on between peers of ``socket``."""
        self._hub = hub
        self._socket = socket
        self._under_way: dict[bytes, int] = {}

    def take(self, identity: bytes, frame: bytes, rest: Frames) -> None:
        """Pass a message on, in either direction.

        Raises:
            FrameError: its first frame is not of the relay, or nothing is behind it.
        """
        message = decode_relay(frame)
        peer = self._hub.peers.get(identity)
        agent = peer if isinstance(peer, Agent) else None
        if isinstance(message, Taken):
            if identity in self._under_way:
                self._under_way[identity] = max(0, self._under_way[identity] - message.size)
        elif isinstance(message, Broken):
            if agent is not None:
                self._hub.services.cut_off(message.session, message.task)
        elif not rest:
            raise FrameError("a relayed message without a message")
        elif isinstance(message, Bounced):
            if agent is not None:
                self._send([message.client, frame, *rest])
        elif not message.client:
            self._forward(identity, message, rest)
        elif agent is not None:
            self._send([message.client, *rest])

    def _forward(self, client: bytes, message: Relayed, rest: Frames) -> None:
        """Let the agent of the replica's pilot have a request."""
        session = self._hub.sessions.get(message.session)
        service = self._hub.services.with_replica(message.session, message.task)
        replica = service.core.find(message.task) if service is not None else None
        agent = session.agents.get(session.core.pilot_of(message.task)) if session is not None else None
        if service is None or replica is None or not replica.endpoint or agent is None:
            self._bounce(client, UNREACHABLE, "the replica, or the agent of its pilot, is away", rest)
            return
        size = weight([len(frame) for frame in rest])
        under_way = self._under_way.get(agent.identity, 0)
        if under_way > FREE and under_way + size > BOUND:
            text = f"{under_way >> 20} MB of requests are on the way to pilot {agent.pilot} already: send fewer at once"
            self._bounce(client, OVERLOADED, text, rest)
            return
        if agent.identity not in self._under_way:
            # Connections end without a word, so look who is left whenever another one begins.
            self._under_way = {key: size for key, size in self._under_way.items() if key in self._hub.peers}
        self._under_way[agent.identity] = under_way + size
        host, tcp = service.places.get(message.task, ("", ""))
        onward = Relayed(message.session, message.service, message.task, client, host, replica.endpoint, tcp)
        self._send([agent.identity, encode_relay(onward), *rest])

    def _bounce(self, client: bytes, kind: str, text: str, rest: Frames) -> None:
        self._send([client, encode_relay(Bounced(client, kind, text)), rest[0]])

    def _send(self, frames: Frames) -> None:
        """Send a message; whoever is gone does not want it any more."""
        try:
            self._socket.send_multipart(list(frames), zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            _log.debug("a relayed message has no receiver any more: %s", error)
