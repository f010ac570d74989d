"""Descriptions are checked once and strictly: whatever is thrown into a field is refused by name, or travels."""

from __future__ import annotations

import math
from concurrent.futures import Future
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pilot_hitl.model import checks, templates
from pilot_hitl.model.descriptions import CallOptions, PilotDescription, TaskDescription, shape_of
from pilot_hitl.model.resources import Resources, Shape
from pilot_hitl.model.services import ServiceDescription, ServiceSettings

TEXTS = st.sampled_from(
    ["", " ", "x", "a b", "a\nb", "a\0b", "\ud800", "a\udc80", "é", "x" * 200_000, "1", "1h", "../x", "-x", "kill"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, -1, 1 << 31, 1 << 63, 1 << 64, 10**400])
    | st.floats()
    | TEXTS
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.sampled_from([np.int64(2), np.uint8(1), np.float32(0.5), np.float64(2), np.bool_(True), np.str_("x")])
    | st.sampled_from([Path("x"), Future(), object(), int, Decimal("0.5"), Decimal("sNaN"), Fraction(1, 2), 1j])
    | st.sampled_from([np.array([1, 2]), np.array("x"), np.array(3), np.float64("nan"), range(2), Ellipsis])
    | st.builds(Resources)
    | st.just(Shape())
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.builds(iter, st.lists(inner, max_size=2))
        | st.dictionaries(st.sampled_from(["colocate", "exclusive", "A", "A=B", "", "\0", 1, None]), inner, max_size=2)
        | st.sets(st.sampled_from(["a", 1, None]), max_size=2)
    ),
    max_leaves=5,
)
KINDS: dict[type[Any], dict[str, Any]] = {
    TaskDescription: {"executable": "/bin/true"},
    CallOptions: {},
    PilotDescription: {},
    ServiceSettings: {"name": "s"},
    ServiceDescription: {"name": "s", "handler": "module:Class"},
}
EXECUTABLE = templates.ExecutableTemplate.__struct_fields__
# What is tried here, a type checker would refuse.
Task: Any = TaskDescription
Pilot: Any = PilotDescription
Service: Any = ServiceDescription
Amounts: Any = Resources
FIELDS = [(kind, field) for kind in KINDS for field in kind.__struct_fields__]


def is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    return type(value) in {str, int, float, bool, Resources}


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind.__name__}.{field}" for kind, field in FIELDS])
@given(value=ANYTHING)
@example(value=None)
@example(value="module load gcc")
@example(value=[["a"]])
def test_a_value_is_refused_by_name_or_travels(kind: type[Any], field: str, value: Any) -> None:
    described = kind(**(KINDS[kind] | {field: value}))
    refusal, made = "", described
    try:
        made = described.verify()
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith((field, "cores, gpus"))
        assert len(refusal.encode()) < 1000
        return
    if field in {"handler", "kwargs", "input_staging", "output_staging"}:
        return  # Those are pickled, these are converted where the folders are known.
    assert is_plain(getattr(made, field)) or (field, value) == ("retry_failed", None)  # "as the session says"
    if isinstance(made, ServiceDescription):
        kind, made = ServiceSettings, made.settings
    # What the other side reads is what was checked, under the same strict types.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=kind) == made
    assert made.verify() is made
    if isinstance(made, TaskDescription | CallOptions):
        shape = shape_of(made)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=Shape) == shape


