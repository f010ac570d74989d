"""The daemon's side of a spawner: requests out, ends in, many per packet."""

from __future__ import annotations

import errno
import marshal
import mmap
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pilot_hitl_agent.node import packets
from pilot_hitl_agent.node.spawner import (
    BACK,
    ENVIRONMENT,
    EXIT,
    FAIL,
    FORK,
    HELLO,
    KILL,
    LOG,
    LOOK,
    QUIT,
    RECALL,
    SPAWN,
)

_WITH_TOKEN = frozenset((SPAWN, FORK))
"""Records that somebody waits for; their second item is the token."""
_TOKENS_A_RECORD = 1000


Stream = bytes | tuple[int, int, int, bytes]
"""What a process wrote: itself when it is little, else ``(offset, length, checksum, tail)`` in its log."""


class Exit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A process that was started ended, and nothing of its tree is left.

    Attributes:
        status: exit code; negative is the signal that ended it.
        began, ended: seconds since 1970.
        out, err: what it wrote; of ranks that share a log, the last that ends tells of them all.
        user, system: CPU seconds; ``memory``: largest resident size in kB.
    """

    token: int
    pid: int
    status: int
    began: float
    ended: float
    out: Stream
    err: Stream
    user: float
    system: float
    memory: int


def end_of(stream: Stream) -> bytes:
    """Return at least the end of what a process wrote."""
    return stream if isinstance(stream, bytes) else stream[3]


class Unspawned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A process could not be started: ``what`` (program, directory, affinity, stdout, stderr, request) at ``where``."""

    token: int
    number: int
    what: str
    where: str


