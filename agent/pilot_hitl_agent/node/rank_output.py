"""The output of calls in a rank of a warm MPI group: a pair of files of its own.

A rank has no fork server that would empty a pipe while its code keeps the interpreter to itself, so it writes to files.
They are this rank's alone, and hold what one call wrote: whoever truncates them harms no other call.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from mmap import mmap

from pilot_hitl.model.outputs import Output
from pilot_hitl.wire.modes import own_file
from pilot_hitl_agent.node.call_output import STREAMS_AT, flush_output, output_of, private
from pilot_hitl_agent.node.capture import INLINE, TAIL
from pilot_hitl_agent.node.link import Stream, end_of

_PIECE = 1 << 20
_NUMBERS = struct.Struct("<QQ")
"""In the page: which files are written now, should this process die."""


class RankOutput:
    """Takes what calls write; see :class:`.call_output.Taker`."""

    def __init__(self, page: mmap, out: str, err: str) -> None:
        """Make files beside these standard output and error.

        Raises:
            OSError: they cannot be written.
        """
        self._page = page
        self._logs = (out, err)
        self._numbers = [0, 0]
        self._fds = [-1, -1]
        for which in (0, 1):
            self._open(which)
        self.restore()

    def begin(self) -> None:
        """Let the files be empty: what a call leaves there, truncated or not, is its own."""
        for which, fd in enumerate(self._fds):
            if os.lseek(fd, 0, os.SEEK_END) <= INLINE:
                os.ftruncate(fd, 0)
            else:
                # What it holds is somebody's range.
                self._open(which)
        self.restore()

    def end(self, _began: float) -> list[Output]:
        """Return what was written since :meth:`begin`."""
        self.restore()
        flush_output()
        out, err = (written_in(fd) for fd in self._fds)
        return [output_of(out, err, _paths(self._logs, self._numbers))] if out or err else []

    def _open(self, which: int) -> None:
        fd = -1
        while fd < 0:
            self._numbers[which] += 1
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
                fd = own_file(_paths(self._logs, self._numbers)[which], flags)
        if self._fds[which] >= 0:
            os.close(self._fds[which])
        self._fds[which] = private(fd)
        os.close(fd)
        _NUMBERS.pack_into(self._page, STREAMS_AT, *self._numbers)

    def restore(self) -> None:
        """See :class:`.call_output.Taker`."""
        for number, fd in enumerate(self._fds, 1):
            os.dup2(fd, number)


def last_output(page: mmap, logs: tuple[str, str]) -> tuple[list[Output], bytes]:
    """Return what the last call of a dead rank wrote, and the end of its standard error."""
    told: list[Stream] = []
    paths = _paths(logs, _NUMBERS.unpack_from(page, STREAMS_AT))
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # It died before it wrote to any.
            told.append(b"")
            continue
        try:
            told.append(written_in(fd))
        finally:
            os.close(fd)
    return ([output_of(told[0], told[1], paths)] if any(told) else []), end_of(told[1])


def written_in(fd: int) -> Stream:
    """Return what a file holds, see :class:`.link.Exit`."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if size <= INLINE:
        return os.pread(fd, size, 0)
    checksum, at = 0, 0
    while at < size and (piece := os.pread(fd, min(_PIECE, size - at), at)):
        checksum = zlib.crc32(piece, checksum)
        at += len(piece)
    return (0, at, checksum, os.pread(fd, TAIL, max(0, at - TAIL)))


def _paths(logs: tuple[str, str], numbers: Sequence[int]) -> tuple[str, str]:
    return f"{logs[0]}.{numbers[0]}", f"{logs[1]}.{numbers[1]}"
