"""Where the parts of gangs lie: learned from the core's instructions, told to every node that has a part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pilot_hitl.model.resources import NodeInventory, Slot
from pilot_hitl.wire.node import Share
from pilot_hitl_agent.core import instructions as do
from pilot_hitl_agent.jobs import Jobs


class Layouts:
    """Layouts of the tasks of several ranks that run.

    Attributes:
        possible: whether there was ever a task of several ranks; before that nothing need be asked here.
    """

    def __init__(self, jobs: Jobs, nodes: Mapping[int, NodeInventory], addresses: Mapping[int, str]) -> None:
        """Read bodies from ``jobs``; ``nodes`` and ``addresses`` may grow."""
        self.possible = False
        self._jobs = jobs
        self._nodes = nodes
        self._addresses = addresses
        self._layouts: dict[int, tuple[Share, ...]] = {}

    def learn(self, instructions: Iterable[do.Instruction]) -> None:
        """Take in where gangs start; all parts of one start in the same answer of the core."""
        parts: dict[int, list[tuple[int, tuple[Slot, ...]]]] = {}
        for order in instructions:
            if isinstance(order, do.Start):
                for placed in order.placed:
                    batch = self._jobs.batches.get(placed.task)
                    if batch is not None and batch.ranks > 1:
                        parts.setdefault(placed.task, []).append((order.node, placed.slots))
        for task, places in parts.items():
            self._layouts[task] = tuple(self._share(node, slots) for node, slots in sorted(places))

    def of(self, task: int) -> tuple[Share, ...]:
        """Return the layout of a task, in order of ranks; empty for one that does not run."""
        return self._layouts.get(task, ())

    def led(self, task: int, node: int) -> list[int]:
        """Return the nodes of the other parts when the part on this node leads; else nothing."""
        layout = self._layouts.get(task, ())
        if len(layout) < 2 or layout[0].node != node:
            return []
        return [share.node for share in layout[1:]]

    def forget(self, tasks: Iterable[int]) -> None:
        """Drop the layouts of tasks that ended."""
        for task in tasks:
            self._layouts.pop(task, None)

    def _share(self, node: int, slots: tuple[Slot, ...]) -> Share:
        inventory = self._nodes[node]
        cpus = tuple(_numbers(inventory, slot) for slot in slots) if inventory.pinned else ()
        return Share(node, inventory.name, self._addresses.get(node, ""), slots, cpus)


def _numbers(inventory: NodeInventory, slot: Slot) -> tuple[int, ...]:
    numbers = inventory.cores
    return tuple(numbers[index] for index in range(slot.cores.bit_length()) if slot.cores >> index & 1)
