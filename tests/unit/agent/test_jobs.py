"""What an agent makes of the parts of a gang."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.outputs import NOWHERE, Output, Range
from pilot_hitl.model.resources import NodeInventory, Slot
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire.completed import completed
from pilot_hitl.wire.node import Change, ChangeKind
from pilot_hitl.wire.outputs import outputs_of, with_output
from pilot_hitl_agent.jobs import Batch, Jobs

TASK = 1 << 32 | 5


@pytest.fixture
def jobs() -> Jobs:
    """Jobs of a pilot of three nodes that hold a gang over all of them."""
    made = Jobs({node: NodeInventory(name=f"n{node}", cores=[0]) for node in range(3)})
    made.add(Batch(TASK, 1, 0, 1, 3, 0, [b""], []))
    for node in (2, 0, 1):
        made.place(TASK, node, (Slot(node, 1),))
    return made


def ended(payload: bytes = b"", failure: Failure | None = None) -> Change:
    """Return the end of one part."""
    return Change(TASK, 1, 0, ChangeKind.FINISHED, 0, payload, failure, 1.0, 2.0)


def captured(out: bytes, at: Range = NOWHERE) -> bytes:
    """Return the result of a part that wrote this."""
    return msgspec.msgpack.encode(ExecutableResult(0, "/box", out, b"", at))


def test_outputs_of_all_nodes_are_one_in_order_of_ranks(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"...large\n...")
    jobs.end(ended(captured(b"two\n")), 2)
    jobs.end(ended(captured(b"", Range(str(tmp_path / "log"), 3, 6))), 1)
    jobs.end(ended(captured(b"zero\n")), 0)
    report = jobs.over(TASK)
    assert report is not None
    assert report.state is State.DONE
    assert completed(report.payload).stdout == "zero\nlarge\ntwo\n"


def test_a_file_that_all_nodes_wrote_is_there_once(jobs: Jobs) -> None:
    for node in range(3):
        jobs.end(ended(captured(b"all\n", Range("/box/out", 0, 4))), node)
    report = jobs.over(TASK)
    assert report is not None
    assert completed(report.payload).stdout == "all\n"


def test_of_a_function_the_leading_part_has_the_value(jobs: Jobs) -> None:
    jobs.end(ended(), 1)
    jobs.end(ended(b"\x00value"), 0)
    jobs.end(ended(), 2)
    report = jobs.over(TASK)
    assert report is not None
    assert (report.payload, report.node) == (b"\x00value", 0)


def test_the_first_failure_counts(jobs: Jobs) -> None:
    jobs.end(ended(captured(b"fine")), 0)
    jobs.end(ended(b"", Failure(Cause.EXIT, "it failed", "n2", 7)), 2)
    jobs.end(ended(b"", Failure(Cause.PILOT_ENDED, "the others were ended", "n1")), 1)
    report = jobs.over(TASK)
    assert report is not None
    assert (report.state, report.failure.exit_code if report.failure else 0) == (State.FAILED, 7)


@pytest.mark.parametrize("silent", [None, 0, 1, 2])
@pytest.mark.parametrize("failed", [0, 1])
def test_a_call_that_failed_has_what_it_wrote_on_all_nodes(jobs: Jobs, failed: int, silent: int | None) -> None:
    for node in (failed, *({0, 1, 2} - {failed})):
        payload = b"" if node == silent else with_output(b"", [Output(f"{node}\n".encode())])
        jobs.end(ended(payload, Failure(Cause.WORKER_DIED, "a rank died", f"n{node}")), node)
    report = jobs.over(TASK)
    assert report is not None
    assert report.failure is not None
    assert report.failure.host == f"n{failed}"
    assert [int(each.stdout) for each in outputs_of(report.payload)] == [n for n in range(3) if n != silent]
