"""After a hub was killed: what an agent that has not reconnected may be running is bound nowhere else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.states import State
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.recovery import GRACE
from tests.seeds import examples
from tests.unit.study.world import A, World, again, keys, only, task


@pytest.fixture
def two(world: World) -> World:
    """A world with two agents, in which a task runs on the first and another on the second."""
    for number in (1, 2):
        world.ask_pilot(number)
    world.arrive(2)
    world.submit(task(0), 1, keys=keys(1), pilot=1)
    world.submit(task(1), 1, keys=keys(2))
    assert world.core.pilot_of(task(1)) == 2
    return world


def dispatched(out: list[do.Instruction]) -> list[tuple[int, int]]:
    """Return (pilot, task) of what is sent."""
    return [(o.pilot, o.first + at) for o in only(out, do.Dispatch) for at in range(o.count)]


# --- work of an earlier hub waits for those who may have it -----------------------------------------------------------


def test_what_may_run_elsewhere_waits_until_its_agent_is_back(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    assert dispatched(two.out) == []
    assert two.core.state_of(task(1)) is State.QUEUED
    two.come_back(2)
    assert dispatched(two.out) == []
    assert two.core.pilot_of(task(1)) == 2
    assert two.core.next_deadline() is None


@pytest.mark.parametrize("final", [False, True])
def test_or_until_its_pilot_has_ended(two: World, final: bool) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    two.end(2, final=final)
    assert dispatched(two.out) == [(1, task(1))]


def test_or_until_another_life_of_it_begins(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    two.arrive(2)
    assert [number for _pilot, number in dispatched(two.out)] == [task(1)]


def test_or_for_a_bounded_time(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    began = two.now
    two.wait_in_vain()
    assert two.now == began + GRACE
    assert dispatched(two.out) == [(1, task(1))]
    assert only(two.out, do.RecoveryEnded) == [do.RecoveryEnded((2,))]
    two.come_back(2)
    assert only(two.out, do.EndAttempts)[0].runs == ((task(1), 1),)


def test_an_agent_that_reconnects_at_the_last_moment_is_not_given_up(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    for _ in range(int(GRACE) - 1):
        two.now += 1.0
        two.step(ev.Tick())
    two.now += 1.0
    two.come_back(2)
    assert only(two.out, do.RecoveryEnded) == [do.RecoveryEnded(())]
    assert two.core.pilot_of(task(1)) == 2


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_or_a_hub_that_stood_still_gives_up_nobody(two: World, jump: float) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    two.now += jump
    two.step(ev.Tick())
    assert two.core.recovery.missing == {2}
    two.restarted = two.now - 1.0
    began = two.now
    two.wait_in_vain()
    assert GRACE - 1.0 <= two.now - began <= GRACE


def test_what_was_given_back_runs_elsewhere_at_once(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.ask_pilot(3)
    two.arrive(3)
    two.come_back(2)
    two.report(two.over(task(1), State.QUEUED, Cause.PREEMPTED))
    assert [number for _pilot, number in dispatched(two.out)] == [task(1)]


# --- other work does not wait -----------------------------------------------------------------------------------------


def test_new_work_does_not_wait(two: World) -> None:
    again(two)
    two.step(ev.Revive(1))
    two.come_back(1)
    assert dispatched(two.submit(task(5), keys=keys(5))) == [(1, task(5))]


def test_what_cannot_run_on_the_missing_pilot_does_not_wait(two: World) -> None:
    two.submit(task(2), pilot=1)
    again(two)
    two.agents[1].has.clear()
    two.step(ev.Revive(1))
    two.come_back(1, ())
    assert dispatched(two.out) == [(1, task(0)), (1, task(2))]


def test_what_was_lost_before_it_was_written_waits_when_it_is_sent_again(two: World) -> None:
    two.commit()
    two.submit(task(2))
    two.submit(task(3))
    first, second = two.core.pilot_of(task(2)), two.core.pilot_of(task(3))
    two.restart()
    two.step(ev.Revive(1))
    two.come_back(1)
    assert dispatched(two.out) == []
    assert [two.core.pilot_of(task(n)) for n in (2, 3)] == [pilot if pilot == 1 else 0 for pilot in (first, second)]
    two.come_back(2)
    assert [two.core.pilot_of(task(n)) for n in (2, 3)] == [first, second]


@pytest.mark.parametrize("ends", ["reported", "pilot", "never"])
def test_what_its_agent_was_told_to_end_before_it_was_sent_again_waits_for_that_end(two: World, ends: str) -> None:
    two.commit()
    first = task(2)
    two.submit(first, keys=keys(3), pilot=2)
    lost = two.over(first, State.CANCELED, Cause.CANCELED)
    (event,), two.unwritten = two.unwritten, []
    assert isinstance(event, ev.SubmitTasks)
    two.restart()
    for pilot in (1, 2):
        # It still holds the attempt, of a task that this hub does not know.
        known = two.agents[pilot].known()
        two.come_back(pilot, (*known, (first, lost.epoch, lost.run)) if pilot == 2 else known)
    assert only(two.out, do.EndAttempts)[0].runs == ((first, 1),)
    two.take(msgspec.structs.replace(event, resent=True, pilot=0))
    assert dispatched(two.out) == []
    assert dispatched(two.submit(task(7))) != []
    if ends == "reported":
        two.step(ev.Reported([lost]))
    elif ends == "pilot":
        two.end(2)
    else:
        two.wait_in_vain()
        assert only(two.out, do.RecoveryEnded) == [do.RecoveryEnded(())]
    assert first in [number for _pilot, number in dispatched(two.out)]


def test_a_lone_pilot_waits_for_nobody(world: World) -> None:
    world.submit(task(0), 2)
    again(world)
    world.step(ev.Revive(1))
    world.come_back(1)
    assert world.core.next_deadline() is None
    assert dispatched(world.submit(task(5))) == [(1, task(5))]


# --- the script runs again --------------------------------------------------------------------------------------------


def test_a_task_under_the_same_key_follows_what_its_agent_has(two: World) -> None:
    again(two)
    two.come_back(1)
    assert dispatched(two.submit(task(0, 2), keys=keys(2))) == []
    two.come_back(2)
    assert two.core.pilot_of(task(1)) == 2
    two.report(two.over(task(1)))
    assert two.core.state_of(task(0, 2)) is State.DONE
    assert two.core.pilot_of(task(0, 2)) == 0


@pytest.mark.parametrize("ends", [False, True])
def test_and_runs_when_there_is_nothing_to_follow(two: World, ends: bool) -> None:
    again(two)
    two.come_back(1)
    two.submit(task(0, 2), keys=keys(2))
    if ends:
        two.end(2)
    else:
        two.agents[2].has.clear()
        two.come_back(2, ())
    assert [number for _pilot, number in dispatched(two.out)] == [task(0, 2)]
    assert two.core.state_of(task(1)) is State.CANCELED


def test_a_task_under_the_same_key_and_another_condition_waits_for_that_agent(two: World) -> None:
    again(two)
    two.come_back(1)
    assert dispatched(two.submit(task(0, 2), keys=keys(2), condition=A)) == []
    two.come_back(2)
    assert only(two.out, do.EndAttempts)[0].runs == ((task(1), 1),)
    assert [number for _pilot, number in dispatched(two.out)] == [task(0, 2)]


@pytest.mark.parametrize("missing", [False, True])
def test_a_third_run_of_the_script_follows_the_attempt_of_the_first(two: World, missing: bool) -> None:
    again(two)
    two.come_back(1)
    if not missing:
        two.come_back(2)
    for incarnation in (2, 3):
        two.submit(task(0, incarnation), keys=keys(2))
        assert dispatched(two.out) == []
    if missing:
        two.come_back(2)
    two.report(two.over(task(1)))
    assert two.core.state_of(task(0, 3)) is State.DONE
    assert dispatched(two.out) == []


# --- in any order -----------------------------------------------------------------------------------------------------


class Recovery(RuleBasedStateMachine):
    """Hubs are killed, and agents come back in any order, late or never; see ``World.elsewhere`` for what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.numbers = 0
        self.incarnation = 1

    @initialize(window=st.integers(1, 4))
    def begin(self, window: int) -> None:
        self.world.window = window
        for pilot in (1, 2, 3):
            self.agent_begins(pilot)

    def agent_begins(self, pilot: int) -> None:
        self.world.ask_pilot(pilot, site="ab"[pilot % 2])
        self.world.arrive(pilot)

    @rule(
        data=st.data(),
        count=st.integers(1, 4),
        outside=st.sampled_from([False, False, True]),
        site=st.sampled_from(["", "", "a"]),
    )
    def submit(self, data: Any, count: int, outside: bool, site: str) -> None:
        first, before = task(self.numbers, self.incarnation), sorted(self.world.submits)
        deps = tuple(data.draw(st.lists(st.sampled_from(before), max_size=1))) if before else ()
        self.world.submit(first, count, keys=keys(*range(first, first + count)), outside=outside, site=site, deps=deps)
        self.numbers += count

    @precondition(lambda self: self.world.submits)
    @rule(data=st.data())
    def run_the_script_again(self, data: Any) -> None:
        self.incarnation += 1
        self.numbers = 0
        before = data.draw(st.sampled_from(sorted(self.world.submits)))
        event, _number = self.world.submits[before]
        self.world.submit(task(0, self.incarnation), event.count, keys=self.world.keys[before], site=event.site)
        self.numbers = event.count

    @precondition(lambda self: self.world.submits)
    @rule(commit=st.booleans(), back=st.permutations([1, 2, 3]), soon=st.integers(0, 2))
    def hub_restarts(self, commit: bool, back: list[int], soon: int) -> None:
        if commit:
            self.world.commit()
        self.world.restart()
        self.world.step(ev.Revive(self.incarnation))
        for pilot in [each for each in back if each in self.world.agents][:soon]:
            self.world.come_back(pilot)

    @precondition(lambda self: any(agent.away for agent in self.world.agents.values()))
    @rule(data=st.data())
    def agent_comes_back(self, data: Any) -> None:
        self.world.come_back(data.draw(st.sampled_from([a.pilot for a in self.world.agents.values() if a.away])))

    @rule(pilot=st.sampled_from([1, 2, 3]), anew=st.sampled_from([True, True, False]))
    def agent_ends(self, pilot: int, anew: bool) -> None:
        self.world.end(pilot)
        if anew:
            self.agent_begins(pilot)

    @precondition(lambda self: self.world.core.recovery.missing)
    @rule(vain=st.booleans())
    def time_passes(self, vain: bool) -> None:
        if vain:
            self.world.wait_in_vain()
        else:
            self.world.now += 7.0
            self.world.step(ev.Tick())

    @rule(data=st.data(), sent=st.booleans(), state=st.sampled_from([State.DONE, State.DONE, State.QUEUED]))
    def attempts_end(self, data: Any, sent: bool, state: State) -> None:
        world = self.world
        has = [(a, t) for a in world.agents.values() for t, e in a.has.items() if world.present.get(t) == e[:2]]
        has = [(agent, number) for agent, number in has if number not in agent.ended and (state.final or agent.away)]
        if not has:
            return
        agent, number = data.draw(st.sampled_from(has))
        report = world.over(number, state)
        if sent and not agent.away:
            world.report(report)
        else:
            agent.mail.append(report)

    def teardown(self) -> None:
        world = self.world
        for incarnation in range(1, self.incarnation + 1):
            world.step(ev.Revive(incarnation))
        for pilot in (1, 2, 3):
            if pilot not in world.agents:
                self.agent_begins(pilot)
            elif world.agents[pilot].away:
                world.come_back(pilot)
        world.wait_in_vain()
        while any(agent.has or agent.mail for agent in world.agents.values()):
            for agent in list(world.agents.values()):
                mail, agent.mail = agent.mail, []
                gone = [each for each in agent.has if each in agent.ended and world.core.pilot_of(each) != agent.pilot]
                for each in gone:
                    del agent.has[each]
                world.report(*mail, *[world.over(each) for each in list(agent.has)])
        assert not world.core.live


Recovery.TestCase.settings = settings(
    max_examples=examples(100),
    stateful_step_count=30,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestRecovery = Recovery.TestCase
