"""Ends that may be the job's: told a moment later, or as the pilot's end."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.wire.node import Change, ChangeKind, Changes, FromNode, ToNode
from pilot_hitl_agent.cluster import doubt
from pilot_hitl_agent.cluster.doubt import DoubtfulNode


class Daemon:
    """A node that says what a test wants."""

    broken = ""

    def __init__(self) -> None:
        self.saying: list[FromNode] = []
        self.due: float | None = None

    def handle(self, messages: list[ToNode]) -> None:
        pass

    def drain(self) -> list[FromNode]:
        said, self.saying = self.saying, []
        return said

    def fileno(self) -> int:
        return -1

    def on_readable(self) -> None:
        pass

    def next_deadline(self) -> float | None:
        return self.due

    def on_timer(self) -> None:
        pass

    def processes(self) -> list[dict[str, Any]]:
        return []

    def pin(self, *, pinned: bool) -> None:
        pass

    def clear(self, grace: float, reason: str) -> bool:
        return grace >= 0 and bool(reason)

    def close(self, grace: float = 0.0) -> list[FromNode]:
        return self.drain() if grace >= 0 else []

    def publish(self, *_: Any) -> bool:
        return False


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def ended(task: int, failure: Failure | None = None) -> Changes:
    return Changes(2, [Change(task, 1, 0, ChangeKind.FINISHED, failure=failure)])


TERMINATED = Failure(Cause.EXIT, "/bin/sh was ended by signal 15 (SIGTERM)", "n2", -15)
DIED = Failure(Cause.WORKER_DIED, "the worker died of SIGTERM", "n2", -15)


@pytest.mark.parametrize(
    "failure",
    [
        None,
        Failure(Cause.EXIT, "exit code 1", "n2", 1),
        Failure(Cause.EXIT, "killed", "n2", -9),
        Failure(Cause.CANCELED, ""),
    ],
)
def test_other_ends_are_told_at_once(failure: Failure | None) -> None:
    daemon = Daemon()
    node = DoubtfulNode(daemon)
    daemon.saying = [ended(1, failure)]
    assert node.drain() == [ended(1, failure)]
    assert node.next_deadline() is None


@pytest.mark.parametrize("failure", [TERMINATED, DIED, Failure(Cause.EXIT, "exit code 143", "n2", 143)])
def test_without_the_end_of_the_job_it_is_what_it_looks_like(clock: list[float], failure: Failure) -> None:
    daemon = Daemon()
    node = DoubtfulNode(daemon)
    daemon.saying = [ended(1, failure)]
    assert node.drain() == []
    assert node.next_deadline() == 100 + doubt.DOUBT
    daemon.due, daemon.saying = 100.1, [ended(2)]
    assert node.next_deadline() == 100.1
    assert node.drain() == [], "in order"
    clock[0] += doubt.DOUBT
    assert node.drain() == [ended(1, failure), ended(2)]
    assert node.drain() == []


@pytest.mark.parametrize("failure", [TERMINATED, DIED])
def test_at_the_end_of_the_job_it_is_unfinished(failure: Failure) -> None:
    daemon = Daemon()
    node = DoubtfulNode(daemon)
    daemon.saying = [ended(1, failure)]
    node.drain()
    daemon.saying = [ended(2)]
    over = Failure(Cause.PILOT_ENDED, "the batch system ended the job", "n2")
    assert node.close(1.0) == [ended(1, over), ended(2)]


def test_after_a_fence_nothing_of_it_is_told() -> None:
    daemon = Daemon()
    node = DoubtfulNode(daemon)
    daemon.saying = [ended(1, TERMINATED)]
    node.drain()
    assert node.clear(1.0, "fenced")
    assert node.close() == []
