"""Frames: one version byte, then a MessagePack array of messages."""

from __future__ import annotations

from collections.abc import Sequence
from types import GenericAlias
from typing import Generic, TypeVar

import msgspec

from pilot_hitl.wire.messages import Message, ToAgent
from pilot_hitl.wire.servicing import ToClient, ToHub, ToReplica

VERSION = 1
MAX_FRAME = 256 * 1024 * 1024
"""A peer's frame above this many bytes is dropped unread."""

_PREFIX = bytes([VERSION])
_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


class FrameError(ValueError):
    """A frame that is not of this protocol: wrong version, malformed, oversized, or of an unknown type."""


class Codec(Generic[_T]):
    """Decoder of the messages that one direction allows."""

    def __init__(self, union: type[_T] | object) -> None:
        """Prepare for the messages of a union."""
        self._decoder: msgspec.msgpack.Decoder[list[_T]] = msgspec.msgpack.Decoder(GenericAlias(list, (union,)))

    def decode(self, frame: bytes | memoryview) -> list[_T]:
        """Return the messages of a frame.

        Raises:
            FrameError: the frame is not of this protocol.
        """
        if len(frame) > MAX_FRAME:
            raise FrameError(f"{len(frame)} bytes are more than a frame may have")
        view = memoryview(frame)
        if not view or view[0] != VERSION:
            raise FrameError("not a frame of this protocol version")
        try:
            return self._decoder.decode(view[1:])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(str(error)) from error


def encode(messages: Sequence[Message]) -> bytes:
    """Return the frame that carries these messages, in order."""
    return _PREFIX + _encoder.encode(messages)


TO_HUB: Codec[ToHub] = Codec(ToHub)
TO_CLIENT: Codec[ToClient] = Codec(ToClient)
TO_AGENT: Codec[ToAgent] = Codec(ToAgent)
TO_REPLICA: Codec[ToReplica] = Codec(ToReplica)

_bodies_decoder = msgspec.msgpack.Decoder(list[bytes])


def pack_bodies(bodies: Sequence[bytes]) -> bytes:
    """Return the one blob in which a bulk's bodies travel."""
    return _encoder.encode(bodies)


def unpack_bodies(blob: bytes) -> list[bytes]:
    """Return the bodies of a bulk.

    Raises:
        FrameError: the blob is not a MessagePack array of binaries.
    """
    try:
        return _bodies_decoder.decode(blob)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error
