"""What the scheduling core promises, one example a promise."""

from __future__ import annotations

import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, Shape
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import (
    FINISHED,
    Bulk,
    Cancel,
    Changed,
    Condition,
    End,
    Holds,
    NodeChanges,
    Note,
    SchedulingCore,
    Start,
)
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk, slots_of, timed, told

# --- order ------------------------------------------------------------------------------------------------------------


def test_order_of_tiers_priorities_scores_and_arrival() -> None:
    made = cluster([1], credit=0)
    made.tell(Condition(1, Truth.UNDECIDED, 0.2), Condition(2, Truth.UNDECIDED, 0.7))
    made.submit(bulk(1, tier=Tier.SERVICE, on_preempt="finish"))  # occupies the core
    made.submit(
        bulk(10, tier=Tier.BACKFILL),
        bulk(20, tier=Tier.SPECULATIVE, condition=1),
        bulk(30, tier=Tier.SPECULATIVE, condition=2),
        bulk(40),
        bulk(50, priority=5),
        bulk(60),
        bulk(70, tier=Tier.SERVICE),
        bulk(80, priority=-5),
        bulk(90, tier=Tier.SPECULATIVE, condition=1, priority=1),
    )
    made.run_dry()
    assert made.decided == [1, 70, 50, 40, 60, 80, 90, 30, 20, 10]


def test_first_come_first_served_over_shapes_of_one_level() -> None:
    made = cluster([2], credit=0)
    made.submit(bulk(1, shape=Shape(cores=2)))
    made.submit(bulk(2), bulk(3, cores=2), bulk(4), bulk(5, cores=2))
    made.run_dry()
    assert made.decided.index(2) < made.decided.index(4)
    assert made.decided.index(3) < made.decided.index(5)
    assert made.over[0] == 1
    assert sorted(made.over) == [1, 2, 3, 4, 5]


def test_a_new_score_reorders_what_is_queued_but_not_needed_work() -> None:
    made = cluster([1], credit=0)
    made.tell(Condition(1, Truth.UNDECIDED, 0.2), Condition(2, Truth.UNDECIDED, 0.7))
    made.submit(bulk(1), bulk(2, condition=1), bulk(3, condition=2), bulk(4, condition=2, kind=9))
    made.tell(Condition(1, Truth.UNDECIDED, 0.8), Condition(2, Truth.UNDECIDED, 0.7, {9: 0.9}))
    made.run_dry()
    assert made.decided == [1, 4, 2, 3]


def test_a_retracted_attempt_keeps_its_place() -> None:
    made = cluster([1])
    made.submit(bulk(1, 9))
    made.deliver()
    made.submit(bulk(20, priority=1))
    made.run_dry()
    assert [task for task in made.over if task != 20] == list(range(1, 10))
    assert made.over.index(20) <= 2


def test_better_work_that_is_held_ahead_elsewhere_gets_a_core_before_worse_work_does() -> None:
    made = cluster([2])
    made.tell(Condition(1, Truth.UNDECIDED, 0.9), Condition(2, Truth.UNDECIDED, 0.1))
    made.submit(bulk(1, tier=Tier.SERVICE, on_preempt="finish"))
    made.submit(bulk(10, 2, condition=1))
    made.submit(bulk(20, condition=2))
    made.deliver()
    assert {task for _, task in made.running()} == {1, 10}
    made.finish(1)
    made.deliver()
    assert {task for _, task in made.running()} == {10, 11}
    made.run_dry()
    assert made.over[-1] == 20


def test_a_chain_does_not_keep_its_slots_from_older_work_for_ever() -> None:
    made = cluster([2])
    made.submit(bulk(1, 10), timed(100, 5.0), bulk(1000, 4000))
    made.deliver()
    ended = 0
    while 100 not in made.tasks():
        made.finish(min(made.tasks()))
        ended += 1
        assert ended < 1024 + 20


