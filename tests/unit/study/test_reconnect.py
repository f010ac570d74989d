"""The study core: agents come and go, the hub starts again, the script runs again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilot_hitl.model.conditions import equals, one_of
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import NodeInventory, Shape
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.check import Broken, check
from pilot_hitl.study.core import StudyCore
from tests.unit.study.world import (
    NODE,
    TWO,
    A,
    B,
    Report,
    World,
    again,
    keys,
    kinds,
    only,
    schema_test,
    state_of,
    task,
)

# --- agents come and go -----------------------------------------------------------------------------------------------


def test_a_new_life_runs_everything_of_the_old_one_again_with_a_higher_run(world: World) -> None:
    world.submit(task(0), 3)
    old = world.over(task(0))
    world.arrive(1)
    assert [(o.first, o.epoch, o.run) for o in only(world.out, do.Dispatch)] == [(task(n), 2, 1) for n in range(3)]
    assert world.report(old) == []


def test_what_the_agent_does_not_know_is_sent_again_as_the_same_attempt(world: World) -> None:
    world.submit(task(0), 6)
    world.report(world.over(task(1), State.QUEUED, Cause.PREEMPTED))
    world.come_back(1, ((task(4), 1, 0),))
    assert [(o.first, o.count, o.epoch, o.run) for o in only(world.out, do.Dispatch)] == [
        (task(0), 1, 1, 0),
        (task(1), 1, 1, 1),
        (task(2), 2, 1, 0),
        (task(5), 1, 1, 0),
    ]


def test_what_the_agent_knows_and_the_hub_does_not_want_is_ended(world: World) -> None:
    world.submit(task(0), 3)
    world.submit(task(3), condition=A)
    reports = [world.over(task(0)), world.over(task(1), State.QUEUED, Cause.PREEMPTED)]
    world.report(*reports)
    world.answer(1, '"b"')
    known = [(task(0), 1, 0), (task(1), 1, 0), (task(2), 1, 0), (task(3), 1, 0), (task(50), 1, 0), (task(51), 1, 0)]
    world.come_back(1, tuple(known))
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 2), (task(3), 1), (task(50), 2))
    # The second attempt of task 1 never arrived.
    assert [(o.first, o.run) for o in only(world.out, do.Dispatch)] == [(task(1), 1)]


def test_a_foreign_or_old_binding_is_not_adopted(world: World) -> None:
    world.submit(task(0), pilot=2)
    world.come_back(1, ((task(0), 5, 0),))
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 1),)
    assert world.core.pilot_of(task(0)) == 0


def test_a_cancellation_is_told_again_and_what_never_arrived_is_canceled(world: World) -> None:
    world.submit(task(0), 2)
    world.step(ev.CancelTasks(((task(0), 2),)))
    world.come_back(1, ((task(0), 1, 0),))
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 1),)
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.SCHEDULED, State.CANCELED]


def test_conditions_are_told_again_and_what_was_decided_meanwhile_too(world: World) -> None:
    world.ask(2)
    world.define(9 << 40, equals(2, "x"))
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=9 << 40)
    world.answer(1, '"a"')
    world.come_back(1)
    told = only(world.out, do.TellCondition)
    assert {(o.condition, o.truth) for o in told} == {(1, Truth.TRUE), (3, Truth.UNDECIDED)}
    assert only(world.answer(2, '"x"'), do.TellCondition)[0].condition == 3


def test_a_pilot_that_ended_for_good_leaves_its_tasks_to_others(world: World) -> None:
    world.submit(task(0), 2)
    world.arrive(2)
    world.end(1, final=True)
    assert world.core.pilot_of(task(0)) == 2
    assert 1 not in world.core.pilots
    world.step(ev.PilotEnded(77, final=False))
    world.step(ev.PilotAsked(1))
    world.submit(task(2), pilot=1)
    assert world.core.state_of(task(2)) is State.QUEUED


@pytest.mark.parametrize("restart", [False, True])
def test_held_results_need_no_second_try(world: World, restart: bool) -> None:
    world.submit(task(0), 2, condition=A)
    reports = [world.over(task(0)), world.over(task(1), State.FAILED, Cause.EXIT)]
    world.report(*reports)
    if restart:
        again(world)
    world.come_back(1, ((task(0), 1, 0), (task(1), 1, 0)))
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 2),)
    assert world.report(*reports) == []
    assert [world.core.state_of(task(n)) for n in (0, 1)] == [State.HELD, State.HELD_FAILED]


def test_what_a_pilot_cannot_hold_goes_to_another_one() -> None:
    world = World()
    world.arrive(1, window=9, nodes=(NodeInventory(name="small", cores=[0]),))
    world.arrive(2, window=2)
    assert [(o.pilot, o.count) for o in only(world.submit(task(0), 3, shape=TWO), do.Dispatch)] == [(2, 2)]
    assert [o.pilot for o in only(world.submit(task(3)), do.Dispatch)] == [1]


# --- the hub starts again ---------------------------------------------------------------------------------------------


def test_restored_tasks_sleep_until_they_are_wanted(world: World) -> None:
    world.submit(task(0), 2)
    world.submit(task(2), deps=(task(0),))
    world.report(world.over(task(0)))
    again(world)
    assert world.core.live == 0
    world.agents.clear()
    world.arrive(1)
    assert only(world.out, do.Dispatch) == []
    out = world.step(ev.Revive(1))
    assert [(o.first, o.run) for o in only(out, do.Dispatch)] == [(task(1), 1000), (task(2), 1000)]
    assert world.core.live == 2
    assert world.step(ev.Revive(1)) == []
    assert world.step(ev.Revive(9)) == []


def test_a_returning_agent_is_adopted_and_its_number_never_used_again(world: World) -> None:
    world.submit(task(0), 2)
    again(world)
    world.come_back(1)
    assert only(world.out, do.Dispatch) == []
    assert [world.core.pilot_of(task(n)) for n in (0, 1)] == [1, 1]
    world.report(world.over(task(0)))
    assert world.core.state_of(task(0)) is State.DONE
    world.step(ev.Revive(1))
    out = world.report(world.over(task(1), State.QUEUED, Cause.PREEMPTED))
    assert [(o.epoch, o.run) for o in only(out, do.Dispatch)] == [(1, 1001)]


def test_adopted_work_that_nobody_wants_sleeps_again_when_it_is_given_back(world: World) -> None:
    world.submit(task(0))
    again(world)
    world.come_back(1)
    assert world.report(world.over(task(0), State.QUEUED, Cause.PREEMPTED)) == []
    assert world.core.state_of(task(0)) is State.NEW


def test_of_two_attempts_that_the_agent_knows_the_later_one_is_adopted(world: World) -> None:
    world.submit(task(0))
    world.report(world.over(task(0), State.QUEUED, Cause.PREEMPTED))
    again(world)
    world.come_back(1, ((task(0), 1, 0), (task(0), 1, 1)))
    assert only(world.out, do.EndAttempts) == []
    assert kinds(world.report(world.over(task(0)))) == ["Record"]
    assert world.deciding[task(0)] == Report(task(0), 1, 1, State.DONE)


def test_an_attempt_under_a_condition_that_was_not_written_is_ended(world: World) -> None:
    world.commit()
    world.submit(task(0), condition=A)
    world.submit(task(1))
    world.restart()
    world.come_back(1)
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 1),)
    assert world.core.pilot_of(task(1)) == 1


def test_held_results_are_committed_or_discarded_while_their_script_sleeps(world: World) -> None:
    for number, name in enumerate((A, A, B)):
        world.submit(task(number), condition=name)
    world.report(world.over(task(0)), world.over(task(1), State.FAILED, Cause.EXIT), world.over(task(2)))
    again(world)
    world.answer(1, '"a"')
    assert [world.core.state_of(task(n)) for n in range(3)] == [State.DONE, State.NEW, State.DISCARDED]
    world.come_back(1)
    assert only(world.step(ev.Revive(1)), do.Dispatch) == [do.Dispatch(1, task(1), 1, 1, 1001, 0)]


def test_what_an_answer_began_is_finished_after_a_restart(world: World) -> None:
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=B)
    world.report(world.over(task(0)), world.over(task(1)))
    world.submit(task(2), condition=B)
    states = dict(world.states)
    world.answer(1, '"a"')
    world.states = states
    again(world)
    assert world.core.backlog
    world.settle()
    assert [world.core.state_of(task(n)) for n in range(3)] == [State.DONE, State.DISCARDED, State.DISCARDED]


def test_nothing_is_adopted_under_a_false_condition(world: World) -> None:
    world.submit(task(0), condition=B)
    world.answer(1, '"a"')
    world.states.clear()
    world.agents[1].has[task(0)] = (1, 0, 2)
    again(world)
    world.come_back(1)
    assert only(world.out, do.EndAttempts)[0].runs == ((task(0), 1),)
    assert world.core.pilot_of(task(0)) == 0
    world.settle()
    assert world.core.state_of(task(0)) is State.DISCARDED


def test_what_is_awake_wakes_what_it_depends_on(world: World) -> None:
    world.submit(task(0))
    world.submit(task(1), deps=(task(0),))
    world.submit(task(0, 2), deps=(task(1),))
    again(world)
    world.step(ev.Revive(2))
    assert world.core.live == 3
    again(world)
    world.submit(task(0, 3), deps=(task(1),))
    assert world.core.live == 3


def test_a_restored_task_whose_dependency_is_lost_fails(world: World) -> None:
    world.submit(task(0))
    world.submit(task(1), deps=(task(0),))
    del world.submits[task(0)]
    again(world)
    world.agents.clear()
    world.step(ev.Revive(1))
    assert world.causes[task(1)] is Cause.DEPENDENCY


def test_restoring_by_name_joins_the_conditions_again(world: World) -> None:
    world.ask(2)
    world.define(other := 9 << 40, equals(2, "x"))
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=other, deps=(task(0),))
    world.submits[task(1)] = (world.submits[task(1)][0], other)
    again(world)
    bulk = world.core.tasks.find(task(1))
    assert bulk is not None
    assert len(bulk.condition.terms) == 2


def test_a_pending_request_is_placed_again_by_the_next_tick(world: World) -> None:
    world.submit(task(0))
    world.submit(task(1))
    world.ask(2, deps=(task(0),))
    world.ask(3, condition=A)
    world.ask(4, deps=(task(1),))
    world.ask(5, deadline=50.0)
    again(world)
    world.report()
    assert world.core.backlog
    world.settle()
    assert [world.checkpoints[n].state for n in (2, 3, 4, 5)] == [CheckpointState.PENDING] * 3 + [CheckpointState.OPEN]
    world.come_back(1)
    assert world.core.next_deadline() == 1050.0
    world.come_back(1)
    world.report(world.over(task(0)))
    assert state_of(world, 2) is CheckpointState.OPEN
    world.answer(1, '"a"')
    assert state_of(world, 3) is CheckpointState.OPEN


def test_closed_requests_keep_what_they_decided(world: World) -> None:
    world.ask(2)
    world.ask(3, deadline=1.0, default='"x"')
    world.ask(4, deadline=1.0)
    world.step(ev.WithdrawCheckpoint(2))
    world.now += 1
    world.step(ev.Tick())
    world.answer(1, '"a"')
    again(world)
    truths = []
    for number in (1, 2, 3, 4):
        world.define(number << 50, one_of(number, ["a", "x"]))
        truths.append(world.core.conditions.named(number << 50).truth)
    assert truths == [Truth.TRUE, Truth.FALSE, Truth.TRUE, Truth.FALSE]
    world.answer(1, '"b"')
    assert world.refused[-1].code == "already-answered"


def test_conditions_can_be_restored_after_the_answers() -> None:
    core = StudyCore(schema_test)
    core.step(ev.RestoreCheckpoint(ev.AskPeople(1, 1), CheckpointState.ANSWERED, '"a"', 1.0), 2.0)
    core.step(ev.RestoreCondition(A, (equals(1, "a"),), Truth.UNDECIDED, number=7), 2.0)
    assert core.conditions.named(A).truth is Truth.TRUE
    assert core.conditions.named(7) is core.conditions.named(A)
    core.step(ev.DefineCondition(B, (equals(1, "b"),)), 2.0)
    assert core.conditions.named(B).number == 8


# --- the script runs again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_done_results_are_reused_and_waiting_ones_superseded(world: World, restart: bool) -> None:
    world.submit(task(0), 3, keys=keys(1, 2, 3))
    world.report(world.over(task(0)), world.over(task(1), State.FAILED, Cause.EXIT))
    if restart:
        again(world)
        world.agents.clear()
        world.arrive(1)
    else:
        world.end(1)
    out = world.submit(task(0, 2), 4, keys=keys(1, 2, 3, 4))
    assert only(out, do.Reuse) == [do.Reuse(task(0, 2), task(0), State.DONE)]
    assert [(o.task, o.state, o.failure.cause) for o in only(out, do.Record)] == [
        (task(2), State.CANCELED, Cause.SUPERSEDED)
    ]
    assert world.core.live == 3
    # And those are found by the next run of the script.
    assert only(world.submit(task(0, 3), 1, keys=keys(1)), do.Reuse)[0].state is State.DONE


def test_keys_are_not_looked_for_among_ones_own(world: World) -> None:
    world.submit(task(0), keys=keys(1))
    world.report(world.over(task(0)))
    assert kinds(world.submit(task(1), keys=keys(1))) == ["Dispatch"]


def test_a_running_attempt_is_followed(world: World) -> None:
    world.submit(task(0), 3, keys=keys(1, 2, 3))
    assert world.submit(task(0, 2), 3, keys=keys(1, 2, 3)) == []
    world.submit(task(3, 2), deps=(task(0, 2),))
    out = world.report(world.over(task(0)))
    assert kinds(out) == ["Record", "Reuse", "Dispatch"]
    out = world.report(world.over(task(1), State.FAILED, Cause.EXIT))
    assert [o.first for o in only(out, do.Dispatch)] == [task(1, 2)]
    world.step(ev.CancelTasks(((task(2, 2), 1),)))
    world.report(world.over(task(2)))
    assert world.core.state_of(task(2, 2)) is State.CANCELED


def test_a_follower_of_a_canceled_attempt_runs_itself(world: World) -> None:
    world.submit(task(0), keys=keys(1))
    world.submit(task(0, 2), keys=keys(1))
    world.step(ev.CancelTasks(((task(0), 1),)))
    out = world.report(world.over(task(0), State.CANCELED, Cause.CANCELED))
    assert [o.first for o in only(out, do.Dispatch)] == [task(0, 2)]
    # What is told to end is not followed.
    world.step(ev.CancelTasks(((task(0, 2), 1),)))
    out = world.submit(task(0, 3), keys=keys(1))
    assert [o.first for o in only(out, do.Dispatch)] == [task(0, 3)]


def test_a_follower_of_a_lost_attempt_that_nobody_else_wants_runs_itself(world: World) -> None:
    world.submit(task(0), keys=keys(1))
    again(world)
    world.come_back(1)
    assert world.submit(task(0, 2), keys=keys(1)) == []
    out = world.report(world.over(task(0), State.QUEUED, Cause.NODE_LOST))
    assert [o.first for o in only(out, do.Dispatch)] == [task(0, 2)]
    assert world.core.state_of(task(0)) is State.NEW


def test_a_follower_waits_for_its_own_dependencies_when_it_must_run_itself(world: World) -> None:
    world.submit(task(0), keys=keys(1))
    world.submit(task(0, 2))
    world.submit(task(1, 2), keys=keys(1), deps=(task(0, 2),))
    assert world.report(world.over(task(0), State.FAILED, Cause.EXIT)) == [world.out[0]]
    assert world.core.state_of(task(1, 2)) is State.NEW
    assert [o.first for o in only(world.report(world.over(task(0, 2))), do.Dispatch)] == [task(1, 2)]


def test_a_result_under_an_undecided_condition_is_only_held(world: World) -> None:
    world.submit(task(0), 2, keys=keys(1, 2))
    world.report(world.over(task(0)), world.over(task(1)))
    assert only(world.submit(task(0, 2), keys=keys(1), condition=A), do.Reuse)[0].state is State.HELD
    assert only(world.submit(task(1, 2), keys=keys(2), condition=B), do.Reuse)[0].state is State.HELD
    world.answer(1, '"a"')
    assert [world.core.state_of(task(n, 2)) for n in (0, 1)] == [State.DONE, State.DISCARDED]


def test_a_held_result_is_reused_under_the_same_condition_only(world: World) -> None:
    world.submit(task(0), 2, keys=keys(1, 2), condition=A)
    world.report(world.over(task(0)), world.over(task(1)))
    out = world.submit(task(0, 2), keys=keys(1), condition=A)
    assert only(out, do.Reuse)[0].state is State.HELD
    out = world.submit(task(1, 2), keys=keys(2))
    assert kinds(out) == ["Record", "Dispatch"]
    assert world.core.state_of(task(1)) is State.CANCELED


def test_the_result_of_a_committed_branch_is_done_for_its_successor(world: World) -> None:
    world.submit(task(0), keys=keys(1), condition=A)
    world.report(world.over(task(0)))
    again(world)
    world.answer(1, '"a"')
    assert only(world.submit(task(0, 2), keys=keys(1), condition=A), do.Reuse)[0].state is State.DONE


def test_nothing_is_claimed_under_a_false_condition(world: World) -> None:
    world.submit(task(0), keys=keys(1))
    world.report(world.over(task(0)))
    world.answer(1, '"b"')
    world.submit(task(0, 2), keys=keys(1), condition=A)
    world.settle()
    assert world.core.state_of(task(0, 2)) is State.DISCARDED


def test_a_bound_predecessor_under_another_condition_is_ended(world: World) -> None:
    world.submit(task(0), keys=keys(1), condition=A)
    out = world.submit(task(0, 2), keys=keys(1))
    assert only(out, do.EndAttempts)[0].runs == ((task(0), 1),)
    assert world.core.state_of(task(0)) is State.CANCELED


def test_a_done_result_is_preferred_to_a_later_one_that_is_not() -> None:
    world = World()
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), keys=keys(1))
    world.report(world.over(task(0)))
    world.submit(task(0, 2), keys=keys(1), condition=A)
    assert only(world.submit(task(0, 3), keys=keys(1)), do.Reuse) == [do.Reuse(task(0, 3), task(0), State.DONE)]
    assert world.core.state_of(task(0, 2)) is State.HELD


def test_a_reused_held_value_does_not_need_its_dependencies(world: World) -> None:
    world.submit(task(0), keys=keys(1), condition=A)
    world.report(world.over(task(0)))
    world.submit(task(0, 2))
    world.submit(task(1, 2), keys=keys(1), condition=A, deps=(task(0, 2),))
    assert world.core.state_of(task(1, 2)) is State.HELD
    world.report(world.over(task(0, 2), State.FAILED, Cause.EXIT))
    assert world.core.state_of(task(1, 2)) is State.HELD
    world.answer(1, '"a"')
    assert world.core.state_of(task(1, 2)) is State.DONE


def test_a_follower_that_acts_outside_waits_for_the_answer_when_it_must_run_itself(world: World) -> None:
    world.submit(task(0), keys=keys(1), condition=A)
    world.submit(task(0, 2), keys=keys(1), condition=A, outside=True)
    out = world.report(world.over(task(0), State.FAILED, Cause.EXIT))
    assert kinds(out) == ["Record"]
    assert {o.first for o in only(world.answer(1, '"a"'), do.Dispatch)} == {task(0), task(0, 2)}


# --- check() itself ---------------------------------------------------------------------------------------------------


def test_check_finds_what_is_wrong(world: World) -> None:
    world.submit(task(0), 2, condition=A)
    check(world.core)
    bulk = world.core.tasks.find(task(0))
    assert bulk is not None
    bulk.states[0] = int(State.QUEUED)
    with pytest.raises(Broken, match="bound and QUEUED"):
        check(world.core)
    bulk.states[0] = int(State.SCHEDULED)
    world.core.pilots[1].bound[2, Shape()] = 1
    with pytest.raises(Broken, match="bound is"):
        check(world.core)
    world.core.pilots[1].bound[2, Shape()] = 2
    bulk.live = 1
    with pytest.raises(Broken, match="live is 1"):
        check(world.core)


def test_events_and_instructions_are_frozen() -> None:
    event: Any = ev.PilotAsked(1)
    with pytest.raises(AttributeError):
        event.pilot = 2
    order: Any = do.Resolve(1, Truth.TRUE)
    with pytest.raises(AttributeError):
        order.truth = Truth.FALSE
    assert msgspec.structs.replace(event, pilot=3).pilot == 3
    assert NODE.cores
    assert Failure(Cause.EXIT, "x").exit_code == 0


# --- what acts outside, and an agent that knows what it has begun -----------------------------------------------------


def attempt(world: World, task: int) -> tuple[int, int, int]:
    return (task, *world.present[task])


def test_what_acts_outside_and_had_begun_is_lost_although_nobody_had_said_so(world: World) -> None:
    world.submit(task(0), 2, outside=True)
    begun, other = attempt(world, task(0)), attempt(world, task(1))
    world.arrive(1, acted=(begun,))
    assert world.core.state_of(task(0)) is State.FAILED
    assert world.core.state_of(task(1)) is State.SCHEDULED
    assert world.present[task(1)] > other[1:], "it had not begun, and runs again"


@pytest.mark.parametrize("met", [False, True])
def test_so_it_is_after_a_hub_that_was_killed(world: World, met: bool) -> None:
    world.submit(task(0), 2, outside=True)
    begun, other = attempt(world, task(0)), attempt(world, task(1))
    world.commit()
    world.restart()
    world.step(ev.Revive(1))
    if met:
        # The same agent comes back first, and dies then.
        agent = world.agents[1]
        world.step(ev.AgentReady(1, agent.binding, (NODE,), (begun, other), agent.window, acted=(begun,)))
        assert world.core.state_of(task(0)) is State.RUNNING
        assert world.core.state_of(task(1)) is State.SCHEDULED
    world.arrive(1, acted=(begun,))
    assert world.core.state_of(task(0)) is State.FAILED
    assert world.core.state_of(task(1)) is State.SCHEDULED, "it had not begun"
    assert world.present[task(1)] > other[1:]


def test_what_was_lost_with_its_pilot_stays_so_whoever_comes(world: World) -> None:
    world.submit(task(0), outside=True)
    world.commit()
    world.restart()
    world.step(ev.Revive(1))
    world.end(1)
    assert world.core.state_of(task(0)) is State.FAILED
    world.arrive(1, acted=())
    assert world.core.state_of(task(0)) is State.FAILED


# --- what acts outside, and a hub that was killed right after it sent it ----------------------------------------------


def sent_by_a_hub_that_was_killed(world: World) -> tuple[int, int]:
    """Let a hub send a task that acts outside and be killed at once, and its script be back before the agent."""
    world.submit(task(0), outside=True)
    sent = world.present[task(0)]
    world.restart()
    assert world.step(ev.Revive(1)) == [], "it may be running: it is sent nowhere"
    world.arrive(2)
    assert only(world.out, do.Dispatch) == []
    return sent


def test_what_acts_outside_is_its_agents_until_that_is_back(world: World) -> None:
    epoch, run = sent_by_a_hub_that_was_killed(world)
    world.come_back(1)
    assert only(world.out, do.Dispatch) == [], "the agent knows it"
    report = world.over(task(0))
    assert (report.epoch, report.run) == (epoch, run)
    world.report(report)
    assert world.core.state_of(task(0)) is State.DONE


def test_what_acts_outside_and_never_arrived_is_sent_again(world: World) -> None:
    epoch, run = sent_by_a_hub_that_was_killed(world)
    world.agents[1].has.clear()
    world.come_back(1)
    assert [(o.first, o.epoch, o.run) for o in only(world.out, do.Dispatch)] == [(task(0), epoch, run)]
    assert world.core.state_of(task(0)) is State.SCHEDULED


@pytest.mark.parametrize("anew", [False, True])
def test_what_acts_outside_and_whose_agent_is_gone_has_failed(world: World, anew: bool) -> None:
    sent_by_a_hub_that_was_killed(world)
    if anew:
        world.arrive(1)
    else:
        world.end(1, final=True)
    assert world.core.state_of(task(0)) is State.FAILED
    assert only(world.out, do.Dispatch) == []


def test_what_acts_outside_and_was_given_back_runs_after_a_restart(world: World) -> None:
    world.submit(task(0), outside=True)
    world.agents[1].nodes = ()
    world.step(ev.PilotNodes(1, ()))
    world.report(world.over(task(0), State.QUEUED, Cause.PREEMPTED))
    world.end(1)
    world.commit()
    world.restart()
    world.step(ev.Revive(1))
    world.arrive(2)
    assert [o.first for o in only(world.out, do.Dispatch)] == [task(0)]


@pytest.mark.parametrize("ended", [True, False])
def test_what_acts_outside_and_is_for_one_site_is_restored_before_its_pilot_is_known(ended: bool) -> None:
    world = World()
    world.ask_pilot(2, 0, "b")
    world.arrive(2)
    world.submit(task(0), outside=True, pilot=2, site="b")
    world.report(world.begin(task(0)))
    world.commit()
    if ended:
        # Its hub is killed before it has written what became of its tasks.
        world.end(2, final=True)
    world.restart()
    world.step(ev.Revive(1))
    assert world.core.state_of(task(0)) is (State.FAILED if ended else State.RUNNING)
    if not ended:
        world.come_back(2)
        assert world.core.pilot_of(task(0)) == 2
