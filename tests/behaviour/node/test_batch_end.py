"""A batch system ends a job by SIGTERM to every process at once: what dies of it is unfinished, not failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl.model.failures import UNFINISHED, Cause
from pilot_hitl.wire.node import ChangeKind
from tests.behaviour.node.harness import Node


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Node]:
    """A node of a batch job."""
    made = Node(tmp_path / "node", shared=True)
    yield made
    made.close()


def _nap() -> None:
    time.sleep(60)


def _pid(node: Node, kind: str, task: int) -> int:
    def found() -> list[int]:
        return [each["pid"] for each in node.daemon.processes() if (each["kind"], each["task"]) == (kind, task)]

    node.until(found)
    return found()[0]


@pytest.mark.parametrize("kind", ["task", "worker"])
def test_what_the_batch_system_ended_before_the_daemon_heard_of_it_is_unfinished(batch: Node, kind: str) -> None:
    task = batch.run(batch.executable("/bin/sleep"), "60") if kind == "task" else batch.call(batch.function(_nap))
    os.kill(_pid(batch, kind, task), signal.SIGTERM)
    limit = time.monotonic() + 0.1
    while time.monotonic() < limit:
        batch.turn(0.01)
    batch.take(batch.daemon.close(0.2))
    end = batch.last(task, ChangeKind.FINISHED)
    assert end is not None
    assert end.failure is not None
    assert end.failure.cause in UNFINISHED, end.failure


def test_what_was_ended_by_somebody_else_has_failed_all_the_same(batch: Node) -> None:
    task = batch.run(batch.executable("/bin/sleep"), "60")
    os.kill(_pid(batch, "task", task), signal.SIGTERM)
    failure = batch.failure(task)
    assert (failure.cause, failure.exit_code) == (Cause.EXIT, -signal.SIGTERM)


def test_any_other_bad_end_is_told_at_once_and_in_order(batch: Node) -> None:
    bad, good = batch.executable("/bin/false"), batch.executable("/bin/true")
    first = batch.run(bad)
    second = batch.run(good, core=None)
    assert batch.failure(first).cause is Cause.EXIT
    assert batch.finished(second).failure is None
    order = [change.task for change in batch.changes if change.kind is ChangeKind.FINISHED]
    assert order == [first, second]
