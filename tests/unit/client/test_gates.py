from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl.model.conditions import Test
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire import messages as m
from tests.behaviour.studies import further
from tests.unit.client.fakehub import FakeHub

CHOICES = ["accept", "refine"]


def double(x: Any) -> Any:
    return 2 * x


def test_a_request_and_its_answer(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint(
        "mesh", question="Good?", choices=CHOICES, deadline="8h", default="refine", assignees=["ana"],
        reserve=ph.Resources(cores=8), linger=2,
    )  # fmt: skip
    gate.respond("accept", "looks fine")
    assert gate.result(5) == "accept"
    answer = gate.answer()
    assert (answer.by, answer.at, answer.channel, answer.comment) == ("ana", 1.5, "python", "looks fine")
    assert gate.id == "study/1"
    (ask,) = hub.of(m.Ask)
    assert json.loads(ask.form) == {"enum": CHOICES}
    assert (ask.choices, ask.default, ask.deadline) == (['"accept"', '"refine"'], '"refine"', 28800)
    assert (ask.assignees, ask.reserve, ask.linger) == (["ana"], ph.Resources(cores=8), 2)
    assert len(ask.key) == 16


def test_refused_answers_do_not_count(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    with pytest.raises(ph.AnswerRefused) as caught:
        gate.respond("maybe")
    assert caught.value.code == "invalid"
    with pytest.raises(TimeoutError, match="inbox list"):
        gate.result(0.01)


def test_names_are_used_once(session: ph.Session, hub: FakeHub) -> None:
    first = session.checkpoint("mesh")
    session.checkpoint("mesh", iteration=0)
    session.checkpoint("mesh", iteration=1)
    assert session.checkpoint("mesh") is first, "a cell of a notebook that is run again asks the same"
    with pytest.raises(ph.CheckpointExists, match="iteration"):
        session.checkpoint("mesh", question="Another?")
    with pytest.raises(ph.CheckpointExists):
        session.checkpoint("mesh", iteration=1, choices=["a"])
    session.flush()
    assert len({ask.key for ask in hub.of(m.Ask)}) == 3


def test_many_questions_share_what_they_have_in_common(session: ph.Session) -> None:
    many = [session.checkpoint("mesh", choices=CHOICES, iteration=number) for number in range(3)]
    assert len({id(each.form) for each in many}) == 1
    assert len({id(each._condition) for each in many}) == 1
    assert not any(hasattr(each, "__dict__") for each in many), "a long session keeps thousands"
    waits = threading.Thread(target=many[2].result, args=(20,))
    waits.start()
    for each in many[:2]:
        each.respond("accept")
    assert not many[2].done()
    many[2].respond("refine")
    waits.join(20)
    assert [each.result(5) for each in many] == ["accept", "accept", "refine"]


@pytest.mark.parametrize(
    "request_",
    [
        {"choices": []}, {"choices": ["a", "a"]}, {"choices": "ab"}, {"choices": ["a"], "default": "b"},
        {"choices": ["a"], "form": {}}, {"form": {"type": "no such"}}, {"deadline": "soon"}, {"on_change": "maybe"},
        {"show": [object()]}, {"show": [Path("/no/such/file")]}, {"chioces": ["a"]},
        {"iteration": 2**70}, {"iteration": "a"}, {"iteration": 1.5}, {"iteration": True}, {"question": 5},
        {"question": "\udcff"}, {"show": ["\udcff"]}, {"choices": ["\udcff"]}, {"show": "text"}, {"show": 5},
        {"assignees": 5}, {"choices": {"a", "b"}}, {"choices": {"a": 1}}, {"choices": 5}, {"reserve": 8},
        {"reserve": {"cores": 8}}, {"linger": "x"}, {"linger": -1}, {"linger": float("nan")}, {"deadline": 0},
        {"deadline": ""}, {"deadline": [5]}, {"form": False},
    ],
)  # fmt: skip
def test_requests_that_cannot_be_meant(session: ph.Session, hub: FakeHub, request_: dict[str, Any]) -> None:
    with pytest.raises(ph.DescriptionError):
        session.checkpoint("mesh", **request_)
    session.checkpoint("mesh")  # the name is still free
    session.flush()
    assert len(hub.of(m.Ask)) == 1


@pytest.mark.parametrize("name", ["", 5, "two\nlines", "\x1b[31mred", "a" * 201])
def test_names_that_are_none(session: ph.Session, hub: FakeHub, name: Any) -> None:
    with pytest.raises(ph.DescriptionError, match="is not a name"):
        session.checkpoint(name)
    session.flush()
    assert not hub.of(m.Ask)


def test_branches_and_selections_that_cannot_be_meant(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    wrong: list[dict[str, Any]] = [
        {"value": "accept", "probability": "high"}, {"value": set()}, {"one_of": []}, {"one_of": "accept"},
        {"value": "accept", "one_of": ["refine"]},
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(ph.DescriptionError):
            gate.branch(**arguments)
    tables: list[Any] = [{}, {"accept": 5}, {"accept": [1, 2]}, {"accept": "ab"}]
    for table in tables:
        with pytest.raises(ph.DescriptionError, match="select"):
            gate.select(table)


@pytest.mark.parametrize("value", [object(), "\udcff", float("nan")])
def test_answers_that_are_not_json_are_refused(session: ph.Session, value: object) -> None:
    gate = session.checkpoint("mesh")
    with pytest.raises(ph.AnswerRefused, match="JSON") as caught:
        gate.respond(value)
    assert caught.value.code == "invalid"
    gate.respond("good")
    assert gate.result(5) == "good"


def test_what_is_shown(session: ph.Session, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    (tmp_path / "data.bin").write_bytes(b"data")
    future = session.call(double, 1)
    table = [{"n": 1, "t": 0.5}, {"n": 2, "t": float("nan")}]
    gate = session.checkpoint("mesh", show=["# Hi", table, tmp_path / "plot.png", tmp_path / "data.bin", future])
    assert gate.wait_number(5) == 1
    (ask,) = hub.of(m.Ask)
    shown = json.loads(ask.show)
    assert [item["kind"] for item in shown] == ["markdown", "table", "image", "file", "task"]
    assert shown[1]["columns"] == ["n", "t"]
    assert shown[1]["rows"] == [[1, 0.5], [2, "nan"]]
    assert (session.folder / "blobs" / shown[2]["blob"][:2] / shown[2]["blob"]).read_bytes() == b"png"
    assert ask.deps == [(1 << 32) + 1]


def test_the_fingerprint_says_whether_the_question_changed(hub: FakeHub) -> None:
    for text, value in (("a", 1), ("a", 1), ("b", 1), ("a", 2)):
        with ph.Session("study", home=hub.home) as session:
            session.checkpoint("mesh", show=[text, session.call(double, value)])
    one, same, other, third = (ask.fingerprint for ask in hub.of(m.Ask))
    assert one == same
    assert len({one, other, third}) == 3


def test_work_in_a_branch_carries_its_condition(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    accept = gate.branch("accept", probability=0.8)
    first = accept.call(double, 1)
    second = session.call(double, first)
    third = accept.options(cores=2).map(double, [1, 2])
    assert [each.result(5) for each in (first, second, *third)] == [2, 4, 2, 4]
    (put,) = hub.of(m.PutCondition)
    assert (put.probability, [(term.test, term.operand) for term in put.terms]) == (0.8, [(Test.EQUALS, '"accept"')])
    assert [submit.condition for submit in hub.of(m.Submit)] == [put.condition] * 3
    assert first.condition == second.condition == third[0].condition == accept.condition


def test_branches_nest_and_contradict(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    accept, refine = gate.branch("accept", probability=0.5), gate.branch("refine", probability=0.5)
    inner = accept.checkpoint("deeper", choices=[1, 2, 3])
    both = inner.branch({1, 2}, probability=0.5)
    assert len(both.condition) == 2
    with pytest.raises(ph.ContradictoryCondition, match="mesh"):
        session.call(max, accept.call(double, 1), refine.call(double, 1))
    session.flush()
    assert hub.of(m.Ask)[1].condition == hub.of(m.PutCondition)[0].condition
    assert {put.probability for put in hub.of(m.PutCondition)} == {0.5, 0.25}


def test_branches_that_cannot_be_meant(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    gate.branch("accept", probability=0.8)
    for arguments in (
        {"value": "never"}, {"value": {"accept", "never"}}, {"value": object()},
        {"value": "refine", "probability": 0.3}, {"value": "refine", "probability": 2},
    ):  # fmt: skip
        with pytest.raises(ph.DescriptionError):
            gate.branch(**arguments)
    gate.branch("accept", probability=0.7)
    gate.branch("refine", probability=0.3)
    assert session.checkpoint("number", form={"type": "integer"}).branch(schema={"minimum": 5}).term.test is Test.SCHEMA


def test_select_is_whichever_becomes_real(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    accept, refine = gate.branch("accept"), gate.branch("refine")
    one, two = accept.call(double, 1), refine.call(double, 2)
    future = gate.select({"accept": one, "refine": two})
    sequence = gate.select({accept: accept.map(double, [1]), refine: refine.map(double, [3, 4])})
    none = gate.select({"accept": one})
    assert not future.done()
    gate.respond("refine")
    assert future.result(5) == 4
    assert sequence.results(5) == [6, 8]
    assert (len(sequence), sequence[0].result()) == (2, 6)
    with pytest.raises(ph.Discarded, match="refine"):
        none.result(5)
    with pytest.raises(ph.PayloadError, match="no task's future"):
        session.call(double, future)


def test_ends_without_an_answer(session: ph.Session, hub: FakeHub) -> None:
    gates = [session.checkpoint(name) for name in ("a", "b", "c")]
    for gate in gates:
        gate.wait_number(5)
    told = threading.Event()
    gates[0].when_done(told.set)
    hub.tell(
        m.CheckpointUpdate(gates[0].handle, 1, CheckpointState.EXPIRED),
        m.CheckpointUpdate(gates[1].handle, 2, CheckpointState.WITHDRAWN),
        m.Refused("CheckpointError", "asked differently before", gates[2].handle),
    )
    with pytest.raises(ph.CheckpointExpired, match="default"):
        gates[0].result(5)
    with pytest.raises(ph.CheckpointWithdrawn):
        gates[1].result(5)
    with pytest.raises(ph.CheckpointError, match="asked differently"):
        gates[2].result(5)
    assert told.wait(5)


def test_withdraw_and_release(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("a")
    gate.release()
    gate.withdraw()
    session.flush()
    assert [each.reservation_only for each in hub.of(m.Withdraw)] == [True, False]


@pytest.mark.parametrize("size", further(1, [5 << 20, 20 << 20]))
@pytest.mark.parametrize("what", ["question", "choices", "show", "form"])
def test_more_text_than_anybody_reads_is_refused(session: ph.Session, what: str, size: int) -> None:
    text = "x" * size
    request: dict[str, Any] = {
        what: {"question": text, "choices": [text], "show": [text], "form": {"title": text}}[what]
    }
    with pytest.raises(ph.DescriptionError, match=f"{what}.* characters"):
        session.checkpoint("much", **request)


def test_what_is_no_file_is_not_read(session: ph.Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10 << 30)
    paths = [Path("/dev/zero"), Path("/dev/stdin"), tmp_path / "pipe", tmp_path, tmp_path / "loop", tmp_path / "huge"]
    for path in paths:
        with pytest.raises(ph.DescriptionError, match=str(path)):
            session.checkpoint("shown", show=[path])


def test_a_default_without_a_deadline_would_never_be_taken(session: ph.Session) -> None:
    with pytest.raises(ph.DescriptionError, match="add deadline='8h'"):
        session.checkpoint("default", choices=["a"], default="a")
