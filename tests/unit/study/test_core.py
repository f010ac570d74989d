"""The study core: tasks, cancellation, conditions; one example a rule."""

from __future__ import annotations

import pytest

from pilot_hitl.model.conditions import equals, matches, one_of
from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import core as core_module
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from tests.unit.study.world import (
    BIG,
    ONE,
    TWO,
    A,
    B,
    Report,
    World,
    again,
    keys,
    kinds,
    only,
    task,
)

# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_bulk_is_dispatched_as_one_and_ends(world: World) -> None:
    assert world.submit(task(0), 5) == [do.Dispatch(1, task(0), 5, 1, 0, 0)]
    assert world.core.live == 5
    assert world.core.pilot_of(task(3)) == 1
    out = world.report(*(world.over(task(at)) for at in range(5)))
    assert [(o.task, o.state) for o in only(out, do.Record)] == [(task(at), State.DONE) for at in range(5)]
    assert world.core.live == 0
    assert world.core.pilot_of(task(3)) == 0


def test_a_resend_changes_nothing(world: World) -> None:
    world.submit(task(0), 5)
    assert world.submit(task(0), 5) == []
    assert world.submit(task(3), 5) == []
    assert world.core.live == 5


def test_an_empty_bulk_is_ignored(world: World) -> None:
    assert world.core.step(ev.SubmitTasks(task(0), 0, ONE), world.now) == []
    assert world.core.step(ev.SubmitTasks(task(0), -3, ONE), world.now) == []


def test_a_bulk_of_256_with_holes_goes_out_in_pieces() -> None:
    world = World(windows=1000)
    world.submit(task(0), 256)
    world.step(ev.CancelTasks(((task(10), 1), (task(100), 50))))
    world.arrive()
    assert [(o.first, o.count) for o in only(world.out, do.Dispatch)] == [
        (task(0), 10),
        (task(11), 89),
        (task(150), 106),
    ]
    assert world.core.live == 205


def test_the_window_bounds_what_is_bound_and_the_rest_follows() -> None:
    world = World(windows=3)
    world.arrive()
    assert [o.count for o in only(world.submit(task(0), 8), do.Dispatch)] == [3]
    out = world.report(world.over(task(0)), world.over(task(1)))
    assert [(o.first, o.count) for o in only(out, do.Dispatch)] == [(task(3), 2)]
    assert world.core.ready.count == 3


def test_each_shape_has_a_window_of_its_own() -> None:
    world = World(windows=2)
    world.arrive()
    world.submit(task(0), 4)
    assert [o.count for o in only(world.submit(task(4), 4, shape=TWO), do.Dispatch)] == [2]


def test_higher_priorities_go_first_then_order_of_arrival_then_backfill() -> None:
    world = World(windows=100)
    world.submit(task(0), backfill=True)
    world.submit(task(1))
    world.submit(task(2), shape=TWO)
    world.submit(task(3), priority=2)
    world.submit(task(4), priority=-1)
    world.submit(task(5))
    world.arrive()
    order = [o.first for o in only(world.out, do.Dispatch)]
    assert order == [task(n) for n in (3, 1, 2, 5, 4, 0)]


def test_a_pinned_task_waits_for_its_pilot_and_fails_when_that_is_gone(world: World) -> None:
    assert world.submit(task(0), pilot=2) == []
    world.arrive(2)
    assert world.core.pilot_of(task(0)) == 2
    world.submit(task(1), pilot=2, deps=(task(0),))
    world.end(2, final=True)
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.FAILED, State.FAILED]
    assert world.causes[task(0)] is Cause.PILOT_ENDED
    world.submit(task(2), pilot=2)
    assert world.core.state_of(task(2)) is State.FAILED


def test_a_pinned_task_of_a_pilot_that_ended_before_the_hub_started_fails_too() -> None:
    world = World()
    world.step(ev.PilotEnded(2, final=True))
    world.submit(task(0), pilot=2)
    assert world.core.state_of(task(0)) is State.FAILED


def test_what_no_pilot_can_hold_fails_at_once_and_while_a_size_is_unknown_it_waits() -> None:
    world = World()
    world.submit(task(0), shape=BIG)
    assert world.core.state_of(task(0)) is State.QUEUED  # no pilot was asked for yet
    world.step(ev.PilotAsked(1))
    world.submit(task(1), shape=BIG)
    assert world.core.state_of(task(1)) is State.QUEUED  # it may be large enough
    world.arrive(1)
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.FAILED, State.FAILED]
    world.submit(task(2), shape=BIG)
    assert world.causes[task(2)] is Cause.UNFIT
    world.submit(task(3))
    world.submit(task(4), deps=(task(3),), shape=TWO)
    world.end(1, final=True)
    world.arrive(2, nodes=(NodeInventory(name="small", cores=[0]),))
    world.report(world.over(task(3)))
    assert world.causes[task(4)] is Cause.UNFIT


