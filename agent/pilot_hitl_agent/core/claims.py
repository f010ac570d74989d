"""Claims: cores, GPUs and memory of a node that are kept for somebody.

Two kinds of holders: a *plan* (one attempt that waits for exactly these slots) and a *reservation* (the continuation
of a checkpoint).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.resources import GPU_SHARES, Resources, Slot

if TYPE_CHECKING:
    from pilot_hitl_agent.core.attempt import Attempt
    from pilot_hitl_agent.core.node import Node
    from pilot_hitl_agent.core.shapes import Form


class Claim:
    """What one holder keeps on one node.

    Attributes:
        mask: cores; claims on one node are disjoint.
        gpus: share by device.
        firm: nobody may borrow it; else preemptible tiers may.
        slots: of a plan: one a rank.
    """

    __slots__ = ("firm", "gpus", "holder", "mask", "memory", "node", "slots")

    def __init__(self, holder: Holder, node: Node, mask: int, slots: tuple[Slot, ...] = ()) -> None:
        self.holder = holder
        self.node = node
        self.mask = mask
        self.slots = slots
        self.gpus: dict[int, int] = {}
        self.memory = 0
        self.firm = False
        for slot in slots:
            self.memory += slot.memory
            for device in slot.gpus:
                self.gpus[device] = self.gpus.get(device, 0) + slot.gpu_shares

    def consume(self, mask: int, slots: tuple[Slot, ...]) -> None:
        """Give up what an attempt of this holder's took, so that it is not kept twice."""
        self.mask &= ~mask
        for slot in slots:
            self.memory = max(0, self.memory - slot.memory)
            for device in slot.gpus:
                self.gpus[device] = max(0, self.gpus.get(device, 0) - slot.gpu_shares)


class Holder:
    """Whoever holds claims, by node."""

    __slots__ = ("claims",)

    def __init__(self) -> None:
        self.claims: dict[int, Claim] = {}


class Plan(Holder):
    """Slots for one attempt that did not fit.

    Attributes:
        waiting: it waits for work that cannot be preempted; at most one plan at a time does.
        until: when everything in its way is expected to have ended, 0 for unknown.
        form: which choice of the attempt's form it claims slots for.
    """

    __slots__ = ("attempt", "form", "until", "waiting")

    def __init__(self, attempt: Attempt, *, waiting: bool, form: Form | None = None) -> None:
        super().__init__()
        self.attempt = attempt
        self.form = form or attempt.queue.form
        self.waiting = waiting
        self.until = 0.0


class Reservation(Holder):
    """Slots for the continuation of a checkpoint.

    Attributes:
        resources: what was asked for; the claims are less once it is used up, or while the pilot is too small.
        missing: cores, GPU shares and memory that no node could give so far.
        lend: whether preemptible work may borrow what is kept.
    """

    __slots__ = ("checkpoint", "conditions", "lend", "missing", "resources")

    def __init__(self, checkpoint: int, resources: Resources, conditions: frozenset[int], *, lend: bool = True) -> None:
        super().__init__()
        self.lend = lend
        self.checkpoint = checkpoint
        self.resources = resources
        self.conditions = conditions
        self.missing = (resources.cores, round(resources.gpus * GPU_SHARES), resources.memory)
