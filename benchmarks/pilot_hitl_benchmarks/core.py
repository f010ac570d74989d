"""The scheduling core alone: placements with their completions per second, in three tiers of mixed shapes.

Nodes are played by the cheapest honest thing that there can be: started attempts end when their node's turn comes,
followed by what is held ahead. Only the core's own steps are timed, in CPU time; answers to retracts are left out.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Shape
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import (
    FINISHED,
    STARTED,
    Ahead,
    Bulk,
    Changed,
    Condition,
    End,
    Instruction,
    NodeChanges,
    NodeUp,
    Over,
    Retract,
    SchedulingCore,
    Start,
    Submit,
    Unchain,
)
from pilot_hitl_agent.core.events import RETRACTED

CORES = 8
GPUS = 2
SHAPES = (
    Shape(),
    Shape(cores=2),
    Shape(cores=4),
    Shape(memory=1000),
    Shape(gpu_shares=GPU_SHARES // 4),
    Shape(ranks=4),
)
BULK = 50
"""Tasks of one bulk: shapes arrive interleaved."""
TIERS = ((Tier.NEEDED, 0), (Tier.SPECULATIVE, 1), (Tier.BACKFILL, 0))
Json = dict[str, float | int | str]


@dataclass(slots=True)
class Actor:
    """A node that ends the oldest attempt whenever it is asked to."""

    identifier: int
    running: deque[tuple[int, int]] = field(default_factory=deque)
    held: dict[int, deque[int]] = field(default_factory=dict)
    unchained: set[int] = field(default_factory=set)
    ending: list[tuple[int, Failure]] = field(default_factory=list)

    def take(self, instruction: Instruction) -> NodeChanges | None:
        """Obey; return an answer to a retract."""
        if isinstance(instruction, Start):
            self.running.extend([(one.task, one.chain) for one in instruction.placed])
        elif isinstance(instruction, Ahead):
            self.held.setdefault(instruction.chain, deque()).extend(instruction.tasks)
        elif isinstance(instruction, Unchain):
            self.unchained.update(instruction.tasks)
        elif isinstance(instruction, End):
            self.unchained.update(instruction.tasks)
            self.ending.extend([(task, instruction.reason) for task in instruction.tasks])
        elif isinstance(instruction, Retract):
            return self._give_back(instruction.tasks)
        return None

    def _give_back(self, tasks: list[int]) -> NodeChanges:
        changes = []
        for waiting in self.held.values():
            for task in tasks:
                if task in waiting:
                    waiting.remove(task)
                    changes.append(Changed(task, 1, 1, RETRACTED))
        return NodeChanges(self.identifier, changes)

    def work(self, most: int) -> NodeChanges:
        """End up to ``most`` attempts; each is followed by one of its chain."""
        running = self.running
        changes = [Changed(task, 1, 1, FINISHED, 0, reason) for task, reason in self.ending]
        if self.ending:
            gone = {task for task, _ in self.ending}
            self.running = running = deque(one for one in running if one[0] not in gone)
            self.ending = []
        for _ in range(min(most, len(running))):
            task, chain = running.popleft()
            changes.append(Changed(task, 1, 1, FINISHED))
            waiting = self.held.get(chain)
            if task in self.unchained:
                self.unchained.discard(task)
            elif waiting:
                follower = waiting.popleft()
                changes.append(Changed(follower, 1, 1, STARTED, task))
                running.append((follower, chain))
        return NodeChanges(self.identifier, changes)


def rate(nodes: int, queued: int = 1_000_000, completions: int = 100_000, batch: int = 4) -> Json:
    """Return how fast the core places and completes, with so many nodes and so much queued.

    Args:
        nodes: how many, of 8 cores and 2 GPUs: few, so that 10,000 of them do not swallow the whole queue.
        queued: attempts submitted beforehand, over three tiers and six shapes.
        completions: how many of them to run, over all tiers.
        batch: how many attempts of one node end in one event.
    """
    gc.collect()
    # The core makes no cycles that it does not break; the agent sets this too.
    gc.set_threshold(100_000, 50, 100)
    before = resident()
    core = SchedulingCore(nodes=nodes)
    actors = [Actor(number) for number in range(nodes)]
    inventory = NodeInventory(name="n", cores=list(range(CORES)), gpus=list(range(GPUS)), memory=256_000)
    core.steps([NodeUp(number, inventory) for number in range(nodes)], 0.0)
    core.step(Condition(1, Truth.UNDECIDED, 0.5), 0.0)
    done = 0
    first = 1
    began = time.process_time()
    # All tiers are to be run through within the measured completions, the lowest holds the rest.
    running = 3 * nodes * CORES // 2
    needed = min(completions // 3 + running, queued // 2)
    totals = (needed, completions // 3, queued - needed - completions // 3)
    for (tier, condition), total in zip(TIERS, totals, strict=True):
        for _ in range(max(1, total // (len(SHAPES) * BULK))):
            bulks = []
            for shape in SHAPES:
                bulks.append(Bulk(first, BULK, 1, 1, shape, tier, condition=condition))
                first += BULK
            deliver(core, actors, core.step(Submit(bulks), 0.0))
    submitted = time.process_time() - began
    steps = 0
    seconds = 0.0
    while done < completions:
        for actor in actors:
            event = actor.work(batch)
            if not event.changes:
                continue
            steps += 1
            began = time.process_time()
            out = core.step(event, 1.0)
            seconds += time.process_time() - began
            for instruction in out:
                if isinstance(instruction, Over):
                    done += len(instruction.tasks)
            deliver(core, actors, out)
            if done >= completions:
                break
    return {
        "nodes": nodes,
        "queued": queued,
        "completions": done,
        "steps": steps,
        "per_second": round(done / seconds),
        "submit_seconds": round(submitted, 3),
        "looks_per_completion": round(core.looks / done, 3),
        "resident_growth_mb": round((resident() - before) / 1e6, 1),
    }


def deliver(core: SchedulingCore, actors: list[Actor], out: list[Instruction]) -> None:
    """Let the nodes obey; answers to retracts go straight back."""
    waiting = deque(out)
    while waiting:
        instruction = waiting.popleft()
        if isinstance(instruction, Start | Ahead | Retract | Unchain | End):
            answer = actors[instruction.node].take(instruction)
            if answer is not None:
                waiting.extend(core.step(answer, 1.0))


def resident() -> int:
    """Return the bytes of memory that this process has resident now (its peak, where that is not known)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(completions: int = 100_000, rounds: int = 3) -> dict[str, object]:
    """Return rates at 10, 64, 256 and 10,000 nodes and the ratio of the last to the first: medians of rounds."""
    rounds_done = [[rate(nodes, completions=completions) for nodes in (10, 64, 256, 10_000)] for _ in range(rounds)]
    ratios = sorted(float(one[-1]["per_second"]) / float(one[0]["per_second"]) for one in rounds_done)
    middle = sorted(rounds_done, key=lambda one: float(one[0]["per_second"]))[rounds // 2]
    return {"name": "core", "rates": middle, "ratio_10000_to_10": round(ratios[rounds // 2], 3)}


if __name__ == "__main__":
    import json

    sys.stdout.write(json.dumps(run(rounds=1), indent=2) + "\n")
