"""The order of speculation: probabilities, chains, policies, and the reasons that are told."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from pilot_hitl.model.conditions import equals, matches, one_of
from pilot_hitl.model.resources import Resources, Shape
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.estimates import Answers, Runtimes
from pilot_hitl.study.policies import POLICIES, Group, policy_named
from tests.unit.study.world import A, B, Report, World, only, task


@pytest.fixture
def study() -> Iterator[World]:
    """A gate with two branches and an agent."""
    world = World(windows=100)
    world.ask(1, name="mesh", choices=2, reserve=Resources(cores=2))
    world.define(A, equals(1, "a"), probability=0.8)
    world.define(B, equals(1, "b"), probability=0.2)
    world.arrive()
    yield world
    world.settle()


def score(world: World, name: int, kind: int) -> float:
    """The present score of a kind of work under a condition."""
    found = world.core.speculation.judgement(world.core.conditions.named(name), kind)
    assert found is not None
    return found.score


def reason(world: World, name: int, kind: int) -> str:
    """Why it has that score."""
    found = world.core.speculation.judgement(world.core.conditions.named(name), kind)
    assert found is not None
    return found.reason


def ran(world: World, number: int, seconds: float) -> Report:
    """The report of a task that took some time."""
    return msgspec.structs.replace(world.over(number), began=world.now, ended=world.now + seconds)


def test_the_likelier_branch_has_the_higher_score_and_says_why(study: World) -> None:
    study.submit(task(0), 2, condition=B, kind=1)
    study.submit(task(2), 2, condition=A, kind=1)
    assert score(study, A, 1) == pytest.approx(0.8)
    assert score(study, B, 1) == pytest.approx(0.2)
    assert "0.8 (said by the script)" in reason(study, A, 1)


def test_a_decision_is_noted_with_its_reason(study: World) -> None:
    judged = only(study.submit(task(0), condition=A, kind=3), do.Judged)
    assert [(each.condition, each.kind, each.score) for each in judged] == [(1, 3, 0.8)]
    assert only(study.submit(task(1), condition=A, kind=3), do.Judged) == [], "nothing moved, so nothing is noted"


def test_cores_lower_the_score_per_core_second(study: World) -> None:
    study.submit(task(0), condition=A, kind=1)
    study.submit(task(1), condition=A, kind=2, shape=Shape(ranks=2, cores=2))
    assert score(study, A, 2) == pytest.approx(score(study, A, 1) / 4)


def test_the_head_of_the_longest_chain_goes_before_what_nothing_waits_for(study: World) -> None:
    study.submit(task(0), condition=A, kind=1)
    study.submit(task(1), condition=A, kind=2)
    study.submit(task(2), deps=(task(1),), kind=3)
    study.submit(task(3), deps=(task(2),), kind=4)
    assert score(study, A, 2) == pytest.approx(0.8)
    assert score(study, A, 1) == pytest.approx(0.8 / 3)
    # What is left of the chain gets shorter, and with it what is critical.
    study.report(ran(study, task(1), 1.0))
    study.report(ran(study, task(2), 1.0))
    assert score(study, A, 4) == pytest.approx(0.8)
    assert score(study, A, 1) == pytest.approx(0.8)


def test_learned_run_times_decide_which_chain_is_long(study: World) -> None:
    study.submit(task(0), condition=A, kind=1)
    study.submit(task(1), 2, condition=A, kind=2)
    assert score(study, A, 1) == score(study, A, 2)
    study.report(ran(study, task(1), 10.0))
    assert score(study, A, 2) == pytest.approx(0.8)
    assert score(study, A, 1) == pytest.approx(0.08)
    assert "about 10 s each" in reason(study, A, 2)


def test_a_described_run_time_counts_until_one_is_learned(study: World) -> None:
    study.submit(task(0), condition=A, kind=1, shape=Shape(runtime_bucket=3))
    study.submit(task(1), condition=A, kind=2)
    assert score(study, A, 2) == pytest.approx(0.8 / 8)


def test_earlier_answers_of_the_same_gate_tell_how_likely_one_is() -> None:
    world = World()
    world.arrive()
    for number in range(1, 9):
        world.ask(number, name="mesh", choices=2)
        world.answer(number, '"b"' if number == 1 else '"a"')
    world.ask(9, name="mesh", choices=2)
    world.define(A, equals(9, "a"))
    world.define(B, equals(9, "b"))
    world.submit(task(0), condition=A)
    world.submit(task(1), condition=B)
    assert score(world, A, 0) == pytest.approx((7 + 1) / (8 + 2))
    assert score(world, B, 0) == pytest.approx((1 + 1) / (8 + 2))
    assert "7 of 8 earlier answers" in reason(world, A, 0)


def test_counts_survive_a_restart_of_the_hub() -> None:
    world = World()
    for number in (1, 2, 3):
        world.ask(number, name="mesh", choices=2)
        world.answer(number, '"a"')
    world.commit()
    world.restart()
    world.ask(4, name="mesh", choices=2)
    world.define(A, equals(4, "a"))
    chance, source = world.core.speculation.probability(world.core.conditions.named(A))
    assert chance == pytest.approx(4 / 5)
    assert source == "3 of 3 earlier answers"


def test_a_prediction_of_the_asker_counts_where_a_branch_says_nothing() -> None:
    world = World()
    world.ask(1, name="dt", expected=(("0.1", 0.7), ("0.2", 0.2)))
    world.define(A, equals(1, 0.1))
    world.define(B, one_of(1, [0.1, 0.2]))
    world.define(3 << 40, matches(1, {"not": [0.1]}))
    chance = world.core.speculation.probability
    assert chance(world.core.conditions.named(A)) == (0.7, "predicted by the script")
    assert chance(world.core.conditions.named(B))[0] == pytest.approx(0.9)
    assert chance(world.core.conditions.named(3 << 40))[0] == pytest.approx(0.2)


def test_a_nested_branch_is_as_likely_as_all_its_parts(study: World) -> None:
    study.ask(2, name="inner", choices=2, condition=A)
    study.define(3 << 40, equals(1, "a"), equals(2, "x"))
    study.submit(task(0), condition=3 << 40)
    assert score(study, 3 << 40, 0) == pytest.approx(0.8 * 1 / 2)


def test_a_window_is_filled_with_the_likelier_work_first() -> None:
    world = World(windows=2)
    world.ask(1)
    world.define(A, equals(1, "a"), probability=0.8)
    world.define(B, equals(1, "b"), probability=0.2)
    world.submit(task(0), 4, condition=B)
    world.submit(task(4), 4, condition=A)
    world.arrive()
    assert sorted(world.agents[1].has) == [task(4), task(5)]


@pytest.mark.parametrize("policy", ["block", "backfill"])
def test_a_policy_that_does_not_speculate_waits_for_the_answer(study: World, policy: str) -> None:
    study.step(ev.UsePolicy(policy))
    assert only(study.submit(task(0), 2, condition=A), do.Dispatch) == []
    assert only(study.submit(task(2), deps=(task(0),)), do.Dispatch) == []
    assert len(only(study.submit(task(3), backfill=True), do.Dispatch)) == 1
    out = study.answer(1, '"a"')
    assert [(each.first, each.count) for each in only(out, do.Dispatch)] == [(task(0), 2)]
    study.report(study.over(task(0)))
    assert task(2) in study.agents[1].has


def test_what_an_answer_makes_needed_may_use_what_is_kept_for_it(study: World) -> None:
    study.step(ev.UsePolicy("block"))
    study.submit(task(0), condition=A)
    out = study.answer(1, '"a"')
    assert [(each.condition, each.kept) for each in only(out, do.Dispatch)] == [(0, 1)]
    assert [each.kept for each in only(study.submit(task(1), condition=A), do.Dispatch)] == [1]
    study.now += 6
    study.step(ev.Tick())
    assert [each.kept for each in only(study.submit(task(2), condition=A), do.Dispatch)] == [0], "kept no more"


def test_plain_work_that_follows_an_answer_may_use_what_was_kept_and_older_work_may_not() -> None:
    world = World(windows=1)
    world.ask(1, reserve=Resources(cores=2))
    world.arrive()
    world.submit(task(0), 2)
    world.now += 1
    world.answer(1, '"a"')
    out = world.report(world.over(task(0)))
    assert [(each.first, each.kept) for each in only(out, do.Dispatch)] == [(task(1), 0)]
    world.submit(task(2))
    out = world.report(world.over(task(1)))
    assert [(each.first, each.kept) for each in only(out, do.Dispatch)] == [(task(2), 1)]
    world.report(world.over(task(2)))
    world.step(ev.WithdrawCheckpoint(1, reservation_only=True))
    assert [each.kept for each in only(world.submit(task(3)), do.Dispatch)] == [0]


def test_only_block_keeps_reserved_cores_from_everybody(study: World) -> None:
    for policy, lends in (("block", False), ("backfill", True), ("block", False), ("fifo", True)):
        kept = only(study.step(ev.UsePolicy(policy)), do.KeepReservation)
        assert [each.lend for each in kept] == [lends]
    assert only(study.step(ev.UsePolicy("score")), do.KeepReservation) == []


def test_a_changed_policy_parks_and_releases_what_is_not_bound() -> None:
    world = World(windows=1)
    world.ask(1)
    world.define(A, equals(1, "a"))
    world.arrive()
    world.submit(task(0), 3, condition=A)
    assert list(world.agents[1].has) == [task(0)]
    world.step(ev.UsePolicy("block"))
    world.report(world.over(task(0)))
    assert not world.agents[1].has
    assert world.core.state_of(task(1)) is State.NEW
    world.step(ev.UsePolicy("fifo"))
    assert list(world.agents[1].has) == [task(1)]


def test_an_unknown_policy_changes_nothing(study: World) -> None:
    assert study.step(ev.UsePolicy("magic")) == []
    assert study.core.speculation.policy.name == "score"


def test_a_moved_score_is_told_to_those_who_use_the_condition(study: World) -> None:
    study.submit(task(0), 2, condition=A, kind=1)
    study.submit(task(2), condition=A, kind=2)
    out = study.report(ran(study, task(0), 8.0))
    assert [(each.condition, each.truth) for each in only(out, do.TellCondition)] == [(1, Truth.UNDECIDED)]
    assert only(out, do.TellCondition)[0].kinds == {1: pytest.approx(0.8), 2: pytest.approx(0.1)}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_judges_with_a_reason(name: str) -> None:
    judgement = policy_named(name).judge(Group(0.5, "said by the script", 2.0, 1.0, 4))
    assert judgement.score >= 0
    assert judgement.reason


def test_run_times_follow_a_change_and_stop_costing() -> None:
    runtimes = Runtimes()
    assert runtimes.expected(1) == 0
    assert runtimes.learn(1, 1.0)
    assert not runtimes.learn(1, 1.2)
    while runtimes.wants(1):
        runtimes.learn(1, 5.0)
    assert runtimes.expected(1) == pytest.approx(5.0, rel=0.05)


def test_nothing_is_impossible_before_anybody_answered() -> None:
    answers = Answers()
    assert answers.probability("mesh", 0, 1, 4) == pytest.approx(0.25)
    answers.note("mesh", '"a"')
    assert answers.probability("mesh", 0, 1, 4) == pytest.approx(1 / 5)
    assert answers.probability("other", 0, 1, 4) == pytest.approx(0.25)
