"""The nouns: canonical JSON, conditions, states, resources, ids, descriptions."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model import descriptions, ids
from pilot_hitl.model.canonical import canonical
from pilot_hitl.model.conditions import Term, Test, conjunction, contradictory, equals, holds, matches, members, one_of
from pilot_hitl.model.descriptions import CallOptions, PilotDescription, TaskDescription, shape_of
from pilot_hitl.model.failures import RETRYABLE, UNFINISHED, Cause
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Resources, Shape, largest, runtime_bucket
from pilot_hitl.model.states import CheckpointState, PilotState, State, Tier, Truth, effective, may_follow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def at_least(schema: str, answer: str) -> bool:
    return bool(json.loads(answer) >= json.loads(schema)["minimum"])


# --- canonical --------------------------------------------------------------------------------------------------------


@given(JSON)
def test_canonical_text_is_json_and_canonical_again(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.0, 2.5, "é"]}, '{"a":[1,2.5,"é"],"b":1}'),
        (-0.0, "0"),
        (True, "true"),
        (1, "1"),
        ((1.0, {"x": 2.0}), '[1,{"x":2}]'),
        (float(2**53), "9007199254740992.0"),
        (float(2**53 - 1), "9007199254740991"),
        (-float(2**53), "-9007199254740992.0"),
        (None, "null"),
    ],
)
def test_equal_values_have_equal_texts(value: Any, text: str) -> None:
    assert canonical(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(value)


@pytest.mark.parametrize("value", [{1: 2}, {"a": {None: 1}}, {"a": object()}, b"x"])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_terms_are_canonical() -> None:
    assert equals(3, 1.0) == equals(3, 1) == Term(3, Test.EQUALS, "1")
    assert one_of(3, ["b", "a", "b"]) == one_of(3, ["a", "b"]) == Term(3, Test.ONE_OF, '["a","b"]')
    assert matches(3, {"b": 1, "a": 2.0}).operand == '{"a":2,"b":1}'


def test_members_can_be_listed_but_for_schemas_and_nonsense_has_none() -> None:
    assert members(equals(1, "a")) == frozenset({'"a"'})
    assert members(one_of(1, ["a", 1.0])) == frozenset({'"a"', "1"})
    assert members(matches(1, {})) is None
    assert members(Term(1, Test.ONE_OF, "{not json")) == frozenset()
    assert members(Term(1, Test.ONE_OF, "5")) == frozenset()


def test_holds() -> None:
    assert holds(equals(1, "a"), '"a"', at_least)
    assert not holds(equals(1, "a"), '"b"', at_least)
    assert holds(one_of(1, ["a", 2]), "2", at_least)
    assert not holds(one_of(1, ["a", 2]), "3", at_least)
    assert holds(matches(1, {"minimum": 3}), "3", at_least)
    assert not holds(matches(1, {"minimum": 3}), "2", at_least)


@pytest.mark.parametrize(
    ("terms", "wrong"),
    [
        ([equals(1, 1), equals(1, 2)], (0, 1)),
        ([equals(1, 1), equals(2, 2)], None),
        ([equals(1, 1), one_of(1, [1, 2])], None),
        ([one_of(1, [1, 2]), one_of(1, [2, 3])], None),
        ([one_of(1, [1, 2]), one_of(1, [3])], (0, 1)),
        ([equals(1, 1), matches(1, {"minimum": 2})], (0, 1)),
        ([matches(1, {"minimum": 2}), one_of(1, [1, 5])], None),
        ([matches(1, {"minimum": 6}), one_of(1, [1, 5])], (0, 1)),
        ([matches(1, {"minimum": 2}), matches(1, {"maximum": 1})], None),
        ([equals(2, 1), equals(1, 1), one_of(1, [1, 3]), equals(1, 3)], (1, 3)),
        ([], None),
    ],
)
def test_contradictions(terms: list[Term], wrong: tuple[int, int] | None) -> None:
    assert contradictory(terms, at_least) == (None if wrong is None else (terms[wrong[0]], terms[wrong[1]]))


@given(st.lists(st.sampled_from(Truth)))
def test_conjunction(truths: list[Truth]) -> None:
    expected = Truth.FALSE if Truth.FALSE in truths else Truth.UNDECIDED if Truth.UNDECIDED in truths else Truth.TRUE
    assert conjunction(truths) is expected


# --- states -----------------------------------------------------------------------------------------------------------


def test_final_states() -> None:
    assert [s for s in State if s.final] == [State.DONE, State.FAILED, State.CANCELED, State.DISCARDED]
    assert [s for s in PilotState if s.final] == [PilotState.DONE, PilotState.FAILED, PilotState.CANCELED]
    assert [s for s in CheckpointState if not s.closed] == [CheckpointState.PENDING, CheckpointState.OPEN]
    assert Tier.SERVICE < Tier.NEEDED < Tier.SPECULATIVE < Tier.BACKFILL


def test_which_state_may_follow() -> None:
    for before in State:
        for after in State:
            if before.final:
                assert not may_follow(before, after)
            elif after.final:
                assert may_follow(before, after)
    assert may_follow(State.NEW, State.QUEUED)
    assert not may_follow(State.NEW, State.RUNNING)
    assert may_follow(State.RUNNING, State.QUEUED)
    assert may_follow(State.HELD_FAILED, State.QUEUED)
    assert not may_follow(State.HELD, State.QUEUED)
    assert not may_follow(State.SUSPENDED, State.HELD)


def test_effective_states() -> None:
    for state in State:
        assert effective(state, Truth.UNDECIDED) is state
        assert effective(state, Truth.FALSE) is (state if state is State.CANCELED else State.DISCARDED)
        assert effective(state, Truth.TRUE) is (State.DONE if state is State.HELD else state)


def test_causes() -> None:
    assert not RETRYABLE & UNFINISHED
    assert Cause.CANCELED not in RETRYABLE | UNFINISHED


# --- resources --------------------------------------------------------------------------------------------------------


def test_resources_cannot_be_negative() -> None:
    for field in ("cores", "gpus", "memory"):
        with pytest.raises(ValueError, match="negative"):
            Resources(**{field: -1})


@pytest.mark.parametrize(("seconds", "bucket"), [(0, -1), (-1, -1), (0.5, 0), (1, 0), (1.1, 1), (2, 1), (1024, 10)])
def test_runtime_buckets(seconds: float, bucket: int) -> None:
    assert runtime_bucket(seconds) == bucket


def test_total_cores() -> None:
    assert Shape(ranks=3, cores=4).total_cores == 12


# --- ids --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**30), st.integers(0, ids.NUMBER_MASK))
def test_ids_have_names(incarnation: int, number: int) -> None:
    identifier = ids.make_id(incarnation, number)
    assert ids.incarnation_of(identifier) == incarnation
    assert ids.parse_task(ids.task_name(identifier)) == identifier
    assert ids.parse_task(f"{incarnation}.{number}") == identifier


def test_a_name_has_six_digits() -> None:
    assert ids.task_name(ids.make_id(2, 17)) == "task.2.000017"


@pytest.mark.parametrize("text", ["", "task.1", "1", "task.1.2.3", "task.a.b", " 1.2", "1.2x"])
def test_what_names_no_task(text: str) -> None:
    with pytest.raises(ValueError, match="not a task name"):
        ids.parse_task(text)


@given(st.integers(1, 1 << 31), st.integers(0, (1 << 32) - 1))
def test_a_text_without_names_of_tasks_is_the_same_in_every_run(incarnation: int, number: int) -> None:
    name = ids.task_name(ids.make_id(incarnation, number))
    assert ids.without_ids(f"use: {name}, ({name})") == "use: task, (task)"
    assert ids.without_ids(f"v1.2.3 subtask.{name} {name}x task.md") == f"v1.2.3 subtask.task {name}x task.md"


def test_session_names() -> None:
    for good in ("a", "mesh-study", "A1._-", "x" * 64):
        assert ids.check_session_name(good) == good
    for bad in ("", ".a", "-a", "a/b", "a b", "x" * 65, "..", "é"):
        with pytest.raises(ValueError, match="cannot name a session"):
            ids.check_session_name(bad)


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_a_shape_of_a_description() -> None:
    task = TaskDescription(
        executable="x",
        ranks=2,
        cores_per_rank=3,
        gpus_per_rank=1 / 3,
        mem_per_rank=10,
        ranks_per_node=1,
        tags={"colocate": "a", "exclusive": True},
        expected_runtime=100,
    )
    assert shape_of(task) == Shape(
        ranks=2,
        cores=3,
        gpu_shares=round(GPU_SHARES / 3),
        memory=10,
        ranks_per_node=1,
        colocate="a",
        exclusive=True,
        runtime_bucket=7,
        launcher=True,
    )
    assert shape_of(CallOptions()) == Shape()
    either = CallOptions(gpus_per_rank=1, alternatives=[Resources(cores=8), Resources(cores=2, gpus=0.5, memory=9)])
    assert shape_of(either).choices == (
        Shape(gpu_shares=GPU_SHARES),
        Shape(cores=8),
        Shape(cores=2, gpu_shares=GPU_SHARES // 2, memory=9),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"executable": ""},
        {"executable": "a\0b"},
        {"arguments": ["\0"]},
        {"arguments": [1]},
        {"environment": {"": "x"}},
        {"environment": {"A=B": "x"}},
        {"environment": {"A": 1}},
        {"ranks": 0},
        {"ranks": 1.0},
        {"ranks": True},
        {"ranks": descriptions.MAX_RANKS + 1},
        {"cores_per_rank": 0},
        {"gpus_per_rank": -1},
        {"gpus_per_rank": 1.5},
        {"mem_per_rank": -1},
        {"timeout": -1},
        {"retries": -1},
        {"grace": 4000},
        {"priority": 1 << 31},
        {"on_preempt": "nothing"},
        {"effects": "inside"},
        {"tags": {"other": True}},
        {"alternatives": [8]},
        {"alternatives": [Resources(cores=0)]},
        {"alternatives": [Resources(gpus=1.5)]},
        {"alternatives": [Resources()] * 9},
    ],
)
def test_what_cannot_be_meant(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        TaskDescription(**{"executable": "x", **fields}).verify()


def test_what_can_be_meant() -> None:
    TaskDescription(executable="x", gpus_per_rank=2.0, priority=-5, tags={"colocate": "a"}).verify()
    CallOptions(gpus_per_rank=0.5, retries=3).verify()
    PilotDescription(cores=4, noop=True, simulated_nodes=100).verify()
    misspelt: Any = {"executabel": "x"}
    with pytest.raises(TypeError):
        TaskDescription(**misspelt)


@pytest.mark.parametrize(
    "fields",
    [
        {"resource": ""},
        {"nodes": -1},
        {"cores": 1.5},
        {"gpus": True},
        {"memory": -1},
        {"runtime": 0},
        {"simulated_nodes": 2},
        {"simulated_nodes": 0, "noop": True},
    ],
)
def test_what_pilot_cannot_be_meant(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        PilotDescription(**fields).verify()


@pytest.mark.parametrize("value", [TaskDescription(executable="x", ranks=2), PilotDescription(nodes=3), CallOptions()])
def test_descriptions_travel(value: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


def test_the_largest_node_is_said_by_what_is_asked_for() -> None:
    nodes = [
        NodeInventory(name="n1", cores=[0, 1, 2, 3], gpus=[0], memory=250),
        NodeInventory(name="n2", cores=[0], gpus=[0, 1], memory=500),
    ]
    assert largest(Shape(), nodes) == "the largest node has 4 cores"
    assert largest(Shape(memory=600), nodes) == "the largest node has 4 cores, 500 MB"
    assert largest(Shape(gpu_shares=GPU_SHARES, memory=1), nodes[1:]) == "the largest node has 1 core, 2 GPUs, 500 MB"
    assert largest(Shape(alternatives=(Shape(memory=9),)), nodes) == "the largest node has 4 cores, 500 MB"
    assert largest(Shape(memory=600), [NodeInventory(name="n", cores=[0])]) == "the largest node has 1 core"
