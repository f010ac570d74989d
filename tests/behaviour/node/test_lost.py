"""What was sent to a spawner and never arrived is noticed."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.wire.values import dumps
from pilot_hitl_agent.node import daemon, frames
from tests.behaviour.node.harness import Node


@contextmanager
def losing(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Throw away what asks for processes, as a packet that is lost would."""
    link = node.daemon._spawners.root
    with monkeypatch.context() as patch:
        patch.setattr(link, "spawn", lambda *_args, **_more: link.next_token())
        yield


@pytest.mark.parametrize("grace", [0.0, 0.5])
def test_a_timeout_ends_what_never_arrived(node: Node, monkeypatch: pytest.MonkeyPatch, grace: float) -> None:
    template = node.executable("/bin/echo", timeout=0.5, grace=grace)
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    assert node.failure(task).cause is Cause.TIMEOUT
    assert node.result(node.run(template, "y")).stdout == b"y\n"


def test_so_does_a_cancel(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    template = node.executable("/bin/echo")
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    node.end(task)
    assert node.failure(task).cause is Cause.CANCELED


@pytest.mark.long
def test_without_either_it_is_found_out_and_may_run_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    template = node.executable("/bin/echo")
    long = node.run(node.executable("/bin/sleep"), "15", core=1)
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    failure = node.failure(task)
    assert failure.cause is Cause.PILOT_ENDED
    assert "lost" in failure.message
    assert node.result(long).exit_code == 0, "what runs for long is not taken for lost"


def loses_its_result(log: str, once: str) -> int:
    """Let the process of this call end after the call and before its result leaves, the first time."""
    import pilot_hitl_agent.node.frames as theirs

    with open(log, "a") as file:
        file.write("ran\n")
    if not os.path.exists(once):
        Path(once).touch()
        vars(theirs)["send"] = lambda *_: os._exit(9)
    return 7


@pytest.mark.parametrize("effects", ["sandbox", "outside"])
def test_a_result_that_dies_with_its_worker(node: Node, effects: Any) -> None:
    log, once = node.folder / "log", node.folder / "once"
    task = node.call(node.function(loses_its_result, effects=effects), str(log), str(once))
    if effects == "outside":
        assert node.failure(task).cause is Cause.WORKER_DIED
        assert log.read_text() == "ran\n", "what acts outside does not run again by itself"
    else:
        assert node.value(task) == 7
        assert log.read_text() == "ran\nran\n"


def test_nothing_is_sent_behind_what_acts_outside_nor_it_behind_others(node: Node) -> None:
    plain, outside = node.function(abs), node.function(divmod, effects="outside")
    for _ in range(3):
        node.value(node.call(plain, -1))
        node.value(node.call(outside, 1, 1))
    for first, second in ((plain, outside), (outside, plain)):
        bodies = {plain: dumps(((-1,), {}), node.blobs), outside: dumps(((2, 1), {}), node.blobs)}
        made = [node.launch(first, bodies[first]), node.launch(second, bodies[second], core=None)]
        lane = node.daemon._core.lanes[node.daemon._core.attempts[made[0]].lane]
        assert list(lane.queue) == made[:1]
        for task in made:
            node.value(task)


def test_a_call_that_never_reached_its_worker_runs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "ROUND", 0.3)
    template = node.function(abs)
    pid = node.value(node.call(node.function(os.getpid)))
    with monkeypatch.context() as patch:
        patch.setattr(frames, "send", lambda *_: None)
        task = node.call(template, -3)
    assert node.value(task) == 3
    assert node.value(node.call(node.function(os.getpid))) != pid


def test_so_does_one_whose_worker_was_never_made(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "ROUND", 0.3)
    node.value(node.call(node.function(os.getpid), core=1))
    link = node.daemon._spawners.nursery()
    with monkeypatch.context() as patch:
        patch.setattr(link, "request", lambda _record, fds: deque(map(os.close, fds), 0))
        task = node.call(node.function(abs), -3)
    failure = node.failure(task)
    assert failure.cause is Cause.PILOT_ENDED, failure
    assert "lost" in failure.message


def test_what_sleeps_or_loads_for_long_is_not_taken_for_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "ROUND", 0.1)

    class Slow:
        def __reduce__(self) -> Any:
            return time.sleep, (1.0,)

    def asks(_: object = Slow()) -> int:
        return os.getpid()

    pid = node.value(node.call(node.function(os.getpid)))
    sleeps = node.call(node.function(time.sleep), 1.0)
    assert node.value(sleeps) is None
    assert node.value(node.call(node.function(asks))) == pid