def test_a_dependency_holds_a_task_until_it_is_done(world: World) -> None:
    world.submit(task(0))
    assert world.submit(task(1), 2, deps=(task(0), task(0))) == []
    assert world.core.state_of(task(1)) is State.NEW
    assert [o.first for o in only(world.report(world.over(task(0))), do.Dispatch)] == [task(1)]


def test_when_a_task_fails_so_does_all_that_depends_on_it(world: World) -> None:
    world.submit(task(0))
    world.submit(task(1), 2, deps=(task(0),))
    world.submit(task(3), deps=(task(2),))
    told = only(world.report(world.over(task(0), State.FAILED, Cause.EXIT)), do.Record)
    assert told[0].task == task(0)  # the hub finds what others inherit
    assert {record.task: record.failure.root for record in told[1:]} == {task(n): task(0) for n in (1, 2, 3)}
    assert all(world.core.state_of(task(n)) is State.FAILED for n in range(4))
    assert [world.causes[task(n)] for n in range(4)] == [Cause.EXIT, *[Cause.DEPENDENCY] * 3]
    world.submit(task(4), deps=(task(3),))
    assert world.causes[task(4)] is Cause.DEPENDENCY
    assert world.core.live == 0


def test_what_was_never_submitted_or_defined_cannot_be_waited_for(world: World) -> None:
    world.submit(task(0), deps=(task(99),))
    world.submit(task(1), condition=77 << 32)
    assert [world.causes[task(n)] for n in (0, 1)] == [Cause.DEPENDENCY] * 2


def test_retries_apply_to_what_a_task_does_to_itself_and_only_so_often(world: World) -> None:
    world.submit(task(0), retries=2)
    for run in range(2):
        out = world.report(world.over(task(0), State.FAILED, Cause.EXIT))
        assert out == [do.Dispatch(1, task(0), 1, 1, run + 1, 0)]
    world.report(world.over(task(0), State.FAILED, Cause.TIMEOUT))
    assert world.core.state_of(task(0)) is State.FAILED


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.PILOT_ENDED, Cause.NODE_LOST])
@pytest.mark.parametrize("state", [State.QUEUED, State.FAILED])
def test_unfinished_attempts_cost_no_retry(world: World, state: State, cause: Cause) -> None:
    world.submit(task(0))
    for _try in range(5):
        assert kinds(world.report(world.over(task(0), state, cause))) == ["Dispatch"]


def test_given_back_without_a_reason_it_runs_again_but_failed_without_one_it_failed(world: World) -> None:
    world.submit(task(0), 2)
    assert kinds(world.report(world.over(task(0), State.QUEUED))) == ["Dispatch"]
    world.report(world.over(task(1), State.FAILED))
    assert world.core.state_of(task(1)) is State.FAILED


def test_a_lost_worker_is_forgiven_once(world: World) -> None:
    world.submit(task(0))
    assert kinds(world.report(world.over(task(0), State.FAILED, Cause.WORKER_DIED))) == ["Dispatch"]
    assert kinds(world.report(world.over(task(0), State.FAILED, Cause.WORKER_DIED))) == ["Record"]
    world.submit(task(1), outside=True)
    assert kinds(world.report(world.over(task(1), State.FAILED, Cause.WORKER_DIED))) == ["Record"]


def test_what_acts_outside_and_ran_is_never_run_again_by_itself(world: World) -> None:
    world.submit(task(0), 3, outside=True)
    world.report(world.begin(task(0)), world.begin(task(1)))
    world.report(world.over(task(0), State.QUEUED, Cause.PREEMPTED))
    assert world.core.state_of(task(0)) is State.FAILED
    world.end(1)
    assert [world.core.state_of(task(n)) for n in (1, 2)] == [State.FAILED, State.QUEUED]


def test_too_long_for_a_pilot_it_waits_for_another_one(world: World) -> None:
    world.submit(task(0))
    assert world.report(world.over(task(0), State.QUEUED, Cause.WALLTIME)) == []
    assert world.core.state_of(task(0)) is State.QUEUED
    world.come_back(1)
    assert world.core.state_of(task(0)) is State.QUEUED
    assert [o.pilot for o in only(world.submit(task(1), shape=TWO), do.Dispatch)] == [1]
    world.arrive(2)
    assert world.core.pilot_of(task(0)) == 2


