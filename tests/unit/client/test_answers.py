"""Forms made of Python types, predictions, deadlines that move, scripts that end until somebody answered."""

from __future__ import annotations

import dataclasses
import enum
import json
import uuid
from datetime import datetime
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

import pilot_hitl as ph
from pilot_hitl._forms import AnswerType, plain
from pilot_hitl.inbox import forms
from pilot_hitl.model.canonical import canonical
from pilot_hitl.model.conditions import Test
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub

CHOICES = ["accept", "refine"]


def double(x: Any) -> Any:
    return 2 * x


class Kind(enum.Enum):
    COARSE = "coarse"
    FINE = "fine"


@dataclasses.dataclass
class Region:
    low: float
    high: float
    kind: Kind = Kind.COARSE


class Limits(TypedDict):
    steps: int


class Plan(msgspec.Struct):
    regions: list[Region]
    limits: Limits
    key: uuid.UUID | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    parent: Plan | None = None


class Model(pydantic.BaseModel):
    name: str
    count: int = pydantic.Field(ge=1)
    region: Region | None = None


PLAIN_PLAN: dict[str, Any] = {"regions": [{"low": 0, "high": 1.5}], "limits": {"steps": 3}, "count": 2}


@pytest.mark.parametrize(
    ("kind", "answer", "expected", "wrong"),
    [
        (Region, {"low": 0, "high": 2}, Region(0, 2), {"low": "a", "high": 2}),
        (Region, {"low": 0, "high": 2, "kind": "fine"}, Region(0, 2, Kind.FINE), {"low": 0, "high": 2, "kind": "x"}),
        (Limits, {"steps": 2}, {"steps": 2}, {}),
        (Plan, PLAIN_PLAN, Plan([Region(0, 1.5)], {"steps": 3}, count=2), {**PLAIN_PLAN, "count": 0}),
        (Model, {"name": "a", "count": 2}, Model(name="a", count=2), {"name": "a", "count": 0}),
    ],
)
def test_a_type_is_a_form_and_the_answer_its_instance(
    session: ph.Session, hub: FakeHub, kind: Any, answer: Any, expected: Any, wrong: Any
) -> None:
    gate = session.checkpoint("plan", form=kind, predict=expected, default=expected, deadline="1h")
    gate.wait_number(5)
    (ask,) = hub.of(m.Ask)
    form = json.loads(ask.form)
    assert "properties" in form, "a person is told what belongs into it"
    assert forms.valid(answer, form)
    assert not forms.valid(wrong, form)
    assert forms.valid(json.loads(ask.default), form)
    with pytest.raises(ph.DescriptionError, match="can never be answered"):
        gate.branch(wrong)
    branch = gate.branch(expected)
    assert branch.term.test is Test.EQUALS
    assert gate.branch().term == branch.term
    gate.respond(expected)
    assert gate.result(5) == expected
    assert type(gate.result()) is type(expected)
    assert forms.valid(gate.answer().value, form), "the record is JSON"
    # Who leaves out what has a default means the same answer, so the branch of it is chosen.
    parsed = forms.parse_answer(json.dumps(answer), form)
    assert canonical(parsed) == branch.term.operand
    assert gate.branch(answer).term == branch.term
    # A name that the form does not know would be dropped, and with it what somebody meant to say.
    with pytest.raises(ph.AnswerRefused, match="cuont"):
        forms.parse_answer(json.dumps({**answer, "cuont": 3}), form)


def test_forms_that_are_schemas_leave_answers_alone() -> None:
    form: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}
    assert forms.parse_answer('{"b": 2}', form) == {"b": 2}


@dataclasses.dataclass
class Checked:
    count: int

    def __post_init__(self) -> None:
        raise ValueError


class Validated(pydantic.BaseModel):
    count: int

    @pydantic.field_validator("count")
    @classmethod
    def even(cls, value: int) -> int:
        return value


class Annotations(pydantic.BaseModel):
    count: Annotated[int, pydantic.AfterValidator(abs)]


class Outer(pydantic.BaseModel):
    inner: list[Validated]


class Nested(msgspec.Struct):
    inner: list[Checked]


class Dated(msgspec.Struct):
    when: datetime


class DatedModel(pydantic.BaseModel):
    when: datetime


