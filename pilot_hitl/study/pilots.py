"""What a study knows of one pilot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.resources import NodeInventory, fits, places, ranks_on_gpus

if TYPE_CHECKING:
    from pilot_hitl.model.resources import Shape
    from pilot_hitl.study.bulk import Bulk

CreditKey = tuple[int, "Shape"]


class Pilot:
    """One pilot.

    ``bound`` counts its unfinished tasks by (tier, shape); its agent's window bounds each. ``conditions`` are those
    that its agent was told of. ``short`` are the shapes that this life of its agent gave back because they cannot end
    before it does. ``lineage`` is the first pilot of the row that it renews, its own number when it renews none.
    ``presumed`` are tasks that act outside and are taken for running because nobody knows better yet.
    ``expected`` is how many nodes it is to have, or the most that were seen; ``best`` is what its best node has.
    """

    __slots__ = (
        "_nodes",
        "_places",
        "_whole",
        "active",
        "best",
        "binding",
        "bound",
        "conditions",
        "expected",
        "lineage",
        "number",
        "presumed",
        "short",
        "site",
        "window",
    )

    def __init__(self, number: int) -> None:
        """Start without an agent."""
        self.number = number
        self.lineage = number
        self.site = ""
        self.active = False
        self.binding = 0
        self.window = 0
        self.expected = 0
        self.best: NodeInventory | None = None
        self.presumed: set[int] = set()
        self.bound: dict[CreditKey, int] = {}
        self.conditions: set[int] = set()
        self.short: set[Shape] = set()
        self._nodes: tuple[NodeInventory, ...] = ()
        self._places: dict[Shape, int] = {}
        self._whole: dict[Shape, bool] = {}

    @property
    def nodes(self) -> tuple[NodeInventory, ...]:
        """What it has now; empty while its size is not known."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: tuple[NodeInventory, ...]) -> None:
        self._nodes = nodes
        self.expected = max(self.expected, len(nodes))
        for node in nodes:
            self.best = node if self.best is None else _better(self.best, node)
        self._places.clear()
        self._whole.clear()

    @property
    def missing(self) -> int:
        """How many of its nodes are not there now, and may come."""
        return self.expected - len(self._nodes)

    @property
    def cores(self) -> int:
        """Cores of all nodes that it has now."""
        return sum(len(node.cores) for node in self._nodes)

    @property
    def load(self) -> float:
        """Cores that its unfinished tasks ask for, over the cores that it has."""
        return sum(count * shape.total_cores for (_tier, shape), count in self.bound.items()) / max(1, self.cores)

    def places(self, shape: Shape) -> int:
        """Return how many tasks of a shape it could run at once now, if nothing else ran."""
        found = self._places.get(shape)
        if found is None:
            found = self._places[shape] = places(shape, self._nodes)
        return found

    def could_hold(self, shape: Shape) -> bool:
        """Return whether it can hold a task, or could with all its nodes. While its size is unknown nobody can say."""
        if self.best is None or self.places(shape):
            return True
        found = self._whole.get(shape)
        if found is None:
            # Nobody knows what a node that is missing has: as much as the best one.
            found = self._whole[shape] = fits(shape, (*self._nodes, *(self.missing * [self.best])))
        return found

    def credit(self, tier: int, shape: Shape, most: int = 0) -> int:
        """Return how many more tasks its agent wants, or how many less than ``most`` it has."""
        return (most or self.window) - self.bound.get((tier, shape), 0)


def _better(one: NodeInventory, other: NodeInventory) -> NodeInventory:
    """Return a node that holds whatever one of two could hold."""
    counted = one.memory and other.memory
    return NodeInventory(
        name="",
        cores=max(one.cores, other.cores, key=len),
        gpus=max(one.gpus, other.gpus, key=len),
        memory=max(one.memory, other.memory) if counted else 0,
    )


def describe(bulk: Bulk) -> str:
    """Return a bulk's resource request in words."""
    return bulk.shape.describe()


__all__ = ["CreditKey", "Pilot", "describe", "fits", "ranks_on_gpus"]
