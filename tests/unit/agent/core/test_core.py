"""What the scheduling core promises, one example a promise."""

from __future__ import annotations

import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Resources, Shape, runtime_bucket
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import (
    FINISHED,
    RETRACTED,
    STARTED,
    Ahead,
    Bulk,
    Cancel,
    Changed,
    Condition,
    Drain,
    End,
    Holds,
    NodeChanges,
    NodeDown,
    NodeUp,
    Note,
    Reserve,
    Retract,
    Return,
    SchedulingCore,
    Start,
    Submit,
    Tick,
    Unchain,
    Unreserve,
    WalltimeEnds,
)
from tests.unit.agent.core.honest import Cluster, cluster


def bulk(first: int, count: int = 1, *, cores: int = 1, ranks: int = 1, **fields: object) -> Bulk:
    shape = fields.pop("shape", None) or Shape(cores=cores, ranks=ranks)
    return Bulk(first, count, 1, 1, shape, **fields)  # type: ignore[arg-type]


def timed(first: int, seconds: float) -> Bulk:
    return bulk(first, shape=Shape(runtime_bucket=runtime_bucket(seconds)), expected_runtime=seconds)


def told(made: Cluster, kind: type) -> list:  # type: ignore[type-arg]
    return [one for one in made.log if isinstance(one, kind)]


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


def slots_of(made: Cluster, task: int) -> list:  # type: ignore[type-arg]
    return [slot for start in told(made, Start) for one in start.placed if one.task == task for slot in one.slots]


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


# --- conditions -------------------------------------------------------------------------------------------------------


def test_true_makes_queued_and_running_work_needed() -> None:
    made = cluster([2])
    made.tell(Condition(1, Truth.UNDECIDED, 0.5))
    made.submit(bulk(1, 4, condition=1), bulk(10, 2, tier=Tier.BACKFILL))
    assert made.core.tiers()[Tier.SPECULATIVE][1] == 2
    made.tell(Condition(1, Truth.TRUE))
    assert Tier.SPECULATIVE not in made.core.tiers()
    made.submit(bulk(20))
    assert told(made, End) == []  # promoted work is no victim
    made.run_dry()
    assert len(made.over) == 7


def test_backfill_stays_backfill_and_true_before_submit_is_needed() -> None:
    made = cluster([1], credit=0)
    made.tell(Condition(1, Truth.TRUE))
    made.submit(bulk(1), bulk(2, tier=Tier.BACKFILL, condition=1), bulk(3, tier=Tier.SPECULATIVE, condition=1), bulk(4))
    made.run_dry()
    assert made.decided == [1, 3, 4, 2]


def test_false_drops_what_is_queued_held_and_running() -> None:
    made = cluster([1])
    made.submit(bulk(1, 100, condition=1))
    made.deliver()
    made.tell(Condition(1, Truth.FALSE))
    dropped = [one for one in told(made, Return) if one.failure.cause is Cause.DISCARDED]
    assert [one.tasks for one in dropped] == [[(4, 97)]]
    assert [end.mode for end in told(made, End)] == ["kill"]
    made.obey_ends()
    assert not made.live
    assert {failure.cause for failure in made.returned.values()} == {Cause.DISCARDED}
    made.submit(bulk(200, 3, condition=1))
    assert made.returned[201].cause is Cause.DISCARDED


def test_the_cost_of_an_answer_does_not_depend_on_how_many_wait() -> None:
    made = cluster([1])
    made.submit(bulk(1))
    made.core.step(Submit([bulk(1000, 500_000, condition=1)]), 0.0)
    made.core.step(Condition(1, Truth.TRUE), 0.0)
    assert made.core.tiers()[Tier.NEEDED][0] == 499_998
    answer = made.core.step(Condition(1, Truth.FALSE), 0.0)
    assert sum(count for one in answer if isinstance(one, Return) for _, count in one.tasks) == 499_998


# --- reservations -----------------------------------------------------------------------------------------------------


