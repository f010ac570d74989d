"""The study core: checkpoints and reservations; one example a rule."""

from __future__ import annotations

from pilot_hitl.model.conditions import equals
from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import Resources
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.core import StudyCore
from tests.unit.study.world import (
    A,
    B,
    World,
    keys,
    kinds,
    only,
    schema_test,
    state_of,
    task,
)

# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_first_answer_wins_and_later_ones_are_told_why(world: World) -> None:
    world.answer(1, '"a"', token=3)
    assert world.checkpoints[1] == do.SaveCheckpoint(1, CheckpointState.ANSWERED, '"a"', 1000.0, 0.0, 1, 0, 3)
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
    assert only(out, do.SaveCheckpoint) == [do.SaveCheckpoint(2, CheckpointState.EXPIRED, '"x"', 1000.0, 0.0, 1)]
    assert world.truth_of(task(0)) is Truth.TRUE
    assert world.step(ev.Tick()) == []
    assert world.core.next_deadline() is None
    world.answer(2, '"y"')
    assert world.refused[-1].code == "expired"


def _state(world: World, checkpoint: int) -> CheckpointState:
    kept = world.core.checkpoints.get(checkpoint)
    assert kept is not None
    return kept.state


def test_the_moment_of_the_answer_decides_not_that_of_its_arrival(world: World) -> None:
    world.ask(2, deadline=10.0, default='"x"')
    world.ask(3, deadline=10.0)
    world.now = 1060.0
    world.answer(2, '"y"', at=1010.0)
    assert _state(world, 2) is CheckpointState.ANSWERED
    world.answer(3, '"y"', at=1010.1)
    assert _state(world, 3) is CheckpointState.EXPIRED
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
    assert world.checkpoints[2] == do.SaveCheckpoint(2, CheckpointState.OPEN, "", 1100.0, 1110.0, 1)
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
    assert world.ask(1) == [do.SaveCheckpoint(1, CheckpointState.ANSWERED, '"a"', 1000.0, 0.0, 1)]
    assert world.ask(1, fingerprint=b"!", on_change="keep") == world.ask(1)


def test_asked_again_changed_while_open_its_conditions_stay_and_its_clock_starts_again(world: World) -> None:
    world.submit(task(0), condition=A)
    world.now += 5
    out = world.ask(1, fingerprint=b"!", deadline=7.0)
    assert [(o.state, o.deadline, o.generation) for o in only(out, do.SaveCheckpoint)] == [
        (CheckpointState.PENDING, 0.0, 2),
        (CheckpointState.OPEN, 1012.0, 2),
    ]
    world.answer(1, '"a"')
    assert world.truth_of(task(0)) is Truth.TRUE


def test_asked_again_changed_after_the_answer_it_is_a_new_generation(world: World) -> None:
    world.submit(task(0), condition=A)
    world.answer(1, '"a"')
    out = world.ask(1, fingerprint=b"!")
    assert only(out, do.SaveCheckpoint)[-1] == do.SaveCheckpoint(1, CheckpointState.OPEN, "", 1000.0, 0.0, 2, 1)
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


def test_an_answer_counts_for_the_version_of_the_question_that_it_names(world: World) -> None:
    world.ask(1, fingerprint=b"!")
    world.answer(1, '"a"', generation=1)
    assert state_of(world, 1) is CheckpointState.OPEN
    world.answer(1, '"a"', generation=3)
    assert state_of(world, 1) is CheckpointState.OPEN
    world.answer(1, '"b"', generation=2)
    assert world.checkpoints[1].answer == '"b"'
    # Also when it is closed: what its author has to know is that it was another question.
    world.answer(1, '"a"', generation=1)
    assert [each.code for each in world.refused] == ["asked-again", "unknown", "asked-again"]
    assert "1st version" in world.refused[0].message
    assert "2nd" in world.refused[0].message


def test_a_question_that_nobody_saw_keeps_its_version_when_it_changes(world: World) -> None:
    world.ask(2, condition=A)
    world.ask(2, condition=A, fingerprint=b"!")
    world.answer(1, '"a"')
    assert (state_of(world, 2), world.checkpoints[2].generation) == (CheckpointState.OPEN, 1)


def test_an_answer_is_kept_and_an_open_question_is_not(world: World) -> None:
    world.ask(1, fingerprint=b"!", on_change="keep")
    assert (state_of(world, 1), world.checkpoints[1].generation) == (CheckpointState.OPEN, 2)
    world.answer(1, '"a"')
    world.ask(1, fingerprint=b"?", on_change="keep")
    assert (state_of(world, 1), world.checkpoints[1].generation) == (CheckpointState.ANSWERED, 2)