def test_a_new_life_of_the_agent_is_not_too_short_any_more(world: World) -> None:
    world.submit(task(0))
    world.report(world.over(task(0), State.QUEUED, Cause.WALLTIME))
    world.arrive(1)
    assert world.core.pilot_of(task(0)) == 1


def test_only_the_present_attempt_counts(world: World) -> None:
    world.submit(task(0))
    first = world.over(task(0))
    world.report(world.over(task(0), State.QUEUED, Cause.PREEMPTED))
    assert world.report(first) == []
    assert world.report(Report(task(0), 0, 1, State.DONE)) == []
    assert world.report(Report(task(9), 1, 0, State.DONE)) == []
    assert world.core.stale == 3
    assert world.report(Report(task(0), 1, 1, State.SUSPENDED)) == []
    assert world.core.stale == 4
    assert kinds(world.report(world.over(task(0)))) == ["Record"]
    assert world.report(world.over(task(0))) == []


def test_a_report_with_epoch_zero_never_matches_an_unbound_task() -> None:
    world = World()
    world.submit(task(0))
    assert world.report(Report(task(0), 0, 0, State.DONE)) == []
    assert world.core.state_of(task(0)) is State.QUEUED


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_what_waits_is_canceled_at_once_and_what_is_bound_when_its_agent_says_so(world: World) -> None:
    world.submit(task(0), 3)
    world.submit(task(3), deps=(task(0),))
    out = world.step(ev.CancelTasks(((task(0), 2), (task(3), 1)), "enough"))
    assert [(o.task, o.failure.message) for o in only(out, do.Record)] == [(task(3), "enough")]
    assert only(out, do.EndAttempts) == [do.EndAttempts(1, ((task(0), 2),), "enough")]
    assert world.step(ev.CancelTasks(((task(0), 4),), "again"))[0] == do.EndAttempts(1, ((task(2), 1),), "again")
    world.report(world.over(task(0), State.CANCELED, Cause.CANCELED), world.over(task(1)))
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.CANCELED, State.DONE]


@pytest.mark.parametrize(("state", "cause"), [(State.FAILED, Cause.EXIT), (State.QUEUED, Cause.PREEMPTED)])
def test_an_attempt_that_was_told_to_end_is_canceled_however_it_ended(world: World, state: State, cause: Cause) -> None:
    world.submit(task(0), retries=3)
    world.step(ev.CancelTasks(((task(0), 1),)))
    world.report(world.over(task(0), state, cause))
    assert (world.core.state_of(task(0)), world.causes[task(0)]) == (State.CANCELED, Cause.CANCELED)


def test_a_canceled_attempt_whose_agent_is_lost_is_canceled(world: World) -> None:
    world.submit(task(0))
    world.step(ev.CancelTasks(((task(0), 1),)))
    world.end(1)
    assert world.core.state_of(task(0)) is State.CANCELED


def test_an_agent_may_cancel_by_itself(world: World) -> None:
    world.submit(task(0))
    world.report(world.over(task(0), State.CANCELED))
    assert world.core.state_of(task(0)) is State.CANCELED


def test_canceling_a_held_value_ends_those_who_were_going_to_use_it(world: World) -> None:
    world.submit(task(0), condition=A)
    world.submit(task(1), 2, deps=(task(0),))
    world.report(world.over(task(0)))
    world.report(world.over(task(1)))
    out = world.step(ev.CancelTasks(((task(0), 1),)))
    assert [world.core.state_of(task(n)) for n in (0, 1, 2)] == [State.CANCELED, State.HELD, State.FAILED]
    assert [o.runs for o in only(out, do.EndAttempts)] == [((task(2), 1),)]


# --- conditions -------------------------------------------------------------------------------------------------------


