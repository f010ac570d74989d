"""Slots that a plan waits for, used meanwhile: that depends on the first of a queue, so each first one is asked."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl.model.states import Tier
from tests.unit.agent.core.honest import Cluster, cluster
from tests.unit.agent.core.said import bulk

Pair = tuple[dict[str, Any], dict[str, Any]]

STAYS: Pair = ({"tier": Tier.SPECULATIVE, "on_preempt": "finish"}, {"tier": Tier.SPECULATIVE})
LONG: Pair = ({"expected_runtime": 60.0}, {"expected_runtime": 10.0})
"""Of one queue: the first may not have what a plan waits for until 50, the second may."""


def kept(credit: int) -> Cluster:
    """Return a node with a free core that the plan of 4 waits for until 50, and another where 1 runs."""
    made = cluster([2, 1], credit=credit)
    made.submit(bulk(1, 3, expected_runtime=50.0))
    made.submit(bulk(4, cores=2))
    made.finish(2)
    assert made.running() == [(0, 3), (1, 1)]
    return made


@pytest.mark.parametrize("pair", [STAYS, LONG], ids=["stays", "long"])
def test_what_comes_next_is_looked_for_when_the_first_one_started(pair: Pair) -> None:
    first, second = pair
    made = kept(credit=0)
    made.submit(bulk(5, **first), bulk(6, **second))
    made.deliver()
    assert made.tasks() == {1, 3}
    made.finish(1)
    assert made.running() == [(0, 3), (0, 6), (1, 5)]


def test_what_comes_next_is_looked_for_when_the_first_one_is_held_ahead() -> None:
    first, second = LONG
    made = kept(credit=1)
    made.submit(bulk(5, **first), bulk(6, **second))
    made.deliver()
    assert made.running() == [(0, 3), (0, 6), (1, 1)]
    made.finish(1)
    assert made.running() == [(0, 3), (0, 6), (1, 5)]
