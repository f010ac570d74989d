"""Launcher slots: how many multi-rank starts a site bears at once."""

from __future__ import annotations

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import Shape
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import Cancel, Condition, End, Holds, NodeDown
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk, told

MPI = Shape(ranks=2, launcher=True)


def launched(made: Cluster) -> set[int]:
    return {task for task in made.tasks() if made.shapes[task].launcher}


def test_no_more_run_at_once_than_there_are_and_what_needs_none_is_not_kept_waiting() -> None:
    made = cluster([10], launchers=2, credit=0)
    made.submit(bulk(1, 5, shape=MPI), bulk(10, 4))
    made.deliver()
    assert launched(made) == {1, 2}
    assert made.tasks() >= {10, 11, 12, 13}
    explained = made.core.explain(5)
    assert explained.holds is Holds.LAUNCHERS
    assert "all 2 launchers" in explained.text
    made.finish(1)
    assert launched(made) == {2, 3}
    made.run_dry()
    assert not made.live


def test_a_launcher_is_held_to_the_very_end_on_all_nodes() -> None:
    made = cluster([1, 1, 2], launchers=1)
    made.submit(bulk(1, shape=Shape(ranks=2, ranks_per_node=1, launcher=True)), bulk(2, shape=MPI))
    made.deliver()
    assert launched(made) == {1}
    made.nodes[next(node for node, task in made.running() if task == 1)].finish(1)
    made.deliver()
    assert launched(made) == {1}
    made.finish(1)
    assert launched(made) == {2}
    made.tell(Cancel([(2, 1)]))
    made.submit(bulk(3, shape=MPI))
    made.deliver()
    assert 3 not in made.tasks()  # the canceled one has not ended yet
    made.obey_ends()
    assert launched(made) == {3}


def test_a_lost_node_gives_its_launchers_back() -> None:
    made = cluster([2, 2], launchers=1, credit=0)
    made.submit(bulk(1, shape=MPI))
    made.deliver()
    (node,) = {node for node, _ in made.running()}
    made.submit(bulk(2, shape=MPI))
    made.down(node)
    made.deliver()
    assert launched(made) == {2}
    assert made.returned[1].cause is Cause.NODE_LOST


def test_needed_work_takes_the_launcher_of_the_least_valuable() -> None:
    made = cluster([16], launchers=3)
    made.tell(Condition(1, Truth.UNDECIDED, 0.2), Condition(2, Truth.UNDECIDED, 0.8))
    made.submit(bulk(1, shape=MPI, condition=2), bulk(2, shape=MPI, condition=1), bulk(3, shape=MPI))
    made.deliver()
    assert launched(made) == {1, 2, 3}
    made.submit(bulk(4, shape=MPI))
    assert [end.tasks for end in told(made, End)] == [[2]]
    made.submit(bulk(20, 8, tier=Tier.BACKFILL), bulk(30, 2, shape=MPI, tier=Tier.BACKFILL))
    made.obey_ends()
    assert launched(made) == {1, 3, 4}
    assert made.returned[2].cause is Cause.PREEMPTED
    made.submit(bulk(5, shape=MPI))
    made.obey_ends()
    assert launched(made) == {3, 4, 5}
    made.submit(bulk(6, shape=MPI))
    assert len(told(made, End)) == 2  # nobody is left who could be told
    made.run_dry()
    assert not made.live


def test_a_suspended_victim_keeps_its_launcher_so_it_is_ended_for_one() -> None:
    made = cluster([2], launchers=1)
    made.submit(bulk(1, shape=MPI, tier=Tier.BACKFILL, on_preempt="suspend"))
    made.deliver()
    made.submit(bulk(2, 2))
    made.deliver()
    assert made.tasks() == {2, 3}  # the cores are enough for those
    made.finish(2, 3)
    assert made.tasks() == {1}
    made.submit(bulk(4, shape=MPI))
    made.obey_ends()
    assert made.tasks() == {4}
    assert made.returned[1].cause is Cause.PREEMPTED


def test_lower_work_does_not_take_a_launcher_that_needed_work_waits_for() -> None:
    made = cluster([4], launchers=1)
    made.submit(bulk(1, 2, shape=MPI), bulk(5, 5, shape=MPI, tier=Tier.BACKFILL, priority=9))
    made.deliver()
    made.finish(1)
    assert launched(made) == {2}


def test_a_big_gang_gets_a_launcher_although_small_ones_never_end_coming() -> None:
    made = cluster([2, 2], launchers=2, credit=2)
    made.submit(bulk(1, 2, shape=MPI))
    made.deliver()
    made.submit(bulk(10, shape=Shape(ranks=4, launcher=True)))
    for number in range(60):
        made.submit(bulk(100 + number, shape=MPI))
        made.finish(min(made.tasks()))
        if 10 in made.tasks():
            return
    raise AssertionError("the gang never started")


def test_an_old_shape_gets_a_launcher_before_the_chain_of_another_one_goes_on() -> None:
    made = cluster([20], launchers=2)
    made.submit(bulk(1, 2, shape=MPI))
    made.submit(bulk(10, shape=Shape(ranks=3, launcher=True)), bulk(100, 30, shape=MPI))
    made.deliver()
    made.finish(1)
    assert launched(made) == {2, 10}


@pytest.mark.parametrize("launchers", [0, -1])
def test_there_is_one_at_least(launchers: int) -> None:
    made = cluster([2], launchers=1)
    made.core = type(made.core)(launchers=launchers)
    made.up(0, 2)
    made.submit(bulk(1, shape=MPI))
    made.run_dry()
    assert made.over == [1]


def test_what_waits_for_a_launcher_alone_keeps_no_cores() -> None:
    made = cluster([4], launchers=1)
    made.submit(bulk(1, shape=MPI), bulk(2, shape=MPI))
    made.deliver()
    assert made.core.planned == 0
    made.submit(bulk(10, 2))
    made.deliver()
    assert made.tasks() == {1, 10, 11}
    # Now it wants cores as well, and gets the next ones together with the next launcher.
    made.submit(bulk(20, 4))
    made.finish(1)
    assert 2 in made.tasks()


def test_a_node_that_is_gone_leaves_no_plan_with_a_launcher() -> None:
    made = cluster([2, 2], launchers=1)
    made.submit(bulk(1, shape=MPI), bulk(10, 2), bulk(2, shape=Shape(ranks=4, launcher=True)))
    made.deliver()
    made.tell(NodeDown(0), NodeDown(1))
    made.nodes.clear()
    assert not made.core._world.launchers.plans
    assert not made.core._world.launchers.used