class Raw(msgspec.Struct):
    data: dict[str, bytes]


class Odd(msgspec.Struct):
    value: complex


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Checked, "__post_init__"), (Nested, "Checked.__post_init__"), (Validated, "validators"),
        (Annotations, "validators"), (Outer, "validators"), (Raw, "kind bytes"), (Odd, "JSON Schema"),
        (int, "none of"), (Dated, "kind datetime"), (DatedModel, "date-time"),
    ],
)  # fmt: skip
def test_types_that_a_schema_does_not_tell_are_refused(session: ph.Session, kind: Any, why: str) -> None:
    with pytest.raises(ph.DescriptionError, match=why):
        session.checkpoint("plan", form=kind)


def test_a_type_that_changed_since_says_so(session: ph.Session) -> None:
    gate = session.checkpoint("plan", form={"type": "object"})
    gate.form = gate.form._replace(type=session.checkpoint("other", form=Limits).form.type)
    gate.respond({"steps": "many"})
    with pytest.raises(ph.CheckpointError, match="was the type changed"):
        gate.result(5)
    assert gate.answer().value == {"steps": "many"}


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        ({"choices": CHOICES, "predict": "refine"}, [["refine", 0.5]]),
        ({"choices": CHOICES, "predict": {"accept": 0.3, "refine": 0.6}}, [["refine", 0.6], ["accept", 0.3]]),
        ({"choices": [1, 2], "predict": [(1, 0.25)]}, [[1, 0.25]]),
        ({"choices": [{"a": 1}, 2], "predict": {"a": 1}}, [[{"a": 1}, 0.5]]),
        ({"form": {"type": "object"}, "predict": {"a": 1}}, [[{"a": 1}, 0.5]]),
        ({"form": {"type": "array"}, "predict": [1, 2]}, [[[1, 2], 0.5]]),
        ({"form": {"type": "number"}, "predict": [(1, 0.2), (2.5, 0.7)]}, [[2.5, 0.7], [1, 0.2]]),
    ],
)
def test_predictions(session: ph.Session, hub: FakeHub, request_: dict[str, Any], sent: list[Any]) -> None:
    gate = session.checkpoint("gate", **request_)
    session.checkpoint("shown", **request_, show_prediction=True)
    session.flush()
    first, second = hub.of(m.Ask)
    assert json.loads(first.predict) == sent
    assert (first.show_prediction, second.show_prediction) == (False, True)
    assert [list(each) for each in gate.predictions] == sent
    assert json.loads(gate.branch().term.operand) == sent[0][0]


@pytest.mark.parametrize(
    "predict", ["never", {"accept": 0.6, "refine": 0.6}, {"accept": 2}, {"accept": "a"}, {"never": 0.1},
                [("accept", 0.1), ("accept", 0.2)], {"accept": True}],
)  # fmt: skip
def test_predictions_that_cannot_be_meant(session: ph.Session, predict: Any) -> None:
    with pytest.raises(ph.DescriptionError, match="predict"):
        session.checkpoint("gate", choices=CHOICES, predict=predict)


