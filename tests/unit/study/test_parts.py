"""The parts of the study core: bulks, the table, queues, pilots, conditions."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.conditions import equals
from pilot_hitl.model.resources import NodeInventory, Shape
from pilot_hitl.model.states import State, Tier, Truth
from pilot_hitl.study.bulk import Bulk, Table, tier_of
from pilot_hitl.study.conditions import Condition, Conditions
from pilot_hitl.study.events import SubmitTasks
from pilot_hitl.study.pilots import Pilot, describe, fits, ranks_on_gpus
from pilot_hitl.study.ready import Ready
from tests.unit.study.world import ONE, TWO, schema_test, task

ALWAYS = Conditions(schema_test).always
NEW, QUEUED, SCHEDULED = int(State.NEW), int(State.QUEUED), int(State.SCHEDULED)


def bulk(first: int, count: int = 1, base: int = 0, condition: Condition = ALWAYS, **fields: Any) -> Bulk:
    return Bulk(SubmitTasks(first, count, fields.pop("shape", ONE), **fields), condition, base)


# --- bulk -------------------------------------------------------------------------------------------------------------


def test_pieces_of_an_untouched_bulk_are_one() -> None:
    assert list(bulk(0, 256).pieces(0, 256, NEW)) == [(0, 256)]
    assert list(bulk(0, 256).pieces(16, 40, NEW)) == [(16, 40)]
    assert list(bulk(0, 256).pieces(0, 256, QUEUED)) == []
    assert list(bulk(0, 256).pieces(0, 0, NEW)) == [(0, 0)]


@given(st.lists(st.tuples(st.sampled_from([NEW, QUEUED]), st.integers(0, 1)), min_size=1, max_size=40), st.data())
def test_pieces_cover_exactly_what_has_the_state_and_are_as_long_as_can_be(
    tasks: list[tuple[int, int]], data: st.DataObject
) -> None:
    some = bulk(0, len(tasks), base=5)
    for at, (state, run) in enumerate(tasks):
        some.states[at] = state
        if run:
            some.runs[at] = 5 + run
    start = data.draw(st.integers(0, len(tasks) - 1))
    count = data.draw(st.integers(1, len(tasks) - start))
    pieces = list(some.pieces(start, count, QUEUED))
    covered = [at for offset, length in pieces for at in range(offset, offset + length)]
    assert covered == [at for at in range(start, start + count) if tasks[at][0] == QUEUED]
    for offset, length in pieces:
        assert len({some.run(at) for at in range(offset, offset + length)}) == 1
    for (offset, length), (following, _length) in pairwise(pieces):
        assert following > offset + length or some.run(following) != some.run(offset)


def test_unfinished_are_those_without_a_final_state() -> None:
    some = bulk(0, 4)
    some.states[:] = bytes([State.DONE, State.HELD, State.CANCELED, State.NEW])
    assert list(some.unfinished()) == [1, 3]


def test_the_tier_follows_the_condition() -> None:
    undecided = Condition(1, frozenset(), -1.0, impossible=False)
    assert tier_of(undecided, backfill=True) is Tier.SPECULATIVE
    assert tier_of(ALWAYS, backfill=True) is Tier.BACKFILL
    assert tier_of(ALWAYS, backfill=False) is Tier.NEEDED


# --- table ------------------------------------------------------------------------------------------------------------


def test_tasks_are_found_wherever_their_bulk_was_inserted() -> None:
    table = Table(lambda _task: None)
    bulks = [bulk(task(20), 5), bulk(task(0), 5), bulk(task(10), 5), bulk(task(0, 2), 3)]
    for some in bulks:
        table.add(some)
    for some in bulks:
        assert table.find(some.first) is some
        assert table.find(some.first + some.count - 1) is some
    for missing in (task(5), task(9), task(15), task(25), task(3, 2), task(0, 3), 0, -1):
        assert table.find(missing) is None
    assert [some.first for some in table.of(1)] == [task(0), task(10), task(20)]
    assert table.of(7) == []
    assert len(list(table)) == 4
    assert table.state_of(task(21)) == NEW
    assert table.state_of(task(99)) is None


@pytest.mark.parametrize(("first", "count"), [(10, 1), (14, 1), (8, 3), (14, 9), (9, 20), (12, 2), (0, 11), (29, 2)])
def test_ids_are_given_once(first: int, count: int) -> None:
    table = Table(lambda _task: None)
    for start in (30, 10):
        table.add(bulk(task(start), 5))
    with pytest.raises(ValueError, match="exist already"):
        table.add(bulk(task(first), count))
    table.add(bulk(task(15), 15))
    table.add(bulk(task(0), 10))


@given(st.lists(st.integers(0, 60), unique=True, max_size=12), st.integers(0, 70), st.integers(0, 30))
def test_overlapping_is_what_lies_in_a_run(starts: list[int], first: int, count: int) -> None:
    table = Table(lambda _task: None)
    for start in starts:
        table.add(bulk(task(start * 3), 2))
    found = [
        some.first + at for some, offset, n in table.overlapping(task(first), count) for at in range(offset, offset + n)
    ]
    there = sorted(task(start * 3 + at) for start in starts for at in range(2))
    assert found == [number for number in there if task(first) <= number < task(first) + count]
    assert list(table.overlapping(task(first, 9), count)) == []


@given(st.data(), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=12))
def test_what_ended_is_forgotten_and_found_again(data: st.DataObject, wanted: list[tuple[int, int]]) -> None:
    kept: dict[int, Bulk] = {}
    table = Table(lambda number: next((each for each in kept.values() if 0 <= number - each.first < each.count), None))
    there: dict[int, int] = {}
    for place, incarnation in wanted:
        some = bulk(task(place * 3, incarnation), data.draw(st.integers(1, 5)))
        with contextlib.suppress(ValueError):
            table.add(some)
            there.update(dict.fromkeys(range(some.first, some.first + some.count), NEW))
        if data.draw(st.booleans()):
            over = [each for each in table if data.draw(st.booleans())]
            for each in over:
                each.states[:] = bytes([data.draw(st.sampled_from([State.DONE, State.FAILED]))]) * each.count
                each.live = 0
                kept[each.first] = each
                there.update(dict.fromkeys(range(each.first, each.first + each.count), each.states[0]))
            table.retire(list(table))
            assert not any(each.first in kept for each in table)
    for number, state in there.items():
        assert table.state_of(number) == state
        with pytest.raises(ValueError, match="already"):
            table.add(bulk(number, 1))
    for incarnation in (1, 2, 3):
        found = [
            each.first + at for each, at, n in table.overlapping(task(0, incarnation), 100) for at in range(at, at + n)
        ]
        assert sorted(found) == sorted(number for number in there if number >> 32 == incarnation)
    ended = [number for run in table.ended for number in range(run.first, run.end)]
    assert ended == sorted(number for number, state in there.items() if state != NEW)
    runs = list(table.ended)
    assert all(a.end < b.first or a.first >> 32 != b.first >> 32 for a, b in pairwise(runs)), "neighbours are one run"
    assert sum(run.states.get(State.FAILED, 0) for run in runs) == list(there.values()).count(State.FAILED)


# --- queues -----------------------------------------------------------------------------------------------------------


def test_queues_keep_order_of_arrival_and_a_rest_stays_in_front() -> None:
    ready = Ready()
    ready.push(one := bulk(0, 4), 0, 4)
    ready.push(two := bulk(10, 2), 0, 2)
    (key,) = ready.ordered_keys()
    run = ready.pop(key)
    assert (run.bulk, ready.count) == (one, 2)
    ready.push_back(key, run._replace(offset=3, length=1))
    head = ready.head(key)
    assert head is not None
    assert (head.bulk, head.offset, ready.count) == (one, 3, 3)
    ready.pop(key)
    assert ready.pop(key).bulk is two
    assert (ready.count, ready.ordered_keys(), ready.head(key)) == (0, [], None)


def test_a_conditions_runs_are_taken_in_order_of_arrival() -> None:
    ready = Ready()
    condition = Condition(3, frozenset(), -1.0, impossible=False)
    waiting = [bulk(n * 10, n + 1, condition=condition, shape=TWO if n % 2 else ONE, priority=n) for n in range(4)]
    for some in waiting:
        ready.push(some, 0, some.count)
    ready.push(bulk(100), 0, 1)
    assert [run.bulk for run in ready.take_condition(3)] == waiting
    assert ready.count == 1
    assert ready.take_condition(3) == []
    assert len(list(ready)) == 1


# --- pilots -----------------------------------------------------------------------------------------------------------


def node(cores: int, gpus: int = 0, memory: int = 0) -> NodeInventory:
    return NodeInventory(name="n", cores=list(range(cores)), gpus=list(range(gpus)), memory=memory)


@pytest.mark.parametrize(
    ("shape", "nodes", "answer"),
    [
        (Shape(ranks=4), (node(4),), True),
        (Shape(ranks=5), (node(4),), False),
        (Shape(ranks=5), (node(4), node(1)), True),
        (Shape(ranks=2, cores=3), (node(5),), False),
        (Shape(ranks=2, cores=3), (node(5), node(3)), True),
        (Shape(ranks=4, ranks_per_node=2), (node(8),), False),
        (Shape(ranks=4, ranks_per_node=2), (node(8), node(8)), True),
        (Shape(ranks=4, colocate="x"), (node(3), node(3)), False),
        (Shape(ranks=3, colocate="x"), (node(2), node(3)), True),
        (Shape(memory=100), (node(1, memory=99),), False),
        (Shape(memory=100), (node(1, memory=100),), True),
        (Shape(memory=100), (node(1),), True),
        (Shape(ranks=2, memory=60), (node(4, memory=100),), False),
        (Shape(gpu_shares=10_000), (node(4),), False),
        (Shape(ranks=3, gpu_shares=5_000), (node(4, gpus=1),), False),
        (Shape(ranks=3, gpu_shares=5_000), (node(4, gpus=2),), True),
        (Shape(ranks=1, cores=0), (node(1),), True),
        (Shape(), (), False),
    ],
)
def test_what_an_empty_pilot_can_hold(shape: Shape, nodes: tuple[NodeInventory, ...], answer: bool) -> None:
    assert fits(shape, nodes) is answer


def test_ranks_on_gpus_pack_a_device_and_never_straddle_two() -> None:
    assert [ranks_on_gpus(shares, 4) for shares in (10_000, 20_000, 5_000, 3_333, 6_000)] == [4, 2, 8, 12, 4]


def test_credit_is_what_the_window_leaves() -> None:
    pilot = Pilot(1)
    pilot.window = 5
    pilot.bound[1, ONE] = 3
    assert (pilot.credit(1, ONE), pilot.credit(2, ONE), pilot.credit(1, TWO)) == (2, 5, 5)


def test_a_request_in_words() -> None:
    assert describe(bulk(0)) == "1 x 1 core"
    shape = Shape(ranks=3, cores=2, gpu_shares=5_000, memory=70)
    assert describe(bulk(0, shape=shape)) == "3 x 2 cores with 0.5 GPU a rank and 70 MB a rank"
    assert describe(bulk(0, shape=Shape(memory=70))) == "1 x 1 core with 70 MB a rank"


# --- conditions -------------------------------------------------------------------------------------------------------


def test_joining_with_what_is_implied_makes_nothing_new() -> None:
    conditions = Conditions(schema_test)
    a, _ = conditions.define([equals(1, "a")])
    both, new = conditions.define([equals(1, "a"), equals(2, "b")])
    assert new
    assert conditions.join(a, both) == (both, False)
    assert conditions.join(both, a) == (both, False)
    assert conditions.join(conditions.always, a) == (a, False)
    b, _ = conditions.define([equals(2, "b")])
    assert conditions.join(a, b) == (both, False)


def test_an_answer_decides_all_that_it_can_and_nothing_twice() -> None:
    conditions = Conditions(schema_test)
    a, _ = conditions.define([equals(1, "a")])
    both, _ = conditions.define([equals(1, "a"), equals(2, "b")])
    other, _ = conditions.define([equals(1, "x"), equals(2, "b")])
    assert conditions.answer(1, '"a"') == [a, other]
    assert [c.truth for c in (a, both, other)] == [Truth.TRUE, Truth.UNDECIDED, Truth.FALSE]
    assert conditions.close(2) == [both]
    assert both.truth is Truth.FALSE
    assert {c.number for c in conditions} == {0, 1, 2, 3}


def test_a_joined_condition_of_decided_ones_is_decided() -> None:
    conditions = Conditions(schema_test)
    a, _ = conditions.define([equals(1, "a")])
    b, _ = conditions.define([equals(2, "b")])
    conditions.answer(1, '"a"')
    assert conditions.join(a, b)[0].truth is Truth.UNDECIDED
    c, _ = conditions.define([equals(3, "c")])
    conditions.answer(3, '"x"')
    assert conditions.join(a, c)[0].truth is Truth.FALSE
