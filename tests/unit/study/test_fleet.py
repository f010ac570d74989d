"""Several pilots in one session: sites, successors, nodes that come and go, and who gets how much."""

from __future__ import annotations

import msgspec
import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import NodeInventory, Shape
from pilot_hitl.model.states import State
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from tests.unit.study.world import BIG, NODE, ONE, PAIR, START, WIDE, Report, World, again, only, task


def pilots_of(world: World, *numbers: int) -> list[int]:
    return [world.core.pilot_of(task(number)) for number in numbers]


def counts(out: list[do.Instruction]) -> dict[int, int]:
    found: dict[int, int] = {}
    for order in only(out, do.Dispatch):
        found[order.pilot] = found.get(order.pilot, 0) + order.count
    return found


def holds(world: World, number: int) -> str:
    bulk = world.core.tasks.find(task(number))
    assert bulk is not None
    return world.core.fleet.holds(bulk)


# --- sites ------------------------------------------------------------------------------------------------------------


def test_a_task_of_a_site_runs_on_any_pilot_there_and_on_no_other() -> None:
    world = World(windows=2)
    for pilot, site in ((1, "bsc"), (2, "home"), (3, "bsc")):
        world.ask_pilot(pilot, site=site)
        world.arrive(pilot)
    world.submit(task(0), 5, site="bsc")
    assert sorted(pilots_of(world, *range(5))) == [0, 1, 1, 3, 3]  # the last one waits: pilot 2 is elsewhere
    world.report(world.over(task(0)))
    assert world.core.pilot_of(task(4)) in (1, 3)


def test_a_site_waits_for_its_first_pilot_and_is_given_up_with_its_last() -> None:
    world = World()
    world.arrive(1)
    world.submit(task(0), site="bsc")
    assert world.core.state_of(task(0)) is State.QUEUED
    assert "no pilot at site 'bsc' was submitted" in holds(world, 0)
    world.ask_pilot(2, site="bsc")
    assert "no pilot at site 'bsc' is active yet" in holds(world, 0)
    world.arrive(2)
    world.end(2)
    world.submit(task(9), site="bsc")
    assert "no pilot at site 'bsc' is active now" in holds(world, 9), "its agent was there"
    world.ask_pilot(3, site="bsc")
    world.end(2, final=True)
    assert world.core.state_of(task(0)) is State.QUEUED  # pilot 3 may still come
    world.end(3, final=True)
    assert world.core.state_of(task(0)) is State.FAILED
    assert world.causes[task(0)] is Cause.PILOT_ENDED
    world.submit(task(1), site="bsc")
    assert world.core.state_of(task(1)) is State.FAILED
    world.ask_pilot(4, site="bsc")
    world.submit(task(2), site="bsc")
    assert world.core.state_of(task(2)) is State.QUEUED


def test_what_the_pilots_of_a_site_cannot_hold_is_unfit_although_another_site_could() -> None:
    world = World()
    world.ask_pilot(1, site="small")
    world.arrive(1)
    world.arrive(2, nodes=(NodeInventory(name="large", cores=list(range(64))),))
    world.submit(task(0), shape=BIG, site="small")
    assert world.causes[task(0)] is Cause.UNFIT
    world.submit(task(1), shape=BIG)
    assert world.core.pilot_of(task(1)) == 2


def test_a_pilot_at_another_site_than_the_one_asked_for_is_said_at_once() -> None:
    world = World()
    world.ask_pilot(1, site="home")
    world.submit(task(0), pilot=1, site="bsc")
    assert world.causes[task(0)] is Cause.UNFIT


# --- successors -------------------------------------------------------------------------------------------------------


def test_a_pin_holds_for_successors_and_ends_with_the_last_of_them() -> None:
    world = World(windows=1)
    world.arrive(1)
    world.submit(task(0), 4, pilot=1)
    assert pilots_of(world, 0, 1) == [1, 0]
    world.ask_pilot(5, lineage=1)
    world.end(1, final=True)
    assert world.core.state_of(task(0)) is State.QUEUED
    world.arrive(5)
    assert sorted(pilots_of(world, 0, 1, 2, 3)) == [0, 0, 0, 5]
    world.ask_pilot(9, lineage=5)  # named by its predecessor instead of the first of the row
    world.arrive(9)
    assert sorted(pilots_of(world, 0, 1, 2, 3)) == [0, 0, 5, 9]
    world.submit(task(4), 1, pilot=5)
    world.end(5, final=True)
    assert not world.causes
    world.end(9, final=True)
    assert [world.causes[task(n)] for n in (0, 4)] == [Cause.PILOT_ENDED] * 2


def test_a_pin_on_a_successor_keeps_off_what_came_before_it() -> None:
    world = World()
    world.arrive(1)
    world.ask_pilot(2, lineage=1)
    world.submit(task(0), pilot=2)
    assert world.core.state_of(task(0)) is State.QUEUED
    world.arrive(2)
    assert world.core.pilot_of(task(0)) == 2


