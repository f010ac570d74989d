"""Finding slots for what is queued."""

from __future__ import annotations

from collections.abc import Iterable

from pilot_hitl.model.resources import GPU_SHARES, Slot
from pilot_hitl_agent.core.claims import Claim, Plan
from pilot_hitl_agent.core.node import Node, View, carve, lowest, room
from pilot_hitl_agent.core.queues import Queue
from pilot_hitl_agent.core.shapes import Form
from pilot_hitl_agent.core.world import World

Spread = list[tuple[Node, tuple[Slot, ...]]]
"""Slots of all ranks, by node."""


def yields(world: World, claim: Claim, queue: Queue) -> bool:
    """Return whether a queue's first attempt may use what is claimed."""
    if queue.preemptible and not (_stays(queue) and isinstance(claim.holder, Plan)):
        return not claim.firm
    if claim.holder is queue.reservation:
        return True
    holder = claim.holder
    if not isinstance(holder, Plan) or claim.firm or not holder.until or not queue.count:
        return False
    expected = queue.first.bulk.expected_runtime
    return 0 < expected <= holder.until - world.now


def _stays(queue: Queue) -> bool:
    """Return whether a queue's first attempt, once it runs, cannot be told to give way."""
    return bool(queue.count) and queue.first.bulk.on_preempt == "finish"


def parent_lends(world: World, queue: Queue) -> bool:
    """Return whether a needed queue may have cores that the task which submitted it lends."""
    if not queue.parent or queue.preemptible:
        return False
    parent = world.attempts.get(queue.parent)
    return parent is not None and parent.lending


def due(node: Node) -> int:
    """Return the cores whose users are on their way out for a plan. A claim that only waits keeps no child off.

    It waits until the parent has ended, and the parent waits for the child.
    """
    mask = 0
    for holder, claim in node.claims.items():
        if claim.firm and isinstance(holder, Plan):
            mask |= claim.mask
    return mask


def inherited(world: World, node: Node, queue: Queue) -> int:
    """Return the cores that a queue's own parent lends on a node and nobody else uses.

    Whether another, whom the parent has them from, wants them back makes no difference: it gets them sooner like this.

    Needed work may not borrow, because it cannot be told to give back. What a waiting task submitted itself may: that
    is what it waits for, and on a pilot full of such tasks nothing would ever go on without it.
    """
    if not parent_lends(world, queue):
        return 0
    parent = world.attempts[queue.parent]
    mask = node.lenders.get(parent, 0) & ~due(node)
    for other in node.borrowers(parent):
        mask &= ~other.parts[node.id].mask
    return mask


def view(world: World, node: Node, queue: Queue, *, backfill: bool = True) -> View:
    """Return what the first attempt of a queue may take of a node now.

    ``backfill``: for the time being as well, what a plan waits for, where the plan is not delayed.
    """
    mask = node.loan if queue.preemptible else node.open
    if queue.parent and node.lenders and not queue.preemptible:
        mask |= inherited(world, node, queue) & (-1 if backfill else ~node.kept)
    if node.lenders and queue.form.exclusive:
        mask = 0
    if not node.claims:
        return View(node, mask, node.gpus, node.memory)
    gpus, memory = dict(node.gpus), node.memory
    for claim in node.claims.values():
        if yields(world, claim, queue) and (backfill or claim.holder is queue.reservation):
            mask |= claim.mask & node.free
        else:
            if queue.preemptible:
                mask &= ~claim.mask
            memory -= claim.memory
            for device, share in claim.gpus.items():
                gpus[device] -= share
    return View(node, mask, gpus, memory)


def fit(world: World, node: Node, queue: Queue, form: Form, ranks: int) -> tuple[Slot, ...] | None:
    """Return slots on a node for so many ranks of a queue's first attempt in one of its forms, or None."""
    if form.simple and not node.claims and not (queue.parent and node.lenders):
        cores = lowest(node.loan if queue.preemptible else node.open, form.cores)
        return (Slot(node.id, cores),) if cores else None
    seen = view(world, node, queue)
    reservation = queue.reservation
    if reservation is not None and not queue.preemptible and node.id in reservation.claims:
        # Its own slots first: what it does not use of them stays out of everybody's reach.
        own = reservation.claims[node.id].mask & node.free
        found = carve(View(node, own, seen.gpus, seen.memory), form, ranks)
        if found is not None:
            return found
    return carve(seen, form, ranks)


