"""The doorman: who may have a connection to the hub, and that never more than so many do, whoever comes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.hub import doorman
from pilot_hitl.hub.doorman import Guest, Guests
from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.sockets import Doorkeeper, dealer, router

PLACES = 6
GREETING = b"\xff" + bytes(8) + b"\x7f\x03"


def guest(until: float = 0.0) -> Guest:
    """Somebody whose sockets nobody touches."""
    return Guest(socket.socket.__new__(socket.socket), until)


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.tuples(st.sampled_from("csklf"), st.integers(0, 99))))
def test_never_more_than_there_are_places_and_the_known_stay(
    places: int, silent: int, story: list[tuple[str, int]]
) -> None:
    guests = Guests(places, silent)
    quiet: list[Guest] = []
    at_hub: list[Guest] = []
    known: list[Guest] = []
    leaving: list[Guest] = []

    def out(gone: Guest) -> None:
        assert gone not in known, "who is known does not make way"
        guests.leaves(gone)
        (quiet if gone.inner is None else at_hub).remove(gone)
        leaving.extend([gone] if gone.inner is not None else [])

    for what, which in story:
        if what == "c":
            new = guest()
            gone = guests.came(new)
            quiet.append(new)
            if gone is not None:
                assert gone is quiet[0], "the oldest makes way"
                out(gone)
            assert len(quiet) <= silent
        elif what == "s" and quiet:
            speaks = quiet.pop(which % len(quiet))
            full = len(at_hub) + len(leaving) >= places
            place, gone = guests.spoke(speaks)
            assert place is not full
            if place:
                speaks.inner = socket.socket.__new__(socket.socket)
                at_hub.append(speaks)
            if gone is not None:
                assert gone is not speaks
                out(gone)
        elif what == "k" and (strangers := [each for each in at_hub if each not in known]):
            known.append(strangers[which % len(strangers)])
            guests.knows(known[-1])
        elif what == "l" and at_hub:
            gone = at_hub[which % len(at_hub)]
            known = [each for each in known if each is not gone]
            out(gone)
        elif what == "f" and leaving:
            guests.forget(leaving.pop(which % len(leaving)))
        assert guests.at_hub == len(at_hub) + len(leaving) <= places
        assert guests.counts[1] == len(known)


def test_who_says_nothing_is_overdue_in_the_order_of_coming() -> None:
    guests = Guests(4, 4)
    first, second, known = guest(1.0), guest(2.0), guest(0.5)
    guests.came(known)
    guests.spoke(known)
    guests.knows(known)
    guests.came(first)
    guests.came(second)
    guests.spoke(second)
    assert guests.next_deadline() == 1.0
    assert guests.overdue(0.9) == []
    assert guests.overdue(1.0) == [first]
    assert guests.overdue(3.0) == [first, second], "who is known is never overdue"


@dataclass
class Hub:
    """A ROUTER behind a doorman, with the fewest parts of a hub."""

    home: Path
    keys: Keyring
    port: int
    context: zmq.Context[zmq.Socket[bytes]]
    counts_fd: int
    process: subprocess.Popen[bytes]
    most: int = 0
    heard: list[bytes] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int, int]:
        at_hub, known, away = doorman.COUNTED.unpack(os.pread(self.counts_fd, doorman.COUNTED.size, 0))
        return at_hub, known, away


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    keys = keyring(tmp_path / "home")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keeper, sock = Doorkeeper(context, keys), router(context, keys)
    place = tmp_path / "door.sock"
    sock.bind(f"ipc://{place}")
    listener = socket.create_server(("127.0.0.1", 0), backlog=doorman.BACKLOG)
    counts = os.memfd_create("counts")
    os.pwrite(counts, bytes(doorman.COUNTED.size), 0)
    reading, control = os.pipe()
    passed = (listener.fileno(), reading, counts)
    command = [sys.executable, "-I", "-S", doorman.__file__, *map(str, passed), str(PLACES), str(place)]
    process = subprocess.Popen(command, pass_fds=passed)
    os.close(reading)
    made = Hub(tmp_path / "home", keys, listener.getsockname()[1], context, counts, process)
    over = threading.Event()

    def echo() -> None:
        poller = zmq.Poller()
        for each in (sock, keeper.socket):
            poller.register(each, zmq.POLLIN)
        while not over.is_set():
            for ready, _ in poller.poll(20):
                if ready is sock:
                    sock.send_multipart(sock.recv_multipart())
                else:
                    keeper.answer()
            made.most = max(made.most, _connected(place))

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield made
    finally:
        listener.close()
        over.set()
        thread.join()
        sock.close(linger=0)
        keeper.socket.close()
        context.term()
        os.close(control)
        assert process.wait(20) == 0, "it ends with the hub"
        os.close(counts)


def _connected(place: Path) -> int:
    """How many descriptors of this process are ends of connections to a socket's path."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    mine = {words[6] for words in map(str.split, lines) if len(words) > 7 and words[7] == str(place)}
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:[") and name[8:-1] in mine:
                found += 1
    return max(0, found - 1)  # One listens.


@contextlib.contextmanager
def peer(hub: Hub, name: bytes) -> Iterator[zmq.Socket[bytes]]:
    sock = dealer(hub.context, hub.keys, name)
    sock.connect(f"tcp://127.0.0.1:{hub.port}")
    try:
        yield sock
    finally:
        sock.close(linger=0)


def _echoed(sock: zmq.Socket[bytes], data: bytes) -> bool:
    sock.send(data)
    return bool(sock.poll(30_000)) and sock.recv() == data


def _connect(hub: Hub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", hub.port), 20)


def test_a_peer_with_the_key_passes_with_frames_of_any_size(hub: Hub) -> None:
    with peer(hub, b"agent") as agent:
        for size in (0, 1, 5000, 30_000_000):
            assert _echoed(agent, os.urandom(size)), size
        assert hub.counts[1] == 1


def test_many_frames_of_several_peers_at_once(hub: Hub) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(hub, b"agent %d" % n)) for n in range(PLACES - 1)]
        for n in range(300):
            for each in peers:
                each.send(b"%d" % n + bytes(n * 17))
        for each in peers:
            assert [each.poll(30_000) and int(each.recv().rstrip(b"\0")) for _ in range(300)] == list(range(300))


