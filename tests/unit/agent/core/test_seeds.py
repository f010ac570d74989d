"""The same machine as in ``test_random``, driven by seeded chance: no shrinking, but ten times as many histories."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pilot_hitl.model.resources import Shape
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import Bulk
from tests import seeds
from tests.unit.agent.core import test_random as machine

ACTIONS = (
    ["submit"] * 5
    + ["again", "cancel", "submit_twice", "condition", "reserve", "unreserve", "lend", "take_back", "node_up"]
    + ["node_down", "node_restarts", "walltime", "time_passes", "settle", "settle", "stale"]
    + ["obey", "report", "finish"] * 6
)
OFTEN_LENDING = {"lend": (3, 20), "submit": (3, 8), "obey": (3, 10), "report": (3, 10), "finish": (2, 8)}
"""How often at least and at most, where one in three tasks or more is to wait and lend."""
RARE = {"condition": 0.3, "node_up": 0.4, "node_down": 0.25, "node_restarts": 0.25}


class Chance:
    """Draws as hypothesis' ``data`` would."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self, strategy: Any) -> Any:
        strategy = getattr(strategy, "wrapped_strategy", strategy)
        if hasattr(strategy, "elements"):
            return self.random.choice(list(strategy.elements))
        return self.random.randint(strategy.start, strategy.end)


@dataclass
class Mix:
    """What chance chooses from, each as often as it is there."""

    actions: list[str]
    shapes: list[Shape]


def everything_alike(_chance: random.Random) -> Mix:
    return Mix(ACTIONS, machine.SHAPES)


def much_lending(chance: random.Random) -> Mix:
    """Return a mix in which borrowers lend on what they have borrowed, and few kinds of work meet often."""
    actions = []
    for action in sorted(set(ACTIONS)):
        least, most = OFTEN_LENDING.get(action, (0, 0))
        actions += [action] * (chance.choice([0, 1, 1, 2, 3]) + chance.randint(least, most))
    shapes = chance.choice(
        [
            machine.SHAPES,
            [Shape()] * 6 + chance.sample(machine.SHAPES, 3),
            [Shape(), Shape(), Shape(ranks=3), *chance.sample(machine.SHAPES, 2)],
        ]
    )
    return Mix(actions, shapes)


def arguments(action: str, chance: Chance, latest: int, shapes: list[Shape]) -> dict[str, Any]:
    one, number = chance.random.choice, chance.random.randint
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "submit": lambda: {
            "count": number(1, 8),
            "shape": one(shapes),
            "tier": one(machine.TIERS),
            "priority": one([0, 0, 0, 1, -1]),
            "condition": one([0, 0, 0, 1, 2, 3]),
            "on_preempt": one(["kill", "kill", "requeue", "suspend", "suspend", "finish"]),
            "expected": one([0.0, 0.0, 0.0, 5.0, 50.0]),
            "parent": number(0, 3),
            "kept": one([0, 0, 0, 1, 2]),
        },
        "cancel": lambda: {"first": number(1, max(2, latest)), "count": number(1, 4)},
        "condition": lambda: {"condition": number(1, 3), "truth": one(list(Truth)), "score": one([0.1, 0.5, 0.9])},
        "reserve": lambda: {
            "checkpoint": number(1, 2),
            "cores": number(1, 6),
            "gpus": one([0.0, 0.5, 1.0]),
            "memory": one([0, 0, 60]),
            "conditions": one([[], [1], [2], [3]]),
            "lend": one([True, True, False]),
        },
        "unreserve": lambda: {"checkpoint": number(1, 2)},
        "walltime": lambda: {"left": one([0.0, 10.0, 100.0])},
        "time_passes": lambda: {"seconds": one([1.0, 4.0, 30.0])},
        "node_up": dict,
        "settle": dict,
        "obey": lambda: {"data": chance, "most": number(1, 4)},
        "report": lambda: {"data": chance, "most": number(1, 4)},
        "finish": lambda: {"data": chance, "crash": chance.random.random() < 0.3},
    }
    return table.get(action, lambda: {"data": chance})()


def play(seed: int, steps: int, mixed: Callable[[random.Random], Mix] = everything_alike) -> None:
    chance = Chance(seed)
    mix = mixed(chance.random)
    everything = machine.Everything()
    for _ in range(steps):
        action = chance.random.choice(mix.actions)
        if chance.random.random() > RARE.get(action, 1.0):
            continue
        nodes = len(everything.cluster.nodes)
        if (action == "node_up" and nodes >= 4) or (action == "node_down" and nodes <= 1):
            continue
        getattr(everything, action)(**arguments(action, chance, everything.next, mix.shapes))
    everything.teardown()


def tell(steps: int, most: int, mixed: Callable[[random.Random], Mix]) -> None:
    begin = seeds.first(0)
    for seed in range(begin, begin + seeds.examples(most) // steps):
        try:
            play(seed, steps, mixed)
        except Exception as broken:
            broken.add_note(f"history: seed {seed}, {steps} steps, {mixed.__name__}")
            raise


@pytest.mark.parametrize("steps", [12, 25, 40, 70, 120])
def test_histories(steps: int) -> None:
    tell(steps, 4000, everything_alike)


@pytest.mark.parametrize("steps", [60, 120, 250])
def test_histories_with_much_lending(steps: int) -> None:
    tell(steps, 3000, much_lending)


def test_what_one_attempt_got_back_does_not_end_the_lending_of_the_next() -> None:
    everything = machine.Everything()
    cluster = everything.cluster
    cluster.submit(Bulk(1, 1, 1, 1, Shape(), Tier.BACKFILL))
    cluster.deliver()
    [(node, _)] = cluster.running()
    cluster.lend(1)
    cluster.take_back(1)
    assert cluster.restored == [1]
    cluster.restart(node)
    cluster.submit(Bulk(1, 1, 1, 2, Shape(), Tier.BACKFILL))
    cluster.deliver()
    cluster.lend(1)
    everything.settle()
    assert cluster.lending == {1}
    assert cluster.core._world.attempts[1].lending
