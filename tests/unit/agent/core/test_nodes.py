"""Nodes that go, come back and start anew, and gangs over many of them."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import GPU_SHARES, Shape
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import End, NodeDown, SchedulingCore
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk, slots_of, told

GANG = Shape(ranks=4)
SPREAD = Shape(ranks=2, ranks_per_node=1)


def where(made: Cluster, task: int) -> list[int]:
    return sorted(node for node, other in made.running() if other == task)


# --- going and coming -------------------------------------------------------------------------------------------------


def test_a_gang_that_loses_a_node_ends_on_the_others_and_is_given_back() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1, shape=GANG))
    made.deliver()
    assert where(made, 1) == [0, 1]
    made.down(0)
    (end,) = told(made, End)
    assert (end.node, end.tasks, end.reason.cause) == (1, [1], Cause.NODE_LOST)
    made.obey_ends()
    assert made.returned[1].cause is Cause.NODE_LOST


def test_what_fits_no_longer_is_given_back_and_refused_until_the_node_is_back() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1, 2), bulk(10, 2, shape=GANG))
    made.down(1)
    assert {made.returned[task].cause for task in (10, 11)} == {Cause.NODE_LOST}
    made.submit(bulk(20, shape=GANG), bulk(30, shape=Shape(ranks=5)))
    assert made.returned[20].cause is Cause.NODE_LOST
    assert "n1" in made.returned[20].message
    assert made.returned[30].cause is Cause.UNFIT  # not with all its nodes either
    made.up(1, 2)
    made.submit(bulk(40, shape=GANG))
    made.run_dry()
    assert 40 in made.over


def test_a_node_that_comes_back_is_used_again() -> None:
    made = cluster([1, 1])
    made.submit(bulk(1, 6))
    made.deliver()
    made.tell(NodeDown(1))
    del made.nodes[1]
    made.deliver()
    made.up(1, 1)
    made.deliver()
    assert {node for node, _ in made.running()} == {0, 1}
    made.run_dry()
    assert not made.live


def test_a_node_that_starts_anew_loses_what_ran_there_and_keeps_what_waits() -> None:
    made = cluster([2, 2], credit=0)
    made.submit(bulk(1, 4), bulk(10, shape=GANG))
    made.deliver()
    lost = {task for node, task in made.running() if node == 1}
    made.restart(1)
    assert set(made.returned) == lost
    assert {made.returned[task].cause for task in lost} == {Cause.NODE_LOST}
    made.run_dry()
    assert 10 in made.over  # it was not given back, although it fits on no single node


def test_a_node_that_comes_back_with_less_is_judged_by_what_it_has() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1, 2, cores=2))
    made.deliver()
    made.submit(bulk(10, shape=GANG))
    made.down(1)
    made.up(1, 1)
    made.submit(bulk(20, shape=GANG))
    assert made.returned[20].cause is Cause.UNFIT


# --- gangs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [GANG, SPREAD, Shape(ranks=2, memory=60), Shape(ranks=2, gpu_shares=GPU_SHARES)])
def test_a_gang_over_nodes_starts_although_small_ones_never_end_coming(shape: Shape) -> None:
    made = cluster([2, 2], gpus=1, memory=100)
    small = Shape(memory=50) if shape.memory else Shape(gpu_shares=GPU_SHARES // 2) if shape.gpu_shares else Shape()
    made.submit(bulk(100, 20, shape=small))
    made.deliver()
    made.submit(bulk(1, shape=shape))
    for number in range(80):
        made.submit(bulk(1000 + number, shape=small))
        made.finish(min(made.tasks() - {1}))
        if 1 in made.tasks():
            return
    raise AssertionError("it never started")


def test_a_gang_over_nodes_does_not_wait_for_lower_tiers() -> None:
    made = cluster([2, 2, 2])
    made.submit(bulk(1, 6, tier=Tier.BACKFILL), bulk(10, 6, tier=Tier.SPECULATIVE))
    made.deliver()
    made.submit(bulk(20, shape=Shape(ranks=6)))
    made.obey_ends()
    assert where(made, 20) == [0, 1, 2]


def test_ranks_are_packed_on_few_nodes_unless_they_are_spread() -> None:
    made = cluster([5, 5, 5])
    made.submit(bulk(1, shape=GANG), bulk(2, shape=Shape(ranks=3, ranks_per_node=1)))
    made.deliver()
    assert len(where(made, 1)) == 1
    assert where(made, 2) == [0, 1, 2]


def test_an_exclusive_gang_has_its_nodes_for_itself_and_a_tag_keeps_to_its_node() -> None:
    made = cluster([2, 2, 2])
    made.submit(bulk(1, shape=Shape(ranks=4, exclusive=True)), bulk(10, 3), bulk(20, 2, shape=Shape(colocate="x")))
    made.deliver()
    alone = set(where(made, 1))
    assert len(alone) == 2
    assert not alone & {node for task in (10, 11, 12, 20, 21) for node in where(made, task)}
    made.run_dry()
    assert len({slot.node for task in (20, 21) for slot in slots_of(made, task)}) == 1


def test_shares_fill_a_started_device_first_over_nodes() -> None:
    made = cluster([8, 8], gpus=2)
    made.submit(bulk(1, cores=4), bulk(2, shape=Shape(gpu_shares=GPU_SHARES // 4)))
    made.submit(bulk(20, cores=6))
    made.submit(bulk(3, 3, shape=Shape(gpu_shares=GPU_SHARES // 4)))
    devices = {(slot.node, slot.gpus) for task in (2, 3, 4, 5) for slot in slots_of(made, task)}
    assert len(devices) == 1  # although the other node has fewer cores left
    made.submit(bulk(10, 2, shape=Shape(gpu_shares=GPU_SHARES)))
    assert all(slots_of(made, task) for task in (10, 11))


def test_the_time_until_a_gang_can_start_is_used_by_what_ends_before() -> None:
    made = cluster([2, 2], credit=0)
    made.submit(*(bulk(n, shape=Shape(runtime_bucket=7), expected_runtime=100.0) for n in (1, 2, 3)))
    made.deliver()
    made.submit(bulk(10, shape=GANG))
    made.now = 10.0
    made.submit(
        bulk(20, shape=Shape(runtime_bucket=9), expected_runtime=300.0),
        bulk(30, shape=Shape(runtime_bucket=6), expected_runtime=50.0),
    )
    made.deliver()
    assert 30 in made.tasks()  # over before the gang can start
    assert 20 not in made.tasks()


def test_borrowers_do_not_put_off_what_a_gang_waits_for() -> None:
    made = cluster([1, 1], credit=0)
    made.submit(*(bulk(n, shape=Shape(runtime_bucket=6 + n), expected_runtime=50.0 * n) for n in (1, 2)))
    made.deliver()
    made.submit(bulk(10, shape=Shape(ranks=2)), bulk(20, tier=Tier.BACKFILL, expected_runtime=1000.0))
    made.now = 50.0
    made.finish(1)
    assert 20 in made.tasks()  # it goes when it is told
    made.submit(bulk(30, expected_runtime=80.0), bulk(40, tier=Tier.BACKFILL, expected_runtime=10.0))
    made.finish(20)
    assert 30 not in made.tasks()  # the gang may start at 100, whatever borrows its cores until then
    made.now = 100.0
    made.finish(2)
    made.obey_ends()
    assert 10 in made.tasks()


def test_what_cannot_be_told_to_go_borrows_only_for_as_long_as_a_gang_waits_anyway() -> None:
    made = cluster([1, 1], credit=0)
    made.submit(*(bulk(n, shape=Shape(runtime_bucket=6 + n), expected_runtime=50.0 * n) for n in (1, 2)))
    made.deliver()
    fields: dict[str, Any] = {"tier": Tier.BACKFILL, "on_preempt": "finish"}
    made.submit(bulk(10, shape=Shape(ranks=2)), bulk(20, expected_runtime=1000.0, **fields))
    made.submit(bulk(30, shape=Shape(runtime_bucket=5), expected_runtime=30.0, **fields))
    made.now = 50.0
    made.finish(1)
    assert made.tasks() == {2, 30}


class Unchecked(SchedulingCore):
    """Its invariants cost time that follows the number of nodes, and looks."""

    def check(self) -> None:
        pass


def test_the_cost_of_a_placement_does_not_grow_with_the_nodes() -> None:
    def looks(nodes: int) -> float:
        made = Cluster(Unchecked(nodes=nodes))
        for identifier in range(nodes):
            made.up(identifier, 4)
        before = made.core.looks
        made.submit(bulk(1, 4 * nodes), bulk(10_000, 2000), bulk(20_000, 200, shape=GANG))
        for _ in range(3):
            for node in made.nodes.values():
                for task in list(node.running)[:2]:
                    node.finish(task)
            made.deliver()
        return (made.core.looks - before) / len(made.decided)

    assert looks(256) <= 2 * looks(8) + 1