def test_speculation_is_held_and_committed(world: World) -> None:
    out = world.submit(task(0), 2, condition=A)
    assert [type(each) for each in out] == [do.Judged, do.TellCondition, do.Dispatch]
    assert out[1:] == [do.TellCondition(1, 1, Truth.UNDECIDED, 0.8, {0: 0.8}), do.Dispatch(1, task(0), 2, 1, 0, 1)]
    assert world.submit(task(2), deps=(task(1),)) == []
    out = world.report(world.over(task(0)), world.over(task(1)))
    assert [o.state for o in only(out, do.Record)] == [State.HELD, State.HELD]
    # The dependant inherited the condition, so it may use the held value.
    assert only(out, do.Dispatch) == [do.Dispatch(1, task(2), 1, 1, 0, 1)]
    assert world.core.live == 3
    out = world.answer(1, '"a"')
    assert kinds(out) == ["SaveCheckpoint", "TellCondition", "Resolve", "Resolve", "Release"]
    assert only(out, do.Release) == [do.Release([task(0), task(1)], State.DONE)]
    world.report(world.over(task(2)))
    assert world.core.state_of(task(2)) is State.DONE
    assert world.core.live == 0


def test_what_was_not_chosen_is_discarded_whatever_its_state(world: World) -> None:
    world.submit(task(0), 3, condition=A)
    world.submit(task(3), 1, condition=A, deps=(task(2),))
    world.report(world.over(task(0)), world.over(task(1), State.FAILED, Cause.EXIT))
    out = world.answer(1, '"b"')
    assert only(out, do.TellCondition) == [do.TellCondition(1, 1, Truth.FALSE, 0.8)]
    assert only(out, do.Release) == [do.Release([task(0), task(1)], State.DISCARDED)]
    assert {o.task for o in only(out, do.Record)} == {task(2), task(3)}
    assert all(world.core.state_of(task(n)) is State.DISCARDED for n in range(4))
    assert world.core.pilots[1].bound[2, ONE] == 0
    world.submit(task(4), deps=(task(0),))
    world.settle()
    assert world.core.state_of(task(4)) is State.DISCARDED


def test_a_failed_speculation_is_tried_again_as_needed(world: World) -> None:
    world.submit(task(0), condition=A)
    world.submit(task(1), deps=(task(0),))
    world.report(world.over(task(0), State.FAILED, Cause.EXIT))
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.HELD_FAILED, State.NEW]
    assert only(world.answer(1, '"a"'), do.Dispatch) == [do.Dispatch(1, task(0), 1, 1, 1, 0)]
    world.report(world.over(task(0), State.FAILED, Cause.EXIT))
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.FAILED, State.FAILED]


def test_what_left_files_counts_once_they_are_in_place_and_only_then_others_follow(world: World) -> None:
    world.submit(task(0), 2, condition=A)
    world.submit(task(2), deps=(task(0),))
    world.submit(task(3), deps=(task(1),))
    out = world.report(world.over(task(0), left=True), world.over(task(1)))
    assert only(out, do.Dispatch) == [do.Dispatch(1, task(3), 1, 1, 0, 1)], "values go on, files wait"
    out = world.answer(1, '"a"')
    assert only(out, do.Release) == [do.Release([task(1)], State.DONE)]
    assert out[-1] == do.Publish([task(0)])
    assert [world.core.state_of(task(n)) for n in (0, 2)] == [State.HELD, State.NEW]
    assert only(world.submit(task(4), deps=(task(0),)), do.Dispatch) == []
    out = world.publish(task(0))
    assert only(out, do.Record) == [do.Record(task(0), State.DONE, None, None)]
    assert [order.first for order in only(out, do.Dispatch)] == [task(2), task(4)]
    assert kinds(world.publish(task(0))) == [], "told twice"


def test_what_ends_after_the_answer_is_put_in_place_too(world: World) -> None:
    world.submit(task(0), condition=A)
    over = world.over(task(0), left=True)
    world.answer(1, '"a"')
    out = world.report(over)
    assert kinds(out) == ["Record", "Publish"]
    assert world.core.state_of(task(0)) is State.HELD
    world.publish(task(0))
    assert world.core.live == 0


def test_files_that_cannot_be_put_in_place_fail_the_task_and_what_follows(world: World) -> None:
    world.submit(task(0), condition=A, retries=3)
    world.submit(task(1), deps=(task(0),))
    world.report(world.over(task(0), left=True))
    world.answer(1, '"a"')
    world.publish(task(0), ok=False)
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.FAILED, State.FAILED]


def test_files_of_what_was_discarded_or_canceled_are_nobodys(world: World) -> None:
    world.submit(task(0), 2, condition=A)
    world.report(world.over(task(0), left=True), world.over(task(1), left=True))
    world.step(ev.CancelTasks(((task(1), 1),)))
    assert only(world.answer(1, '"b"'), do.Publish) == []
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.DISCARDED, State.CANCELED]
    assert kinds(world.publish(task(0))) == []


