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
import resource
import select
import struct
import sys
import time
from typing import Any, Protocol

from pilot_hitl.model.outputs import NOWHERE, Output, Range
from pilot_hitl.wire.modes import own_file
from pilot_hitl_agent.node import frames
from pilot_hitl_agent.node.capture import USUAL, Capture, Captures, Late

STREAMS_AT = 64
"""Where the page says what of the running call is in the log: for each stream offset, length, checksum, being read."""
_RANGE = struct.Struct("<QQI")
_BUSY_AT = _RANGE.size
_STRIDE = 32
_QUIET = bytes(2 * _STRIDE)
_PRIVATE = 100
"""Descriptors that user code has no business with get numbers from here on."""
_RENEWED = struct.Struct("<II")
RENEWED_AT = STREAMS_AT + 2 * _STRIDE
"""Where the page says how often a stream got another pipe, and the number of its read end in the worker."""
LATE = ".late"
"""What children write after their call has ended goes into a file of its own beside the worker's log."""
_BRIEF = 0.001
"""Seconds within which no call can have left a process behind."""
_SHORT = 0.0003
"""Seconds within which no call can have started a process; what a longer one may have done to its output is undone."""


class Taker(Protocol):
    """Takes what calls write, one after the other."""

    def begin(self) -> None:
        """Let what was written since the last call ended be no call's. To be called before some calls."""

    def end(self, began: float) -> list[Output]:
        """Return what the call that began at ``time.time()`` ``began`` wrote, nothing or one item."""

    def restore(self) -> None:
        """Let descriptors 1 and 2 lead here again, wherever a call let them lead."""


class Shared(Capture):
    """One stream of a worker, on either side."""

    __slots__ = ("_at", "_lock", "_page", "_renewals", "_renewed_at")

    lazy = True

    def __init__(self, fd: int, log: int, page: mmap.mmap, lock: int, which: int) -> None:
        """Read ``fd`` and write ``log``, both this object's from now on as ``lock`` is; ``which``: 0 or 1."""
        super().__init__(fd, log)
        self._page = page
        self._lock = lock
        self._at = STREAMS_AT + which * _STRIDE
        self._renewed_at = RENEWED_AT + which * _RENEWED.size
        self._renewals = 0

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

    def renew(self, fd: int) -> None:
        """In the worker: read ``fd`` from now on, and tell the nursery. What is in the old pipe is no call's."""
        with contextlib.suppress(OSError):
            # It looks when something comes.
            wake = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._renewals += 1
            _RENEWED.pack_into(self._page, self._renewed_at, self._renewals, fd)
            os.write(wake, b"\n")
            os.close(wake)
        os.close(self.fd)
        self.fd, self.size = fd, USUAL

    def renewed(self) -> Capture | None:
        """In the nursery: follow the worker to another pipe; return what reads the old one, None when there is none."""
        renewals, theirs = _RENEWED.unpack_from(self._page, self._renewed_at)
        if renewals == self._renewals:
            return None
        self._renewals = renewals
        pid = frames.PID.unpack_from(self._page, frames.PID_AT)[0]
        try:
            fd = os.open(f"/proc/{pid}/fd/{theirs}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # It is ending.
            return None
        try:
            log = own_file(self.path + LATE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:
            log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        late = Late(self.fd, log)
        self.fd, self.size = fd, USUAL
        return late

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
            shared = Shared(self._ends[2 * which], private(log), page, private(self._page), which)
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
            writers.append(private(writing))
            shared.append(Shared(private(reading), private(log), page, private(self._page), which))
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
        self._spent: tuple[float, ...] = (0, 0.0, 0.0)

    def adopt(self) -> None:
        """Take ``sys.stdout`` and ``sys.stderr`` as those that calls find: they are flushed whatever a call does."""
        self._streams = (sys.stdout, sys.stderr)

    def begin(self) -> None:
        """See :class:`Taker`."""
        self.restore()
        if self._any():
            for each in self._shared:
                each.drop()

    def end(self, began: float) -> list[Output]:
        """See :class:`Taker`.

        Descriptors 1 and 2 lead there again afterwards, unless a call of microseconds led them elsewhere.
        """
        took = time.time() - began
        if took > _SHORT:
            self.restore()
            for fd in self._writers:
                os.set_blocking(fd, True)
        self._flush()
        output = self._collect() if self._any() else []
        if took > _BRIEF and self._had_children() and self._others_write():
            self._renew()
        return output

    def _collect(self) -> list[Output]:
        self.restore()
        self._flush()
        told = [each.collect() for each in self._shared]
        return [output_of(told[0], told[1], (self._shared[0].path, self._shared[1].path))] if any(told) else []

    def _had_children(self) -> bool:
        """Return whether there are children, or were some that have been waited for."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent: tuple[float, ...] = (usage.ru_minflt, usage.ru_utime, usage.ru_stime)
        if spent != self._spent:
            self._spent = spent
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _others_write(self) -> bool:
        """Return whether somebody else can still write to either stream."""
        look = select.poll()
        for number, each in enumerate(self._shared, 1):
            # Another thread may open a file now: it must not get this number.
            os.dup2(each.fd, number)
            os.close(self._writers[number - 1])
            look.register(each.fd, 0)
        alone = sum(bool(event & select.POLLHUP) for _fd, event in look.poll(0)) == len(self._shared)
        for number, each in enumerate(self._shared, 1):
            self._install(number, os.open(f"/proc/self/fd/{each.fd}", os.O_WRONLY | os.O_CLOEXEC))
        return not alone

    def _renew(self) -> None:
        """Take other pipes: what a process writes that outlives its call is not the next call's."""
        for number, each in enumerate(self._shared, 1):
            try:
                reading, writing = os.pipe2(os.O_CLOEXEC)
            except OSError:
                return
            os.set_blocking(reading, False)
            self._poll.unregister(each.fd)
            os.close(self._writers[number - 1])
            each.renew(private(reading))
            os.close(reading)
            self._poll.register(each.fd, select.POLLIN)
            self._install(number, writing)

    def _install(self, number: int, writing: int) -> None:
        self._writers[number - 1] = private(writing)
        os.dup2(writing, number)
        os.close(writing)

    def _flush(self) -> None:
        flush_output(self._streams)
        if (sys.stdout, sys.stderr) != self._streams:
            flush_output((sys.stdout, sys.stderr))

    def restore(self) -> None:
        """Let descriptors 1 and 2 lead into the pipes again."""
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


def private(fd: int) -> int:
    """Return a duplicate of a descriptor whose number is out of the way of user code."""
    return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PRIVATE))