def test_reserved_slots_are_lent_to_preemptible_tiers_only() -> None:
    made = cluster([4])
    made.tell(Reserve(7, Resources(cores=3), [1]))
    made.submit(bulk(1, 2), bulk(10, 5, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 10, 11, 12}
    assert made.core.explain(2).holds in {Holds.RESERVATION, Holds.AHEAD, Holds.CORES}
    made.submit(bulk(20, 3, condition=1))
    made.tell(Condition(1, Truth.TRUE))
    made.obey_ends()
    assert made.tasks() >= {20, 21, 22}
    made.tell(Unreserve(7))
    made.run_dry()
    assert len(made.over) + len(made.returned) == 10


def test_free_reserved_slots_are_named_and_end_with_the_reservation() -> None:
    made = cluster([2])
    made.tell(Reserve(7, Resources(cores=2), [1]))
    made.submit(bulk(1))
    found = made.core.explain(1)
    assert (found.holds, found.checkpoint) == (Holds.RESERVATION, 7)
    made.tell(Unreserve(7))
    made.deliver()
    assert made.tasks() == {1}


def test_conditions_of_a_reservation_grow() -> None:
    made = cluster([2])
    made.tell(Reserve(7, Resources(cores=2)))
    made.tell(Condition(1, Truth.TRUE))
    made.submit(bulk(1, condition=1))
    made.deliver()
    assert made.tasks() == set()
    made.tell(Reserve(7, Resources(cores=2), [1]))
    made.deliver()
    assert made.tasks() == {1}


def test_a_reservation_is_used_up_by_what_it_was_made_for() -> None:
    made = cluster([4])
    made.tell(Reserve(7, Resources(cores=2), [1]), Condition(1, Truth.TRUE))
    made.submit(bulk(1, 2, condition=1), bulk(10, 2))
    made.deliver()
    assert made.tasks() == {1, 2, 10, 11}
    made.submit(bulk(20, 2))
    made.finish(1)
    made.finish(2)
    assert {20, 21} <= made.tasks()


def test_what_runs_on_its_reservation_when_the_answer_comes_uses_it_up() -> None:
    made = cluster([4])
    made.tell(Reserve(7, Resources(cores=2), [1]))
    made.submit(bulk(1, 2, condition=1))
    made.deliver()
    made.tell(Condition(1, Truth.TRUE))
    made.finish(1)
    made.finish(2)
    made.submit(bulk(10, 4))
    made.deliver()
    assert made.tasks() == {10, 11, 12, 13}


def test_a_plan_becomes_possible_when_a_reservation_ends() -> None:
    made = cluster([2])
    made.submit(bulk(1, 2))
    made.tell(Reserve(7, Resources(cores=2)))
    made.submit(bulk(5, cores=2))
    assert made.core.explain(5).holds is Holds.CORES
    made.tell(Unreserve(7))
    assert made.core.explain(5).holds is Holds.PLAN


def test_busy_slots_are_unchained_before_they_are_reserved() -> None:
    made = cluster([2])
    made.submit(bulk(1, 20))
    made.deliver()
    made.tell(Reserve(7, Resources(cores=1)))
    assert len(told(made, Unchain)) == 1
    made.deliver()
    made.finish(told(made, Unchain)[0].tasks[0])
    assert len(made.tasks()) == 1


def test_memory_and_gpus_are_reserved_too() -> None:
    made = cluster([4], gpus=1, memory=100)
    made.tell(Reserve(7, Resources(cores=1, gpus=1.0, memory=80), [1]))
    made.submit(bulk(1, shape=Shape(gpu_shares=GPU_SHARES)), bulk(2, shape=Shape(memory=30)), bulk(3))
    made.deliver()
    assert made.tasks() == {3}
    made.tell(Condition(1, Truth.TRUE))
    made.submit(bulk(4, condition=1, shape=Shape(gpu_shares=GPU_SHARES, memory=80)))
    made.deliver()
    assert made.tasks() == {3, 4}


def test_what_a_lost_node_kept_is_reserved_elsewhere() -> None:
    made = cluster([2, 2])
    made.tell(Reserve(7, Resources(cores=2)))
    made.tell(NodeDown(0))
    made.submit(bulk(1))
    made.tell(NodeDown(1))
    assert made.core.explain(1).holds is Holds.NODES
    made.tell(NodeUp(1, NodeInventory(name="n1", cores=[0, 1])))
    assert made.core.explain(1).holds is Holds.RESERVATION


# --- credit -----------------------------------------------------------------------------------------------------------


def test_a_few_are_held_ahead_and_follow_without_a_round_trip() -> None:
    made = cluster([2], credit=2)
    made.submit(bulk(1, 100))
    assert sum(len(one.tasks) for one in told(made, Ahead)) == 4
    assert made.core.held == 4
    made.deliver()
    made.nodes[0].finish(1)
    assert 3 in made.tasks()  # before the core heard of it
    made.deliver()
    assert made.over == [1]


def test_credit_is_configurable_down_to_nothing() -> None:
    made = cluster([2], credit=0)
    made.submit(bulk(1, 10))
    assert told(made, Ahead) == []


def test_only_the_best_level_is_held_ahead() -> None:
    made = cluster([2])
    made.submit(bulk(1), bulk(2, 9, tier=Tier.BACKFILL), bulk(20, 9, priority=1))
    ranks = {one.rank for one in told(made, Ahead)}
    assert ranks == {(Tier.NEEDED, -1)}


def test_what_arrives_higher_is_paid_for_by_the_lowest() -> None:
    made = cluster([2], credit=2)
    made.submit(bulk(1, 50))
    made.deliver()
    made.submit(bulk(100, 3, priority=1))
    assert sum(len(one.tasks) for one in told(made, Retract)) == 3
    made.run_dry()
    assert set(made.over[:8]) >= {100, 101, 102}


def test_the_example_of_the_specification() -> None:
    made = cluster([1])
    made.submit(bulk(1, 3))
    made.deliver()
    sent = made.submit(bulk(9, priority=1))
    assert sent == [Retract(0, [3]), Ahead(0, 1, (Tier.NEEDED, -1), [9])]
    made.deliver()
    made.nodes[0].finish(1)
    assert made.tasks() == {9}
    made.run_dry()
    assert made.over == [1, 9, 2, 3]


def test_nothing_is_reassigned_before_the_node_answered() -> None:
    made = cluster([1, 1], credit=2)
    made.submit(bulk(1, 4))
    made.deliver()
    held = next(one for one in told(made, Ahead) if one.node == 0).tasks[0]
    made.tell(Cancel([(held, 1)]))
    assert held not in made.returned
    assert told(made, Retract) == [Retract(0, [held])]
    made.tell(Cancel([(held, 1)]))
    assert len(told(made, Retract)) == 1
    made.deliver()
    assert made.returned[held].cause is Cause.CANCELED


def test_what_started_although_it_was_asked_back_for_good_is_ended() -> None:
    made = cluster([1])
    made.submit(bulk(1, 3))
    made.deliver()
    made.tell(Cancel([(2, 1)]))
    made.nodes[0].finish(1)  # crosses the retract
    made.deliver()
    assert [(end.tasks, end.mode, end.reason.cause) for end in told(made, End)] == [([2], "kill", Cause.CANCELED)]
    made.obey_ends()
    assert made.returned[2].cause is Cause.CANCELED
    assert made.tasks() == {3}


def test_idle_cores_fetch_back_what_is_held_ahead_elsewhere() -> None:
    made = cluster([1, 1], credit=3)
    made.submit(bulk(1, 8))
    made.deliver()
    busy, idle = made.nodes[0], made.nodes[1]
    for _ in range(8):
        for task in list(idle.running):
            idle.finish(task)
        made.deliver()
    assert len(made.over) == 7
    assert len(busy.running) == 1


def test_a_follower_on_slots_that_were_given_away_is_ended() -> None:
    made = cluster([1])
    made.submit(bulk(1, 2))
    made.submit(bulk(50, priority=1))
    made.nodes[0].inbox.clear()
    made.tell(NodeChanges(0, [Changed(1, 1, 1, FINISHED)]))
    made.tell(NodeChanges(0, [Changed(2, 1, 1, STARTED, 1)]))  # against the contract: another event
    assert told(made, End)[-1].tasks == [2]
    made.tell(NodeChanges(0, [Changed(2, 1, 1, FINISHED, 0, Failure(Cause.PREEMPTED, "x"))]))
    assert made.returned[2].cause is Cause.PREEMPTED


def test_a_finish_answers_a_retract_as_well() -> None:
    made = cluster([1])
    made.submit(bulk(1, 3))
    made.deliver()
    made.tell(Cancel([(2, 1)]))
    made.nodes[0].inbox.clear()
    made.tell(NodeChanges(0, [Changed(2, 1, 1, FINISHED)]))
    assert made.over == [2]
    made.tell(NodeChanges(0, [Changed(2, 1, 1, RETRACTED)]))
    assert made.core.explain(2).holds is Holds.UNKNOWN


# --- lending ----------------------------------------------------------------------------------------------------------


def test_a_waiting_task_lends_its_cores_to_preemptible_tiers_only() -> None:
    made = cluster([2])
    made.submit(bulk(1, cores=2))
    made.deliver()
    made.lend(1)
    made.submit(bulk(2), bulk(3, 2, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 3, 4}
    made.take_back(1)
    assert made.restored == []
    made.obey_ends()
    assert made.restored == [1]
    assert {task: failure.cause for task, failure in made.returned.items()} == {3: Cause.PREEMPTED, 4: Cause.PREEMPTED}
    made.lending.clear()
    made.run_dry()
    assert sorted(made.over) == [1, 2]


def test_cores_that_nobody_borrowed_are_back_at_once() -> None:
    made = cluster([2])
    made.submit(bulk(1))
    made.deliver()
    made.lend(1)
    made.take_back(1)
    assert made.restored == [1]


def test_a_lender_that_ends_leaves_its_borrowers_in_peace() -> None:
    made = cluster([1])
    made.submit(bulk(1))
    made.deliver()
    made.lend(1)
    made.submit(bulk(2, tier=Tier.BACKFILL))
    made.finish(1)
    assert made.tasks() == {2}
    made.run_dry()
    assert made.over == [1, 2]


def test_a_gang_lends_on_all_its_nodes() -> None:
    made = cluster([1, 1])
    made.submit(bulk(1, ranks=2))
    made.deliver()
    made.lend(1)
    made.submit(bulk(2, 2, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 2, 3}
    made.take_back(1)
    made.obey_ends()
    assert made.restored == [1]


# --- walltime ---------------------------------------------------------------------------------------------------------


def test_what_cannot_end_before_the_pilot_is_not_started() -> None:
    made = cluster([4])
    made.now = 100.0
    made.tell(WalltimeEnds(200.0))
    made.submit(
        bulk(1, expected_runtime=101.0), bulk(2, expected_runtime=100.0), bulk(3), bulk(4, expected_runtime=99.0)
    )
    made.deliver()
    assert made.tasks() == {2, 3, 4}
    found = made.core.explain(1)
    assert found.holds is Holds.WALLTIME
    assert "100 s" in found.text
    made.tell(WalltimeEnds(300.0))
    made.deliver()
    assert 1 in made.tasks()


def test_what_is_held_ahead_is_fetched_back_when_it_is_too_late() -> None:
    made = cluster([1])
    made.tell(WalltimeEnds(100.0))
    made.submit(bulk(1, 5, expected_runtime=60.0))
    made.deliver()
    made.now = 50.0
    made.tell(Tick())
    assert sorted(task for one in told(made, Retract) for task in one.tasks) == [2, 3]
    made.deliver()
    assert made.core.explain(2).holds is Holds.WALLTIME


def test_drain_gives_back_what_did_not_start() -> None:
    made = cluster([1])
    made.submit(bulk(1, 50))
    made.deliver()
    made.tell(Drain("over"))
    made.deliver()
    assert made.tasks() == {1}
    assert {failure.cause for failure in made.returned.values()} == {Cause.PILOT_ENDED}
    made.submit(bulk(100))
    assert 100 in made.returned
    made.run_dry()
    assert made.over == [1]


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_lost_node_gives_back_what_it_had_and_ends_its_gangs_elsewhere() -> None:
    made = cluster([2, 2])
    made.submit(bulk(1, ranks=3), bulk(2, 4))
    made.deliver()
    made.down(0)
    ended = [(end.node, end.tasks, end.mode, end.reason.cause) for end in told(made, End)]
    assert ended == [(1, [1], "kill", Cause.NODE_LOST)]
    made.obey_ends()
    assert made.returned[1].cause is Cause.NODE_LOST
    made.run_dry()
    assert not made.live


def test_a_gang_that_lost_a_rank_did_not_succeed() -> None:
    made = cluster([1, 1])
    made.submit(bulk(1, ranks=2))
    made.deliver()
    made.nodes[1].finish(1)  # well, and before it hears of the loss
    made.down(0)
    made.deliver()
    assert made.returned[1].cause is Cause.NODE_LOST


def test_what_fits_no_longer_is_given_back_to_be_bound_again() -> None:
    made = cluster([2, 8])
    made.submit(bulk(1, 2, cores=8))
    made.down(1)
    assert {failure.cause for failure in made.returned.values()} == {Cause.NODE_LOST}
    assert not made.live


def test_a_rank_that_fails_ends_the_gang() -> None:
    made = cluster([1, 1])
    made.submit(bulk(1, ranks=2))
    made.deliver()
    made.nodes[0].finish(1, crash=True)
    made.deliver()
    assert [(end.node, end.tasks) for end in told(made, End)] == [(1, [1])]
    made.obey_ends()
    assert made.over == [1]


# --- odd input --------------------------------------------------------------------------------------------------------


def test_stale_and_repeated_input_changes_nothing() -> None:
    made = cluster([1])
    made.submit(bulk(1))
    made.deliver()
    for change in (
        Changed(1, 0, 1, FINISHED),
        Changed(1, 1, 0, FINISHED),
        Changed(77, 1, 1, FINISHED),
        Changed(1, 1, 1, STARTED, 5),
        Changed(1, 1, 1, RETRACTED),
    ):
        assert made.tell(NodeChanges(0, [change])) == []
    assert made.tell(NodeChanges(9, [Changed(1, 1, 1, FINISHED)])) == []
    assert made.tell(Submit([bulk(1)])) == []
    assert made.tell(Cancel([(50, 3)])) == []
    answer = made.core.step(Submit([Bulk(1, 1, 1, 2, Shape())]), 0.0)
    assert [one.failure.cause for one in answer if isinstance(one, Return)] == [Cause.PILOT_ENDED]
    assert made.tasks() == {1}


def test_cancel_reaches_queued_held_planned_and_running_work() -> None:
    made = cluster([2])
    made.submit(bulk(1, 1), bulk(2, cores=2), bulk(10, 100))
    made.deliver()
    made.tell(Cancel([(1, 1), (2, 1), (20, 10), (15, 5), (100, 50)]))
    assert made.returned[2].cause is Cause.CANCELED
    made.obey_ends()
    made.run_dry()
    assert not made.live
    canceled = {task for task, failure in made.returned.items() if failure.cause is Cause.CANCELED}
    assert canceled >= {2, *range(15, 30), *range(100, 110)}


def test_explain_names_what_comes_first() -> None:
    made = cluster([1], credit=0)
    made.tell(Condition(3, Truth.UNDECIDED, 0.5))
    made.submit(bulk(1), bulk(2, 3), bulk(10, condition=3))
    found = made.core.explain(4)
    assert (found.holds, found.before, found.tier) == (Holds.CORES, 2, Tier.NEEDED)
    found = made.core.explain(10)
    assert (found.holds, found.condition) == (Holds.TIER, 3)
    assert "undecided" in found.text
    assert made.core.explain(1).holds is Holds.RUNNING
    assert made.core.explain(99).holds is Holds.UNKNOWN


# --- cost -------------------------------------------------------------------------------------------------------------


def looks(nodes: int, queued: int) -> int:
    made = Cluster(SchedulingCore(nodes=nodes, credit=0))
    for number in range(nodes):
        made.core.step(NodeUp(number, NodeInventory(name="n", cores=[0, 1])), 0.0)
    for first, shape in ((1, Shape()), (queued + 1, Shape(cores=2))):
        made.core.step(Submit([Bulk(first, queued, 1, 1, shape)]), 0.0)
    before = made.core.looks
    for task in range(1, 41):
        node = next(iter(made.core._world.attempts[task].parts))
        made.core.step(NodeChanges(node, [Changed(task, 1, 1, FINISHED)]), 0.0)
    return made.core.looks - before


def test_cost_does_not_grow_with_nodes_or_queue() -> None:
    assert looks(200, 2000) <= looks(20, 1000) + 5
