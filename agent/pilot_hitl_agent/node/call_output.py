"""The output of calls: standard output and error of a function worker, told apart by call.

A worker's descriptors 1 and 2 are pipes, so that reopening, closing or truncating them harms nobody. Their read ends
are held by the worker and by the fork server (*nursery*) that started it. At the end of a call the worker takes what is
there, without a word to anybody; for a call that prints nothing that is one look. What a call writes while it lasts for
longer than some milliseconds is moved into the worker's log by the nursery, so no call waits for long because a pipe is
full, whatever it does meanwhile. Both count in the page that they share what of the running call is in the log.

One of the two reads at a time: a POSIX record lock on the page, which the kernel releases when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import struct
import sys
import time
from typing import Any

from pilot_hitl.model.outputs import NOWHERE, Output, Range
from pilot_hitl_agent.node.capture import Capture, Captures

STREAMS_AT = 64
"""Where the page says what of the running call is in the log: for each stream offset, length, checksum, being read."""
_RANGE = struct.Struct("<QQI")
_BUSY_AT = _RANGE.size
_STRIDE = 32
_QUIET = bytes(2 * _STRIDE)
_PRIVATE = 100
"""Descriptors that user code has no business with get numbers from here on."""
_SHORT = 0.0003
"""Seconds within which no call can have started a process; what a longer one may have done to its output is undone."""


class Shared(Capture):
    """One stream of a worker, on either side."""

    __slots__ = ("_at", "_lock", "_page")

    lazy = True

    def __init__(self, fd: int, log: int, page: mmap.mmap, lock: int, which: int) -> None:
        """Read ``fd`` and write ``log``, both this object's from now on as ``lock`` is; ``which``: 0 or 1."""
        super().__init__(fd, log)
        self._page = page
        self._lock = lock
        self._at = STREAMS_AT + which * _STRIDE

    def take(self) -> int:
        """Move what is there into the log, unless the worker itself is about to."""
        if not self._hold(fcntl.LOCK_EX | fcntl.LOCK_NB):
            return -1
        try:
            return super().take()
        finally:
            self._release()

    def keep(self, content: bytes) -> None:
        """Append to the log."""
        self.load()
        super().keep(content)
        _RANGE.pack_into(self._page, self._at, self.offset, self.length, self.checksum)

    def load(self) -> None:
        """Learn what of the running call is in the log."""
        self.offset, self.length, self.checksum = _RANGE.unpack_from(self._page, self._at)
        if not self.length:
            self.tail = b""

    def collect(self) -> Any:
        """Return what the call that just ended wrote, as :meth:`end` does, and begin anew."""
        self._hold(fcntl.LOCK_EX)
        try:
            self.load()
            return self.told(self.rest())
        finally:
            _RANGE.pack_into(self._page, self._at, 0, 0, 0)
            self._release()

    def drop(self) -> None:
        """Put what was written outside any call into the log, and begin anew."""
        self._hold(fcntl.LOCK_EX)
        try:
            if content := self.rest():
                self.keep(content)
            _RANGE.pack_into(self._page, self._at, 0, 0, 0)
        finally:
            self._release()

    def end(self) -> Any:
        """Return what was written since the last call ended; the worker is gone."""
        self.load()
        told = super().end()
        os.close(self.log)
        os.close(self._lock)
        return told

    @property
    def path(self) -> str:
        """Where the log lies."""
        return os.readlink(f"/proc/self/fd/{self.log}")

    def abandon(self) -> None:
        """In a forked child: close what is the parent's."""
        for fd in (self.fd, self.log, self._lock):
            os.close(fd)
        self._page.close()

    def _hold(self, how: int) -> bool:
        try:
            fcntl.lockf(self._lock, how)
        except OSError:
            return False
        # Who sees the pipe empty must know when somebody else has just emptied it.
        self._page[self._at + _BUSY_AT] = 1
        return True

    def _release(self) -> None:
        self._page[self._at + _BUSY_AT] = 0
        fcntl.lockf(self._lock, fcntl.LOCK_UN)


