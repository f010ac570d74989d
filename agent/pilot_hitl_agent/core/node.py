"""A node: who uses which of its cores, GPUs and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Slot
from pilot_hitl_agent.core.shapes import Form

if TYPE_CHECKING:
    from pilot_hitl_agent.core.attempt import Attempt
    from pilot_hitl_agent.core.chains import Link
    from pilot_hitl_agent.core.claims import Claim, Holder

UNCOUNTED = 1 << 60
"""Memory of a node that does not count it."""


class Node:
    """One node. Sets of cores are bits of integers, bit ``i`` for ``inventory.cores[i]``.

    Attributes:
        full: all cores.
        free: used by no attempt and lent by none.
        lent: lent by all that have them, and used by none.
        kept: in a claim.
        open: what needed work without a claim may take: ``free`` without ``kept``.
        promised: cores that are cleared for a child of who lends them: preemptible work stays off until it has begun.
        loan: what preemptible work may take: ``free`` and ``lent`` without firm claims and what is promised.
        gpus: free share by device.
        memory: free MB.
        attempts: those with a part here, suspended ones included.
        lenders: cores of each attempt that lends or waits to get them back. Who borrowed them may lend them on, and
            stands behind the one they are from.
        place: where the index has it.
        touched: gets this node whenever its cores change hands, for whoever keeps accounts.
    """

    __slots__ = (
        "attempts", "claims", "free", "full", "gpus", "id", "inventory", "kept", "lenders", "lent", "links", "loan",
        "memory", "open", "place", "promised", "suspended", "touched",
    )  # fmt: skip

    def __init__(self, identifier: int, inventory: NodeInventory, touched: dict[int, Node] | None = None) -> None:
        self.id = identifier
        self.touched = {} if touched is None else touched
        self.inventory = inventory
        self.full = (1 << len(inventory.cores)) - 1
        self.free = self.open = self.loan = self.full
        self.lent = 0
        self.promised = 0
        self.kept = 0
        self.gpus = dict.fromkeys(inventory.gpus, GPU_SHARES)
        self.memory = inventory.memory or UNCOUNTED
        self.attempts: dict[int, Attempt] = {}
        self.suspended: dict[int, Attempt] = {}
        self.claims: dict[Holder, Claim] = {}
        self.links: dict[int, Link] = {}
        self.lenders: dict[Attempt, int] = {}
        self.place: tuple[int, tuple[int, int, int]] | None = None

    @property
    def lend_mask(self) -> int:
        """Cores that some attempt lends or waits to get back, borrowed or not."""
        mask = 0
        for part in self.lenders.values():
            mask |= part
        return mask

    def derive(self) -> None:
        """Bring ``open`` and ``loan`` up to date with ``free`` and ``lent``."""
        self.touched[self.id] = self
        if self.claims:
            firm = 0
            for claim in self.claims.values():
                if claim.firm:
                    firm |= claim.mask
            self.open = self.free & ~self.kept
            self.loan = (self.free | self.lent & ~self.promised) & ~firm
        else:
            self.open = self.free
            self.loan = self.free | self.lent & ~self.promised

    def take(self, mask: int, slots: tuple[Slot, ...]) -> None:
        """Count cores, and GPUs and memory of the slots, as used."""
        self.free &= ~mask
        self.lent &= ~mask
        for slot in slots:
            if slot.memory:
                self.memory -= slot.memory
            for device in slot.gpus:
                self.gpus[device] -= slot.gpu_shares
        self.derive()

    def give_cores(self, mask: int) -> None:
        """Count cores as free, or give them back to whoever lent them."""
        covered = wanted = 0
        for lender, lent in self.lenders.items():
            covered |= lent
            if not lender.lending:
                wanted |= lent
        self.lent |= mask & covered & ~wanted
        self.free |= mask & ~covered
        self.derive()

    def relend(self, leaving: Attempt | None = None) -> None:
        """Bring ``lent`` up to date with the lenders; ``leaving`` uses nothing any more."""
        lent = wanted = 0
        for lender, mask in self.lenders.items():
            if lender.lending:
                lent |= mask
            else:
                wanted |= mask
        lent &= ~wanted
        for attempt in self.overlapping(lent) if lent else ():
            if attempt is not leaving and attempt not in self.lenders:
                lent &= ~attempt.parts[self.id].mask
        self.lent = lent
        self.derive()

    def borrowers(self, lender: Attempt) -> list[Attempt]:
        """Return the attempts that use cores of a lender, those who lend them on too."""
        mask = self.lenders.get(lender, 0)
        if not mask:
            return []
        outer = set()
        for each in self.lenders:
            if each is lender:
                break
            outer.add(each)
        return [other for other in self.overlapping(mask) if other is not lender and other not in outer]

    def give_rest(self, slots: tuple[Slot, ...]) -> None:
        """Count GPUs and memory of slots as free."""
        for slot in slots:
            if slot.memory:
                self.memory += slot.memory
            for device in slot.gpus:
                self.gpus[device] += slot.gpu_shares

    def add_claim(self, claim: Claim) -> None:
        """Keep what a claim names."""
        self.claims[claim.holder] = claim
        claim.holder.claims[self.id] = claim
        self.rekeep()

    def drop_claim(self, claim: Claim) -> None:
        """Keep it no longer."""
        del self.claims[claim.holder]
        del claim.holder.claims[self.id]
        self.rekeep()

    def rekeep(self) -> None:
        """Bring ``kept``, ``open`` and ``loan`` up to date with the claims."""
        self.kept = 0
        for claim in self.claims.values():
            self.kept |= claim.mask
        self.derive()

    def overlapping(self, mask: int) -> list[Attempt]:
        """Return the attempts that use one of these cores (or lend it)."""
        return [
            attempt
            for attempt in self.attempts.values()
            if attempt.task not in self.suspended and attempt.parts[self.id].mask & mask
        ]


class View:
    """What of a node somebody may take: cores, share by GPU, memory."""

    __slots__ = ("gpus", "mask", "memory", "node")

    def __init__(self, node: Node, mask: int, gpus: dict[int, int], memory: int) -> None:
        self.node = node
        self.mask = mask
        self.gpus = gpus
        self.memory = memory


def room(view: View, form: Form) -> int:
    """Return how many ranks of a form fit into a view, at most as many as may share a node."""
    if form.exclusive and view.mask != view.node.full:
        return 0
    count = min(form.per_node, form.ranks, view.mask.bit_count() // form.cores)
    if form.memory:
        count = min(count, view.memory // form.memory)
    if form.devices:
        whole = sum(1 for share in view.gpus.values() if share >= GPU_SHARES)
        count = min(count, whole // form.devices)
    elif form.share:
        count = min(count, sum(share // form.share for share in view.gpus.values()))
    return max(count, 0)


def carve(view: View, form: Form, ranks: int) -> tuple[Slot, ...] | None:
    """Return slots for so many ranks out of a view, or None when they do not fit. The view is left as it is."""
    if form.simple:
        cores = lowest(view.mask, form.cores)
        return (Slot(view.node.id, cores),) if cores else None
    if room(view, form) < ranks:
        return None
    mask, gpus = view.mask, dict(view.gpus)
    slots = []
    for _ in range(ranks):
        cores = lowest(mask, form.cores)
        mask &= ~cores
        devices = _devices(gpus, form)
        share = GPU_SHARES if form.devices else form.share
        for device in devices:
            gpus[device] -= share
        slots.append(Slot(view.node.id, cores, devices, share if devices else 0, form.memory))
    return tuple(slots)


def _devices(gpus: dict[int, int], form: Form) -> tuple[int, ...]:
    if form.devices:
        return tuple([device for device, share in gpus.items() if share >= GPU_SHARES][: form.devices])
    if form.share:
        # The fullest device that still has room, so that whole devices stay whole.
        return (min((share, device) for device, share in gpus.items() if share >= form.share)[1],)
    return ()


def lowest(mask: int, count: int) -> int:
    """Return the ``count`` lowest bits of a set, or 0 when it has fewer."""
    if count == 1:
        return mask & -mask
    if mask.bit_count() < count:
        return 0
    rest = mask
    for _ in range(count):
        rest &= rest - 1
    return mask & ~rest
