from __future__ import annotations

import itertools
import threading

import pytest

from pilot_hitl import _outbox
from pilot_hitl._outbox import BULK_BYTES, BULK_TASKS, Kind, Marks, Outbox
from pilot_hitl.errors import SessionClosed
from pilot_hitl.model.resources import Shape
from pilot_hitl.wire.codec import TO_HUB, unpack_bodies
from pilot_hitl.wire.messages import Cancel, Message, Submit

KIND = Kind(1, Shape())
OTHER = Kind(2, Shape())


class Box(Outbox):
    """An outbox with ids of its own."""

    def __init__(self) -> None:
        self.woken = 0
        super().__init__(self._count)
        self.ids = itertools.count(1)

    def _count(self) -> None:
        self.woken += 1

    def add(self, kind: Kind = KIND, body: bytes = b"b", key: bytes = b"", count: int = 1) -> int:
        def number(wanted: int) -> int:
            first = next(self.ids)
            for _ in range(wanted - 1):
                next(self.ids)
            return first

        return self.submit(kind, number, [body] * count, Marks([key] * count if key else [], []))

    def messages(self) -> list[Message]:
        return [message for frame in self.take() for message in TO_HUB.decode(frame)]


def test_neighbours_of_one_kind_travel_as_one_bulk() -> None:
    box = Box()
    for _ in range(3):
        box.add(Kind(1, Shape()), key=b"k" * 16)
    (bulk,) = box.messages()
    assert isinstance(bulk, Submit)
    assert (bulk.first, bulk.count, bulk.template, bulk.keys) == (1, 3, 1, b"k" * 48)
    assert unpack_bodies(bulk.bodies) == [b"b"] * 3
    assert box.woken == 3


def test_order_is_kept_and_strangers_do_not_merge() -> None:
    box = Box()
    box.add()
    box.add(OTHER)
    box.add()
    box.put(Cancel([(1, 1)]))
    box.add()
    box.add(key=b"k" * 16)
    found = [(type(each), getattr(each, "first", 0), getattr(each, "count", 0)) for each in box.messages()]
    assert found == [(Submit, 1, 1), (Submit, 2, 1), (Submit, 3, 1), (Cancel, 0, 0), (Submit, 4, 1), (Submit, 5, 1)]


def test_bulks_are_bounded_in_tasks_and_bytes() -> None:
    box = Box()
    for _ in range(BULK_TASKS + 1):
        box.add()
    assert [each.count for each in box.messages() if isinstance(each, Submit)] == [BULK_TASKS, 1]
    for _ in range(4):
        box.add(body=bytes(BULK_BYTES // 2))
    assert [each.count for each in box.messages() if isinstance(each, Submit)] == [2, 2]


def test_frames_are_kept_until_acknowledged() -> None:
    box = Box()
    box.add()
    first = box.take()
    box.add()
    second = box.take()
    box.add()
    assert box.unacknowledged() == first + second
    outstanding = [box.outstanding]  # the third was never sent
    box.acknowledge(1)
    outstanding.append(box.outstanding)
    assert box.unacknowledged() == second
    box.acknowledge(1)  # counted anew since the resend
    outstanding.append(box.outstanding)
    assert outstanding == [2, 1, 0]
    box.take()
    settled = [box.settled]
    box.acknowledge(5)
    settled.append(box.settled)
    assert settled == [False, True]
    assert box.unacknowledged() == []


def test_who_submits_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outbox, "MAX_TASKS", 10)
    box = Box()
    box.add(count=10)
    done = threading.Event()

    def submit() -> None:
        box.add()
        done.set()

    thread = threading.Thread(target=submit)
    thread.start()
    assert not done.wait(0.1)
    box.take()
    assert not done.wait(0.05)
    box.acknowledge(1)
    assert done.wait(5)
    thread.join()


def test_the_draining_thread_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outbox, "MAX_BYTES", 10)
    box = Box()
    box.drainer = threading.get_ident()
    for _ in range(5):
        box.add(body=bytes(100))
    assert len(box.messages()) == 1


def test_a_broken_outbox_lets_go_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outbox, "MAX_TASKS", 1)
    box = Box()
    box.add()
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            box.add()
        except SessionClosed as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    box.fail(SessionClosed("gone"))
    thread.join(5)
    assert len(errors) == 1
    with pytest.raises(SessionClosed):
        box.put(Cancel([]))
