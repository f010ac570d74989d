"""The study core's rules, one example each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilot_hitl.model.conditions import equals, matches, one_of
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import NodeInventory, Resources, Shape
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import core as core_module
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.check import Broken, check
from pilot_hitl.study.core import StudyCore
from tests.unit.study.world import BIG, NODE, ONE, TWO, Report, World, schema_test, task

A, B = 1 << 40 | 1, 1 << 40 | 2


def kinds(out: list[do.Instruction]) -> list[str]:
    return [type(instruction).__name__ for instruction in out]


def only(out: list[do.Instruction], kind: type[Any]) -> list[Any]:
    return [instruction for instruction in out if isinstance(instruction, kind)]


def keys(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(16, "big") for number in numbers)


def state_of(world: World, number: int) -> CheckpointState:
    return world.checkpoints[number].state


@pytest.fixture
def world() -> World:
    """A world with one agent and one open checkpoint with the branches A ("a") and B ("b")."""
    world = World(windows=8)
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"), probability=0.8)
    world.define(B, equals(1, "b"))
    return world


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


def test_the_pilot_with_the_most_credit_gets_the_task() -> None:
    world = World()
    world.arrive(1, window=2)
    world.arrive(2, window=6)
    assert [(o.pilot, o.count) for o in only(world.submit(task(0), 8), do.Dispatch)] == [(2, 6), (1, 2)]


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
    world.report(world.over(task(0), State.FAILED, Cause.EXIT))
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
    assert out == [do.TellCondition(1, 1, Truth.UNDECIDED, 0.8), do.Dispatch(1, task(0), 2, 1, 0, 1)]
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
    assert world.core.conditions.numbered(4).probability == pytest.approx(0.4)
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
        do.TellCondition(1, 1, Truth.UNDECIDED, 0.1)
    ]
    assert world.core.conditions.named(B).score == 0.5
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


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_first_answer_wins_and_later_ones_are_told_why(world: World) -> None:
    world.answer(1, '"a"', token=3)
    assert world.checkpoints[1] == do.SaveCheckpoint(1, CheckpointState.ANSWERED, '"a"', 1000.0, 0.0, 0, 3)
    world.answer(1, '"b"', token=4)
    world.answer(9, '"b"', token=5)
    assert [(r.token, r.code, r.value) for r in world.refused] == [
        (4, "already-answered", '"b"'),
        (5, "unknown", '"b"'),
    ]
    assert '"a"' in world.refused[0].message
    assert world.core.conditions.numbered(1).truth is Truth.TRUE


def test_a_deadline_applies_the_default_as_an_answer_and_fires_once(world: World) -> None:
    world.ask(2, deadline=10.0, default='"x"')
    world.define(9 << 40, equals(2, "x"))
    world.submit(task(0), condition=9 << 40)
    assert world.core.next_deadline() == 1010.0
    world.now = 1009.9
    assert world.step(ev.Tick()) == []
    world.now = 1010.0
    out = world.step(ev.Tick())
    assert only(out, do.SaveCheckpoint) == [do.SaveCheckpoint(2, CheckpointState.EXPIRED, '"x"', 1000.0, 0.0, 0)]
    assert world.truth_of(task(0)) is Truth.TRUE
    assert world.step(ev.Tick()) == []
    assert world.core.next_deadline() is None
    world.answer(2, '"y"')
    assert world.refused[-1].code == "expired"


def test_the_moment_of_the_answer_decides_not_that_of_its_arrival(world: World) -> None:
    world.ask(2, deadline=10.0, default='"x"')
    world.ask(3, deadline=10.0)
    world.now = 1060.0
    world.answer(2, '"y"', at=1010.0)
    assert world.core.checkpoints.get(2).state is CheckpointState.ANSWERED  # type: ignore[union-attr]
    world.answer(3, '"y"', at=1010.1)
    assert world.core.checkpoints.get(3).state is CheckpointState.EXPIRED  # type: ignore[union-attr]
    assert world.refused[-1].code == "expired"


def test_deadlines_pass_in_their_order(world: World) -> None:
    world.ask(2, deadline=20.0, default='"x"')
    world.ask(3, deadline=10.0, default='"x"')
    world.now += 30
    assert [o.checkpoint for o in only(world.step(ev.Tick()), do.SaveCheckpoint)] == [3, 2]


def test_without_a_default_its_conditions_become_false(world: World) -> None:
    world.ask(2, deadline=10.0)
    world.define(9 << 40, equals(2, "x"))
    world.submit(task(0), condition=9 << 40)
    world.now += 10
    world.step(ev.Tick())
    assert world.core.state_of(task(0)) is State.DISCARDED


def test_inside_a_branch_it_opens_with_the_commit_and_its_clock_starts_then(world: World) -> None:
    world.ask(2, condition=A, deadline=10.0)
    world.ask(3, condition=B)
    assert state_of(world, 2) is CheckpointState.PENDING
    world.answer(2, '"x"')
    assert world.refused[-1].code == "pending"
    world.now += 100
    world.answer(1, '"a"')
    assert world.checkpoints[2] == do.SaveCheckpoint(2, CheckpointState.OPEN, "", 1100.0, 1110.0, 0)
    assert state_of(world, 3) is CheckpointState.WITHDRAWN
    world.answer(3, '"x"')
    assert world.refused[-1].code == "withdrawn"


def test_branches_inside_a_branch_that_was_not_chosen_are_discarded_with_it(world: World) -> None:
    world.define(names := 9 << 40, equals(1, "a"))
    for number in range(2, 40):
        world.ask(number, condition=names)
        names += 1
        world.define(names, equals(number, "x"))
    world.submit(task(0), condition=names)
    out = world.answer(1, '"b"')
    assert len(only(out, do.SaveCheckpoint)) == 39
    assert world.core.state_of(task(0)) is State.DISCARDED


def test_it_opens_when_what_it_shows_is_there_or_never_will_be(world: World) -> None:
    world.submit(task(0), 2)
    world.ask(2, deps=(task(0), task(1), task(0)))
    world.ask(2, deps=(task(0), task(1)))
    world.report(world.over(task(0)))
    assert state_of(world, 2) is CheckpointState.PENDING
    world.report(world.over(task(1), State.FAILED, Cause.EXIT))
    assert state_of(world, 2) is CheckpointState.OPEN
    world.ask(3, deps=(task(0), task(1), task(99)))
    assert state_of(world, 3) is CheckpointState.OPEN


def test_what_shows_a_branchs_value_belongs_to_the_branch(world: World) -> None:
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=B)
    world.ask(2, deps=(task(0),))
    world.ask(3, deps=(task(1),))
    world.report(world.over(task(0)), world.over(task(1)))
    assert state_of(world, 2) is CheckpointState.PENDING
    world.answer(1, '"a"')
    assert [world.checkpoints[n].state for n in (2, 3)] == [CheckpointState.OPEN, CheckpointState.WITHDRAWN]


def test_a_shown_task_that_failed_as_a_guess_is_waited_for_again(world: World) -> None:
    world.submit(task(0), condition=A)
    world.report(world.over(task(0), State.FAILED, Cause.EXIT))
    world.ask(2, deps=(task(0),))
    world.answer(1, '"a"')
    assert state_of(world, 2) is CheckpointState.PENDING
    world.report(world.over(task(0)))
    assert state_of(world, 2) is CheckpointState.OPEN


def test_what_waits_for_itself_is_withdrawn(world: World) -> None:
    world.define(9 << 40, equals(1, "a"))
    world.ask(2, condition=9 << 40)
    world.define(10 << 40, equals(2, "a"))
    world.ask(1, condition=10 << 40, fingerprint=b"!")
    assert world.checkpoints[1].state is CheckpointState.WITHDRAWN
    assert state_of(world, 2) is CheckpointState.WITHDRAWN


def test_an_unknown_branch_is_no_place_to_ask(world: World) -> None:
    world.ask(2, condition=77 << 32)
    assert state_of(world, 2) is CheckpointState.WITHDRAWN


def test_asked_again_unchanged_it_tells_how_it_stands(world: World) -> None:
    assert kinds(world.ask(1)) == ["SaveCheckpoint"]
    world.answer(1, '"a"')
    assert world.ask(1) == [do.SaveCheckpoint(1, CheckpointState.ANSWERED, '"a"', 1000.0, 0.0, 0)]
    assert world.ask(1, fingerprint=b"!", on_change="keep") == world.ask(1)


def test_asked_again_changed_while_open_its_conditions_stay_and_its_clock_starts_again(world: World) -> None:
    world.submit(task(0), condition=A)
    world.now += 5
    out = world.ask(1, fingerprint=b"!", deadline=7.0)
    assert [(o.state, o.deadline, o.generation) for o in only(out, do.SaveCheckpoint)] == [
        (CheckpointState.PENDING, 0.0, 0),
        (CheckpointState.OPEN, 1012.0, 0),
    ]
    world.answer(1, '"a"')
    assert world.truth_of(task(0)) is Truth.TRUE


def test_asked_again_changed_after_the_answer_it_is_a_new_generation(world: World) -> None:
    world.submit(task(0), condition=A)
    world.answer(1, '"a"')
    out = world.ask(1, fingerprint=b"!")
    assert only(out, do.SaveCheckpoint)[-1] == do.SaveCheckpoint(1, CheckpointState.OPEN, '"a"', 1000.0, 0.0, 1)
    # What the old answer decided stays decided; equal terms are a new condition.
    assert world.truth_of(task(0)) is Truth.TRUE
    assert world.define(9 << 40, equals(1, "a")) == [do.DefinedCondition(3, 9 << 40)]
    world.submit(task(1), condition=9 << 40, deps=(task(0),))
    bulk = world.core.tasks.find(task(1))
    assert bulk is not None
    assert bulk.condition.truth is Truth.UNDECIDED
    world.commit()
    world.restart()
    world.step(ev.Revive(1))
    world.answer(1, '"b"')
    world.settle()
    assert world.core.state_of(task(1)) is State.DISCARDED
    assert world.truth_of(task(0)) is Truth.TRUE


def test_a_joined_condition_over_an_old_generation_is_decided_after_a_restart(world: World) -> None:
    world.ask(2)
    world.define(9 << 40, equals(1, "a"), equals(2, "x"))
    world.submit(task(0), condition=9 << 40)
    world.answer(1, '"a"')
    world.ask(1, fingerprint=b"!")
    world.commit()
    world.restart()
    assert world.truth_of(task(0)) is Truth.UNDECIDED
    world.answer(2, '"x"')
    assert world.truth_of(task(0)) is Truth.TRUE


def test_withdrawn_and_asked_again_it_is_open_again(world: World) -> None:
    world.submit(task(0), condition=A)
    world.step(ev.WithdrawCheckpoint(1))
    assert world.core.state_of(task(0)) is State.DISCARDED
    assert world.step(ev.WithdrawCheckpoint(1)) == []
    world.ask(1)
    assert (world.checkpoints[1].state, world.checkpoints[1].generation) == (CheckpointState.OPEN, 1)
    world.define(9 << 40, equals(1, "a"))
    world.submit(task(1), condition=9 << 40)
    world.answer(1, '"a"')
    assert world.truth_of(task(1)) is Truth.TRUE


def test_numbers_are_given_when_nobody_says_one() -> None:
    core = StudyCore(schema_test)
    core.step(ev.AskPeople(0, 1, b"k"), 1.0)
    core.step(ev.AskPeople(5, 1, b"l"), 1.0)
    core.step(ev.AskPeople(0, 1, b"m"), 1.0)
    assert [checkpoint.number for checkpoint in core.checkpoints] == [1, 5, 6]


# --- reservations -----------------------------------------------------------------------------------------------------

TWO_CORES = Resources(cores=2)


def test_a_reservation_is_kept_until_it_lingered(world: World) -> None:
    assert only(world.ask(2, reserve=TWO_CORES, linger=3.0), do.KeepReservation) == [
        do.KeepReservation(1, 2, TWO_CORES)
    ]
    world.answer(2, '"x"')
    assert world.core.next_deadline() == 1003.0
    world.now = 1003.0
    assert world.step(ev.Tick()) == [do.KeepReservation(1, 2, None)]
    assert world.core.next_deadline() is None


def test_a_reservation_can_be_given_up_alone(world: World) -> None:
    world.ask(2, reserve=TWO_CORES)
    assert world.step(ev.WithdrawCheckpoint(2, reservation_only=True)) == [do.KeepReservation(1, 2, None)]
    assert world.step(ev.WithdrawCheckpoint(77)) == []
    world.come_back(1)
    assert only(world.out, do.KeepReservation) == []
    assert state_of(world, 2) is CheckpointState.OPEN


def test_a_reservation_waits_for_a_pilot_follows_an_agents_life_and_moves_on() -> None:
    world = World()
    world.ask(1, reserve=TWO_CORES)
    world.arrive(1)
    keep = do.KeepReservation(1, 1, TWO_CORES)
    assert keep in world.out
    world.come_back(1)
    assert keep in world.out
    world.arrive(1)
    assert keep in world.out
    world.arrive(2)
    assert only(world.out, do.KeepReservation) == []
    world.end(1)
    assert only(world.out, do.KeepReservation) == [do.KeepReservation(2, 1, TWO_CORES)]
    world.end(2)
    world.answer(1, '"x"')
    world.arrive(1)
    assert only(world.out, do.KeepReservation) == []


def test_a_question_that_changed_gives_its_reservation_up(world: World) -> None:
    world.ask(2, reserve=TWO_CORES)
    out = world.ask(2, fingerprint=b"!")
    assert only(out, do.KeepReservation) == [do.KeepReservation(1, 2, None)]


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


def again(world: World) -> None:
    world.commit()
    world.restart()


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
    core.step(ev.RestoreCheckpoint(ev.AskPeople(1, 1, b"k"), CheckpointState.ANSWERED, '"a"', 1.0), 2.0)
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
    event = ev.PilotAsked(1)
    with pytest.raises(AttributeError):
        event.pilot = 2  # type: ignore[misc]
    order = do.Resolve(1, Truth.TRUE)
    with pytest.raises(AttributeError):
        order.truth = Truth.FALSE  # type: ignore[misc]
    assert msgspec.structs.replace(event, pilot=3).pilot == 3
    assert NODE.cores
    assert Failure(Cause.EXIT, "x").exit_code == 0
