"""The core against honest nodes that answer late and in any order, with everything happening at any time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import GPU_SHARES, Resources, Shape
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import (
    Bulk,
    Cancel,
    Changed,
    Condition,
    Drain,
    NodeChanges,
    Reserve,
    SchedulingCore,
    Submit,
    Tick,
    Unreserve,
    WalltimeEnds,
)
from tests.seeds import examples
from tests.unit.agent.core.honest import Cluster, HonestNode

SHAPES = [
    Shape(),
    Shape(),
    Shape(cores=2),
    Shape(cores=3, memory=40),
    Shape(memory=50),
    Shape(gpu_shares=GPU_SHARES // 2),
    Shape(cores=2, gpu_shares=GPU_SHARES),
    Shape(ranks=3),
    Shape(ranks=5),
    Shape(ranks=4, ranks_per_node=2),
    Shape(ranks=2, cores=2, memory=30),
    Shape(exclusive=True),
    Shape(colocate="here"),
    Shape(ranks=2, colocate="here"),
    Shape(ranks=2, launcher=True),
    Shape(ranks=4, launcher=True),
    Shape(launcher=True),
    Shape(gpu_shares=GPU_SHARES, alternatives=(Shape(cores=3),)),
    Shape(ranks=2, cores=2, memory=80, alternatives=(Shape(cores=1), Shape(gpu_shares=GPU_SHARES // 2))),
]
LAUNCHERS = 2
NODES = [(4, 2, 100), (4, 0, 100), (3, 1, 0), (6, 2, 200)]
TIERS = [Tier.NEEDED, Tier.NEEDED, Tier.NEEDED, Tier.SPECULATIVE, Tier.BACKFILL, Tier.SERVICE]


class Everything(RuleBasedStateMachine):
    """All events, all answers, in any order; the core checks itself after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(SchedulingCore(credit=2, nodes=2, launchers=LAUNCHERS), LAUNCHERS)
        self.next = 1
        self.truths: dict[int, Truth] = {}
        self.runs: dict[int, int] = {}
        for identifier in (0, 1):
            self.cluster.up(identifier, *NODES[identifier])

    # --- work ---

    @rule(
        count=st.integers(1, 8),
        shape=st.sampled_from(SHAPES),
        tier=st.sampled_from(TIERS),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        condition=st.sampled_from([0, 0, 0, 1, 2, 3]),
        on_preempt=st.sampled_from(["kill", "kill", "requeue", "suspend", "suspend", "finish"]),
        expected=st.sampled_from([0.0, 0.0, 0.0, 5.0, 50.0]),
        parent=st.integers(0, 3),
        kept=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def submit(self, **fields: Any) -> None:
        count = fields.pop("count")
        # Children of what lends, mostly: those of others are as everybody else.
        lenders = sorted(self.cluster.lending) or sorted(self.cluster.live)
        parent = fields.pop("parent")
        fields["parent"] = lenders[parent % len(lenders)] if parent and lenders else 0
        expected = fields.pop("expected")
        bulk = Bulk(first=self.next, count=count, epoch=1, run=1, expected_runtime=expected, **fields)
        self.next += bulk.count + 1
        self.cluster.submit(bulk)

    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        ready = sorted(
            task
            for task, failure in self.cluster.returned.items()
            if failure.cause in {Cause.PREEMPTED, Cause.NODE_LOST}
        )
        if ready:
            task = data.draw(st.sampled_from(ready))
            old = self.cluster.bulks[task]
            self.cluster.submit(msgspec.structs.replace(old, first=task, count=1, run=old.run + 1))

    @rule(first=st.integers(1, 60), count=st.integers(1, 4))
    def cancel(self, first: int, count: int) -> None:
        self.cluster.tell(Cancel([(first, count)]))

    @rule(data=st.data())
    def submit_twice(self, data: st.DataObject) -> None:
        if self.cluster.live:
            task = data.draw(st.sampled_from(sorted(self.cluster.live)))
            known = self.cluster.bulks[task]
            self.cluster.tell(Submit([Bulk(task, 1, known.epoch, known.run, known.shape, known.tier)]))

    @rule(
        condition=st.sampled_from([1, 2, 3]),
        truth=st.sampled_from(list(Truth)),
        score=st.sampled_from([0.1, 0.5, 0.9]),
    )
    def condition(self, condition: int, truth: Truth, score: float) -> None:
        if self.truths.get(condition, Truth.UNDECIDED) is Truth.UNDECIDED:
            self.truths[condition] = truth
            self.cluster.tell(Condition(condition, truth, score))

    # --- resources ---

    @rule(
        checkpoint=st.integers(1, 2),
        cores=st.integers(1, 6),
        gpus=st.sampled_from([0.0, 0.5, 1.0]),
        memory=st.sampled_from([0, 0, 60]),
        conditions=st.lists(st.integers(1, 3), max_size=1),
        lend=st.sampled_from([True, True, False]),
    )
    def reserve(self, checkpoint: int, conditions: list[int], *, lend: bool, **amounts: Any) -> None:
        self.cluster.tell(Reserve(checkpoint, Resources(**amounts), conditions, lend))

    @rule(checkpoint=st.integers(1, 2))
    def unreserve(self, checkpoint: int) -> None:
        self.cluster.tell(Unreserve(checkpoint))

    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        attempts = self.cluster.core._world.attempts
        able = sorted(
            task
            for task in self.cluster.tasks()
            if task in attempts and task not in self.cluster.lending and not self.cluster.shapes[task].exclusive
        )
        if able:
            task = data.draw(st.sampled_from(able))
            self.cluster.lend(task)
            if not attempts[task].lending and attempts[task] not in self.cluster.core._world.wishing:
                self.cluster.lending.discard(task)  # refused: it has a node for itself

    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        if self.cluster.lending:
            self.cluster.take_back(data.draw(st.sampled_from(sorted(self.cluster.lending))))

    @precondition(lambda self: len(self.cluster.nodes) < 4)
    @rule()
    def node_up(self) -> None:
        identifier = next(number for number in range(4) if number not in self.cluster.nodes)
        self.cluster.up(identifier, *NODES[identifier])

    @precondition(lambda self: len(self.cluster.nodes) > 1)
    @rule(data=st.data())
    def node_down(self, data: st.DataObject) -> None:
        self.cluster.down(data.draw(st.sampled_from(sorted(self.cluster.nodes))))

    @rule(data=st.data())
    def node_restarts(self, data: st.DataObject) -> None:
        self.cluster.restart(data.draw(st.sampled_from(sorted(self.cluster.nodes))))

    @rule(left=st.sampled_from([0.0, 10.0, 100.0]))
    def walltime(self, left: float) -> None:
        self.cluster.tell(WalltimeEnds(self.cluster.now + left if left else 0.0))

    @rule(seconds=st.sampled_from([1.0, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.now += seconds
        self.cluster.tell(Tick())

    # --- nodes answer ---

    def pick(self, data: st.DataObject) -> HonestNode:
        return self.cluster.nodes[data.draw(st.sampled_from(sorted(self.cluster.nodes)))]

    @rule(data=st.data(), most=st.integers(1, 4))
    def obey(self, data: st.DataObject, most: int) -> None:
        node = self.pick(data)
        while node.inbox and most:
            node.obey()
            most -= 1

    @rule(data=st.data(), most=st.integers(1, 4))
    def report(self, data: st.DataObject, most: int) -> None:
        node = self.pick(data)
        if node.outbox:
            self.cluster.report(node, most)

    @rule(data=st.data(), crash=st.booleans())
    def finish(self, data: st.DataObject, crash: bool) -> None:
        node = self.pick(data)
        able = [task for task, running in node.running.items() if not running.suspended or running.reason]
        if able:
            node.finish(data.draw(st.sampled_from(able)), crash=crash)

    @rule()
    def settle(self) -> None:
        self.cluster.deliver()

    @rule(data=st.data())
    def stale(self, data: st.DataObject) -> None:
        node = self.pick(data)
        task = data.draw(st.integers(1, 60))
        kind = data.draw(st.integers(1, 5))
        self.cluster.tell(NodeChanges(node.id, [Changed(task, 0, 9, kind)]))

    def teardown(self) -> None:
        """Let everything go: then all that was submitted has come out, and everything is free."""
        cluster = self.cluster
        for condition in (1, 2, 3):
            if self.truths.get(condition, Truth.UNDECIDED) is Truth.UNDECIDED:
                cluster.tell(Condition(condition, Truth.TRUE))
        for checkpoint in (1, 2):
            cluster.tell(Unreserve(checkpoint))
        cluster.tell(WalltimeEnds(0.0))
        for task in sorted(cluster.lending):
            cluster.take_back(task)
        self.run_dry()
        assert not cluster.live, f"never ended: {[cluster.core.explain(task) for task in sorted(cluster.live)]}"
        assert cluster.core.live == cluster.core.queued == cluster.core.planned == 0
        assert cluster.core.free_cores == sum(len(node.inventory.cores) for node in cluster.nodes.values())
        assert not cluster.asked, "a retract without an answer"
        assert not any(node.links or node.claims or node.lenders for node in cluster.core._world.nodes.values())
        cluster.tell(Drain())

    def run_dry(self) -> None:
        cluster = self.cluster
        for _ in range(500):
            cluster.deliver()
            ended = False
            for node in list(cluster.nodes.values()):
                for task, running in list(node.running.items()):
                    if task in node.running and (not running.suspended or running.reason):
                        node.finish(task)
                        ended = True
            if not ended:
                return
        raise AssertionError("it does not come to an end")


@pytest.mark.timeout(120)
class TestEverything(Everything.TestCase):  # type: ignore[misc,valid-type]
    # Not shrunk: that takes minutes here, and the seeds of test_seeds are found to be short enough.
    settings = settings(
        max_examples=examples(100),
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        print_blob=True,
    )
