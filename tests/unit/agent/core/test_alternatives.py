"""Requests with alternatives: one GPU or eight cores."""

from __future__ import annotations

from typing import Any

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Shape, fits, places
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import End, Holds, NodeChanges
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk, slots_of, told

EITHER = Shape(gpu_shares=GPU_SHARES, alternatives=(Shape(cores=4),))
"""One core and a GPU, or four cores."""


def got(made: Cluster, task: int) -> tuple[int, int]:
    """Return how many cores and GPUs a task has."""
    slots: list[Any] = slots_of(made, task)
    return sum(slot.cores.bit_count() for slot in slots), sum(len(slot.gpus) for slot in slots)


def test_the_first_choice_is_taken_while_it_fits_and_then_the_alternative() -> None:
    made = cluster([8], gpus=2)
    made.submit(bulk(1, 4, shape=EITHER))
    made.deliver()
    assert [got(made, task) for task in (1, 2, 3)] == [(1, 1), (1, 1), (4, 0)]
    assert made.tasks() == {1, 2, 3}
    made.finish(1)
    assert got(made, 4) == (1, 1)


def test_the_first_choice_on_another_node_comes_before_the_alternative_here() -> None:
    made = cluster([4])
    made.core = type(made.core)(nodes=2)
    made.up(0, 4)
    made.up(1, 4, 1)
    made.submit(bulk(1, shape=EITHER))
    assert got(made, 1) == (1, 1)
    made.run_dry()
    made.submit(bulk(10, 2, cores=4))
    made.deliver()
    made.submit(bulk(20, 2, shape=EITHER))
    made.deliver()
    for node in (0, 1):  # one event: both are free when anybody looks
        made.nodes[node].finish(10 + node)
    changes = {node: made.nodes[node].outbox.popleft() for node in (0, 1)}
    made.tell(*(NodeChanges(node, change) for node, change in changes.items()))
    assert sorted(got(made, task) for task in (20, 21)) == [(1, 1), (4, 0)]


def test_where_the_first_choice_never_fits_the_alternative_runs_and_without_either_it_is_unfit() -> None:
    made = cluster([4])
    made.submit(bulk(1, 3, shape=EITHER), bulk(10, shape=Shape(gpu_shares=GPU_SHARES, alternatives=(Shape(cores=5),))))
    made.run_dry()
    assert set(made.over) == {1, 2, 3}
    assert made.returned[10].cause is Cause.UNFIT


def test_a_plan_starts_in_whichever_form_fits_first() -> None:
    made = cluster([6], gpus=1)
    made.submit(bulk(1, shape=Shape(gpu_shares=GPU_SHARES)), bulk(2, cores=4))
    made.deliver()
    made.submit(bulk(10, shape=EITHER), bulk(20, 3))
    made.deliver()
    assert 10 not in made.tasks()
    made.finish(2)
    assert got(made, 10) == (4, 0)


def test_it_is_not_starved_in_any_of_its_forms() -> None:
    made = cluster([4], gpus=1)
    small = Shape(gpu_shares=GPU_SHARES // 2)
    made.submit(bulk(100, 2, shape=small), bulk(200, 2))
    made.deliver()
    made.submit(bulk(1, shape=EITHER))
    for number in range(40):
        made.submit(bulk(1000 + number, shape=small), bulk(2000 + number))
        made.finish(min(made.tasks() - {1}))
        if 1 in made.tasks():
            return
    raise AssertionError("it never started")


def test_needed_work_makes_room_for_an_alternative_when_nobody_gives_up_the_first_choice() -> None:
    made = cluster([6], gpus=1)
    made.submit(bulk(1, shape=Shape(gpu_shares=GPU_SHARES)), bulk(2, 5, tier=Tier.BACKFILL))
    made.deliver()
    made.submit(bulk(10, shape=EITHER))
    made.obey_ends()
    assert got(made, 10) == (4, 0)
    assert len(told(made, End)[0].tasks) == 4


def test_a_gang_has_all_its_ranks_in_one_form() -> None:
    made = cluster([4, 4], gpus=1)
    made.submit(bulk(1, shape=Shape(ranks=3, gpu_shares=GPU_SHARES, alternatives=(Shape(cores=2),))))
    made.deliver()
    assert got(made, 1) == (6, 0)


def test_explain_says_that_no_alternative_fits() -> None:
    made = cluster([4], gpus=1)
    made.submit(bulk(1, 4), bulk(10, 2, shape=EITHER))
    made.deliver()
    explained = made.core.explain(11)
    assert explained.holds is Holds.GPUS
    assert "alternative" in explained.text


def test_only_amounts_of_an_alternative_count() -> None:
    shape = Shape(ranks=2, cores=3, launcher=True, alternatives=(Shape(ranks=9, memory=5, alternatives=(Shape(),)),))
    assert shape.choices == (Shape(ranks=2, cores=3, launcher=True), Shape(ranks=2, memory=5, launcher=True))
    assert shape.describe() == "2 x 3 cores, or 2 x 1 core with 5 MB a rank"


def test_what_pilots_can_hold_and_how_many_at_once() -> None:
    nodes = [NodeInventory(name="n", cores=list(range(8)))]
    assert fits(EITHER, nodes)
    assert places(EITHER, nodes) == 2
    assert not fits(Shape(gpu_shares=GPU_SHARES, alternatives=(Shape(cores=9),)), nodes)
