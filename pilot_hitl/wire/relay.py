"""How a request reaches a replica that its caller cannot connect to: client → hub → agent → replica, and back.

What clients and replicas say to each other (:mod:`pilot_hitl.wire.services`) travels unread behind one frame more,
which says whence and whither. Hub and agent read that frame alone and keep nothing of it, so either may be another one
when the reply comes. See ``docs/specs/service-protocol.md``.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.messages import Message, Number

RELAY = b"\x02"
"""First byte of a frame of this protocol; other frames begin with another one."""
OVERLOADED = "Overloaded"
UNREACHABLE = "Unreachable"


class Relayed(Message, tag=120, frozen=True):
    """Before a request and before its reply.

    Attributes:
        session, service, task: the replica.
        client: whose it is, as the hub names its connection; the client leaves it empty, the hub fills it in.
        host, ipc, tcp: where the replica is, from the hub to the agent.
    """

    session: str
    service: str
    task: Number
    client: bytes = b""
    host: str = ""
    ipc: str = ""
    tcp: str = ""


class Bounced(Message, tag=121, frozen=True):
    """A request comes back, its head behind this frame: it did not get to the replica.

    Attributes:
        client: whose it is.
        kind: ``Overloaded``, or ``Unreachable``: then an update of the service follows, or came already.
        message: why.
    """

    client: bytes
    kind: str
    message: str


class Taken(Message, tag=122, frozen=True):
    """The agent took so many more bytes off the hub's hands, counted as :func:`weight` does."""

    size: Number


class Broken(Message, tag=123, frozen=True):
    """The agent's connection to a replica broke: what was under way through it is lost."""

    session: str
    service: str
    task: Number


RelayMessage = Relayed | Bounced | Taken | Broken
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[RelayMessage] = msgspec.msgpack.Decoder(RelayMessage)
OVERHEAD = 1024
"""Bytes that a message costs beside its own."""


def encode_relay(message: RelayMessage) -> bytes:
    """Return the frame."""
    return RELAY + _encode(message)


def decode_relay(frame: bytes) -> RelayMessage:
    """Return what a frame says.

    Raises:
        FrameError: it is not of this protocol.
    """
    if frame[:1] != RELAY:
        raise FrameError("not a frame of the relay")
    try:
        return _decoder.decode(memoryview(frame)[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(str(error)) from error


def weight(lengths: list[int]) -> int:
    """Return what a message of frames of these lengths counts against the bound of what is under way."""
    return OVERHEAD + sum(lengths)
