"""What the tests of the study core share."""

from __future__ import annotations

import pytest

from pilot_hitl.model.conditions import equals
from tests.unit.study.world import A, B, World


@pytest.fixture
def world() -> World:
    """A world with one agent and one open checkpoint with the branches A ("a") and B ("b")."""
    world = World(windows=8)
    world.arrive()
    world.ask(1)
    world.define(A, equals(1, "a"), probability=0.8)
    world.define(B, equals(1, "b"))
    return world