def test_a_new_hub_asks_for_files_that_the_old_one_did_not_hear_of(world: World) -> None:
    world.submit(task(0), condition=A)
    world.report(world.over(task(0), left=True))
    world.answer(1, '"a"')
    again(world)
    assert world.to_publish == []
    world.settle()
    assert world.to_publish == [task(0)]
    world.publish(task(0))
    assert world.core.state_of(task(0)) is State.DONE


def test_a_reused_result_counts_with_its_files(world: World) -> None:
    world.submit(task(0), condition=A, keys=keys(1))
    world.report(world.over(task(0), left=True))
    world.submit(task(0, 2), condition=A, keys=keys(1))
    assert world.core.state_of(task(0, 2)) is State.HELD
    world.answer(1, '"a"')
    assert sorted(world.to_publish) == [task(0), task(0, 2)]
    # The answer is there, and the files are not: who comes now gets them as well.
    world.submit(task(0, 3), condition=A, keys=keys(1))
    assert world.core.state_of(task(0, 3)) is State.HELD
    for number in (1, 2, 3):
        world.publish(task(0, number))
        assert world.core.state_of(task(0, number)) is State.DONE


def test_what_failed_apart_from_its_place_is_tried_there_once_it_counts(world: World) -> None:
    world.submit(task(0), condition=A, retries=1)
    world.report(world.over(task(0), State.FAILED, Cause.EXCEPTION, left=True))
    world.report(world.over(task(0), State.FAILED, Cause.EXCEPTION, left=True))
    assert world.core.state_of(task(0)) is State.HELD_FAILED
    world.answer(1, '"a"')
    # What was tried before it counted used up none of its retries.
    for state in (State.SCHEDULED, State.SCHEDULED, State.FAILED):
        assert world.core.state_of(task(0)) is state
        if state is not State.FAILED:
            world.report(world.over(task(0), State.FAILED, Cause.EXCEPTION))


def test_what_runs_apart_when_the_answer_comes_may_fail_for_that(world: World) -> None:
    world.submit(task(0), condition=A)
    over = world.over(task(0), State.FAILED, Cause.EXCEPTION, left=True)
    world.answer(1, '"a"')
    assert only(world.report(over), do.Dispatch) == [do.Dispatch(1, task(0), 1, 1, 1, 0)]
    world.report(world.over(task(0), State.FAILED, Cause.EXCEPTION))
    assert world.core.state_of(task(0)) is State.FAILED


@pytest.mark.parametrize("cause", [Cause.PAYLOAD, Cause.UNFIT])
def test_what_no_other_try_can_change_is_final_at_once(world: World, cause: Cause) -> None:
    world.submit(task(0), condition=A)
    world.report(world.over(task(0), State.FAILED, cause))
    assert world.core.state_of(task(0)) is State.FAILED


def test_what_acts_outside_waits_for_the_answer(world: World) -> None:
    assert world.submit(task(0), condition=A, outside=True) == []
    assert world.submit(task(1), condition=B, outside=True) == []
    assert only(world.answer(1, '"a"'), do.Dispatch) == [do.Dispatch(1, task(0), 1, 1, 0, 0)]
    assert world.core.state_of(task(1)) is State.DISCARDED


def test_committed_work_does_not_wait_behind_a_window_of_guesses() -> None:
    world = World(windows=2)
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.define(B, equals(1, "b"))
    world.submit(task(0), 2, condition=B)
    world.submit(task(2), 5, condition=A)
    assert world.core.ready.count == 5
    out = world.answer(1, '"a"')
    assert [o.count for o in only(out, do.Dispatch)] == [4]
    assert world.core.ready.count == 1


def test_needed_work_behind_committed_work_uses_its_own_window() -> None:
    world = World(windows=2)
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), 8, condition=A)
    world.answer(1, '"a"')
    assert world.core.ready.count == 4
    assert [o.count for o in only(world.submit(task(8), 2), do.Dispatch)] == [2]


def test_sets_and_schemas_decide_too(world: World) -> None:
    world.define(3 << 40, one_of(1, ["a", "c"]))
    world.define(4 << 40, matches(1, {"minimum": 3}))
    world.define(5 << 40, matches(1, {"not": ["a"]}))
    for number, name in enumerate([3 << 40, 4 << 40, 5 << 40]):
        world.submit(task(number), condition=name)
    world.answer(1, "4")
    assert [world.truth_of(task(n)) for n in range(3)] == [Truth.FALSE, Truth.TRUE, Truth.TRUE]


