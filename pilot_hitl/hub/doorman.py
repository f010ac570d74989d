"""The doorman: a process of its own that takes the connections over TCP and passes their bytes to the hub.

ZeroMQ accepts whatever connects, cannot stop without giving up what is there, and ends its process when a connection of
this machine comes in at the very last descriptor. So nobody reaches the hub's own descriptors over TCP: strangers use
those of this process, which opens a connection to the hub only for who speaks as ZeroMQ does, and never has more than a
given number of them. One that it gave up still counts until the hub has closed its end. That holds however busy the
hub, this process or the machine is.

What passes is enciphered from end to end (CURVE), so nothing here is trusted with a key. A peer is *known* once the hub
said READY to it, which it says only to who has the home's key (RFC 26 of ZeroMQ). Those that are not known make way
for who comes next, the oldest first, and are let go when their time is over; those that are known stay.

It runs by its path, and imports nothing of ours::

    python -I -S doorman.py LISTENER CONTROL COUNTS PLACES HUB

``LISTENER`` is a listening socket, ``CONTROL`` a pipe that ends with the hub, ``COUNTS`` a file of :data:`COUNTED`,
``PLACES`` how many connections to the hub there may be, ``HUB`` the path of its socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

COUNTED = struct.Struct("=3Q")
"""How many connections to the hub there are, how many of them are known, and how many strangers had to make way."""
PATIENCE = 12.0
"""Seconds that a connection has to become known; the hub ends its handshake earlier."""
LINGER = 5.0
"""Seconds that one side of a connection may stay after the other has closed."""
VANISHED = 30_000
"""Milliseconds after which a peer that takes nothing of what was sent to it is gone."""
SIGNATURE = 10
"""Bytes with which ZeroMQ's greeting begins: 0xff, eight of any kind, 0x7f. Both sides say them without being asked."""
READY_AFTER = 234
"""Bytes that a hub says before READY: its greeting, and WELCOME."""
READY_BY = READY_AFTER + 32
STRANGERS_BYTES, KNOWN_BYTES = 4096, 1 << 18
ACCEPTS_A_TURN = 64
BACKLOG = 256
MOST_FILES = 65536
"""Descriptors of this process where there is no limit."""
OWN = 16
"""Descriptors of this process that are no connection."""


class Guest:
    """A connection over TCP, and the one to the hub that belongs to it.

    Attributes:
        outer, inner: the sockets; either may be closed already, and ``inner`` None before the peer spoke.
        until: when it is let go unless something happens; monotonic.
        known: whether it has the home's key.
    """

    __slots__ = ("_said", "closed", "inner", "known", "outer", "rest", "until")

    def __init__(self, outer: socket.socket, until: float) -> None:
        """Begin with nothing said."""
        self.outer = outer
        self.inner: socket.socket | None = None
        self.until = until
        self.known = False
        self.rest = {True: b"", False: b""}
        """What is still to be sent, to the hub and from it."""
        self.closed = {True: False, False: False}
        """Whether peer and hub have nothing more to say."""
        self._said = b""

    def hear_hub(self, data: memoryview) -> bool:
        """Take note of what the hub says; return whether that made the peer known."""
        if self.known or len(self._said) >= READY_BY:
            return False
        self._said += data[: READY_BY - len(self._said)]
        self.known = b"\x05READY" in self._said[READY_AFTER:]
        return self.known


class Guests:
    """Who may be here, and who makes way: no sockets are touched here.

    Attributes:
        places: how many may have a connection to the hub; one that is given up keeps its place until
            :meth:`forget`.
        silent: how many may be here that have said nothing yet.
        made_way: how many strangers had to make way.
    """

    def __init__(self, places: int, silent: int) -> None:
        """Begin with nobody."""
        self.places = places
        self.silent = silent
        self.made_way = 0
        # Each in the order in which they came.
        self._silent: dict[Guest, None] = {}
        self._strangers: dict[Guest, None] = {}
        self._known: dict[Guest, None] = {}
        self._leaving: dict[Guest, None] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """What :data:`COUNTED` holds."""
        return self.at_hub, len(self._known), self.made_way

    @property
    def at_hub(self) -> int:
        """How many connections to the hub there are."""
        return len(self._strangers) + len(self._known) + len(self._leaving)

    def came(self, guest: Guest) -> Guest | None:
        """Take somebody in who has said nothing yet; return who makes way, if somebody has to."""
        out = self._oldest(self._silent) if len(self._silent) >= self.silent else None
        self._silent[guest] = None
        return out

    def spoke(self, guest: Guest) -> tuple[bool, Guest | None]:
        """Return whether there is a place at the hub for who spoke, and who is to be asked to leave for the next."""
        del self._silent[guest]
        if self.at_hub >= self.places:
            self.made_way += 1
            return False, None
        self._strangers[guest] = None
        # One place is kept free while there are strangers: the next to come shall not have to come twice.
        return True, self._oldest(self._strangers) if self.at_hub >= self.places and len(self._strangers) > 1 else None

    def knows(self, guest: Guest) -> None:
        """Let somebody stay."""
        if self._strangers.pop(guest, self) is None:
            self._known[guest] = None

    def leaves(self, guest: Guest) -> None:
        """Note that somebody is gone whose connection to the hub, if there is one, is not closed by the hub yet."""
        self._silent.pop(guest, None)
        self._strangers.pop(guest, None)
        self._known.pop(guest, None)
        if guest.inner is not None:
            self._leaving[guest] = None

    def forget(self, guest: Guest) -> None:
        """Give a place free: the hub has closed its end."""
        self.leaves(guest)
        self._leaving.pop(guest, None)

    def overdue(self, now: float) -> list[Guest]:
        """Return those whose time is over; they came in that order, so that few are looked at."""
        found: list[Guest] = []
        for guests in (self._silent, self._strangers):
            for guest in guests:
                if guest.until > now:
                    break
                found.append(guest)
        return found

    def next_deadline(self) -> float | None:
        """Return when somebody may be overdue."""
        return min(
            (guest.until for guests in (self._silent, self._strangers) for guest in _first(guests)), default=None
        )

    def _oldest(self, guests: dict[Guest, None]) -> Guest:
        self.made_way += 1
        return next(iter(guests))


