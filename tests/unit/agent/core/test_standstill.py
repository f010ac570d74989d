"""What an agent says of many tasks at once: whether they move, and one reason for many; services are named truly."""

from __future__ import annotations

import pytest

from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import Holds
from tests.unit.agent.core.honest import cluster
from tests.unit.agent.core.said import bulk

SERVICES = str(Holds.SERVICES)


def test_what_runs_moves_and_many_that_wait_are_one_line() -> None:
    made = cluster([1], credit=2)
    made.submit(bulk(1), bulk(2, 500))
    made.deliver()
    said = made.core.standstill([(1, 501)])
    assert said.moves
    assert sum(each.count for each in said.held) == 500
    assert len(said.held) <= 2, "held ahead, and queued"
    assert all(each.soft for each in said.held)
    alone = made.core.standstill([(300, 10)])
    assert not alone.moves
    assert [each.task for each in alone.held] == [300]
    assert not made.core.standstill([(1000, 10)]).held


@pytest.mark.parametrize(
    ("nodes", "service", "asked", "held"),
    [
        ([1], (1, 1), (1, 1), "1 core of n0"),
        ([2], (2, 1), (1, 1), "all 2 cores of n0"),
        ([2], (1, 1), (2, 1), "1 of 2 cores of n0"),
        ([2, 2], (1, 3), (2, 1), "3 of 4 cores of 2 nodes"),
        ([2, 2], (1, 1), (2, 1), ""),  # the other node has room
        ([4], (1, 1), (2, 1), ""),  # beside it
        ([4], (1, 1), (1, 4), "1 of 4 cores of n0"),  # ranks
    ],
)
def test_services_are_named_where_they_leave_no_room(
    nodes: list[int], service: tuple[int, int], asked: tuple[int, int], held: str
) -> None:
    made = cluster(nodes, credit=0)
    made.submit(bulk(1, service[1], cores=service[0], tier=Tier.SERVICE))
    made.deliver()
    # What fills the rest ends; only the services never do.
    free = sum(nodes) - service[0] * service[1]
    made.submit(bulk(50, free), bulk(100, cores=asked[0], ranks=asked[1]))
    made.deliver()
    found = made.core.explain(100)
    assert (found.holds is Holds.SERVICES) == bool(held), found.text
    said = {each.key: each for each in made.core.standstill([(100, 1)]).held}
    assert (SERVICES in said) == bool(held)
    if held:
        assert f"services hold {held.partition(' of n')[0]}" in found.text
        assert not said[SERVICES].soft


def test_a_task_that_waits_for_its_own_is_no_movement() -> None:
    made = cluster([1], credit=0)
    made.submit(bulk(1), bulk(2))
    made.deliver()
    made.lend(1)
    made.submit(bulk(10, cores=1, parent=1), bulk(11, parent=1))
    made.deliver()
    said = made.core.standstill([(1, 1)])
    assert said.lending == [1]
    assert said.moves, "its child runs on its core"
    assert {each.task for each in said.held} == {11}
