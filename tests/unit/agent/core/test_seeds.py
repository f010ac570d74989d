"""The same machine as in ``test_random``, driven by seeded chance: no shrinking, but ten times as many histories."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pilot_hitl.model.states import Truth
from tests import seeds
from tests.unit.agent.core import test_random as machine

ACTIONS = (
    ["submit"] * 5
    + ["again", "cancel", "submit_twice", "condition", "reserve", "unreserve", "lend", "take_back", "node_up"]
    + ["node_down", "node_restarts", "walltime", "time_passes", "settle", "settle", "stale"]
    + ["obey", "report", "finish"] * 6
)
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


def arguments(action: str, chance: Chance, latest: int) -> dict[str, Any]:
    one, number = chance.random.choice, chance.random.randint
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "submit": lambda: {
            "count": number(1, 8),
            "shape": one(machine.SHAPES),
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


def play(seed: int, steps: int) -> None:
    chance = Chance(seed)
    everything = machine.Everything()
    for _ in range(steps):
        action = chance.random.choice(ACTIONS)
        if chance.random.random() > RARE.get(action, 1.0):
            continue
        nodes = len(everything.cluster.nodes)
        if (action == "node_up" and nodes >= 4) or (action == "node_down" and nodes <= 1):
            continue
        getattr(everything, action)(**arguments(action, chance, everything.next))
    everything.teardown()


@pytest.mark.parametrize("steps", [12, 25, 40, 70, 120])
def test_histories(steps: int) -> None:
    begin = seeds.first(0)
    for seed in range(begin, begin + seeds.examples(4000) // steps):
        try:
            play(seed, steps)
        except Exception as broken:
            broken.add_note(f"history: seed {seed}, {steps} steps")
            raise