def test_a_late_answer_to_an_old_version_does_not_end_the_new_one(world: World) -> None:
    world.ask(2, deadline=10.0, default='"x"')
    world.now += 5
    world.ask(2, deadline=10.0, default='"x"', fingerprint=b"!")
    world.now += 7
    world.answer(2, '"y"', generation=1)
    assert (state_of(world, 2), world.refused[-1].code) == (CheckpointState.OPEN, "asked-again")
    world.step(ev.ExtendDeadline(3, 2, 100.0, generation=1))
    assert world.refused[-1].code == "asked-again"
    world.now += 4
    world.step(ev.Tick())
    assert state_of(world, 2) is CheckpointState.EXPIRED


def test_asked_again_as_it_is_with_another_default_that_one_is_taken_at_the_deadline(world: World) -> None:
    world.ask(2, deadline=10.0, default='"x"')
    world.now += 5
    world.ask(2, deadline=10.0, default='"y"')
    world.now += 5
    world.step(ev.Tick())
    assert (world.checkpoints[2].state, world.checkpoints[2].answer) == (CheckpointState.EXPIRED, '"y"')


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
    saved = world.checkpoints[1]
    assert (saved.state, saved.generation, saved.reopened) == (CheckpointState.OPEN, 2, 1)
    world.define(9 << 40, equals(1, "a"))
    world.submit(task(1), condition=9 << 40)
    world.answer(1, '"a"')
    assert world.truth_of(task(1)) is Truth.TRUE


def test_numbers_are_given_when_nobody_says_one() -> None:
    core = StudyCore(schema_test)
    core.step(ev.AskPeople(0, 1), 1.0)
    core.step(ev.AskPeople(5, 1), 1.0)
    core.step(ev.AskPeople(0, 1), 1.0)
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


# --- questions of tasks -----------------------------------------------------------------------------------------------


def test_a_question_is_withdrawn_when_the_task_that_asked_ends() -> None:
    world = World()
    world.arrive()
    world.submit(task(0))
    world.ask(1, parent=task(0))
    assert state_of(world, 1) is CheckpointState.OPEN
    world.report(world.over(task(0)))
    assert state_of(world, 1) is CheckpointState.WITHDRAWN


def test_a_question_outlives_a_try_of_the_task_that_asked() -> None:
    world = World()
    world.arrive()
    world.submit(task(0), retries=1)
    world.ask(1, parent=task(0))
    world.report(world.over(task(0), State.FAILED, Cause.EXIT))
    assert state_of(world, 1) is CheckpointState.OPEN
    world.answer(1, '"a"')
    world.report(world.over(task(0)))
    assert state_of(world, 1) is CheckpointState.ANSWERED


def test_a_question_of_a_speculative_task_waits_for_its_branch() -> None:
    world = World()
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), condition=A)
    world.ask(2, parent=task(0))
    assert state_of(world, 2) is CheckpointState.PENDING
    world.answer(1, '"a"')
    assert state_of(world, 2) is CheckpointState.OPEN


def test_a_question_of_a_discarded_task_is_withdrawn() -> None:
    world = World()
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), condition=A)
    world.ask(2, parent=task(0))
    world.answer(1, '"b"')
    world.settle()
    assert state_of(world, 2) is CheckpointState.WITHDRAWN


def test_what_a_speculative_task_submits_assumes_what_it_assumes() -> None:
    world = World()
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.submit(task(0), condition=A)
    world.submit(task(1), parent=task(0))
    world.report(world.over(task(1)))
    assert world.core.state_of(task(1)) is State.HELD
    world.answer(1, '"b"')
    world.settle()
    assert world.core.state_of(task(1)) is State.DISCARDED


def test_a_task_of_an_earlier_run_that_is_submitted_anew_keeps_its_question() -> None:
    world = World()
    world.arrive()
    world.submit(task(0), keys=keys(5))
    world.ask(1, parent=task(0))
    world.commit()
    world.agents.clear()
    world.restart()
    world.submit(task(0, 2), keys=keys(5))
    assert world.core.state_of(task(0)) is State.CANCELED
    assert state_of(world, 1) is CheckpointState.OPEN


def test_a_deadline_moves_and_survives_a_restart() -> None:
    world = World()
    world.ask(1, deadline=10.0, default='"a"')
    world.now += 8
    world.step(ev.ExtendDeadline(3, 1, 100.0))
    assert world.checkpoints[1].token == 3
    world.commit()
    world.restart()
    world.now += 50
    world.step(ev.Tick())
    assert state_of(world, 1) is CheckpointState.OPEN
    world.now += 51
    world.step(ev.Tick())
    assert state_of(world, 1) is CheckpointState.EXPIRED


def test_a_closed_request_cannot_be_extended() -> None:
    world = World()
    world.ask(1)
    world.answer(1, '"a"')
    world.step(ev.ExtendDeadline(3, 1, 100.0))
    assert [(each.token, each.code) for each in world.refused] == [(3, "already-answered")]
