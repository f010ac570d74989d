"""Simulated clusters with random work: how long big tasks wait, and that cores are used meanwhile."""

from __future__ import annotations

import heapq
import random

import pytest

from pilot_hitl.model.resources import GPU_SHARES, Shape, runtime_bucket
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import Bulk
from tests.unit.agent.core.honest import Cluster, cluster

LONGEST = 10.0
BIG = [
    Shape(ranks=8),
    Shape(ranks=12),
    Shape(ranks=3, ranks_per_node=1),
    Shape(ranks=6, cores=2, launcher=True),
    Shape(ranks=3, gpu_shares=GPU_SHARES),
    Shape(ranks=3, memory=60),
    Shape(ranks=5, exclusive=True),
    Shape(ranks=4, colocate="here"),
    Shape(ranks=3, gpu_shares=GPU_SHARES, alternatives=(Shape(cores=3),)),
]
SMALL = [
    Shape(),
    Shape(),
    Shape(cores=2),
    Shape(memory=40),
    Shape(gpu_shares=GPU_SHARES // 2),
    Shape(ranks=2, launcher=True),
    Shape(ranks=2, ranks_per_node=1),
]


class Simulation:
    """Small work that never ends coming, with known run times, and now and then something big."""

    def __init__(self, seed: int, *, told: bool) -> None:
        self.chance = random.Random(seed)
        self.told = told
        """Whether the core knows how long work takes."""
        self.made: Cluster = cluster([4, 4, 4], gpus=1, memory=100, launchers=2)
        self.ends: list[tuple[float, int, int]] = []
        self.seen: set[tuple[int, int]] = set()
        self.seconds: dict[int, float] = {}
        self.began: dict[int, float] = {}
        self.next = 1

    def submit(self, shape: Shape, seconds: float, tier: Tier = Tier.NEEDED) -> int:
        task, self.next = self.next, self.next + 2
        expected = seconds if self.told else 0.0
        if self.told:
            known = {"runtime_bucket": runtime_bucket(seconds)}
            shape = Shape(**{name: getattr(shape, name) for name in shape.__struct_fields__} | known)
        self.seconds[task] = seconds
        self.made.submit(Bulk(task, 1, 1, 1, shape, tier, expected_runtime=expected))
        return task

    def stream(self) -> None:
        """Keep more small work queued than there are cores."""
        while self.made.core.queued < 14:
            tier = self.chance.choice([Tier.NEEDED] * 4 + [Tier.BACKFILL])
            self.submit(self.chance.choice(SMALL), self.chance.uniform(1, LONGEST), tier)

    def look(self) -> None:
        """Note what has started, and when it will end."""
        self.made.deliver()
        for node, task in self.made.running():
            if (node, task) not in self.seen:
                self.seen.add((node, task))
                self.began.setdefault(task, self.made.now)
                heapq.heappush(self.ends, (self.made.now + self.seconds[task], task, node))

    def go_on(self) -> None:
        """Let the next attempt end; who was told to give way does so at once."""
        self.look()
        for node in list(self.made.nodes.values()):
            for task, running in list(node.running.items()):
                if running.reason is not None:
                    node.finish(task)
        self.made.deliver()
        if self.ends:
            at, task, where = heapq.heappop(self.ends)
            self.made.now = max(self.made.now, at)
            if task in self.made.nodes[where].running:
                self.made.nodes[where].finish(task)
        self.look()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("big", BIG, ids=lambda shape: shape.describe())
def test_a_big_task_waits_no_longer_than_what_runs_when_it_is_its_turn(big: Shape, told: bool) -> None:
    for seed in range(2):
        simulation = Simulation(seed, told=told)
        for _ in range(20):
            simulation.stream()
            simulation.go_on()
        asked = simulation.made.now
        older = [
            other
            for other in simulation.made.live
            if other not in simulation.began and simulation.made.bulks[other].tier is Tier.NEEDED
        ]
        task = simulation.submit(big, LONGEST)
        while task not in simulation.began:
            simulation.stream()
            simulation.go_on()
            turn = max((simulation.began.get(other, simulation.made.now) for other in older), default=asked)
            # What runs when nothing older waits any more, and after it at most once more as long: a launcher, a node.
            assert simulation.made.now - max(turn, asked) <= 2 * LONGEST, f"seed {seed}: it waits since {asked}"