def test_a_blocked_shape_does_not_block_others() -> None:
    made = cluster([4])
    made.submit(bulk(1, cores=3), bulk(2, cores=2, tier=Tier.SPECULATIVE), bulk(3, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 3}


# --- slots ------------------------------------------------------------------------------------------------------------


def test_shares_of_gpus_are_packed_and_whole_gpus_stay_whole() -> None:
    made = cluster([8], gpus=2)
    half, whole = Shape(gpu_shares=GPU_SHARES // 2), Shape(gpu_shares=GPU_SHARES)
    made.submit(bulk(1, 2, shape=half), bulk(3, shape=whole), bulk(4, shape=half))
    first, second, third = (slots_of(made, task)[0] for task in (1, 2, 3))
    assert first.gpus == second.gpus
    assert first.gpu_shares == GPU_SHARES // 2
    assert third.gpus != first.gpus
    assert third.gpu_shares == GPU_SHARES
    assert made.core.explain(4).holds in {Holds.GPUS, Holds.AHEAD, Holds.PLAN}


def test_memory_is_counted_where_the_node_counts_it() -> None:
    counted, uncounted = cluster([4], memory=100), cluster([4])
    for made in (counted, uncounted):
        made.submit(bulk(1, 3, shape=Shape(memory=50)))
    assert len(slots_of(counted, 1) + slots_of(counted, 2)) == 2
    assert not slots_of(counted, 3)
    assert slots_of(uncounted, 3)


def test_all_ranks_of_a_gang_start_together_over_several_nodes() -> None:
    made = cluster([2, 2, 2])
    made.submit(bulk(1), bulk(2, ranks=5))
    assert len(slots_of(made, 2)) == 5
    made.submit(bulk(3, ranks=3))
    assert not slots_of(made, 3)
    made.run_dry()
    assert sorted(made.over) == [1, 2, 3]


def test_ranks_per_node_bounds_the_ranks_on_a_node() -> None:
    made = cluster([4, 4])
    made.submit(bulk(1, shape=Shape(ranks=4, ranks_per_node=2)))
    assert sorted(slot.node for slot in slots_of(made, 1)) == [0, 0, 1, 1]


def test_colocated_tasks_share_a_node_even_one_after_the_other() -> None:
    made = cluster([2, 4])
    made.submit(bulk(1, shape=Shape(colocate="x")))
    node = slots_of(made, 1)[0].node
    made.run_dry()
    made.submit(bulk(2, 3, shape=Shape(colocate="x")))
    made.run_dry()
    assert {slot.node for task in (2, 3, 4) for slot in slots_of(made, task)} == {node}
    assert len(made.over) == 4


def test_an_exclusive_task_is_alone() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1), bulk(2, shape=Shape(exclusive=True)), bulk(3, 2))
    made.deliver()
    assert slots_of(made, 1)[0].node != slots_of(made, 2)[0].node
    assert made.tasks() == {1, 2, 3}
    made.run_dry()
    assert len(made.over) == 4


def test_what_can_never_fit_is_given_back_once_all_nodes_are_up() -> None:
    made = Cluster(SchedulingCore(nodes=2))
    made.up(0, 4)
    made.submit(bulk(1, ranks=7), bulk(2, cores=5), bulk(3, shape=Shape(gpu_shares=1)))
    assert made.returned == {}
    made.up(1, 4)
    assert {task: failure.cause for task, failure in made.returned.items()} == {2: Cause.UNFIT, 3: Cause.UNFIT}
    made.submit(bulk(4, shape=Shape(ranks=5, colocate="x")))
    assert made.returned[4].cause is Cause.UNFIT
    assert made.live == {1}


# --- gangs are not starved --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [Shape(ranks=8), Shape(cores=4), Shape(exclusive=True), Shape(memory=90)])
def test_a_big_task_starts_although_small_ones_never_end_coming(shape: Shape) -> None:
    made = cluster([4, 4], memory=100)
    small = Shape(memory=10)
    made.submit(Bulk(1000, 20, 1, 1, small))
    made.submit(Bulk(1, 1, 1, 1, shape))
    following = 2000
    for turn in range(60):
        made.submit(Bulk(following, 2, 1, 1, small))
        following += 2
        made.deliver()
        if 1 in made.tasks():
            break
        running = sorted(made.running())
        made.finish(running[turn % len(running)][1])
    assert 1 in made.tasks()


