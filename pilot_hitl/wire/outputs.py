"""What tasks wrote: read back from where it lies, and how it travels with the result of a call.

The output of an executable is part of its result. A call that wrote something has its packed value in an envelope: byte
``3``, ``<I`` the length of an encoded list of :class:`~pilot_hitl.model.outputs.Output` (one a rank), that, the packed
value (which may be empty: a failure). One that wrote nothing has none.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib

import msgspec

from pilot_hitl.model.canonical import Json
from pilot_hitl.model.outputs import SAMPLE, UNCHECKED, Output, Range

SHOWN = 4000
"""Characters of the end of a stream that a person is shown."""
ENVELOPE = 3
"""First byte of an envelope."""
_LENGTH = struct.Struct("<I")
_HEAD = 1 + _LENGTH.size
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Output]).decode


def with_output(payload: bytes, outputs: list[Output]) -> bytes:
    """Return a packed value together with what its call wrote, in order of ranks; as it is when that is nothing."""
    if not outputs:
        return payload
    told = _encode(outputs)
    return b"".join([bytes([ENVELOPE]), _LENGTH.pack(len(told)), told, payload])


def bare(payload: bytes) -> bytes:
    """Return a packed value without what its call wrote."""
    if not payload or payload[0] != ENVELOPE:
        return payload
    return payload[value_at(payload) :]


def value_at(payload: bytes | memoryview) -> int:
    """Return where the packed value begins in an envelope.

    Raises:
        struct.error: it is none.
    """
    return _HEAD + int(_LENGTH.unpack_from(payload, 1)[0])


def outputs_of(payload: bytes) -> list[Output]:
    """Return what the call of this outcome wrote, in order of ranks."""
    if not payload or payload[0] != ENVELOPE:
        return []
    try:
        return _decode(memoryview(payload)[_HEAD : value_at(payload)])
    except (msgspec.MsgspecError, struct.error):
        # Of another release: what it wrote cannot be said, its value can.
        return []


def read_range(at: Range, stream: str, last: int = 0) -> bytes:
    """Return the bytes that a task wrote on ``stream``; with ``last``, only so many of the end.

    Raises:
        OSError: they are not there any more; what is there instead is never returned.
    """
    if not at.path or not at.length:
        return b""
    try:
        fd = os.open(at.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _gone(at, stream, error.errno or errno.EIO, f"cannot be opened ({error.strerror})") from None
    try:
        content = _pread(fd, at.offset, at.length)
    except OSError as error:
        raise _gone(at, stream, error.errno or errno.EIO, f"cannot be read ({error.strerror})") from None
    finally:
        os.close(fd)
    if len(content) < at.length:
        raise _gone(at, stream, errno.ESTALE, f"ends {at.length - len(content)} bytes too early")
    if at.checksum not in (UNCHECKED, checksum(content, sampled=at.sampled)):
        raise _gone(at, stream, errno.ESTALE, "holds something else there now")
    return content[-last:] if last else content


def checksum(content: bytes, *, sampled: bool = False) -> int:
    """Return the checksum of what a task wrote, see :class:`~pilot_hitl.model.outputs.Range`."""
    return zlib.crc32(content[-SAMPLE:], zlib.crc32(content[:SAMPLE])) if sampled else zlib.crc32(content)


def _pread(fd: int, offset: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length > 0 and (piece := os.pread(fd, min(length, 1 << 30), offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _gone(at: Range, stream: str, number: int, why: str) -> OSError:
    text = (
        f"the task's {stream} is lost: it was bytes {at.offset} to {at.offset + at.length} of this file, which {why}; "
        f"run the task again, and name a file of its own with {stream}=... if others use this one"
    )
    return OSError(number, text, at.path)


def text_of(content: bytes) -> str:
    """Return what was written as text; bytes that are not UTF-8 become surrogate escapes."""
    return content.decode("utf-8", "surrogateescape")


class Written:
    """What a task wrote; read when it is asked for."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Output]) -> None:
        """Take what was captured, in order of ranks."""
        self._parts = parts

    def stdout(self, last: int = 0) -> bytes:
        """Return standard output; with ``last``, only about so many bytes of its end.

        Raises:
            OSError: it lay in a file and is not there any more.
        """
        return b"".join([each.stdout or read_range(each.stdout_at, "stdout", last) for each in self._parts])

    def stderr(self, last: int = 0) -> bytes:
        """Return standard error, see :meth:`stdout`."""
        return b"".join([each.stderr or read_range(each.stderr_at, "stderr", last) for each in self._parts])

    def view(self, limit: int = 0) -> dict[str, Json]:
        """Return both streams for a person, what is empty left out.

        ``stdout``, ``stderr``: their ends as text. ``stdout_at``, ``stderr_at``: where the whole is, as texts
        ``path:offset+length``. ``stdout_lost``, ``stderr_lost``: why the text cannot be had. With ``limit``, what has
        more bytes than that is not read: only told where it is.
        """
        found: dict[str, Json] = {}
        for name, read, places in (
            ("stdout", self.stdout, [each.stdout_at for each in self._parts]),
            ("stderr", self.stderr, [each.stderr_at for each in self._parts]),
        ):
            try:
                if not limit or sum(at.length for at in places) <= limit:
                    found[name] = read(SHOWN).decode(errors="replace")[-SHOWN:]
            except OSError as error:
                found[f"{name}_lost"] = str(error)
            found[f"{name}_at"] = [f"{at.path}:{at.offset}+{at.length}" for at in places if at.length]
        return {key: value for key, value in found.items() if value}