class Returned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Processes that waited for their lane were taken back: they have not begun and never will."""

    tokens: list[int]


class Closed(msgspec.Struct, frozen=True, gc=False):
    """The spawner is gone."""


class Greeting(msgspec.Struct, frozen=True, gc=False):
    """Who the spawner is and what it runs: ``(token, label, pid, began)`` each."""

    pid: int
    prefix: str
    running: list[tuple[int, Any, int, float]]
    restarts: int


News = Exit | Unspawned | Returned | Closed | Greeting


class Link:
    """One spawner's socket. Nothing is sent before :meth:`flush`."""

    def __init__(self, link: socket.socket, next_token: Callable[[], int]) -> None:
        """Talk over ``link``, which this object owns from now on; tokens are unique over all links of a daemon."""
        link.setblocking(False)
        self._link = link
        self._next_token = next_token
        self._piece = packets.inline_limit(link)
        self._records: list[tuple[Any, ...]] = []
        # What gathered and is not sent yet: the packet, the descriptors that go with it, who waits for an answer to it.
        self._packets: deque[tuple[bytes, tuple[int, ...], list[int]]] = deque()
        self._unsent: list[News] = []
        self._environments = 0
        self._logs: set[int] = set()
        self._killed: set[int] = set()
        self._buffer = mmap.mmap(-1, packets.PACKET)
        self.pid = 0
        self.prefix = ""
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._link.fileno()

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._records or self._packets)

    def environment(self, variables: dict[str, str]) -> int:
        """Make an environment known; processes name it by the returned number."""
        self._environments += 1
        self._records.append((ENVIRONMENT, self._environments, variables))
        return self._environments

    def log(self, number: int, out: str, err: str) -> None:
        """Make a pair of append logs known, once."""
        if number not in self._logs:
            self._logs.add(number)
            self._records.append((LOG, number, out, err))

    def spawn(
        self,
        argv: Sequence[str],
        environment: int,
        more: dict[str, str],
        cwd: str,
        cpus: tuple[int, ...],
        outputs: tuple[int | str, int | str],
        label: object = None,
        lane: int = 0,
    ) -> int:
        """Ask for a process and return its token.

        Args:
            argv: absolute program, then its arguments.
            environment: number of an environment; ``more`` is set over it.
            more: the variables of this process alone.
            cwd: absolute working directory.
            cpus: CPU numbers to bind to; empty to leave that alone.
            outputs: for standard output and error: number of a log, or path of a file to write anew.
            label: what a later agent is told about it; anything that marshal takes.
            lane: of all processes of a lane one runs at a time, in the order in which they were asked for, each right
                after the one before; 0 to start at once. When one cannot be started, those behind it are
                :class:`Returned`.
        """
        token = self._next_token()
        self._records.append((SPAWN, token, label, list(argv), environment, more, cwd, cpus, *outputs, lane))
        return token

    def request(self, record: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        """Send a record of another kind (see :mod:`.nursery`), or with descriptors; those are this object's then."""
        self._add(record, fds)

    def next_token(self) -> int:
        """Return an unused token."""
        return self._next_token()

    def kill(self, token: int, number: int) -> None:
        """Send a signal to the whole tree of a process."""
        if number in (signal.SIGTERM, signal.SIGKILL):
            self._killed.add(token)
        self._records.append((KILL, token, int(number)))

    def look(self, tokens: list[int]) -> None:
        """Ask for the failure (:data:`~.spawner.LOST`) of those of these processes that the spawner does not know."""
        for start in range(0, len(tokens), _TOKENS_A_RECORD):
            self._records.append((LOOK, tokens[start : start + _TOKENS_A_RECORD]))

    def was_killed(self, token: int) -> bool:
        """Return whether this side told a process to end that has ended now; asked once for each end."""
        if token not in self._killed:
            return False
        self._killed.discard(token)
        return True

    def recall(self, lane: int) -> None:
        """Take back what waits for a lane; a :class:`Returned` tells what that was, unless it was nothing."""
        self._records.append((RECALL, lane))

    def quit(self) -> None:
        """End the spawner and everything below it."""
        self._records.append((QUIT,))

    def flush(self) -> bool:
        """Send what gathered; False when some of it has to wait until the socket can be written.

        What cannot be sent although the spawner lives fails alone: see :meth:`unsent`.
        """
        if self._records:
            self._pack()
        while self._packets and not self.closed:
            packet, fds, tokens = self._packets[0]
            try:
                packets.send(self._link, packet, fds)
            except OSError as error:
                if error.errno in packets.FULL:
                    return False
                if error.errno in packets.GONE:
                    # The end of its socket tells the reader, who owns the consequences.
                    self._drop_packets()
                    break
                number = error.errno or errno.EIO
                self._unsent.extend(Unspawned(token, number, "request", f"of {len(packet)} bytes") for token in tokens)
            for fd in fds:
                os.close(fd)
            self._packets.popleft()
        return True

    def unsent(self) -> list[News]:
        """Return the processes that will not be started because the request could not be sent, since the last time."""
        news, self._unsent = self._unsent, []
        return news

    def receive(self) -> list[News]:
        """Return what one packet reports (poll again for more); a :class:`Closed` is the last ever."""
        news: list[News] = []
        if self.closed:
            return news
        try:
            packet, fds = packets.receive(self._link, self._buffer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return news
        except OSError:
            # Broken; or what it told was lost on the way, and then only its end can be relied upon.
            packet, fds = b"", []
        for fd in fds:
            os.close(fd)
        if packet:
            self._read(packet, news)
        else:
            # The socket itself stays until its owner has stopped polling it.
            self.closed = True
            self._drop_packets()
            news.append(Closed())
        return news

    def close(self) -> None:
        """Close the socket; an embedded spawner ends at that."""
        self.closed = True
        self._drop_packets()
        self._link.close()

    def _add(self, record: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        if not fds:
            self._records.append(record)
            return
        # Descriptors belong to a packet, so their record travels alone.
        if self._records:
            self._pack()
        self._packets.append((marshal.dumps([record]), fds, _tokens([record])))

    def _pack(self) -> None:
        """Make packets of what gathered: as few as go inline; a record that does not goes by file, alone."""
        ahead = [self._records]
        self._records = []
        while ahead:
            records = ahead.pop()
            packet = marshal.dumps(records)
            if len(packet) <= self._piece or len(records) == 1:
                self._packets.append((packet, (), _tokens(records)))
            else:
                middle = len(records) // 2
                ahead += (records[middle:], records[:middle])

    def _drop_packets(self) -> None:
        for _, fds, _tokens_of_it in self._packets:
            for fd in fds:
                os.close(fd)
        self._packets.clear()
        self._records.clear()

    def _read(self, packet: bytes, news: list[News]) -> None:
        try:
            for record in marshal.loads(packet):  # our own child, over our own pair
                kind = record[0]
                if kind == EXIT:
                    news.append(Exit(*record[1:]))
                elif kind == FAIL:
                    news.append(Unspawned(*record[1:]))
                elif kind == BACK:
                    news.append(Returned(*record[1:]))
                elif kind == HELLO:
                    self.pid, self.prefix = record[1], record[2]
                    news.append(Greeting(*record[1:]))
        except (ValueError, EOFError, TypeError, IndexError):
            # Not of this protocol; dropped.
            return


def _tokens(records: Sequence[tuple[Any, ...]]) -> list[int]:
    """Return the tokens of the processes that records ask for."""
    return [record[1] for record in records if record[0] in _WITH_TOKEN]
