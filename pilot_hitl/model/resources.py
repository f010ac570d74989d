"""What a task asks for, and what a node has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from pilot_hitl.model import checks
from pilot_hitl.model.checks import Described

GPU_SHARES = 10_000
"""GPU shares are counted in ten-thousandths, so that thirds and tenths add up without rounding drift."""
_MOST = 1 << 40
_Amount = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
"""Shapes come from peers, and the cores divide by what they say: it is bounded where it is decoded."""


class Resources(msgspec.Struct, metaclass=Described, frozen=True, kw_only=True, array_like=True):
    """An amount of cores, GPUs and memory.

    Attributes:
        cores: whole cores.
        gpus: GPUs; fractions share one device.
        memory: MB.
    """

    cores: int = 1
    gpus: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        """Make the amounts plain numbers.

        Raises:
            ValueError: an amount is negative or no number; the message names it.
        """
        for name, check in (("cores", checks.as_whole), ("gpus", checks.as_number), ("memory", checks.as_whole)):
            given = getattr(self, name)
            made = check(name, given)
            if not 0 <= made <= _MOST:
                raise ValueError(f"{name}: resources cannot be negative or without end: {self}")
            if made is not given:
                msgspec.structs.force_setattr(self, name, made)


class Shape(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The interned resource request of a task. Scheduling cost follows shapes, not tasks.

    Attributes:
        ranks: processes that start together.
        cores: cores of each rank.
        gpu_shares: GPU share of each rank in units of ``1/GPU_SHARES``; below one GPU it lies on one device.
        memory: MB of each rank.
        ranks_per_node: upper bound of ranks on one node, 0 for none.
        colocate: tasks with an equal non-empty value run on the same node.
        exclusive: no other task shares a node with it.
        runtime_bucket: smallest ``b`` with expected runtime <= ``2**b`` seconds; -1 when unknown.
        launcher: it is started by a launcher of the site, of which only so many may run at a time.
        alternatives: other amounts of cores, GPUs and memory that would do; of each only these three count.
    """

    ranks: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] = 1
    cores: _Amount = 1
    gpu_shares: _Amount = 0
    memory: _Amount = 0
    ranks_per_node: _Amount = 0
    colocate: str = ""
    exclusive: bool = False
    runtime_bucket: Annotated[int, msgspec.Meta(ge=-1, le=64)] = -1
    launcher: bool = False
    alternatives: tuple[Shape, ...] = ()

    @property
    def choices(self) -> tuple[Shape, ...]:
        """Itself and its alternatives, each as a shape without any; the first one is preferred."""
        if not self.alternatives:
            return (self,)
        alone = msgspec.structs.replace(self, alternatives=())
        replace = msgspec.structs.replace
        others = (
            replace(alone, cores=other.cores, gpu_shares=other.gpu_shares, memory=other.memory)
            for other in self.alternatives
        )
        return (alone, *others)

    @property
    def total_cores(self) -> int:
        """Cores of all ranks together."""
        return self.ranks * self.cores

    def describe(self) -> str:
        """Return it in words."""
        if self.alternatives:
            return ", or ".join(choice.describe() for choice in self.choices)
        parts = [f"{self.ranks} x {self.cores} core{'s' if self.cores != 1 else ''}"]
        if self.gpu_shares:
            parts.append(f"{self.gpu_shares / GPU_SHARES:g} GPU a rank")
        if self.memory:
            parts.append(f"{self.memory} MB a rank")
        return " with ".join(parts[:2]) + (f" and {parts[2]}" if len(parts) > 2 else "")


def runtime_bucket(seconds: float) -> int:
    """Return the power-of-two bucket of an expected runtime; -1 for unknown (0)."""
    if seconds <= 0:
        return -1
    bucket = 0
    while 2**bucket < seconds:
        bucket += 1
    return bucket


class NodeInventory(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one node of a pilot offers.

    Attributes:
        name: host name as the batch system knows it.
        cores: the CPU numbers that tasks may be bound to; a number may repeat no one.
        gpus: device indices.
        memory: MB; 0 means "not counted".
        pinned: whether ``cores`` are real CPU numbers (else they are virtual and nothing is bound).
    """

    name: str
    cores: list[int]
    gpus: list[int] = []
    memory: int = 0
    pinned: bool = True


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """The concrete cores, GPUs and memory of one rank on one node.

    Attributes:
        node: index of the node in the pilot.
        cores: bit set of core *indices* of that node (bit ``i`` is ``inventory.cores[i]``).
        gpus: device indices.
        gpu_shares: share of each device in units of ``1/GPU_SHARES``.
        memory: MB.
    """

    node: int
    cores: int
    gpus: tuple[int, ...] = ()
    gpu_shares: int = 0
    memory: int = 0


def fits(shape: Shape, nodes: Sequence[NodeInventory]) -> bool:
    """Return whether an empty pilot with these nodes could hold a task of this shape, in one of its choices."""
    if shape.alternatives:
        return any(fits(choice, nodes) for choice in shape.choices)
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


def largest(shape: Shape, nodes: Iterable[NodeInventory]) -> str:
    """Return in words the most that a node has of each thing that a shape asks for; not nothing of nodes."""
    known = [*nodes]
    cores = max(len(node.cores) for node in known)
    parts = [f"{cores} core{'s' if cores != 1 else ''}"]
    if any(choice.gpu_shares for choice in shape.choices):
        parts.append(f"{max(len(node.gpus) for node in known)} GPUs")
    memory = max(node.memory for node in known)
    if memory and any(choice.memory for choice in shape.choices):
        parts.append(f"{memory} MB")
    return f"the largest node has {', '.join(parts)}"


def places(shape: Shape, nodes: Sequence[NodeInventory]) -> int:
    """Return about how many tasks of a shape these nodes could run at once; 0 when they cannot hold one."""
    if shape.alternatives:
        return max(places(choice, nodes) for choice in shape.choices)
    if not fits(shape, nodes):
        return 0
    ranks = 0
    for node in nodes:
        here = len(node.cores) // shape.cores if shape.cores else shape.ranks
        if shape.gpu_shares:
            here = min(here, ranks_on_gpus(shape.gpu_shares, len(node.gpus)))
        if shape.memory and node.memory:
            here = min(here, node.memory // shape.memory)
        ranks += min(here, shape.ranks) if shape.exclusive else here
    return max(1, ranks // shape.ranks)


def ranks_on_gpus(shares: int, devices: int) -> int:
    """Return how many ranks with this GPU share fit on so many devices."""
    whole = GPU_SHARES
    return devices // (shares // whole) if shares >= whole else devices * (whole // shares)
