"""What comes through pipes: whole, once, and bounded."""

from __future__ import annotations

import os
import select
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl_agent.node.capture import INLINE, TAIL, USUAL, Capture, Captures


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[tuple[Captures, select.epoll, Path]]:
    with select.epoll() as poller:
        made = Captures(poller)
        made.open_log(1, str(tmp_path / "out"), str(tmp_path / "err"))
        yield made, poller, tmp_path / "out"


def turn(captures: Captures, poller: select.epoll) -> None:
    for fd, _event in poller.poll(max(captures.wait(), 0.0)):
        assert captures.on_readable(fd)
    captures.on_time()


@pytest.mark.parametrize("size", [0, 1, INLINE])
def test_little_is_told_and_in_no_file(captures: tuple[Captures, select.epoll, Path], size: int) -> None:
    made, _, log = captures
    capture, writing = made.begin(2)
    os.write(writing, b"x" * size)
    os.close(writing)
    assert made.end(2, capture) == b"x" * size
    assert log.read_bytes() == b""
    assert made.wait() < 0


def test_what_lives_on_is_written_at_once(captures: tuple[Captures, select.epoll, Path]) -> None:
    made, poller, log = captures
    log.write_bytes(b"before")
    capture, writing = made.begin(2)
    os.write(writing, b"one")
    while log.read_bytes() != b"beforeone":
        turn(made, poller)
    os.write(writing, b"two")
    assert made.end(2, capture) == (6, 6, zlib.crc32(b"onetwo"), b"onetwo")
    assert log.read_bytes() == b"beforeonetwo"
    with pytest.raises(BrokenPipeError):  # nobody waits for those who hold it still
        os.write(writing, b"three")
    os.close(writing)


def test_much_is_taken_in_pieces(captures: tuple[Captures, select.epoll, Path]) -> None:
    made, poller, log = captures
    capture, writing = made.begin(2)
    os.set_blocking(writing, False)
    content = os.urandom(20 * USUAL)
    done = 0
    while done < len(content):
        try:
            done += os.write(writing, content[done:])
        except BlockingIOError:
            turn(made, poller)
    os.close(writing)
    offset, length, checksum, tail = made.end(2, capture)
    assert (offset, length, checksum, tail) == (0, len(content), zlib.crc32(content), content[-TAIL:])
    assert log.read_bytes() == content


def test_ranks_share_a_stream_and_the_last_tells(captures: tuple[Captures, select.epoll, Path]) -> None:
    made, _, _ = captures
    (first, one), (second, two) = made.begin(2), made.begin(2)
    assert first is second
    os.set_blocking(one, False)
    assert os.get_blocking(two)
    os.write(one, b"1")
    os.write(two, b"2")
    os.close(one)
    os.close(two)
    assert made.end(2, first) == b""
    assert made.end(2, second) == b"12"
    third, three = made.begin(2)
    assert third is not first
    os.close(three)
    assert made.end(2, third) == b""


def test_closed_outputs_are_not_looked_at(captures: tuple[Captures, select.epoll, Path]) -> None:
    made, poller, _ = captures
    capture, writing = made.begin(2)
    os.close(writing)
    while made.wait() >= 0:
        turn(made, poller)
    turn(made, poller)
    assert poller.poll(0) == []
    assert made.end(2, capture) == b""


def test_a_full_disk_is_noticed_by_who_reads() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    capture = Capture(reading, full)
    os.write(writing, b"x" * 100)
    assert capture.take() == 100
    assert capture.take() == -1
    assert capture.end() == (0, 100, zlib.crc32(b"x" * 100), b"x" * 100)
    os.close(writing)
    os.close(full)