def test_a_row_is_known_after_a_restart_of_the_hub() -> None:
    world = World()
    world.arrive(1)
    world.submit(task(0), pilot=1)
    world.ask_pilot(2, lineage=1)
    world.arrive(2)
    world.end(1, final=True)
    again(world)
    world.step(ev.Revive(1))
    world.come_back(2)
    assert world.core.pilot_of(task(0)) == 2


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_what_fits_no_longer_waits_for_the_node_and_is_not_unfit() -> None:
    world = World()
    world.arrive(1, nodes=PAIR)
    world.submit(task(0), shape=WIDE)
    world.has_nodes(1, PAIR[:1])
    world.report(world.over(task(0), State.FAILED, Cause.NODE_LOST))
    assert world.core.state_of(task(0)) is State.QUEUED
    world.submit(task(1), shape=WIDE)
    assert world.core.state_of(task(1)) is State.QUEUED
    assert "1 of its 2 nodes" in holds(world, 1)
    world.submit(task(2))
    assert world.core.pilot_of(task(2)) == 1
    world.submit(task(3), shape=BIG)
    assert world.causes[task(3)] is Cause.UNFIT  # nor with all its nodes
    world.has_nodes(1, PAIR)
    assert pilots_of(world, 0, 1) == [1, 1]


def test_what_a_shrunken_pilot_cannot_hold_goes_to_another_one() -> None:
    world = World()
    world.arrive(1, nodes=PAIR)
    world.has_nodes(1, PAIR[1:])
    world.submit(task(0), shape=WIDE)
    assert world.core.pilot_of(task(0)) == 0
    world.arrive(2, nodes=PAIR)
    assert world.core.pilot_of(task(0)) == 2


def test_a_pilot_that_never_had_its_nodes_may_still_get_them() -> None:
    world = World()
    world.step(ev.AgentReady(1, 1, (NODE,), expected=2))
    world.submit(task(0), shape=WIDE)
    assert world.core.state_of(task(0)) is State.QUEUED
    world.submit(task(1), shape=Shape(ranks=3, cores=4))
    assert world.causes[task(1)] is Cause.UNFIT


def test_a_pilot_whose_node_comes_back_with_less_is_judged_by_what_it_has() -> None:
    world = World()
    world.arrive(1)
    world.submit(task(0), 5, shape=Shape(cores=4))
    world.has_nodes(1, (msgspec.structs.replace(NODE, cores=[0]),))
    assert world.causes.get(task(4)) is Cause.UNFIT


def test_nodes_of_a_pilot_without_an_agent_change_nothing() -> None:
    world = World()
    assert world.step(ev.PilotNodes(1, PAIR)) == []
    world.arrive(1)
    world.end(1)
    assert world.step(ev.PilotNodes(1, PAIR)) == []


# --- who gets how much ------------------------------------------------------------------------------------------------


def test_a_pilot_alone_gets_its_window_and_two_share_what_there_is() -> None:
    world = World(windows=1000)
    world.arrive(1)
    assert counts(world.submit(task(0), 500)) == {1: 500}
    world = World(windows=1000)
    world.arrive(1)
    world.arrive(2)
    assert counts(world.submit(task(0), 8)) == {1: 4, 2: 4}  # four cores each: everything runs at once


def test_a_pilot_with_more_cores_gets_more() -> None:
    world = World(windows=1000)
    world.arrive(1)
    world.arrive(2, nodes=(NodeInventory(name="large", cores=list(range(12))),))
    assert counts(world.submit(task(0), 16)) == {1: 4, 2: 12}


def test_a_pilot_that_starts_later_finds_work_left() -> None:
    world = World(windows=1000)
    world.ask_pilot(2)
    world.arrive(1)
    first = counts(world.submit(task(0), 500))
    assert 4 <= first[1] <= 20
    second = world.arrive(2)
    assert second.has
    assert all(entry[0] == second.binding for entry in second.has.values())


def test_how_much_is_bound_ahead_follows_how_long_it_takes() -> None:
    def bound_ahead(seconds: float) -> int:
        world = World(windows=1000)
        world.arrive(1)
        world.arrive(2)
        world.submit(task(0), 4000)
        epoch, run = world.present[task(0)]
        world.over(task(0))
        world.report(Report(task(0), epoch, run, State.DONE, None, START, START + seconds))
        return world.core.pilots[1].bound[1, ONE]

    assert bound_ahead(60.0) <= 16
    assert bound_ahead(0.001) == 1000  # a second of work, as far as the window goes


def test_what_only_one_pilot_can_do_goes_there_up_to_its_window() -> None:
    world = World(windows=100)
    world.arrive(1)
    world.arrive(2, nodes=PAIR)
    assert counts(world.submit(task(0), 200, shape=WIDE)) == {2: 100}
    assert counts(world.submit(task(200), 200, pilot=1)) == {1: 100}


def test_when_the_other_pilot_ends_the_window_is_whole_again() -> None:
    world = World(windows=100)
    world.arrive(1)
    world.arrive(2)
    world.submit(task(0), 300)
    assert world.core.pilots[1].bound[1, ONE] < 100
    world.end(2, final=True)
    assert world.core.pilots[1].bound[1, ONE] == 100


def test_a_pilot_without_an_agent_gets_nothing() -> None:
    world = World()
    world.ask_pilot(1)
    world.arrive(2)
    world.end(2)
    assert counts(world.submit(task(0), 3)) == {}
    with pytest.raises(KeyError):
        world.present[task(0)]
