"""Packets of any size over sockets of any size, and what becomes of those that cannot go."""

from __future__ import annotations

import contextlib
import errno
import itertools
import marshal
import mmap
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl_agent.node import frames, packets
from pilot_hitl_agent.node.link import Closed, Link, Unspawned

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[None, 212_992, 4_608], ids=["large", "default", "least"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two ends, of sockets that ask for this many bytes."""
    if request.param is None:
        monkeypatch.delenv(packets.BUFFER_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(packets.BUFFER_VARIABLE, str(request.param))
    ours, theirs = packets.socketpair()
    with socket.socket(fileno=ours.detach()) as left, socket.socket(fileno=theirs.detach()) as right:
        yield left, right


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Inside, this process gets no further descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("size", [1, 1_024, 1_025, 106_496, 106_497, packets.LIMIT, packets.LIMIT + 1, 5_000_000])
def test_packets_of_any_size(pair: Pair, size: int) -> None:
    left, right = pair
    packet = b"\x90" + os.urandom(size - 1)  # as a packet begins: BY_FILE is no beginning
    frames.send(left, packet)
    assert frames.receive(right, mmap.mmap(-1, frames.ROOM)) == packet
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if "pilot-hitl-packet" in os.path.realpath(fd)]
    with pytest.raises(BlockingIOError):
        frames.receive(right, bytearray(10))
    left.close()
    assert frames.receive(right, bytearray(10)) == b""


def test_packets_bring_descriptors_along(pair: Pair) -> None:
    ours, theirs = pair
    reading, writing = os.pipe()
    room = bytearray(packets.PACKET)
    for size in (10, 1_000_000):
        packets.send(ours, b"p" * size, [writing] * packets.MAX_FDS)
        packet, fds = packets.receive(theirs, room)
        assert packet == b"p" * size
        assert len(fds) == packets.MAX_FDS
        os.write(fds[-1], b"through")
        assert os.read(reading, 10) == b"through"
        for fd in fds:
            os.close(fd)
    os.close(reading)
    os.close(writing)
    with pytest.raises(BlockingIOError):
        packets.receive(theirs, room)


def test_a_packet_that_is_lost_on_the_way_is_told(pair: Pair) -> None:
    ours, theirs = pair
    packets.send(ours, b"p" * 5_000_000)
    packets.send(ours, b"small")
    room = bytearray(packets.PACKET)
    with no_more_descriptors(), pytest.raises(OSError, match="lost"):
        packets.receive(theirs, room)
    assert packets.receive(theirs, room) == (b"small", [])


def test_a_request_that_cannot_be_sent_fails_alone(pair: Pair) -> None:
    ours, theirs = pair
    link = Link(ours, itertools.count(1).__next__)
    small = link.spawn(["/bin/true"], 1, {}, "/", (), (0, 0))
    large = link.spawn(["/bin/echo", *["word"] * 300_000], 1, {}, "/", (), (0, 0))
    behind = link.spawn(["/bin/false"], 1, {}, "/", (), (0, 0))
    with no_more_descriptors():
        assert link.flush()
    (news,) = link.unsent()
    assert isinstance(news, Unspawned)
    assert (news.token, news.number, news.what) == (large, errno.EMFILE, "request")
    assert not link.unsent()
    sent = []
    room = bytearray(packets.PACKET)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += [record[1] for record in marshal.loads(packets.receive(theirs, room)[0])]
    assert sent == [small, behind]


def test_links_split_large_packets_and_survive_garbage(pair: Pair) -> None:
    ours, theirs = pair
    link = Link(ours, itertools.count(1).__next__)
    for _ in range(10):
        link.spawn(["/bin/x" * 30_000], 1, {}, "/", (), (0, 0))
    link.flush()
    tokens: list[int] = []
    room = bytearray(packets.PACKET)
    while link.pending or len(tokens) < 10:
        link.flush()
        tokens += [record[1] for record in marshal.loads(packets.receive(theirs, room)[0])]
    assert tokens == list(range(1, 11))
    assert not link.receive()
    theirs.send(b"\xff garbage")
    assert not link.receive()
    theirs.close()
    assert [type(news) for news in link.receive()] == [Closed]
    assert not link.receive()
    link.close()