def _first(guests: dict[Guest, None]) -> Iterator[Guest]:
    for guest in guests:
        yield guest
        return


class Doorman:
    """The process's one loop."""

    def __init__(self, listener: socket.socket, control: int, counts: int, places: int, hub: str) -> None:
        """Serve ``listener`` until ``control`` ends; ``counts`` is written, ``hub`` is where the hub listens."""
        self._listener = listener
        self._control = control
        self._counts = counts
        self._hub = hub
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN
        places = max(1, min(places, files // 3))
        self.guests = Guests(places, max(1, files - 2 * places))
        self._poll = select.epoll()
        self._wanted: dict[int, int] = {}
        """What each connection is polled for, by descriptor."""
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._poll.register(control, select.EPOLLIN)
        self._ways: dict[int, tuple[Guest, bool]] = {}
        """By descriptor: whose it is, and whether it is the outer one."""
        self._closing: dict[Guest, float] = {}
        self._buffer = memoryview(bytearray(KNOWN_BYTES))
        self._told: tuple[int, int, int] | None = None
        self._over = 0.0

    def run(self) -> None:
        """Work until the hub is gone and what it said last is on its way."""
        while not self._over or (self._ways and time.monotonic() < self._over):
            for descriptor, events in self._poll.poll(self._timeout()):
                if descriptor == self._control:
                    self._end()
                elif descriptor in self._ways:
                    self._move(*self._ways[descriptor], events)
                elif not self._over and descriptor == self._listener.fileno():
                    self._accept()
            self._let_go()
            self._tell()

    def _end(self) -> None:
        """The hub is gone: nobody else comes in, and its port is free."""
        self._poll.unregister(self._control)
        self._poll.unregister(self._listener.fileno())
        self._listener.close()
        self._over = time.monotonic() + LINGER / 2

    def _timeout(self) -> float | None:
        moments = [*self._closing.values()]
        if (deadline := self.guests.next_deadline()) is not None:
            moments.append(deadline)
        if self._over:
            moments.append(self._over)
        return max(0.0, min(moments) - time.monotonic()) + 0.001 if moments else None

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                outer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # Not of our making, by our own count: the machine has none left.
                    time.sleep(0.05)
                    return
                continue  # It left before it was let in.
            outer.setblocking(False)
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED)
            guest = Guest(outer, time.monotonic() + PATIENCE)
            self._ways[outer.fileno()] = guest, True
            self._want(outer, select.EPOLLIN)
            if (out := self.guests.came(guest)) is not None:
                self._drop(out)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _move(self, guest: Guest, outer: bool, events: int) -> None:
        """Pass on what can be: from this side if it can be read, to it if there is something for it."""
        try:
            if events & select.EPOLLOUT:
                self._flush(guest, outer=not outer)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(guest, outer=outer)
        except OSError:  # One side is gone, and with it the other.
            self._drop(guest)

    def _read(self, guest: Guest, *, outer: bool) -> None:
        if guest.rest[outer] and guest.inner is not None:
            return  # What was read before is not taken yet.
        source = guest.outer if outer else guest.inner
        if source is None or guest.closed[outer]:
            return
        limit = KNOWN_BYTES if guest.known else STRANGERS_BYTES
        try:
            count = source.recv_into(self._buffer, limit)
        except BlockingIOError:
            return
        if not count:
            self._ended(guest, outer=outer)
        elif guest.outer.fileno() < 0:
            return  # What the hub still says to who had to leave.
        elif outer and guest.inner is None:
            self._greet(guest, self._buffer[:count])
        else:
            if not outer and guest.hear_hub(self._buffer[:count]):
                self.guests.knows(guest)
            self._send(guest, self._buffer[:count], outer=outer)

    def _greet(self, guest: Guest, data: memoryview) -> None:
        """Take the first words of a peer; open a connection to the hub if they are ZeroMQ's."""
        said = guest.rest[True] = guest.rest[True] + data
        if said[0] != 0xFF or (len(said) >= SIGNATURE and said[SIGNATURE - 1] != 0x7F):
            self._drop(guest)
            return
        if len(said) < SIGNATURE:
            return
        place, out = self.guests.spoke(guest)
        if not place:
            self._drop(guest)
            return
        inner = guest.inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        inner.setblocking(False)
        self._ways[inner.fileno()] = guest, False
        if out is not None:
            self._drop(out)
        inner.connect(self._hub)
        self._want(inner, select.EPOLLIN)
        guest.rest[True] = b""
        self._send(guest, memoryview(said), outer=True)

    def _send(self, guest: Guest, data: memoryview, *, outer: bool) -> None:
        """Send what came from a side to the other; what is not taken waits, and nothing more is read meanwhile."""
        target = guest.inner if outer else guest.outer
        assert target is not None  # who speaks to nobody is not read
        try:
            sent = target.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            guest.rest[outer] = bytes(data[sent:])
            self._watch(guest)

    def _flush(self, guest: Guest, *, outer: bool) -> None:
        data = guest.rest[outer]
        target = guest.inner if outer else guest.outer
        if not data or target is None:
            return
        try:
            sent = target.send(data)
        except BlockingIOError:
            return
        guest.rest[outer] = data[sent:]
        self._watch(guest)

    def _watch(self, guest: Guest) -> None:
        """Poll each side for what it is to do: to be read unless what it said still waits, to take what waits."""
        for sock, outer in ((guest.outer, True), (guest.inner, False)):
            if sock is not None and sock.fileno() >= 0:
                reads = not guest.rest[outer] and not guest.closed[outer]
                events = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if guest.rest[not outer] else 0)
                self._want(sock, events)

    def _want(self, sock: socket.socket, events: int) -> None:
        """Poll for these; for none not at all, because the end of the other side is told even to who wants nothing."""
        descriptor = sock.fileno()
        before = self._wanted.get(descriptor, 0)
        if events and not before:
            self._poll.register(descriptor, events)
        elif events != before and events:
            self._poll.modify(descriptor, events)
        elif before and not events:
            self._poll.unregister(descriptor)
        self._wanted[descriptor] = events

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _ended(self, guest: Guest, *, outer: bool) -> None:
        """One side has nothing more to say: tell the other, and wait a little for what that still has to say."""
        guest.closed[outer] = True
        target = guest.inner if outer else guest.outer
        if target is None or target.fileno() < 0 or all(guest.closed.values()):
            self._forget(guest)
            return
        target.shutdown(socket.SHUT_WR)
        self._closing[guest] = time.monotonic() + LINGER
        self._watch(guest)

    def _drop(self, guest: Guest) -> None:
        """Let somebody go now. The place at the hub is free once the hub has closed its end too."""
        self._close(guest.outer)
        self._closing.pop(guest, None)
        guest.rest = {True: b"", False: b""}
        guest.closed[True] = True
        inner = guest.inner
        if inner is None or guest.closed[False]:
            self._forget(guest)
            return
        try:
            inner.shutdown(socket.SHUT_WR)
        except OSError:  # It was not connected, or the hub is gone.
            self._forget(guest)
            return
        self.guests.leaves(guest)
        self._want(inner, select.EPOLLIN)

    def _forget(self, guest: Guest) -> None:
        self._close(guest.outer)
        self._close(guest.inner)
        self._closing.pop(guest, None)
        self.guests.forget(guest)

    def _close(self, sock: socket.socket | None) -> None:
        if sock is not None and sock.fileno() >= 0:
            self._want(sock, 0)
            del self._wanted[sock.fileno()]
            self._ways.pop(sock.fileno(), None)
            sock.close()

    def _let_go(self) -> None:
        now = time.monotonic()
        for guest in self.guests.overdue(now):
            self._drop(guest)
        for guest in [guest for guest, moment in self._closing.items() if moment <= now]:
            self._drop(guest)

    def _tell(self) -> None:
        counts = self.guests.counts
        if counts != self._told:
            self._told = counts
            os.pwrite(self._counts, COUNTED.pack(*counts), 0)


def main(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    listener, control, counts, places = map(int, arguments[:4])
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say: then there are fewer places
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else MOST_FILES, hard))
    sock = socket.socket(fileno=listener)
    sock.setblocking(False)
    Doorman(sock, control, counts, places, arguments[4]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
