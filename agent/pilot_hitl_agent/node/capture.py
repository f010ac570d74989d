"""What processes write: taken out of a pipe for each of their streams, and kept.

Part of the spawner, so it imports next to nothing of Python and nothing of ours. A process has pipes of its own, which
nobody uses after it: it may reopen, truncate, close or make them non-blocking without harm to others. The spawner alone
writes the logs, so it knows exactly which range of a log is whose, and its checksum.

What is found when a process has ended travels with its end, when it is little; nothing is polled for that. A process
that lives for longer than :data:`PATIENCE` gets its pipes watched: what it writes goes into the log at once, so that it
never waits for long and a person can follow it.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INLINE = 16 * 1024
"""Bytes of a stream that travel with the end of a process."""
TAIL = 4096
"""Bytes of the end of a stream that travel beside its range."""
PATIENCE = 0.005
"""Seconds that a process may wait until its output is taken for the first time."""
LARGE = 1 << 20
"""Size of a pipe that was found full."""
USUAL = 1 << 16
"""Size of a pipe as it is made."""
_F_SETPIPE_SZ = 1031
_ROUNDS = 64


class Capture:
    """What comes through one pipe.

    Attributes:
        fd: the end that is read.
        log: descriptor of the log; negative when nobody will ask for the bytes.
        offset, length, checksum: the range in the log, nothing while ``length`` is 0.
        tail: the end of what is in the log.
        users: processes that write to it.
    """

    __slots__ = ("checksum", "fd", "length", "log", "offset", "size", "tail", "users")

    lazy = False
    """Whether it is read some time after something came, and then not watched until it was."""

    def __init__(self, fd: int, log: int) -> None:
        """Read ``fd``, which does not block and is closed at the end."""
        self.fd = fd
        self.log = log
        self.offset = 0
        self.length = 0
        self.checksum = 0
        self.tail = b""
        self.users = 1
        self.size = USUAL

    def take(self) -> int:
        """Move what is there into the log, a bounded amount; return how much, 0 at the end, negative for nothing."""
        content = self.read()
        if content:
            self.keep(content)
            if len(content) >= USUAL and self.size == USUAL:
                self._widen()
        return -1 if content is None else len(content)

    def read(self) -> bytes | None:
        """Return what is there; empty when nobody can write any more, None when there is nothing now."""
        try:
            return os.read(self.fd, self.size)
        except OSError:
            return None

    def rest(self) -> bytes:
        """Return all that is in the pipe. Its end is not waited for: who writes on is nobody's process any more."""
        content = self.read() or b""
        if len(content) < self.size:
            return content
        pieces = [content]
        for _ in range(_ROUNDS):
            pieces.append(self.read() or b"")
            if len(pieces[-1]) < self.size:
                break
        return b"".join(pieces)

    def keep(self, content: bytes) -> None:
        """Append to the log. What a full disk does not take is missed later: the range says how much there was."""
        import zlib

        if self.log < 0:
            return
        if not self.length:
            self.offset = os.lseek(self.log, 0, os.SEEK_END)
        self.checksum = zlib.crc32(content, self.checksum)
        self.length += len(content)
        self.tail = (self.tail + content[-TAIL:])[-TAIL:]
        write_all(self.log, content)

    def end(self) -> Any:
        """Return what was written: the bytes themselves, or ``(offset, length, checksum, tail)``; closes the pipe."""
        content = self.rest()
        os.close(self.fd)
        return self.told(content)

    def abandon(self) -> None:
        """In a forked child: close what is the parent's."""
        os.close(self.fd)

    def renewed(self) -> Capture | None:
        """Return what reads the pipe until now when this reads another one from now on; None when it does not."""
        return None

    def exhausted(self) -> None:
        """Nobody can write any more."""

    def told(self, content: bytes) -> Any:
        """Return what is told of all that was written, of which this is the last."""
        if not self.length and len(content) <= INLINE:
            return content
        if content:
            self.keep(content)
        return (self.offset, self.length, self.checksum, self.tail)

    def _widen(self) -> None:
        import fcntl

        self.size = LARGE
        try:
            fcntl.fcntl(self.fd, _F_SETPIPE_SZ, LARGE)
        except OSError:
            # This user has many such already; it works as it is.
            return