@pytest.mark.parametrize("field", EXECUTABLE)
@given(value=ANYTHING)
def test_a_template_of_somebody_who_checks_nothing_is_refused_or_can_be_meant(field: str, value: Any) -> None:
    fields = {each: getattr(TaskDescription(executable="x"), each) for each in EXECUTABLE}
    try:
        blob = msgspec.msgpack.encode(["x", *(fields | {field: value}).values()])
        template = templates.verify(msgspec.msgpack.decode(blob, type=templates.Template))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return  # It cannot be sent, or is refused.
    # Another node reads it as this one did.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(template), type=templates.Template) == template
    assert math.isfinite(template.timeout)
    assert math.isfinite(template.grace)


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"ranks": np.int64(2)}, {"ranks": 2}),
        ({"cores_per_rank": np.uint8(3)}, {"cores_per_rank": 3}),
        ({"priority": np.int32(-3)}, {"priority": -3}),
        ({"retries": np.int64(1)}, {"retries": 1}),
        ({"gpus_per_rank": np.float32(0.5)}, {"gpus_per_rank": 0.5}),
        ({"gpus_per_rank": np.int64(2)}, {"gpus_per_rank": 2}),
        ({"timeout": np.float64(1.5)}, {"timeout": 1.5}),
        ({"timeout": Decimal("0.5")}, {"timeout": 0.5}),
        ({"grace": Fraction(1, 4)}, {"grace": 0.25}),
        ({"backfill": np.bool_(True)}, {"backfill": True}),
        ({"name": np.str_("a")}, {"name": "a"}),
        ({"arguments": ("a", np.str_("b"))}, {"arguments": ["a", "b"]}),
        ({"tags": {"exclusive": np.bool_(True)}}, {"tags": {"exclusive": True}}),
    ],
)
def test_what_equals_a_plain_value_becomes_one(fields: dict[str, Any], made: dict[str, Any]) -> None:
    task = TaskDescription(**{"executable": "x", **fields}).verify()
    for name, value in made.items():
        found = getattr(task, name)
        assert found == value
        assert is_plain(found)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arguments": "hello world"}, r"arguments=\['hello world'\]"),
        ({"pre_exec": "module load gcc"}, r"pre_exec=\['module load gcc'\]"),
        ({"pre_exec": [{"0": "x"}]}, "same for all ranks"),
        ({"arguments": [3]}, "write '3'"),
        ({"arguments": [True]}, "write 'True'"),
        ({"arguments": [Future()]}, "after=future.*call"),
        ({"arguments": [b"x"]}, "decode"),
        ({"arguments": {"a": 1}}, "a list of texts"),
        ({"arguments": iter(["a"])}, "list"),
        ({"arguments": {"a", "b"}}, "list"),
        ({"arguments": np.array(["a"])}, "list"),
        ({"arguments": ["ok", "a\0b"]}, "NUL"),
        ({"arguments": ["\ud800"]}, "surrogate"),
        ({"arguments": ["x" * 131_072]}, "131071"),
        ({"arguments": ["x" * 100_000] * 63}, "write them into a file"),
        ({"executable": Path("/bin/true")}, r"write str\("),
        ({"executable": "x" * 5000}, "4095"),
        ({"executable": " "}, "name the program"),
        ({"stdout": Path("o")}, r"write str\("),
        ({"environment": {"N": 4}}, "write '4'"),
        ({"environment": {"N": None}}, "leave it out"),
        ({"environment": {1: "x"}}, "names and values are texts"),
        ({"environment": ["A=1"]}, "'NAME': 'value'"),
        ({"environment": {"A": "x" * 131_072}}, "131071"),
        ({"environment": {str(n): "x" * 100_000 for n in range(63)}}, "write them into a file"),
        ({"cores_per_rank": "2"}, "write 2, without quotes"),
        ({"cores_per_rank": True}, "whole number"),
        ({"ranks": 1.0}, "whole number"),
        ({"timeout": "1h"}, "number of seconds"),
        ({"timeout": math.nan}, "between"),
        ({"timeout": math.inf}, "between"),
        ({"launcher": None}, "leave it out"),
        ({"on_preempt": "suspended"}, "did you mean 'suspend'"),
        ({"tags": {"colocate": 5}}, "colocate.*write '5'"),
        ({"tags": {"exclusive": "yes"}}, "True or False"),
        ({"alternatives": Resources(cores=1)}, "a list of Resources"),
        ({"alternatives": [{"cores": 1}]}, "no Resources"),
        ({"input_staging": "in.dat"}, r"input_staging=\['in.dat'\]"),
        ({"input_staging": [""]}, "source > target"),
        ({"site": "a\nb"}, "one line"),
        ({"name": "x" * 2000}, "at most 1000"),
        ({"container": "image"}, "cannot be had"),
        ({"named_env": "env"}, "pre_exec"),
        ({"pilot": "9" * 30}, "no number of a pilot"),
    ],
)
def test_messages_name_the_remedy(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(fields))}(\[\d\])?: .*{said}"):
        TaskDescription(**{"executable": "x", **fields}).verify()


def test_what_linux_takes_is_not_refused() -> None:
    words = ["x" * 131_071, *["y" * 100_000] * 40, "", "ü" * 1000]
    task = TaskDescription(executable="x", arguments=words, environment={"A": "x" * 131_000, "Ü": ""})
    assert task.verify() is task


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Task(cores=2), "no attribute 'cores'; did you mean 'cores_per_rank'"),
        (lambda: Task(argument=["x"]), "no attribute 'argument'; did you mean 'arguments'"),
        (lambda: Task(preexec=[]), "did you mean 'pre_exec'"),
        (lambda: Task({"executable": "x"}), r"keywords.*\*\*mapping"),
        (lambda: Pilot("local"), "keywords, as PilotDescription"),
        (lambda: Pilot(walltime=5), "no attribute 'walltime'; it has .*runtime"),
        (lambda: Service(replica=2), "did you mean 'replicas'"),
        (lambda: Amounts(core=2), "did you mean 'cores'"),
    ],
)
def test_unknown_attributes_are_named(make: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        make()


def test_resources_are_plain_numbers() -> None:
    made = Amounts(cores=np.int64(2), gpus=np.float32(0.5), memory=np.uint16(3))
    assert made == Resources(cores=2, gpus=0.5, memory=3)
    assert [type(each) for each in (made.cores, made.gpus, made.memory)] == [int, float, int]
    for fields in ({"cores": "2"}, {"gpus": math.nan}, {"memory": 1.5}, {"cores": True}, {"memory": None}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Amounts(**fields)


def test_every_attribute_has_a_check() -> None:
    with pytest.raises(LookupError, match="cores"):
        checks.Table(Resources, {"gpus": checks.gpus, "memory": checks.whole(0, 1)})


def test_what_is_shown_is_short() -> None:
    for value in ("x" * 10**6, list(range(10**5)), 10**5000, {"a": ["b" * 1000] * 1000}, object()):
        assert len(checks.shown(value)) < 1000
