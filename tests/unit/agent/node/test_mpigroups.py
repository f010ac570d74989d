"""What is said of calls of several ranks: failures of many ranks as one, and launchers' words on who died."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl_agent.node import frames
from pilot_hitl_agent.node.mpigroups import DETAIL_LIMIT, failure_of, has_begun, who_died
from pilot_hitl_agent.node.mpiworker import BY_NAME, NO_PARAMETER, rank_from, seat_of
from pilot_hitl_agent.node.mpiworker import UnableError as Unable


def failure(text: str, detail: str = "") -> Failure:
    return Failure(Cause.EXCEPTION, text, "n1", 0, detail)


def test_failures_of_several_ranks_are_one_that_names_the_first() -> None:
    same = "Traceback\nValueError: x\n"
    failed = [(rank, failure("ValueError: x", same)) for rank in (2, 0, 4, 5, 6)]
    found = failure_of(failed, 7, "n1", (1, 3))
    assert found.message == "ValueError: x (rank 2 of 7)"
    assert found.detail.count("ValueError") == 1
    assert found.detail.startswith("--- ranks 0, 2, 4-6 on n1\nTraceback")
    assert found.detail.endswith("--- ranks 1, 3 on n1 came to no end and had to be ended\n")


@pytest.mark.parametrize(
    ("running", "over", "begun"),
    [(0, 0, False), (7, 0, True), (7, 6, True), (0, 7, True), (0, 6, False), (8, 6, False)],
)
def test_a_rank_that_ended_its_part_without_a_word_has_begun(running: int, over: int, begun: bool) -> None:
    page = mmap.mmap(-1, frames.PAGE_SIZE)
    frames.OVER.pack_into(page, frames.RUNNING_AT, running, 1.0, over)
    assert has_begun(page, 7) is begun
    assert not has_begun(page, 0), "no call, so none that began"


def test_many_tracebacks_take_no_more_room_than_one_may() -> None:
    many = [(rank, failure("ValueError", f"{rank}" + "x" * DETAIL_LIMIT)) for rank in range(50)]
    found = failure_of(many, 50, "n1", ())
    assert len(found.detail) <= DETAIL_LIMIT
    assert "--- rank 49 on n1" in found.detail


@pytest.mark.parametrize(
    ("text", "ranks", "who", "host", "status"),
    [
        (
            "--\nmpirun noticed that process rank 3 with PID 0 on node n2 exited on signal 11 (Segmentation fault).\n",
            [3],
            "rank 3",
            "n2",
            -11,
        ),
        ("warning\nsrun: error: n2: task 3: Killed\nsrun: error: n1: tasks 0-1: Terminated\n", [3], "rank 3", "n2", -9),
        ("srun: error: n1: tasks 0-1: Exited with exit code 7\n", [0, 1], "ranks 0-1", "n1", 7),
    ],
)
def test_launchers_say_who_died(text: str, ranks: list[int], who: str, host: str, status: int) -> None:
    found = who_died(text)
    assert found is not None
    assert (list(found.ranks), found.who, found.host, found.status) == (ranks, who, host, status)


def test_launchers_that_say_nothing() -> None:
    assert who_died("srun: error: something else\nTraceback of task 3: nothing\n") is None


def first(comm: object, x: int) -> None: ...
def second(x: int, comm: object = None) -> None: ...
def by_name(x: int, *, comm: object) -> None: ...
def without(x: int) -> None: ...
def swallows(*comm: object) -> None: ...


class Solver:
    def solve(self, comm: object, x: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "seat"),
    [
        (first, 0),
        (second, 1),
        (by_name, BY_NAME),
        (without, NO_PARAMETER),
        (swallows, NO_PARAMETER),
        (Solver().solve, 0),
        (dict, NO_PARAMETER),
    ],
)
def test_where_a_function_wants_its_communicator(function: Callable[..., Any], seat: int) -> None:
    assert seat_of(function) == seat


def test_a_process_knows_its_rank_from_its_launcher() -> None:
    assert rank_from({"PILOT_HITL_RANK": "3", "SLURM_PROCID": "0"}) == 3
    assert rank_from({"PMI_RANK": "1"}) == 1
    with pytest.raises(Unable, match="no rank"):
        rank_from({"PMI_RANK": ""})