class Streams:
    """The pipes of a worker that is about to be forked."""

    def __init__(self, page: int, logs: tuple[int, int]) -> None:
        """Make them; the descriptors stay the caller's.

        Raises:
            OSError: there are too many files.
        """
        self._page = page
        self._logs = logs
        self._ends: list[int] = []
        try:
            for _ in logs:
                self._ends += os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._ends[-2], False)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Give up: nothing was forked."""
        for fd in self._ends:
            os.close(fd)

    def watch(self, captures: Captures) -> list[tuple[int, Capture]]:
        """In the nursery: read both when something lies there for a while; returns them as a process has them."""
        found: list[tuple[int, Capture]] = []
        page = mmap.mmap(self._page, 0)
        for which, log in enumerate(self._logs):
            shared = Shared(self._ends[2 * which], _private(log), page, _private(self._page), which)
            captures.add(shared)
            os.close(self._ends[2 * which + 1])
            found.append((-1, shared))
        return found

    def install(self, page: mmap.mmap) -> CallOutput:
        """In the worker: make them its standard output and error."""
        shared, writers = [], []
        for which, log in enumerate(self._logs):
            reading, writing = self._ends[2 * which : 2 * which + 2]
            os.dup2(writing, which + 1)
            writers.append(_private(writing))
            shared.append(Shared(_private(reading), _private(log), page, _private(self._page), which))
            os.close(reading)
            os.close(writing)
        return CallOutput(page, shared, writers)


class CallOutput:
    """A worker's side: the output of one call after the other."""

    def __init__(self, page: mmap.mmap, shared: list[Shared], writers: list[int]) -> None:
        """Tell calls apart."""
        self._page = page
        self._shared = shared
        self._writers = writers
        self._poll = select.poll()
        for each in shared:
            self._poll.register(each.fd, select.POLLIN)
        for fd in (1, 2):
            # Should a call close them, that is told without being asked for.
            self._poll.register(fd, 0)
        self._streams: tuple[Any, ...] = ()

    def adopt(self) -> None:
        """Take ``sys.stdout`` and ``sys.stderr`` as those that calls find: they are flushed whatever a call does."""
        self._streams = (sys.stdout, sys.stderr)

    def begin(self) -> None:
        """Let what was written since the last call ended be no call's. To be called before some calls."""
        self._restore()
        if self._any():
            for each in self._shared:
                each.drop()

    def end(self, began: float) -> Output | None:
        """Return what the call that began at ``time.time()`` ``began`` wrote, None for nothing.

        Descriptors 1 and 2 lead there again afterwards, unless a call of microseconds led them elsewhere.
        """
        if time.time() - began > _SHORT:
            self._restore()
            for fd in self._writers:
                os.set_blocking(fd, True)
        self._flush()
        if not self._any():
            return None
        self._restore()
        self._flush()
        told = [each.collect() for each in self._shared]
        if not any(told):
            return None
        return output_of(told[0], told[1], (self._shared[0].path, self._shared[1].path))

    def _flush(self) -> None:
        flush_output(self._streams)
        if (sys.stdout, sys.stderr) != self._streams:
            flush_output((sys.stdout, sys.stderr))

    def _restore(self) -> None:
        for number, fd in enumerate(self._writers, 1):
            os.dup2(fd, number)

    def _any(self) -> bool:
        return bool(self._poll.poll(0)) or self._page[STREAMS_AT : STREAMS_AT + len(_QUIET)] != _QUIET


def output_of(out: Any, err: Any, paths: tuple[str, str]) -> Output:
    """Return what was written on both streams (see :meth:`.capture.Capture.end`) to logs at ``paths``."""
    small = [told if isinstance(told, bytes) else b"" for told in (out, err)]
    large = [
        NOWHERE if isinstance(told, bytes) else Range(path, *told[:3])
        for told, path in zip((out, err), paths, strict=True)
    ]
    return Output(small[0], small[1], large[0], large[1])


def flush_output(streams: tuple[Any, ...] = ()) -> None:
    """Let what calls printed leave Python: through these streams, or the standard ones."""
    for stream in streams or (sys.stdout, sys.stderr):
        # A stream that a call closed or replaced: its loss, not the worker's.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _private(fd: int) -> int:
    return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PRIVATE))
