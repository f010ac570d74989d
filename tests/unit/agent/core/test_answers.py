"""What the scheduling core promises, one example a promise: conditions, reservations, credit, lending, nodes."""

from __future__ import annotations

import pytest

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Resources, Shape
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
    Reserve,
    Retract,
    Return,
    SchedulingCore,
    Submit,
    Tick,
    Unchain,
    Unreserve,
    WalltimeEnds,
)
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk, told

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


@pytest.mark.parametrize("waiting", [Shape(), Shape(memory=1)])
def test_what_followed_although_it_was_asked_back_gives_way_when_it_can(waiting: Shape) -> None:
    made = cluster([1], memory=10)
    made.submit(bulk(1, tier=Tier.BACKFILL, on_preempt="finish"), bulk(2, tier=Tier.BACKFILL))
    made.deliver()
    made.nodes[0].finish(1)  # the node started 2 before it hears that something better is there
    made.submit(bulk(9, shape=waiting))
    made.obey_ends()
    made.obey_ends()
    assert made.tasks() == {9}
    assert made.returned[2].cause is Cause.PREEMPTED


def test_what_followed_one_that_was_told_to_end_gives_way_too() -> None:
    made = cluster([1])
    made.submit(bulk(1, 2, tier=Tier.BACKFILL))
    made.deliver()
    made.nodes[0].finish(1)
    made.tell(Cancel([(1, 1)]))
    made.submit(bulk(9, shape=Shape(runtime_bucket=3)))
    made.obey_ends()
    made.obey_ends()
    assert made.tasks() == {9}


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


def test_what_an_answer_made_needed_uses_its_reservation_without_its_condition() -> None:
    made = cluster([2])
    made.tell(Reserve(7, Resources(cores=2), [1]))
    made.submit(bulk(1), bulk(2, kept=7), bulk(3, kept=8))
    made.deliver()
    assert made.tasks() == {2}
    made.tell(Unreserve(7))
    made.run_dry()
    assert sorted(made.over) == [1, 2, 3]


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
    made.run_dry()
    assert sorted(made.over) == [1, 2]


def test_a_child_of_a_waiting_task_uses_its_cores_although_it_is_needed() -> None:
    made = cluster([1])
    made.submit(bulk(1))
    made.deliver()
    made.submit(bulk(2, 2, parent=1), bulk(9))
    made.deliver()
    assert made.tasks() == {1}
    made.lend(1)
    made.deliver()
    assert made.tasks() == {1, 2}
    made.take_back(1)
    assert made.restored == [], "it waits for its child, which cannot be told to go"
    made.finish(2)
    assert made.restored == [1]
    made.run_dry()
    assert made.over in ([2, 1, 3, 9], [2, 1, 9, 3])


