"""What a study knows of its pilots."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def fits(shape: Shape, nodes: tuple[NodeInventory, ...]) -> bool:
    """Return whether an empty pilot with these nodes could hold a task of this shape."""
    places = 0
    for node in nodes:
        here = len(node.cores) // shape.cores if shape.cores else shape.ranks
        if shape.gpu_shares:
            here = min(here, ranks_on_gpus(shape.gpu_shares, len(node.gpus)))
        if shape.memory and node.memory:
            here = min(here, node.memory // shape.memory)
        if shape.ranks_per_node:
            here = min(here, shape.ranks_per_node)
        if shape.colocate and here < shape.ranks:
            here = 0
        places += here
        if places >= shape.ranks:
            return True
    return False


def ranks_on_gpus(shares: int, devices: int) -> int:
    """Return how many ranks with this GPU share fit on so many devices."""
    whole = 10_000
    return devices // (shares // whole) if shares >= whole else devices * (whole // shares)


def describe(bulk: Bulk) -> str:
    """Return a bulk's resource request in words."""
    shape = bulk.shape
    parts = [f"{shape.ranks} x {shape.cores} core{'s' if shape.cores != 1 else ''}"]
    if shape.gpu_shares:
        parts.append(f"{shape.gpu_shares / 10_000:g} GPU a rank")
    if shape.memory:
        parts.append(f"{shape.memory} MB a rank")
    return " with ".join(parts[:2]) + (f" and {parts[2]}" if len(parts) > 2 else "")
