"""What a session is inside a task: whose work it is, what it lends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl import _lending, session
from pilot_hitl.wire import current
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub

FIRST, SECOND = 1 << 32 | 7, 1 << 32 | 8


def double(x: Any) -> Any:
    return 2 * x


@pytest.fixture
def task(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[ph.Session]:
    """The session of a function worker that runs a call."""
    monkeypatch.setenv("PILOT_HITL_SESSION", "study")
    monkeypatch.setenv("PILOT_HITL_HOME", str(hub.home))
    monkeypatch.setattr(current, "call", (FIRST, 3, 1))
    monkeypatch.setattr(session, "_current", None)
    opened = ph.current_session()
    yield opened
    opened.close()


def test_work_inside_a_task_is_the_tasks(task: ph.Session, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = task.options(cores=1)
    ph.checkpoint("same", choices=["a"])
    kept.call(double, 1).result(5)
    task.submit(ph.TaskDescription(executable="true")).result(5)
    with pytest.raises(ph.CheckpointExists, match="in this task"):
        ph.checkpoint("same", choices=["b"])
    assert ph.current_session() is task
    monkeypatch.setattr(current, "call", (SECOND, 3, 0))
    ph.checkpoint("same", choices=["a"])
    kept.call(double, 1).result(5)
    task.submit(ph.TaskDescription(executable="true")).result(5)
    monkeypatch.setattr(current, "call", (FIRST, 3, 2))
    ph.checkpoint("same", choices=["a"])
    again = ph.current_session()
    assert again is not task, "what a try before did is found under another incarnation only"
    again.options(cores=1).call(double, 1).result(5)
    again.submit(ph.TaskDescription(executable="true")).result(5)
    again.close()
    parents = [submit.parent for submit in hub.of(m.Submit)]
    assert parents == [FIRST] * 2 + [SECOND] * 2 + [FIRST] * 2
    keys = [submit.keys for submit in hub.of(m.Submit)]
    assert keys[0:2] == keys[4:6], "another try of a task finds what the one before did"
    assert len(set(keys)) == 4
    asks = hub.of(m.Ask)
    assert [ask.parent for ask in asks] == [FIRST, SECOND, FIRST]
    assert asks[0].key == asks[2].key != asks[1].key
    assert [query.what for query in hub.of(m.Query)] == ["key"] * 3


def test_held_values_are_seen_inside_a_task(task: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    future, many = task.call(double, 1), task.map(double, [1, 2])
    assert future.result(5) == 2
    assert many.results(5) == [2, 4]
    gate = ph.checkpoint("inner", choices=["a"])
    with pytest.raises(TimeoutError):
        gate.branch("a").call(double, 1).result(0.2)


def test_waiting_lends(task: ph.Session, hub: FakeHub) -> None:
    task.call(double, 1).result(5)
    assert hub.of(m.Lend) == []
    gate = ph.checkpoint("inner", choices=["a"])
    threading.Timer(0.3, lambda: _answer(hub, gate)).start()
    assert gate.result(5) == "a"
    lent = hub.of(m.Lend)
    assert [(each.task, each.epoch, each.run, each.on) for each in lent] == [(FIRST, 3, 1, True), (FIRST, 3, 1, False)]
    kinds = [type(each) for each in hub.seen]
    assert kinds.index(m.Lend) > kinds.index(m.Ask)


def _answer(hub: FakeHub, gate: ph.Checkpoint) -> None:
    hub.tell(m.CheckpointUpdate(gate.handle, 1, ph.CheckpointState.ANSWERED, '"a"'))


def test_lending_nests(task: ph.Session, hub: FakeHub) -> None:
    with ph.lend_resources():
        task.flush()
        assert [each.on for each in hub.of(m.Lend)] == [True]
        with ph.lend_resources():
            pass
        done = threading.Event()
        thread = threading.Thread(target=lambda: _lends(done))
        thread.start()
        done.wait(5)
        thread.join(5)
        task.flush()
        assert [each.on for each in hub.of(m.Lend)] == [True]
    assert [each.on for each in hub.of(m.Lend)] == [True, False]


def test_one_of_several_ranks_lends_nothing(task: ph.Session, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_HITL_RANKS", "2")
    with ph.lend_resources():
        task.flush()
    assert hub.of(m.Lend) == []


def _lends(done: threading.Event) -> None:
    with ph.lend_resources():
        done.set()


@pytest.mark.usefixtures("task")
def test_a_pause_lends(hub: FakeHub) -> None:
    condition, over = threading.Condition(), threading.Event()

    def end() -> None:
        over.set()
        with condition:
            condition.notify_all()

    assert _lending.pause(condition, lambda: True)
    assert not _lending.pause(condition, over.is_set, 0.01)
    assert hub.of(m.Lend) == []
    threading.Timer(0.2, end).start()
    assert _lending.pause(condition, over.is_set, 5)
    assert [each.on for each in hub.of(m.Lend)] == [True, False]


def test_scripts_lend_nothing(session: ph.Session, hub: FakeHub) -> None:
    with ph.lend_resources():
        gate = session.checkpoint("inner", choices=["a"])
        with pytest.raises(TimeoutError):
            gate.result(0.2)
        assert not _lending.pause(threading.Condition(), lambda: False, 0.01)
    assert hub.of(m.Lend) == []


@pytest.mark.usefixtures("task")
def test_what_only_makes_sense_in_one_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ph.DescriptionError, match="for scripts"):
        ph.checkpoint("inner", choices=["a"], wait="exit")
    monkeypatch.setattr(current, "call", None)
    monkeypatch.setattr(session, "_current", None)
    with pytest.raises(ph.SessionError, match="not run inside a task"):
        ph.current_session()


def test_a_task_in_a_thread_of_its_own(task: ph.Session) -> None:
    """Threads of the task are the task."""
    found: list[float] = []
    began = time.monotonic()
    thread = threading.Thread(target=lambda: found.append(task.call(double, 4).result(5)))
    thread.start()
    thread.join(10)
    assert found == [8]
    assert time.monotonic() - began < 10
