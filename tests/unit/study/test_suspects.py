"""Who is blamed when what runs tasks dies."""

from __future__ import annotations

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.states import State
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from tests.unit.study.world import NODE, A, World, only, task


def _new_life(world: World, *ran: int) -> list[do.Instruction]:
    """The agent dies with all below it, and the next one knows what ran."""
    world.end(1)
    agent = world.arrive()
    world.end(1)
    world.bindings += 1
    agent.binding = world.bindings
    world.agents[1] = agent
    agent.has.clear()
    return world.step(ev.AgentReady(1, agent.binding, (NODE,), (), agent.window, 0, ran))


def _apart(out: list[do.Instruction]) -> set[int]:
    return {each for order in only(out, do.RunApart) for each in order.tasks}


@pytest.mark.parametrize("state", [State.QUEUED, State.FAILED])
def test_the_first_death_sets_apart_and_the_second_one_blames(world: World, state: State) -> None:
    world.submit(task(0), 3)
    out = world.report(world.over(task(0), state, Cause.SPAWNER_DIED))
    assert _apart(out) == {task(0)}
    assert out.index(only(out, do.RunApart)[0]) < out.index(only(out, do.Dispatch)[0]), "before it is sent"
    world.report(world.over(task(0), state, Cause.SPAWNER_DIED))
    assert world.states[task(0)] is State.FAILED
    assert world.causes[task(0)] is Cause.SPAWNER_DIED
    world.report(world.over(task(1)), world.over(task(2)))
    assert [world.states[task(at)] for at in (1, 2)] == [State.DONE] * 2


def test_the_first_death_costs_no_retry_and_each_later_one_does(world: World) -> None:
    world.submit(task(0), retries=2)
    for tries in ({}, {0: 1}, {0: 2}):
        out = world.report(world.over(task(0), State.QUEUED, Cause.SPAWNER_DIED))
        assert [bulk.tries for bulk in world.core.tasks] == [tries]
        assert _apart(out) == {task(0)}
    world.report(world.over(task(0), State.QUEUED, Cause.SPAWNER_DIED))
    assert world.states[task(0)] is State.FAILED


def test_so_it_is_when_the_whole_pilot_dies(world: World) -> None:
    world.submit(task(0), retries=1)
    for _ in range(3):
        _new_life(world, task(0))
        assert world.core.state_of(task(0)) is State.SCHEDULED
    _new_life(world, task(0))
    assert world.states[task(0)] is State.FAILED


def test_what_acts_outside_and_ran_is_not_tried_again(world: World) -> None:
    world.submit(task(0), retries=5, outside=True)
    world.report(world.begin(task(0)))
    world.report(world.over(task(0), State.QUEUED, Cause.SPAWNER_DIED))
    assert world.states[task(0)] is State.FAILED


def test_what_is_speculative_fails_only_once_it_is_needed(world: World) -> None:
    world.submit(task(0), condition=A)
    for _ in range(2):
        world.report(world.over(task(0), State.QUEUED, Cause.SPAWNER_DIED))
    assert world.core.state_of(task(0)) is State.HELD_FAILED


def test_a_pilot_that_dies_blames_only_who_was_there_three_times_alone(world: World) -> None:
    world.submit(task(0), 4)
    assert _apart(_new_life(world, task(0), task(1))) == {task(0), task(1)}
    assert _apart(_new_life(world, task(0), task(2))) == {task(0), task(1), task(2)}
    assert world.core.state_of(task(0)) is State.SCHEDULED, "the second time it may have been another one"
    _new_life(world, task(0), task(3))
    assert world.states[task(0)] is State.FAILED
    assert all(world.core.state_of(task(at)) is State.SCHEDULED for at in (1, 2, 3))


def test_nobody_is_blamed_when_several_were_there_each_time(world: World) -> None:
    world.submit(task(0), 2)
    for _ in range(4):
        _new_life(world, task(0), task(1))
    assert all(world.core.state_of(task(at)) is State.SCHEDULED for at in (0, 1))


def test_what_had_ended_or_was_never_heard_of_is_no_suspect(world: World) -> None:
    world.submit(task(0), 2)
    world.report(world.over(task(0)))
    assert _apart(_new_life(world, task(0), task(77))) == set()
