"""Frames: one version byte, then a MessagePack array of messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from types import GenericAlias
from typing import Any, Generic, TypeVar, get_args

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


class Unreadable(msgspec.Struct, frozen=True):
    """A message of a frame that cannot be read.

    Attributes:
        kind: what it seems to be; None when not even that can be said.
        facts: what it says, by field, unchecked.
        reason: what is wrong with it.
    """

    kind: type[Message] | None
    facts: dict[str, Any]
    reason: str

    @property
    def token(self) -> int:
        """The number by which its sender waits for an answer; 0 for none."""
        token = self.facts.get("token", self.facts.get("handle", 0))
        return token if isinstance(token, int) and 0 < token < 1 << 63 else 0


class Codec(Generic[_T]):
    """Decoder of the messages that one direction allows."""

    def __init__(self, union: type[_T] | object) -> None:
        """Prepare for the messages of a union."""
        self._union = union

    # When first used: making one takes milliseconds of the start of each process, and most read one direction.
    @cached_property
    def _decoder(self) -> msgspec.msgpack.Decoder[list[_T]]:
        return msgspec.msgpack.Decoder(GenericAlias(list, (self._union,)))

    @cached_property
    def _one(self) -> msgspec.msgpack.Decoder[_T]:
        return msgspec.msgpack.Decoder(self._union)

    @cached_property
    def _kinds(self) -> dict[object, type[Message]]:
        return {kind.__struct_config__.tag: kind for kind in get_args(self._union)}

    def decode(self, frame: bytes | memoryview) -> list[_T]:
        """Return the messages of a frame.

        Raises:
            FrameError: the frame is not of this protocol.
        """
        try:
            return self._decoder.decode(_content(frame))
        except _MALFORMED as error:
            raise FrameError(str(error)) from error

    def decode_singly(self, frame: bytes | memoryview) -> list[_T | Unreadable]:
        """Return the messages of a frame, and in place of each one that cannot be read what is known of it.

        Raises:
            FrameError: the frame is no list of messages.
        """
        try:
            parts = _parts.decode(_content(frame))
        except _MALFORMED as error:
            raise FrameError(str(error)) from error
        return [self._read(part) for part in parts]

    def _read(self, part: msgspec.Raw) -> _T | Unreadable:
        try:
            return self._one.decode(part)
        except _MALFORMED as error:
            reason = str(error)
        try:
            said = msgspec.msgpack.decode(part)
        except _MALFORMED:
            said = None
        if not isinstance(said, list) or not said or not isinstance(said[0], int):
            return Unreadable(None, {}, reason)
        kind = self._kinds.get(said[0])
        fields = kind.__struct_fields__ if kind is not None else ()
        return Unreadable(kind, dict(zip(fields, said[1:], strict=False)), _named(reason, fields))

    def check(self, message: Message) -> None:
        """Check that a message can be sent and will be read.

        Raises:
            FrameError: it cannot; the message names the field.
        """
        try:
            blob = _encoder.encode(message)
            if len(blob) >= MAX_FRAME:
                raise FrameError(f"{len(blob)} bytes are more than a message may have")
            self._one.decode(blob)
        except (*_MALFORMED, TypeError, OverflowError) as error:
            raise FrameError(_unsendable(message) or _named(str(error), type(message).__struct_fields__)) from error


def _unsendable(message: Message) -> str:
    """Return which field of a message cannot be encoded, and why; empty when all can."""
    for field in message.__struct_fields__:
        try:
            _encoder.encode(getattr(message, field))
        except (*_MALFORMED, TypeError, OverflowError) as error:
            return f"{field}: {error}"
    return ""


_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])
_PLACE = re.compile(r" - at `\$\[(\d+)\]([^`]*)`$")


def _content(frame: bytes | memoryview) -> memoryview:
    """Return what is behind the version of a frame.

    Raises:
        FrameError: it is oversized or of another version.
    """
    if len(frame) > MAX_FRAME:
        raise FrameError(f"{len(frame)} bytes are more than a frame may have")
    view = memoryview(frame)
    if not view or view[0] != VERSION:
        raise FrameError("not a frame of this protocol version")
    return view[1:]


def _named(reason: str, fields: Sequence[str]) -> str:
    """Return what is wrong with a message, with the name of the field in place of its position."""
    place = _PLACE.search(reason)
    # Fields come after the tag.
    if place is None or not 0 < int(place[1]) <= len(fields):
        return reason
    return f"{fields[int(place[1]) - 1]}{place[2]}: {reason[: place.start()]}"


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