def test_lower_needed_work_stays_off_claimed_slots_unless_it_ends_in_time() -> None:
    made = cluster([4])
    made.submit(bulk(1, 2, cores=2, expected_runtime=100.0, priority=1))
    made.submit(bulk(3, cores=4, priority=1))
    made.now = 10.0
    made.finish(1)
    assert made.core.explain(3).holds is Holds.PLAN
    made.submit(bulk(4))
    assert made.core.explain(4).holds is Holds.PLAN
    made.submit(timed(5, 200.0), timed(6, 50.0))
    made.submit(bulk(7, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {2, 6, 7}
    made.finish(6)
    made.finish(2)
    made.obey_ends()
    assert made.tasks() == {3}
    assert made.returned[7].cause is Cause.PREEMPTED


def test_borrowers_stay_until_what_cannot_be_preempted_has_gone() -> None:
    made = cluster([2])
    made.submit(bulk(1))
    made.submit(bulk(5, cores=2), bulk(9, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 9}
    assert told(made, End) == []
    made.finish(1)
    made.obey_ends()
    assert made.tasks() == {5}


def test_a_plan_is_expected_when_the_last_in_its_way_ends() -> None:
    made = cluster([3])
    made.submit(timed(1, 10.0), timed(2, 100.0), timed(3, 1000.0))
    made.submit(bulk(5, cores=3))
    made.finish(1)
    made.submit(timed(6, 500.0))
    made.deliver()
    assert made.tasks() == {2, 3, 6}


def test_nothing_follows_a_gang_over_several_nodes() -> None:
    made = cluster([1, 1])
    made.submit(bulk(1, 9, ranks=2))
    starts = [one for start in told(made, Start) for one in start.placed]
    assert [one.chain for one in starts] == [0, 0]
    assert made.core.held == 0


def test_a_plan_moves_to_slots_that_are_free_earlier() -> None:
    made = cluster([2, 2], credit=0)
    made.submit(bulk(1, 4))
    made.submit(bulk(5, cores=2))
    where = told(made, Note)
    assert len(where) == 1
    claimed = made.core.explain(5).nodes[0]
    other = [task for task in (1, 2, 3, 4) if slots_of(made, task)[0].node != claimed]
    made.deliver()
    for task in other:
        made.finish(task)
    assert 5 in made.tasks()


@pytest.mark.parametrize("first", [1, 2])
def test_a_plan_waits_for_no_more_than_it_must(first: int) -> None:
    made = cluster([6])
    made.submit(bulk(1, cores=2), bulk(2, cores=2), bulk(10, cores=4))
    made.deliver()
    made.submit(bulk(20, 5))
    made.finish(first)
    assert 10 in made.tasks()  # two cores were free: whoever of the two ends, the four are there


def test_a_plan_comes_before_what_is_lower() -> None:
    made = cluster([2, 2], credit=0)
    made.submit(bulk(1, 4))
    made.submit(bulk(5, cores=2), bulk(10, 3, priority=-1))
    made.deliver()
    node = made.nodes[1 - made.core.explain(5).nodes[0]]
    for task in list(node.running):
        node.finish(task)
    made.report(node, 2)
    made.deliver()
    assert made.tasks() >= {5}
    assert not made.tasks() & {10, 11, 12}


# --- preemption -------------------------------------------------------------------------------------------------------


def preemptible(made: Cluster, mode: str, grace: float = 5.0) -> None:
    made.submit(bulk(1, tier=Tier.BACKFILL, on_preempt=mode, grace=grace))
    made.deliver()


@pytest.mark.parametrize("mode", ["kill", "requeue"])
def test_a_victim_is_ended_and_given_back(mode: str) -> None:
    made = cluster([1])
    preemptible(made, mode, grace=7.0)
    made.submit(bulk(2))
    (ended,) = told(made, End)
    assert (ended.node, ended.tasks, ended.mode, ended.grace) == (0, [1], mode, 7.0)
    assert made.tasks() == {1}
    made.obey_ends()
    assert made.tasks() == {2}
    assert made.returned[1].cause is Cause.PREEMPTED


def test_what_dies_of_our_signal_is_preempted_and_what_ends_well_is_over() -> None:
    made = cluster([2])
    made.submit(bulk(1, 2, tier=Tier.BACKFILL))
    made.submit(bulk(3, 2))
    made.tell(NodeChanges(0, [Changed(1, 1, 1, FINISHED, 0, Failure(Cause.EXIT, "", exit_code=-15))]))
    made.tell(NodeChanges(0, [Changed(2, 1, 1, FINISHED)]))
    assert made.returned[1].cause is Cause.PREEMPTED
    assert made.over == [2]


def test_a_victim_that_is_canceled_or_discarded_meanwhile_does_not_come_back() -> None:
    made = cluster([2])
    made.submit(bulk(1, condition=1), bulk(2, tier=Tier.BACKFILL))
    made.submit(bulk(3, 2))
    made.tell(Cancel([(2, 1)]))
    made.tell(Condition(1, Truth.FALSE))
    made.obey_ends()
    assert made.returned[1].cause is Cause.DISCARDED
    assert made.returned[2].cause is Cause.CANCELED


def test_a_suspended_victim_goes_on_on_its_own_cores_and_keeps_its_memory() -> None:
    made = cluster([2], memory=100)
    made.submit(bulk(1, tier=Tier.BACKFILL, on_preempt="suspend", shape=Shape(memory=60)))
    made.submit(bulk(2, tier=Tier.BACKFILL, on_preempt="finish"))
    made.submit(bulk(3), bulk(4, shape=Shape(memory=50), tier=Tier.SPECULATIVE))
    made.deliver()
    assert made.tasks() == {2, 3}
    assert made.core.explain(1).holds is Holds.SUSPENDED
    made.finish(2)
    assert made.tasks() == {3}  # the core is free, the memory is not, and it is not its own core
    made.finish(3)
    assert made.tasks() == {1}
    made.run_dry()
    assert sorted(made.over) == [1, 2, 3, 4]


def test_what_is_suspended_goes_on_before_lower_work_starts() -> None:
    made = cluster([1])
    made.submit(bulk(1, tier=Tier.SPECULATIVE, on_preempt="suspend"))
    made.submit(bulk(2), bulk(3, tier=Tier.BACKFILL), bulk(4, tier=Tier.SPECULATIVE, priority=1))
    made.finish(2)
    assert made.tasks() == {4}
    made.finish(4)
    assert made.tasks() == {1}


def test_suspending_is_not_enough_when_memory_is_what_is_wanted() -> None:
    made = cluster([2], memory=100)
    made.submit(bulk(1, tier=Tier.BACKFILL, on_preempt="suspend", shape=Shape(memory=60)))
    made.submit(bulk(2, shape=Shape(memory=50)))
    assert [end.mode for end in told(made, End)] == ["kill"]
    made.obey_ends()
    assert made.tasks() == {2}


def test_a_needed_suspended_attempt_gets_its_cores_back() -> None:
    made = cluster([1])
    made.submit(bulk(1, condition=1, on_preempt="suspend"))
    made.submit(bulk(2))
    made.deliver()
    made.submit(bulk(3, tier=Tier.BACKFILL))
    made.tell(Condition(1, Truth.TRUE))
    assert made.tasks() == {2}
    made.finish(2)
    assert made.tasks() == {1}


def test_finish_is_never_a_victim() -> None:
    made = cluster([1])
    preemptible(made, "finish")
    made.submit(bulk(2))
    made.deliver()
    assert told(made, End) == []
    made.finish(1)
    assert made.tasks() == {2}


def test_victims_are_the_lowest_tier_the_lowest_score_and_the_latest() -> None:
    made = cluster([5])
    made.tell(Condition(1, Truth.UNDECIDED, 0.9), Condition(2, Truth.UNDECIDED, 0.1))
    for now, one in enumerate(
        [bulk(1, tier=Tier.BACKFILL), bulk(2, tier=Tier.BACKFILL), bulk(3, condition=1), bulk(4, condition=2), bulk(5)]
    ):
        made.now = float(now)
        made.submit(one)
    ended = []
    for task in (6, 7, 8, 9):
        made.submit(bulk(task))
        ended.append(told(made, End)[-1].tasks[0])
    assert ended == [2, 1, 4, 3]


def test_the_lowest_tier_gives_way_on_whichever_node_it_is() -> None:
    for first, second, victim in ((Tier.SPECULATIVE, Tier.BACKFILL, 2), (Tier.BACKFILL, Tier.SPECULATIVE, 1)):
        made = cluster([1, 1])
        made.submit(bulk(1, tier=first))
        made.now = 1.0
        made.submit(bulk(2, tier=second))
        made.submit(bulk(3))
        assert [end.tasks for end in told(made, End)] == [[victim]]


def test_no_more_victims_than_needed() -> None:
    made = cluster([4])
    made.now = 1.0
    made.submit(bulk(1, cores=2, tier=Tier.BACKFILL))
    made.now = 2.0
    made.submit(bulk(2, tier=Tier.BACKFILL))
    made.submit(bulk(3, cores=3))
    assert sorted(task for end in told(made, End) for task in end.tasks) == [1]


def test_nothing_slips_onto_the_slots_of_victims() -> None:
    made = cluster([2])
    made.submit(bulk(1, 2, cores=1, tier=Tier.BACKFILL))
    made.submit(bulk(3, cores=2))
    made.submit(bulk(4, 5), bulk(20, 5, tier=Tier.SPECULATIVE))
    made.deliver()
    node = made.nodes[0]
    node.finish(1)
    made.deliver()
    assert made.tasks() == {2}
    node.finish(2)
    made.deliver()
    assert made.tasks() == {3}


def test_a_needed_gang_preempts_over_several_nodes() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1, 4, tier=Tier.BACKFILL))
    made.submit(bulk(9, ranks=4))
    made.obey_ends()
    assert made.tasks() == {9}
    assert sorted(made.returned) == [1, 2, 3, 4]
