"""What a study knows of its pilots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.resources import fits, ranks_on_gpus

if TYPE_CHECKING:
    from pilot_hitl.model.resources import NodeInventory, Shape
    from pilot_hitl.study.bulk import Bulk

CreditKey = tuple[int, "Shape"]


class Pilot:
    """One pilot.

    ``bound`` counts its unfinished tasks by (tier, shape); its agent's window bounds each. ``conditions`` are those
    that its agent was told of. ``short`` are the shapes that this life of its agent gave back because they cannot end
    before it does.
    """

    __slots__ = ("active", "binding", "bound", "conditions", "nodes", "number", "short", "window")

    def __init__(self, number: int) -> None:
        """Start without an agent."""
        self.number = number
        self.active = False
        self.binding = 0
        self.nodes: tuple[NodeInventory, ...] = ()
        self.window = 0
        self.bound: dict[CreditKey, int] = {}
        self.conditions: set[int] = set()
        self.short: set[Shape] = set()

    def credit(self, tier: int, shape: Shape) -> int:
        """Return how many more tasks its agent wants."""
        return self.window - self.bound.get((tier, shape), 0)


def describe(bulk: Bulk) -> str:
    """Return a bulk's resource request in words."""
    return bulk.shape.describe()


__all__ = ["CreditKey", "Pilot", "describe", "fits", "ranks_on_gpus"]
