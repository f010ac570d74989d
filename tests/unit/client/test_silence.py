"""What those who wait are told, and when: once a cause, and nothing while something moves."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl import _silence
from pilot_hitl._silence import Log, Silence, Wanted, line
from pilot_hitl._watchers import Watchers

RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12)


@given(RUNS)
def test_runs_are_joined_without_a_loss(runs: list[tuple[int, int]]) -> None:
    joined = _silence.joined(runs)
    assert {task for first, count in runs for task in range(first, first + count)} == {
        task for first, count in joined for task in range(first, first + count)
    }
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(joined))


A, B = {"a": "A"}, {"b": "B"}
ONE, TWO = frozenset({1}), frozenset({2})


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([(A, ONE), (A, ONE)], ["A"]),
        ([(A, ONE), (A, ONE | TWO), (A, TWO)], ["A"]),  # there was always somebody who knew
        ([(A, ONE), (B, ONE), (A, ONE)], ["A", "B", "A"]),
        ([(A, ONE), ({}, ONE), (A, ONE)], ["A"]),
        ([(A | B, ONE), (B, ONE), (A | B, ONE)], ["A", "B"]),
        ([(A, ONE), ({"a": "A of others"}, ONE)], ["A"]),  # the same cause, seen at another task
        ([(A, ONE), ({"a": "A of others"}, TWO)], ["A", "A of others"]),
        ([(A, ONE), (A, TWO)], ["A"]),  # who waits again for the same knows
        ([({}, ONE)], []),
    ],
)
def test_what_is_news(looks: list[tuple[dict[str, str], frozenset[int]]], told: list[str]) -> None:
    log = Log()
    assert [text for lines, audience in looks for text in log.news(lines, audience)] == told


@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.frozensets(st.integers(0, 3), min_size=1)), max_size=20))
def test_everybody_who_waits_was_told_each_cause_or_waits_beside_one_who_was(
    looks: list[tuple[set[str], frozenset[int]]],
) -> None:
    log = Log()
    seen: set[str] = set()
    for causes, audience in looks:
        news = log.news({cause: cause for cause in causes}, audience)
        assert set(news) >= causes - seen, "each is told when it is first seen"
        assert len(news) == len(set(news))
        assert set(news) <= causes
        seen |= causes


class Hub:
    """What a hub says of tasks, and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, int]]] = []
        self.moves = False
        self.found: list[dict[str, Any]] = []

    def __call__(self, runs: list[tuple[int, int]], _seconds: float) -> dict[str, Any]:
        self.asked.append(runs)
        return {"moves": self.moves, "found": self.found}


def _found(key: str, *, soft: bool, count: int = 1, over: str = "") -> dict[str, Any]:
    return {
        "key": key, "task": "task.1.000007", "name": "f", "for": over, "count": count, "text": f"because of {key}",
        "soft": soft,
    }  # fmt: skip


def _wait(silence: Silence, seconds: float = 0.3) -> None:
    condition = threading.Condition()

    def want(wanted: Wanted) -> None:
        wanted.tasks.append((7, 1))

    with condition:
        assert not silence.hold(condition, lambda: False, seconds, want)


@pytest.mark.parametrize(
    ("moves", "found", "told"),
    [
        (False, [_found("cores", soft=True)], ["pilot-hitl: task.1.000007 (f) waits: because of cores"]),
        (True, [_found("cores", soft=True)], []),
        (
            True,
            [_found("cores", soft=True), _found("services", soft=False, count=9)],
            ["pilot-hitl: 9 tasks wait, one is task.1.000007 (f): because of services"],
        ),
        (
            False,
            [_found("x", soft=False, over="task.1.000009")],
            ["pilot-hitl: task.1.000009 waits for task.1.000007 (f): because of x"],
        ),
        (False, [], []),
    ],
)
def test_who_waits_long_is_told(
    monkeypatch: pytest.MonkeyPatch, moves: bool, found: list[dict[str, Any]], told: list[str]
) -> None:
    monkeypatch.setattr(_silence, "AFTER", 0.05)
    hub, lines = Hub(), list[str]()
    hub.moves, hub.found = moves, found
    silence = Silence(hub, tell=lines.append)
    _wait(silence)
    silence.close()
    assert hub.asked
    assert lines == told


