"""The words of a failure that a task inherited."""

from __future__ import annotations

import pytest

from pilot_hitl.hub.inherited import explained
from pilot_hitl.hub.store import OutcomeRow, encode_failure
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import make_id
from pilot_hitl.model.states import State

ROOT = make_id(1, 7)
INHERITED = Failure(Cause.DEPENDENCY, "a task that it depends on failed", root=ROOT)


def _row(failure: Failure | None, state: State = State.FAILED, task: int = ROOT) -> OutcomeRow:
    return OutcomeRow(task, int(state), 1, 0, 1.0, 2.0, 1, 0, "", 0, encode_failure(failure), b"")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(Cause.EXCEPTION, "ValueError: no", "n1", 0, "Traceback\nValueError: no"), "failed: ValueError: no"),
        (Failure(Cause.EXIT, "sim returned exit code 3", exit_code=3, detail="a\nno mesh\n"),
         "failed: sim returned exit code 3 (no mesh)"),
        (Failure(Cause.EXIT, "sim returned exit code 3", exit_code=3), "failed: sim returned exit code 3"),
        (None, "failed: nobody said why"),
    ],
)  # fmt: skip
def test_the_first_that_failed_is_named(failure: Failure | None, words: str) -> None:
    made = explained(INHERITED, _row(failure), "prepare")
    assert made.message == f"it depends on prepare (task.1.000007), which {words}"
    assert (made.cause, made.root) == (Cause.DEPENDENCY, ROOT)


def test_a_canceled_one() -> None:
    made = explained(INHERITED, _row(Failure(Cause.CANCELED, "by hand"), State.CANCELED), "prepare")
    assert made.message == "it depends on prepare (task.1.000007), which was canceled"


def test_what_was_inherited_is_inherited_as_it_is() -> None:
    first = explained(INHERITED, _row(Failure(Cause.EXIT, "no")), "prepare")
    then = Failure(Cause.DEPENDENCY, "a task that it depends on failed", root=make_id(1, 8))
    assert explained(then, _row(first, task=make_id(1, 8)), "other") == first


def test_long_words_are_cut() -> None:
    made = explained(INHERITED, _row(Failure(Cause.EXIT, "m" * 5000, detail="d" * 5000)), "n" * 5000)
    assert len(made.message) < 1200
