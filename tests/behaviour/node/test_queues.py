"""Short executables that wait at their spawner for the one that runs on their lane."""

from __future__ import annotations

import itertools
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.wire.node import ChangeKind, Retract
from tests.behaviour.node.harness import Node


@pytest.fixture
def shell(node: Node) -> int:
    """A template that is known to be short."""
    template = node.executable("/bin/sh")
    for _ in range(3):
        node.finished(node.run(template, "-c", ":", chain=9))
    return template


def queue(node: Node, template: int, head: str, *scripts: str, core: int = 0) -> list[int]:
    """Run something on a core of chain 1 and send the rest behind it."""
    first = node.run(template, "-c", head, core=core)
    return [first, *(node.run(template, "-c", script, core=None) for script in scripts)]


def test_they_run_in_order_with_their_own_times_and_outputs(node: Node, shell: int) -> None:
    tasks = queue(node, shell, "echo 0", *(f"echo {number}; echo e{number} >&2" for number in range(1, 40)))
    results = [node.result(task) for task in tasks]
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(40)]
    assert results[7].stderr == b"e7\n"
    ends = [node.finished(task) for task in tasks]
    for before, after in itertools.pairwise(ends):
        assert before.began <= before.ended <= after.began
    told = [(change.kind.name, change.task) for change in node.changes if change.task in tasks]
    assert told == [each for task in tasks for each in (("STARTED", task), ("FINISHED", task))]
    follows = [change.after for change in node.changes if change.task in tasks and change.kind is ChangeKind.STARTED]
    assert follows == [0, *tasks[:-1]]


def test_what_is_canceled_while_it_waits_never_runs(node: Node, shell: int) -> None:
    mark = node.folder / "mark"
    head, doomed, other = queue(node, shell, "sleep 0.02; echo head", f"touch {mark}", "echo other")
    node.end(doomed)
    assert node.result(head).stdout == b"head\n"
    assert node.result(other).stdout == b"other\n"
    assert node.kinds(doomed) == ["RETRACTED"]
    assert not mark.exists()


def _is_over(node: Node, task: int) -> bool:
    return node.kinds(task)[-1:] in (["FINISHED"], ["RETRACTED"])


def test_retract_is_answered_once_each(node: Node, shell: int) -> None:
    for _ in range(10):
        tasks = queue(node, shell, ":", *[":"] * 12)
        node.send(Retract(tasks[3:9]))
        node.send(Retract(tasks[3:9]))
        for task in tasks:
            node.until(partial(_is_over, node, task))
            assert node.kinds(task) in (["STARTED", "FINISHED"], ["RETRACTED"])


def test_nothing_waits_behind_a_long_one(node: Node, shell: int) -> None:
    long, *short = queue(node, shell, "sleep 3", *["echo"] * 4)
    # The other core gets the last of them after it has waited in vain for 30 ms.
    time.sleep(0.1)
    node.until(lambda: node.daemon._core.next_deadline() is None)
    node.finished(node.run(shell, "-c", ":", core=1))
    for task in short:
        node.finished(task)
    assert node.kinds(long) == ["STARTED"]
    node.end(long, grace=0.0)
    node.finished(long)


def test_one_that_cannot_be_started_does_not_take_the_others_along(node: Node, shell: int) -> None:
    head = node.run(shell, "-c", "sleep 0.01")
    bad = node.run(shell, "-c", "x" * 200_000, core=None)
    unreadable = node.launch(shell, b"\xc1", core=None)
    good = node.run(shell, "-c", "echo good", core=None)
    assert node.failure(bad).cause is Cause.SETUP
    assert node.failure(unreadable).cause is Cause.PAYLOAD
    assert node.result(good).stdout == b"good\n"
    assert node.kinds(head) == ["STARTED", "FINISHED"]


def test_the_end_of_the_head_by_the_agent_takes_back_what_waits(node: Node, shell: int) -> None:
    head, *rest = queue(node, shell, "sleep 5", *["echo"] * 3)
    node.end(head, grace=0.0)
    assert node.failure(head).cause is Cause.CANCELED
    node.until(lambda: node.daemon._core.next_deadline() is None)
    assert [node.kinds(task) for task in rest] == [[], [], []], "nothing follows on slots that the agent wants"
    node.finished(node.run(shell, "-c", ":", core=1))
    for task in rest:
        node.finished(task)


def test_a_timeout_begins_when_it_begins_to_run(node: Node) -> None:
    template = node.executable("/bin/sh", timeout=0.4, grace=0.0)
    for _ in range(3):
        node.finished(node.run(template, "-c", ":", chain=9))
    head, after, last = queue(node, template, "sleep 0.02", "sleep 5", "echo last")
    assert node.failure(after).cause is Cause.TIMEOUT
    change = node.finished(after)
    assert 0.35 < change.ended - change.began < 2
    assert node.finished(head).failure is None
    assert node.result(last).stdout == b"last\n"


def test_a_killed_spawner_ends_what_ran_and_what_waited_runs_elsewhere(node: Node, shell: int) -> None:
    node.finished(node.run(shell, "-c", ":", core=1, chain=9))
    head, *rest = queue(node, shell, "sleep 5", "echo 1", "echo 2", core=1)
    spawners = [each["pid"] for each in node.daemon.processes() if each["kind"] == "spawner"]
    os.kill(next(pid for pid in spawners if pid != node.spawner.pid), signal.SIGKILL)
    assert node.failure(head).cause is Cause.SPAWNER_DIED
    assert [node.result(task).stdout for task in rest] == [b"1\n", b"2\n"]
    assert all(node.kinds(task) == ["STARTED", "FINISHED"] for task in rest)


def test_a_daemon_that_goes_takes_what_waits_along(tmp_path: Path) -> None:
    node = Node(tmp_path / "gone")
    template = node.executable("/bin/sh")
    node.finished(node.run(template, "-c", ":"))
    mark = node.folder / "mark"
    queue(node, template, "sleep 0.1", f"touch {mark}")
    time.sleep(0.02)
    node.close()
    time.sleep(0.3)
    assert not mark.exists()