def test_borrowers_give_way_to_a_child_of_the_lender() -> None:
    made = cluster([2])
    made.submit(bulk(1, cores=2))
    made.deliver()
    made.lend(1)
    made.submit(bulk(5, 2, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 5, 6}
    made.submit(bulk(2, parent=1))
    made.obey_ends()
    assert 2 in made.tasks()
    assert len(made.tasks()) == 3, "only one of the two had to go"
    made.submit(bulk(3, parent=1), bulk(20, parent=77))
    made.obey_ends()
    assert made.tasks() == {1, 2, 3}
    made.take_back(1)
    made.finish(2, 3)
    assert made.restored == [1]


def test_children_of_a_task_that_ended_are_as_all_others() -> None:
    made = cluster([1])
    made.submit(bulk(1))
    made.submit(bulk(2, parent=1), bulk(3, parent=1))
    made.finish(1)
    made.run_dry()
    assert made.over == [1, 2, 3]
    made.submit(bulk(4, parent=1))
    made.run_dry()
    assert made.over[-1] == 4


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


def borrowing() -> Cluster:
    """One core: task 1 lends it, task 2 borrowed it and waits as well."""
    made = cluster([1])
    made.tell(Condition(1, Truth.UNDECIDED, 0.4), Condition(2, Truth.UNDECIDED, 0.6))
    made.submit(bulk(1, tier=Tier.SPECULATIVE, condition=1))
    made.deliver()
    made.lend(1)
    made.submit(bulk(2, tier=Tier.SPECULATIVE, condition=2))
    made.deliver()
    made.lend(2)
    assert made.tasks() == {1, 2}
    return made


def test_a_borrower_that_waits_lends_when_its_lender_is_discarded() -> None:
    made = borrowing()
    made.tell(Condition(1, Truth.FALSE), Condition(2, Truth.TRUE))
    made.submit(bulk(3, parent=2))
    made.obey_ends()
    made.deliver()
    assert made.tasks() == {2, 3}
    made.take_back(2)
    made.finish(3)
    assert made.restored == [2]


def test_a_borrower_that_waits_lends_to_its_children_what_it_borrowed() -> None:
    made = borrowing()
    made.tell(Condition(1, Truth.TRUE), Condition(2, Truth.TRUE))
    made.submit(bulk(3, 2, parent=2))
    made.deliver()
    assert made.tasks() == {1, 2, 3}
    made.take_back(1)
    made.finish(3)
    assert made.tasks() == {1, 2, 4}, "the lender gets its core sooner when the borrower gets on"
    made.take_back(2)
    made.finish(4)
    assert made.restored == [2]
    made.finish(2)
    assert made.restored == [2, 1]


def test_a_lender_that_wants_its_cores_back_ends_all_that_borrowed_them_from_whomever() -> None:
    made = borrowing()
    made.submit(bulk(3, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 2, 3}
    made.take_back(2)
    made.obey_ends()
    assert (made.restored, made.tasks()) == ([2], {1, 2})
    made.lend(2)
    made.submit(bulk(4, tier=Tier.BACKFILL))
    made.deliver()
    assert made.tasks() == {1, 2, 4}
    made.take_back(1)
    made.obey_ends()
    assert (made.restored, made.tasks()) == ([2, 1], {1})


def test_a_child_as_big_as_its_parent_runs_on_what_that_lends() -> None:
    made = cluster([2])
    made.submit(bulk(1, cores=2))
    made.deliver()
    made.submit(bulk(2, parent=1, cores=2))
    made.deliver()
    assert made.core.planned == 1, "it waits for slots like anybody, until its parent lends"
    made.lend(1)
    made.deliver()
    assert made.tasks() == {1, 2}
    made.submit(bulk(3, parent=1, cores=2))
    made.finish(2)
    assert made.tasks() == {1, 3}


def test_a_claim_that_waits_for_the_parent_does_not_keep_its_child_off() -> None:
    made = cluster([2])
    made.submit(bulk(1, cores=2))
    made.submit(bulk(9, cores=2))
    made.deliver()
    assert made.core.planned == 1
    made.lend(1)
    made.submit(bulk(2, 3, parent=1))
    made.deliver()
    assert made.tasks() == {1, 2, 3}
    made.take_back(1)
    made.finish(2, 3)
    made.run_dry()
    assert sorted(made.over) == [1, 2, 3, 4, 9]


def test_who_gave_way_to_a_child_does_not_come_back_before_it_has_begun() -> None:
    made = cluster([4])
    made.submit(bulk(1, cores=4))
    made.deliver()
    made.lend(1)
    made.tell(Condition(1, Truth.UNDECIDED, 0.5))
    made.submit(bulk(5, 2, tier=Tier.SPECULATIVE, condition=1, cores=2, on_preempt="suspend"))
    made.deliver()
    made.submit(bulk(2, parent=1, cores=3), bulk(7, tier=Tier.BACKFILL))
    node = made.nodes[0]
    while node.inbox:
        node.obey()
    assert len(node.outbox) == 2, "both are told to suspend"
    made.report(node, 1)
    assert not node.inbox, "the cores of the first one wait for those of the second"
    made.deliver()
    assert {task for task, there in node.running.items() if not there.suspended} == {1, 2, 7}


def test_a_waiting_task_that_was_suspended_lends_again_when_it_goes_on() -> None:
    made = cluster([1])
    made.submit(bulk(1, tier=Tier.BACKFILL, on_preempt="suspend"))
    made.deliver()
    made.lend(1)
    made.submit(bulk(9))
    made.obey_ends()
    made.deliver()
    assert 9 in made.tasks()
    made.submit(bulk(2, parent=1, tier=Tier.BACKFILL))
    made.finish(9)
    made.obey_ends()
    assert made.tasks() == {1, 2}