def test_short_waits_and_quiet_sessions_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, lines = Hub(), list[str]()
    hub.found = [_found("x", soft=False)]
    silence = Silence(hub, tell=lines.append)
    _wait(silence, 0.05)
    number = silence.begin(lambda wanted: wanted.tasks.append((7, 1)))
    silence.end(number)
    monkeypatch.setattr(_silence, "AFTER", 0.05)
    _wait(Silence(hub, quiet=True, tell=lines.append))
    assert not hub.asked
    assert not lines


def test_who_waits_in_many_short_waits_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_silence, "AFTER", 0.2)
    hub, lines = Hub(), list[str]()
    hub.found = [_found("x", soft=False)]
    silence = Silence(hub, tell=lines.append)
    limit = time.monotonic() + 30
    while not lines and time.monotonic() < limit:
        _wait(silence, 0.04)
    silence.close()
    assert len(lines) == 1


def test_the_thread_ends_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_silence, "AFTER", 0.05)
    hub = Hub()
    silence = Silence(hub, tell=lambda _line: None)
    for _ in range(2):
        _wait(silence, 0.2)
        limit = time.monotonic() + 30
        while silence._thread is not None and time.monotonic() < limit:
            time.sleep(0.01)
        assert silence._thread is None
    assert len(hub.asked) >= 2


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_silence, "AFTER", 0.05)

    def ask(_runs: list[tuple[int, int]], _seconds: float) -> dict[str, Any]:
        raise TimeoutError

    lines: list[str] = []
    silence = Silence(ask, tell=lines.append)
    _wait(silence)
    silence.close()
    assert [text for text in lines if "hub does not answer" in text]


def test_numbers_are_easy_to_read() -> None:
    assert line(_found("x", soft=False, count=12345)).startswith("12,345 tasks wait, one is task.1.000007 (f): ")


def test_inside_a_task_what_is_waited_for_is_reported_and_that_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_silence, "AFTER", 0.05)
    reports: list[list[tuple[int, int]]] = []
    over = threading.Event()
    lines: list[str] = []

    def report(wanted: Wanted) -> None:
        reports.append(wanted.tasks)
        if not wanted.tasks:
            over.set()

    hub = Hub()
    silence = Silence(hub, tell=lines.append, report=report)
    silence.say("results wait")
    _wait(silence)
    assert over.wait(10), "it is told that nobody waits any more"
    assert reports[0] == [(7, 1)]
    assert reports[-1] == []
    assert not lines
    assert not hub.asked


class Watched:
    """A future, as far as lists of those who wait for it know it."""

    def __init__(self, silence: Silence) -> None:
        self.silence = silence

    def _silence(self) -> Silence:
        return self.silence

    def _want(self, wanted: Wanted) -> None:
        wanted.tasks.append((7, 1))


@pytest.mark.parametrize(
    ("steps", "waiting"),
    [
        ("a", 1), ("aa", 1), ("ar", 0), ("aar", 1), ("aarr", 0), ("h", 0), ("ha", 1), ("hr", 0), ("ao", 0), ("aoa", 0),
        ("oa", 0), ("ara", 1),
    ],
)  # fmt: skip
def test_who_waits_in_others_ways_counts_until_it_is_over(steps: str, waiting: int) -> None:
    """``a``: one waits; ``h``: one who is told otherwise; ``r``: one stops to wait; ``o``: it ended."""
    silence = Silence(Hub(), tell=lambda _line: None)
    watchers = Watchers(Watched(silence))
    for step in steps:
        if step == "a":
            watchers.append("x")
        elif step == "h":
            watchers.add_heard("x")
        elif step == "r":
            watchers.remove("x")
        else:
            watchers.over()
    assert len(silence._waiting) == waiting
    silence.close()


def test_what_ends_by_itself_is_told_only_if_nothing_moved_a_little_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tasks there is a moment in which none runs."""
    monkeypatch.setattr(_silence, "AFTER", 0.05)
    lines: list[str] = []
    asked = []

    def ask(_runs: list[tuple[int, int]], _seconds: float) -> dict[str, Any]:
        asked.append(0)
        return {"moves": len(asked) % 2 == 0, "found": [_found("cores", soft=True)]}

    silence = Silence(ask, tell=lines.append)
    _wait(silence)
    assert len(asked) >= 2
    assert not lines
    silence.close()