@pytest.mark.parametrize("words", [b"", b"\xff", GREETING, b"GET / HTTP/1.0\r\n\r\n", os.urandom(300)])
def test_strangers_cannot_keep_out_who_has_the_key(hub: Hub, words: bytes) -> None:
    with peer(hub, b"before") as before, contextlib.ExitStack() as held:
        assert _echoed(before, b"here")
        for _ in range(300):
            stranger = held.enter_context(_connect(hub))
            with contextlib.suppress(OSError):
                stranger.sendall(words)
        with peer(hub, b"after") as after:
            assert _echoed(after, b"came"), hub.counts
            assert _echoed(before, b"still here")
        assert hub.most <= PLACES, "by its own descriptors"
        assert hub.process.poll() is None


def test_a_wrong_key_is_no_key(hub: Hub, tmp_path: Path) -> None:
    other = keyring(tmp_path / "other")
    wrong = Keyring(
        hub_public=hub.keys.hub_public,
        hub_secret=other.hub_secret,
        peer_public=other.peer_public,
        peer_secret=other.peer_secret,
    )
    sock = dealer(hub.context, wrong, b"wrong")
    sock.connect(f"tcp://127.0.0.1:{hub.port}")
    try:
        sock.send(b"let me in")
        assert not sock.poll(500)
        assert hub.counts[1] == 0
    finally:
        sock.close(linger=0)


def test_its_descriptors_come_back(hub: Hub) -> None:
    for _ in range(50):
        with _connect(hub) as stranger:
            stranger.sendall(GREETING)
    with peer(hub, b"agent") as agent:
        assert _echoed(agent, b"x")
    folder = f"/proc/{hub.process.pid}/fd"
    deadline = time.monotonic() + 30
    while len(os.listdir(folder)) > 8 or hub.counts[0]:
        assert time.monotonic() < deadline, (os.listdir(folder), hub.counts)
        time.sleep(0.05)