class Late(Capture):
    """What comes through a pipe that is no task's any more: a child of a call may have outlived it."""

    __slots__ = ()

    def exhausted(self) -> None:
        """Close it."""
        self.abandon()

    def abandon(self) -> None:
        """Close it, here or in a forked child."""
        os.close(self.fd)
        os.close(self.log)


class Captures:
    """The captures of one spawner, and the logs that they write to."""

    def __init__(self, poller: select.epoll) -> None:
        """Watch pipes with ``poller``."""
        self._poller = poller
        self._logs: dict[int, int | tuple[int, str]] = {}
        self._current: dict[int, Capture] = {}
        self._watched: dict[int, Capture] = {}
        self._due: dict[Capture, float] = {}

    def open_log(self, log: int, out: str, err: str) -> None:
        """Make a pair of logs known; what still writes to logs of this number was another agent's."""
        for index, path in ((2 * log, out), (2 * log + 1, err)):
            old = self._logs.get(index)
            if (capture := self._current.pop(index, None)) is not None:
                capture.log = -1
            if isinstance(old, int):
                os.close(old)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # This process has the umask of the user's tasks.
                self._logs[index] = fd
            except OSError as error:
                self._logs[index] = (error.errno or 5, path)

    def begin(self, index: int) -> tuple[Capture, int]:
        """Return a capture for a stream of a new process, and the end to write to, which the caller closes.

        Ranks of one task that run side by side share a capture, but each has an end of its own.

        Raises:
            KeyError: the log is not known.
            OSError: the log cannot be written, or there are too many files.
        """
        log = self._logs[index]
        if isinstance(log, tuple):
            raise OSError(log[0], "cannot open", log[1])
        capture = self._current.get(index)
        if capture is not None:
            writing = os.open(f"/proc/self/fd/{capture.fd}", os.O_WRONLY | os.O_CLOEXEC)
            capture.users += 1
        else:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reading, False)
            capture = self._current[index] = Capture(reading, log)
        if capture.fd not in self._watched:
            self._due[capture] = time.monotonic() + PATIENCE
        return capture, writing

    def end(self, index: int, capture: Capture) -> Any:
        """Return what a process wrote that is gone, see :meth:`Capture.end`; the last of several tells of them all."""
        capture.users -= 1
        if capture.users:
            return b""
        if self._current.get(index) is capture:
            del self._current[index]
        self.forget(capture)
        return capture.end()

    def add(self, capture: Capture) -> None:
        """Watch a capture that belongs to no log of a number."""
        self._watched[capture.fd] = capture
        self._poller.register(capture.fd, select.EPOLLIN | select.EPOLLONESHOT)

    def forget(self, capture: Capture) -> None:
        """Do not look at a capture any more."""
        self._due.pop(capture, None)
        if self._watched.pop(capture.fd, None) is not None:
            self._poller.unregister(capture.fd)

    def abandon(self) -> None:
        """In a forked child: close what is the parent's."""
        for capture in self._watched.values():
            capture.abandon()
        self._watched.clear()

    def wait(self) -> float:
        """Return the seconds until :meth:`on_time` is due, negative for never."""
        for due in self._due.values():
            return max(0.0, due - time.monotonic())
        return -1

    def on_time(self) -> None:
        """Watch what has lived for a while; take what waited for a while."""
        now = time.monotonic()
        while self._due:
            capture, due = next(iter(self._due.items()))
            if due > now:
                return
            del self._due[capture]
            if not capture.lazy:
                self._watched[capture.fd] = capture
                self._poller.register(capture.fd, select.EPOLLIN)
            elif (late := capture.renewed()) is not None:
                self._watched[late.fd] = late
                self._poller.modify(late.fd, select.EPOLLIN)
                self.add(capture)
                self._due[capture] = now
            else:
                capture.take()
                self._poller.modify(capture.fd, select.EPOLLIN | select.EPOLLONESHOT)

    def on_readable(self, fd: int) -> bool:
        """Take what came, now or soon; False when the descriptor is none of these."""
        capture = self._watched.get(fd)
        if capture is None:
            return False
        if capture.lazy:
            self._due[capture] = time.monotonic() + PATIENCE
        elif not capture.take():
            # All its writers closed it. A rank that starts late gets it watched again.
            self.forget(capture)
            capture.exhausted()
        return True


def write_all(fd: int, content: bytes) -> None:
    """Write as much as can be."""
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        # A full disk, a quota, a server that is gone: whoever reads the range learns that something is missing.
        return
