"""What a task wrote on standard output and error, as data: what travels and is stored."""

from __future__ import annotations

import msgspec

UNCHECKED = -1
"""A checksum that nobody has computed."""
SAMPLE = 4096
"""Bytes at either end of a file of the task's own that its checksum speaks of."""


class Range(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where bytes lie that were too many to travel.

    Attributes:
        path: absolute; empty when there is nothing.
        offset, length: which part of that file.
        checksum: CRC-32 of the bytes, or :data:`UNCHECKED`. A file can be changed by others; what does not have this
            checksum any more is not what the task wrote.
        sampled: the checksum is that of the first and the last :data:`SAMPLE` bytes alone.
    """

    path: str = ""
    offset: int = 0
    length: int = 0
    checksum: int = UNCHECKED
    sampled: bool = False


NOWHERE = Range()


class Output(msgspec.Struct, frozen=True, array_like=True):
    """What one task wrote, or one rank of it; each stream inline or as a range, whichever is not empty.

    Attributes:
        stdout, stderr: when it is little.
        stdout_at, stderr_at: when it is more.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    stdout_at: Range = NOWHERE
    stderr_at: Range = NOWHERE