def test_branches_take_the_predicted_probability(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("gate", choices=[1, 2, 3], predict={1: 0.5, 2: 0.3})
    gate.branch()
    gate.branch({1, 2})
    gate.branch(3)
    gate.branch(2, probability=0.1)
    alone = session.checkpoint("alone", choices=CHOICES, predict="accept")
    alone.branch()
    alone.branch("refine", probability=0.9)
    none = session.checkpoint("none", choices=CHOICES)
    with pytest.raises(ph.DescriptionError, match="predict="):
        none.branch()
    null = session.checkpoint("null", form={"type": "null"})
    assert null.branch(None).term.operand == "null"
    session.flush()
    said = [put.probability for put in hub.of(m.PutCondition)]
    assert said == [0.5, 0.8, -1.0, 0.1, -1.0, 0.9, -1.0]


def test_a_deadline_moves(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("gate", choices=CHOICES, deadline="1h")
    gate.extend("2h")
    gate.extend(None)
    assert [(each.checkpoint, each.seconds) for each in hub.of(m.Extend)] == [(1, 7200), (1, 0)]
    with pytest.raises(ph.DescriptionError):
        gate.extend("soon")


def test_a_script_ends_until_somebody_has_answered(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.hold = True
    futures: list[ph.TaskFuture[Any]] = []

    def script() -> None:
        with ph.Session("study", home=hub.home) as session:
            gate = session.checkpoint("gate", choices=CHOICES, wait="exit")
            futures.append(gate.branch("accept").call(double, 1))
            gate.result()

    with pytest.raises(SystemExit) as caught:
        script()
    assert caught.value.code == 75
    kinds = [type(each) for each in hub.seen]
    assert kinds.index(m.Submit) < kinds.index(m.Flush) < kinds.index(m.Bye)
    assert hub.of(m.Bye)[0].on_exit == "stop"
    told = capsys.readouterr().err
    assert f"PILOT_HITL_HOME={hub.home} pilot-hitl inbox answer study/1 VALUE" in told
    assert "accept" in told
    assert f"PILOT_HITL_HOME={hub.home} pilot-hitl session resume study" in told
    with pytest.raises(ph.SessionClosed):
        futures[0].result(5)
    hub.answers["gate"] = '"accept"'
    with ph.Session("study", home=hub.home) as session:
        assert session.checkpoint("gate", choices=CHOICES, wait="exit").result(5) == "accept"


def test_draining_does_not_wait_for_what_waits_for_people(hub: FakeHub) -> None:
    def script() -> None:
        with ph.Session("study", home=hub.home, on_exit="drain") as session:
            gate = session.checkpoint("gate", choices=CHOICES, wait="exit")
            session.call(double, 2)
            gate.wait_number(5)
            session.flush()
            hub.hold = True
            gate.branch("accept").map(double, [1, 2])
            gate.branch("accept").call(double, 1)
            gate.result()

    with pytest.raises(SystemExit):
        script()
    assert hub.of(m.Bye)[0].on_exit == "drain"


@pytest.mark.parametrize("waits", [False, True])
def test_a_body_that_ends_the_script(hub: FakeHub, waits: bool) -> None:
    def script() -> None:
        with ph.Session("study", home=hub.home) as session:
            gate = session.checkpoint("gate", choices=CHOICES)
            gate.respond("accept")
            body = gate.on("accept")(lambda branch: branch.checkpoint("next", choices=CHOICES, wait="exit").result())
            if waits:
                session.checkpoint("never").result(20)
            body.thread.join(10)

    with pytest.raises(SystemExit) as caught:
        script()
    assert caught.value.code == 75


def test_policies(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home, policy="fifo"):
        pass
    assert hub.hellos[-1].policy == "fifo"
    with pytest.raises(ph.DescriptionError, match="block"):
        ph.Session("study", home=hub.home, policy="random")


def _made() -> list[int]:
    return [1, 2]


class MadeStruct(msgspec.Struct):
    low: int
    steps: list[int] = msgspec.field(default_factory=_made)


@dataclasses.dataclass
class MadeDataclass:
    low: int
    inner: MadeStruct = dataclasses.field(default_factory=lambda: MadeStruct(3))
    named: dict[str, int] = dataclasses.field(default_factory=dict)


class MadeModel(pydantic.BaseModel):
    low: int
    steps: list[int] = pydantic.Field(default_factory=_made)


@pytest.mark.parametrize("kind", [MadeStruct, MadeDataclass, MadeModel])
def test_defaults_that_functions_make_are_part_of_the_form(kind: Any) -> None:
    form = AnswerType(kind)
    short = forms.parse_answer('{"low": 1}', form.schema)
    assert form.make(short) == kind(low=1)
    whole = canonical(plain(kind(low=1)))
    assert canonical(short) == whole, "so a branch that names the whole instance is chosen"


class OtherStruct(msgspec.Struct):
    name: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)


class OtherModel(pydantic.BaseModel):
    name: str = pydantic.Field(default_factory=lambda: uuid.uuid4().hex)


class RaisingStruct(msgspec.Struct):
    name: str = msgspec.field(default_factory=lambda: str(1 / 0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [(OtherStruct, "another one each time"), (OtherModel, "another one"), (RaisingStruct, "ZeroDivisionError")],
)
def test_a_default_that_is_another_one_each_time_is_refused(kind: Any, message: str) -> None:
    with pytest.raises(ph.DescriptionError, match=message):
        AnswerType(kind)