def claimed_nodes(world: World, queue: Queue) -> Iterable[Node]:
    """Return the nodes where a needed queue may take more than what is open."""
    found: dict[int, Node] = {}
    if queue.reservation is not None:
        found.update({claim.node.id: claim.node for claim in queue.reservation.claims.values()})
    if world.waiting is not None and world.waiting.until:
        found.update({claim.node.id: claim.node for claim in world.waiting.claims.values()})
    if parent_lends(world, queue):
        found.update({part.node.id: part.node for part in world.attempts[queue.parent].parts.values()})
    return found.values()


def search(world: World, queue: Queue, *, launched: bool = True) -> Spread | None:
    """Return slots anywhere for the first attempt of a queue, or None; ``launched``: only if a launcher is left."""
    if launched and queue.form.launcher and not world.launchers.allow(queue):
        return None
    for form in queue.form.choices:
        found = search_form(world, queue, form)
        if found:
            return found
    return None


def search_form(world: World, queue: Queue, form: Form) -> Spread | None:
    """Return slots anywhere for the first attempt of a queue in one of its forms, or None."""
    if form.colocate and form.colocate in world.tags:
        bound = world.nodes.get(world.tags[form.colocate])
        slots = fit(world, bound, queue, form, form.ranks) if bound else None
        return [(bound, slots)] if bound and slots else None
    if form.alone:
        alone = _alone(world, queue, form)
        if alone is not None:
            return alone
    if form.ranks > 1 and not form.colocate:
        return spread(world, queue, form)
    return None


def fit_as_wished(world: World, node: Node, queue: Queue) -> tuple[Slot, ...] | None:
    """Return slots on a node for the first attempt of a queue: an alternative only when the first choice fits nowhere.

    A fresh queue is looked for everywhere anyway, so it gets no alternative here.
    """
    form = queue.form
    slots = fit(world, node, queue, form.choices[0], form.ranks)
    if slots is not None or queue.fresh or search_form(world, queue, form.choices[0]):
        return slots
    for other in form.others:
        slots = fit(world, node, queue, other, other.ranks)
        if slots is not None:
            return slots
    return None


def _alone(world: World, queue: Queue, form: Form) -> Spread | None:
    if not queue.preemptible:
        for node in claimed_nodes(world, queue):
            slots = fit(world, node, queue, form, form.ranks)
            if slots:
                return [(node, slots)]
    for node in list(world.index.started.values()) if form.share else ():
        if any(form.share <= share < GPU_SHARES for share in node.gpus.values()):
            world.index.looks += 1
            slots = fit(world, node, queue, form, form.ranks)
            if slots:
                return [(node, slots)]
    for node in world.index.candidates(form.alone, form):
        slots = fit(world, node, queue, form, form.ranks)
        if slots:
            return [(node, slots)]
    if queue.preemptible:
        for node in world.index.loans.values():
            world.index.looks += 1
            slots = fit(world, node, queue, form, form.ranks)
            if slots:
                return [(node, slots)]
    return None


def spread(world: World, queue: Queue, form: Form) -> Spread | None:
    """Return slots for the ranks of a gang over several nodes, or None when they do not all fit now."""
    extra = world.index.loans.values() if queue.preemptible else claimed_nodes(world, queue)
    seen: dict[int, None] = {}
    found: Spread = []
    left = form.ranks
    for nodes in (extra, world.index.emptiest(form.cores)):
        for node in nodes:
            if node.id in seen:
                continue
            seen[node.id] = None
            count = min(left, room(view(world, node, queue), form))
            slots = fit(world, node, queue, form, count) if count else None
            if slots:
                found.append((node, slots))
                left -= count
            if not left:
                return found
    return None


def may_ever_fit(nodes: Iterable[Node], form: Form) -> bool:
    """Return whether a form fits on these nodes when nothing else runs, in one of its choices."""
    if form.others:
        nodes = tuple(nodes)
        return any(may_ever_fit(nodes, choice) for choice in form.choices)
    left = form.ranks
    for node in nodes:
        whole = dict.fromkeys(node.gpus, 10_000)
        count = room(View(node, node.full, whole, node.inventory.memory or 1 << 60), form)
        if form.colocate:
            if count >= form.ranks:
                return True
            continue
        left -= count
        if left <= 0:
            return True
    return False
