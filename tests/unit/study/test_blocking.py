"""Speculation changes when things happen, never what comes out: a speculative run ends as one that waited would."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot_hitl.model.conditions import equals
from pilot_hitl.model.failures import Cause
from pilot_hitl.model.states import CheckpointState, State, effective
from tests.seeds import examples
from tests.unit.study.world import World, task


@st.composite
def stories(draw: Any) -> dict[str, Any]:
    """Tasks under branches of up to three checkpoints, of which later ones may lie in branches of earlier ones."""
    gates = draw(st.integers(1, 3))
    names = [number * 10 + choice for number in range(1, gates + 1) for choice in (0, 1)]
    inside = {n: draw(st.sampled_from([0, *[x for x in names if x < n * 10]])) for n in range(1, gates + 1)}
    bulks, first = [], 0
    for _ in range(draw(st.integers(1, 8))):
        count = draw(st.integers(1, 4))
        deps = draw(st.lists(st.integers(0, first - 1), max_size=2)) if first else []
        bulks.append((first, count, deps, draw(st.sampled_from([0, *names])), draw(st.booleans())))
        first += count
    return {
        "inside": inside,
        "bulks": bulks,
        "bad": draw(st.sets(st.integers(0, first - 1), max_size=3)),
        "leaves": draw(st.sets(st.integers(0, first - 1), max_size=4)),
        "answers": {number: draw(st.sampled_from(["0", "1"])) for number in range(1, gates + 1)},
    }


class Run:
    """One run of a story."""

    def __init__(self, story: dict[str, Any]) -> None:
        self.story = story
        self.world = World(windows=3)
        self.world.arrive()
        for number, inside in story["inside"].items():
            self.world.ask(number, condition=inside << 40)
            for choice in (0, 1):
                self.world.define((number * 10 + choice) << 40, equals(number, choice))

    def submit(self) -> None:
        for first, count, deps, name, outside in self.story["bulks"]:
            found = tuple(task(dep) for dep in deps)
            self.world.submit(task(first), count, deps=found, condition=name << 40, outside=outside)

    def answer(self) -> bool:
        open_ones = [c.number for c in self.world.core.checkpoints if c.state is CheckpointState.OPEN]
        for number in open_ones[:1]:
            self.world.answer(number, self.story["answers"][number])
        return bool(open_ones)

    def end_one(self, chance: random.Random) -> bool:
        running = sorted(self.world.agents[1].has)
        if running:
            ended = chance.choice(running)
            bad = ended & 0xFFFFFFFF in self.story["bad"]
            left = ended & 0xFFFFFFFF in self.story["leaves"]
            end = (State.FAILED, Cause.EXIT) if bad else (State.DONE, Cause.NONE)
            self.world.report(self.world.over(ended, *end, left=left))
        return bool(running)

    def publish_one(self, chance: random.Random) -> bool:
        waiting = sorted(self.world.to_publish)
        if waiting:
            self.world.publish(chance.choice(waiting))
        return bool(waiting)

    def result(self) -> dict[int, State]:
        self.world.settle()
        assert not self.world.core.live
        return {number: effective(state, self.world.truth_of(number)) for number, state in self.world.states.items()}


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(), st.randoms(use_true_random=False))
def test_a_speculative_run_ends_as_a_blocking_one(story: dict[str, Any], chance: random.Random) -> None:
    blocking = Run(story)
    while blocking.answer():
        pass
    blocking.submit()
    while blocking.end_one(chance):
        pass

    speculative = Run(story)
    speculative.submit()
    going = True
    while going:
        # Answers come late: one for every few ends, and all when nothing else can be done.
        going = (chance.random() < 0.8 and speculative.end_one(chance)) or speculative.answer()
        going = (chance.random() < 0.5 and speculative.publish_one(chance)) or going or speculative.end_one(chance)
        going = going or speculative.publish_one(chance)
    assert speculative.result() == blocking.result()