def test_a_joined_condition_is_false_with_its_first_false_part(world: World) -> None:
    world.ask(2)
    world.define(other := 3 << 40, equals(2, "x"), probability=0.5)
    world.submit(task(0), condition=A)
    out = world.submit(task(1), condition=other, deps=(task(0),))
    assert out[0] == do.DefinedCondition(4, 0)
    assert world.core.speculation.probability(world.core.conditions.numbered(4))[0] == pytest.approx(0.4)
    world.submit(task(2), deps=(task(1), task(0)))
    bulk = world.core.tasks.find(task(2))
    assert bulk is not None
    assert bulk.condition.number == 4
    world.answer(1, '"a"')
    assert world.truth_of(task(1)) is Truth.UNDECIDED
    world.answer(2, '"y"')
    assert world.truth_of(task(1)) is Truth.FALSE


def test_a_contradictory_condition_is_refused(world: World) -> None:
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=B)
    world.submit(task(2), deps=(task(0), task(1)))
    assert world.causes[task(2)] is Cause.DEPENDENCY
    assert world.core.live == 2


def test_a_condition_defined_after_the_answer_is_decided_at_once(world: World) -> None:
    world.answer(1, '"a"')
    out = world.define(9 << 40, one_of(1, ["a", "b"]))
    assert out == [do.DefinedCondition(3, 9 << 40), do.Resolve(3, Truth.TRUE)]
    assert only(world.submit(task(0), condition=9 << 40), do.Dispatch)[0].condition == 0


def test_a_term_about_an_unknown_handle_is_false(world: World) -> None:
    world.define(9 << 40, equals(7 << 32 | 1, "a"))
    world.submit(task(0), condition=9 << 40)
    world.settle()
    assert world.core.state_of(task(0)) is State.DISCARDED


def test_a_name_keeps_its_condition_and_equal_terms_are_one(world: World) -> None:
    assert world.define(9 << 40, equals(1, "a")) == [do.DefinedCondition(1, 9 << 40)]
    assert world.define(A, equals(1, "b")) == [do.DefinedCondition(1, A)]
    assert world.core.conditions.named(A) is world.core.conditions.numbered(1)
    assert world.core.conditions.named(1) is world.core.conditions.numbered(1)


def test_a_new_probability_is_told_to_those_who_use_it(world: World) -> None:
    world.submit(task(0), condition=A)
    assert only(world.define(A, equals(1, "a"), probability=0.1), do.TellCondition) == [
        do.TellCondition(1, 1, Truth.UNDECIDED, 0.1, {0: 0.1})
    ]
    assert world.core.conditions.named(B).weight == 0.5
    assert only(world.define(B, equals(1, "b"), probability=0.1), do.TellCondition) == []


def test_the_first_instructions_of_an_answer_do_not_grow_with_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "BATCH", 100)
    lengths = set()
    for count in (10, 1000):
        world = World(windows=count // 2)
        world.arrive()
        world.ask(1)
        world.define(A, equals(1, "a"))
        world.define(B, equals(1, "b"))
        world.submit(task(0), count, condition=A)
        world.submit(task(count), count, condition=B)
        world.report(*(world.over(task(at)) for at in range(count // 2)))
        out = world.answer(1, '"b"')
        head = [type(o) in (do.Release, do.Record, do.Dispatch) for o in out].index(True)
        assert kinds(out[:head]) == ["SaveCheckpoint", "TellCondition", "Resolve", "Resolve"]
        lengths.add(head)
        assert sum(len(o.tasks) for o in only(out, do.Release)) + len(only(out, do.Record)) <= 100
        assert world.core.backlog == (count > 100)
        world.settle()
        assert world.core.live == count
    assert len(lengths) == 1


def test_reports_while_a_discard_is_under_way_never_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "BATCH", 1)
    world = World(windows=8)
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), 8, condition=A)
    late = [world.over(task(7)), world.over(task(6), State.QUEUED, Cause.PREEMPTED)]
    late += [world.over(task(5), State.FAILED, Cause.EXIT), world.over(task(4), State.FAILED, Cause.WORKER_DIED)]
    world.answer(1, '"b"')
    assert world.core.backlog
    world.report(*late)
    assert all(world.core.state_of(task(n)) is State.DISCARDED for n in (4, 5, 6, 7))
    world.end(1)
    world.settle()
    assert all(world.core.state_of(task(n)) is State.DISCARDED for n in range(8))
