"""Whatever happened, what is said of a task is true of the nodes, which keep books of their own."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pilot_hitl.model.resources import GPU_SHARES, Shape
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import Explanation, Holds
from tests.unit.agent.core.honest import Cluster, HonestNode, Running, cluster
from tests.unit.agent.core.said import bulk

SHAPES = st.builds(
    Shape,
    cores=st.integers(1, 3),
    ranks=st.integers(1, 3),
    gpu_shares=st.sampled_from([0, 0, GPU_SHARES]),
    memory=st.sampled_from([0, 0, 40]),
)
WORK = st.tuples(st.just("submit"), SHAPES, st.sampled_from([Tier.NEEDED, Tier.NEEDED, Tier.SERVICE]))
_TWO = ("submit", Shape(cores=1, ranks=2, gpu_shares=GPU_SHARES), Tier.NEEDED)
STEPS = st.lists(st.one_of(WORK, WORK, st.tuples(st.sampled_from(["finish", "lend"]), st.integers(0, 9))), max_size=14)


# Two cores are free on the second node, and one of them is claimed for the second of the first two.
@example(nodes=[1, 3], credit=0, steps=[_TWO, ("submit", Shape(cores=2), Tier.NEEDED)])
@given(nodes=st.lists(st.integers(1, 3), min_size=1, max_size=2), credit=st.sampled_from([0, 2]), steps=STEPS)
def test_what_is_said_of_a_task_is_true(
    nodes: list[int], credit: int, steps: list[tuple[str, Shape, Tier] | tuple[str, int]]
) -> None:
    made = cluster(nodes, credit=credit, gpus=1, memory=100)
    for number, step in enumerate(steps):
        running = sorted(task for node in made.nodes.values() for task in node.running)
        if step[0] == "submit" and len(step) == 3:
            if step[1].cores <= max(nodes):
                made.submit(bulk(10 * number + 1, 2, shape=step[1], tier=step[2]))
        elif running and isinstance(step[1], int):
            task = running[step[1] % len(running)]
            if step[0] == "lend" and task not in made.lending:
                made.lend(task)
            elif step[0] == "finish" and made.shapes[task].ranks == 1:
                next(node for node in made.nodes.values() if task in node.running).finish(task)
        made.deliver()
        for task in sorted(made.live):
            _check(made, made.core.explain(task))
        said = made.core.standstill([(1, 10 * number + 10)])
        at_work = {task for node in made.nodes.values() for task in node.running} - made.lending
        assert said.moves == bool(at_work)
        assert sum(each.count for each in said.held) == len([t for t in made.live if not _places(made, t)])


def _places(made: Cluster, task: int) -> list[tuple[HonestNode, Running]]:
    return [(node, node.running[task]) for node in made.nodes.values() if task in node.running]


def _check(made: Cluster, said: Explanation) -> None:
    task, places = said.task, _places(made, said.task)
    if places:
        assert said.holds is Holds.RUNNING, said.text
        assert said.nodes == sorted(node.id for node, _ in places)
        assert ("lends its cores" in said.text) == (task in made.lending)
        return
    assert said.holds is not Holds.RUNNING, said.text
    if said.holds is Holds.AHEAD:
        assert [node.id for node in made.nodes.values() if any(held.task == task for held in node.held)] == said.nodes
    elif said.holds is Holds.SERVICES:
        services = [each for each in made.live if made.bulks[each].tier is Tier.SERVICE and _places(made, each)]
        assert services, said.text
        assert not _room(made, made.shapes[task], {each for each in made.live if each not in services}), said.text
    elif said.holds in (Holds.CORES, Holds.GPUS, Holds.MEMORY):
        assert not _room(made, made.shapes[task], set()), said.text
    else:
        assert said.holds in (Holds.TIER, Holds.ORDER, Holds.PLAN), said.text
        assert len(made.live) > 1, "somebody goes first"


def _room(made: Cluster, shape: Shape, without: set[int]) -> bool:
    """Return whether there is room for a task, if some others were not there."""
    ranks = 0
    for node in made.nodes.values():
        cores, gpus, memory = len(node.inventory.cores), len(node.inventory.gpus), node.inventory.memory
        for task, running in node.running.items():
            if task not in without:
                cores -= sum(slot.cores.bit_count() for slot in running.slots)
                gpus -= sum(len(slot.gpus) for slot in running.slots)
                memory -= sum(slot.memory for slot in running.slots)
        room = cores // shape.cores
        room = min(room, gpus) if shape.gpu_shares else room
        ranks += max(0, min(room, memory // shape.memory) if shape.memory else room)
    return ranks >= shape.ranks
