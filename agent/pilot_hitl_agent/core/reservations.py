"""Reservations of checkpoints: slots that are lent to preemptible tiers until the continuation takes them."""

from __future__ import annotations

from pilot_hitl.model.resources import GPU_SHARES
from pilot_hitl_agent.core.claims import Claim, Reservation
from pilot_hitl_agent.core.events import Reserve
from pilot_hitl_agent.core.node import Node, lowest
from pilot_hitl_agent.core.plans import claimable, gone
from pilot_hitl_agent.core.world import World


def reserve(world: World, event: Reserve) -> None:
    """Make a reservation, or change its conditions; another amount chooses the slots anew."""
    old = world.reservations.get(event.checkpoint)
    conditions = frozenset(event.conditions)
    if old is not None and old.resources == event.resources and old.lend == event.lend:
        old.conditions = conditions
        attach(world, old)
        return
    if old is not None:
        unreserve(world, event.checkpoint)
    made = world.reservations[event.checkpoint] = Reservation(
        event.checkpoint, event.resources, conditions, lend=event.lend
    )
    attach(world, made)
    choose(world, made)


def unreserve(world: World, checkpoint: int) -> None:
    """Keep nothing any more for a checkpoint."""
    reservation = world.reservations.pop(checkpoint, None)
    if reservation is None:
        return
    world.changes += 1
    for claim in list(reservation.claims.values()):
        claim.node.drop_claim(claim)
        world.dirty[claim.node.id] = claim.node
    for key, queue in list(world.queues.items()):
        if queue.reservation is reservation:
            queue.reservation = None
        if queue.kept == checkpoint:
            world.forget_queue(key, queue)


def attach(world: World, reservation: Reservation) -> None:
    """Let the tasks of its conditions, and no others, use a reservation."""
    for queue in world.queues.values():
        named = queue.condition in reservation.conditions or queue.kept == reservation.checkpoint
        if queue.reservation is reservation and not named:
            queue.reservation = None
        elif queue.kept == reservation.checkpoint:
            queue.reservation = reservation
            queue.fresh = world.anew = True
    for condition in reservation.conditions:
        for queue in world.by_condition.get(condition, ()):
            queue.reservation = reservation
            queue.fresh = world.anew = True


def choose(world: World, reservation: Reservation) -> None:
    """Claim what is missing: on few nodes, on free cores, then on what can be preempted, then on what will end."""
    cores, shares, memory = reservation.missing
    for node in sorted(world.nodes.values(), key=lambda node: _cost(node, cores)):
        if node.id in reservation.claims or not (cores or shares or memory):
            continue
        seen = claimable(node)
        mask = _cores(node, seen.mask, min(cores, seen.mask.bit_count()))
        claim = Claim(reservation, node, mask)
        claim.firm = not reservation.lend
        claim.memory = min(memory, max(0, seen.memory)) if node.inventory.memory else 0
        for device, share in seen.gpus.items():
            # A whole device for each whole GPU asked for, one device for the rest.
            part = min(shares, GPU_SHARES)
            if part and share >= part:
                claim.gpus[device] = part
                shares -= part
        cores -= mask.bit_count()
        memory -= claim.memory
        if mask or claim.memory or claim.gpus:
            node.add_claim(claim)
            world.dirty[node.id] = node
            for attempt in node.overlapping(mask):
                world.unchain(attempt)
    if not any(node.inventory.memory for node in world.nodes.values()):
        memory = 0
    reservation.missing = (cores, shares, memory)


def lose(claim: Claim, reservation: Reservation) -> None:
    """A node with a claim is gone: what it kept is missing again."""
    cores, shares, memory = reservation.missing
    reservation.missing = (cores + claim.mask.bit_count(), shares + sum(claim.gpus.values()), memory + claim.memory)
    claim.node.drop_claim(claim)


def absorb(world: World, reservation: Reservation) -> None:
    """Its condition came true: what its attempts run on already need not be kept for them as well."""
    for claim in list(reservation.claims.values()):
        for attempt in claim.node.overlapping(claim.mask):
            if attempt.queue.reservation is reservation and not attempt.queue.preemptible:
                part = attempt.parts[claim.node.id]
                claim.consume(part.mask, part.slots)
        claim.node.rekeep()
        world.dirty[claim.node.id] = claim.node


def _cost(node: Node, cores: int) -> tuple[bool, int, int]:
    seen = claimable(node).mask
    soft = _soft(node)
    short = seen.bit_count() < cores
    busy = max(0, min(cores, seen.bit_count()) - (seen & soft).bit_count())
    return short, busy, -(seen & node.free).bit_count()


def _soft(node: Node) -> int:
    mask = node.free
    for attempt in node.attempts.values():
        if attempt.evictable or gone(attempt):
            mask |= attempt.parts[node.id].mask
    return mask


def _cores(node: Node, allowed: int, count: int) -> int:
    chosen = 0
    for mask in (node.free, _soft(node), node.full):
        left = count - chosen.bit_count()
        if left > 0:
            rest = allowed & mask & ~chosen
            chosen |= lowest(rest, min(left, rest.bit_count()))
    return chosen
