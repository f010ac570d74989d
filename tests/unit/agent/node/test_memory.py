"""When memory is looked at, and what the kernel's kills explain."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl_agent.node import frames
from pilot_hitl_agent.node.memory import FIRST_LOOK, MB, OFTEN, SELDOM, KernelKills, Lookout, used
from pilot_hitl_agent.node.running import Running


def test_nothing_is_looked_at_without_a_limit() -> None:
    lookout = Lookout()
    due = [lookout.due]
    lookout.add(1, 100, 10.0)
    due.append(lookout.due)
    lookout.drop(1)
    lookout.looked({}, 11.0, 0.0)
    assert [*due, lookout.due] == [None, 10.0 + FIRST_LOOK, None]


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.floats(0, 0.1))
def test_it_looks_often_where_memory_grows_and_never_costs_much(fullness: list[float], cost: float) -> None:
    lookout, now = Lookout(), 0.0
    lookout.add(1, 100, now)
    for full in fullness:
        assert lookout.due is not None
        now = lookout.due
        lookout.looked({1: full}, now, cost)
        assert now + max(OFTEN, cost) <= lookout.due <= now + max(SELDOM, cost * 20) + 1e-6


def test_growth_is_seen_before_it_is_at_its_limit() -> None:
    lookout, growth = Lookout(), 2.0
    lookout.add(1, 100, 0.0)
    now = FIRST_LOOK
    while growth * now < 1.0:
        lookout.looked({1: growth * now}, now, 0.0)
        assert lookout.due is not None
        now = lookout.due
    assert now < 1.0 / growth + 2 * OFTEN


def test_what_processes_use_is_counted() -> None:
    before = used([os.getpid()])
    kept = bytearray(50 * MB)
    kept[::4096] = b"x" * len(kept[::4096])
    assert used([os.getpid()]) - before > 45 * MB
    assert used([2**22 + 1]) == 0, "what is gone uses none"


def _kills(path: Path, count: int) -> None:
    path.write_text(f"pgfault 12\noom_kill {count}\noom_kill_disable 7\n")


def test_a_kill_of_the_kernel_explains_one_end(tmp_path: Path) -> None:
    path = tmp_path / "vmstat"
    _kills(path, 3)
    kernel = KernelKills(str(path))
    assert not kernel.took()
    _kills(path, 5)
    assert [kernel.took() for _ in range(3)] == [True, True, False]
    assert not KernelKills(str(tmp_path / "missing")).took()


def test_what_runs_is_known_to_who_comes_next(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    first = Running(folder, kept=True)
    assert first.before == []
    for task in (5, 6, 7):
        first.add(task)
    first.drop(6)
    page = first.page(1)
    os.pwrite(page, frames.RUNNING.pack(9, 1.0), frames.RUNNING_AT)
    os.close(first.page(2))
    os.close(first.page(3))
    first.drop_page(3)
    os.close(page)
    second = Running(folder, kept=True)
    assert sorted(second.before) == [5, 7, 9]
    assert Running(folder, kept=True).before == [], "told once"


def test_nothing_is_known_of_an_end_that_was_meant(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    record = Running(folder, kept=True)
    record.add(5)
    record.close()
    assert not folder.exists()
    assert Running(folder, kept=False).before == []
    assert not folder.exists()


def test_more_programs_than_there_are_places_are_no_error(tmp_path: Path) -> None:
    record = Running(tmp_path / "running", kept=True)
    for task in range(1, 6000):
        record.add(task)
    for task in range(1, 6000):
        record.drop(task)
    assert Running(tmp_path / "running", kept=True).before == []
