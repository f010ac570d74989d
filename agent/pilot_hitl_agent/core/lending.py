"""Cores of tasks that wait: lent to preemptible tiers, taken back by preemption."""

from __future__ import annotations

from collections.abc import Iterable

from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import parent_lends
from pilot_hitl_agent.core.preemption import evict, worth
from pilot_hitl_agent.core.queues import Queue
from pilot_hitl_agent.core.world import World


def lend(world: World, attempt: Attempt) -> None:
    """Lend all cores of a running attempt, on all its nodes. A whole node is not lent.

    What is itself borrowed is lent once it is not any more: the wish is kept, or an attempt whose lender ended would
    wait for its own children on the core that they need.
    """
    if attempt.lending or attempt.queue.form.exclusive:
        return
    parts = list(attempt.parts.values())
    if attempt.phase is not Phase.RUNNING or any(part.mask & part.node.lend_mask for part in parts):
        world.wishing[attempt] = None
        return
    world.wishing.pop(attempt, None)
    world.unchain(attempt)
    attempt.lending = True
    for part in parts:
        node = part.node
        node.lenders[attempt] = part.mask
        node.lent |= part.mask
        node.derive()
        world.dirty[node.id] = node


def grant(world: World) -> None:
    """Lend the cores of those who wished to lend while they had only borrowed ones."""
    for attempt in list(world.wishing):
        if attempt.phase is Phase.RUNNING:
            lend(world, attempt)


def take_back(world: World, attempt: Attempt) -> None:
    """Make the borrowers give way; Restored follows when the last one has gone, at once when there is none."""
    world.wishing.pop(attempt, None)
    if not attempt.lending:
        world.out.restored(attempt.task)
        return
    attempt.lending = False
    for part in attempt.parts.values():
        call_in(world, attempt, part.node)
    settle(world, attempt)


def call_in(world: World, attempt: Attempt, node: Node) -> None:
    """Take the cores back that nobody has borrowed on a node, and make the borrowers of the others give way."""
    mask = node.lenders.get(attempt, 0)
    node.lent &= ~mask
    node.derive()
    world.dirty[node.id] = node
    for borrower in borrowers(attempt, node):
        if borrower.evictable:
            evict(world, borrower)


def borrowers(attempt: Attempt, node: Node) -> list[Attempt]:
    """Return the attempts that use cores of a lender."""
    return [other for other in node.overlapping(node.lenders.get(attempt, 0)) if other is not attempt]


def clear(world: World, queue: Queue) -> None:
    """Make borrowers give way so that the first one of a queue gets the cores that its own parent lends."""
    if not queue.form.alone or not parent_lends(world, queue):
        return
    parent = world.attempts[queue.parent]
    for part in parent.parts.values():
        node = part.node
        lent = node.lenders.get(parent, 0) & ~node.kept
        coming, able = node.lent & lent, []
        for borrower in borrowers(parent, node):
            gain = borrower.parts[node.id].mask & lent
            if borrower.phase in {Phase.ENDING, Phase.SUSPENDING}:
                coming |= gain
            elif borrower.evictable and gain:
                able.append((borrower, gain))
        if (coming | _all(gain for _, gain in able)).bit_count() < queue.form.alone:
            continue  # Nobody gives way for what would not be enough.
        for borrower, gain in sorted(able, key=lambda each: worth(each[0])):
            if coming.bit_count() >= queue.form.alone:
                return
            coming |= gain
            evict(world, borrower)


def _all(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def settle(world: World, attempt: Attempt) -> None:
    """Say so if an attempt that takes its cores back has them all."""
    if attempt.lending:
        return
    waiting = [part.node for part in attempt.parts.values() if attempt in part.node.lenders]
    if any(borrowers(attempt, node) for node in waiting):
        return
    for node in waiting:
        del node.lenders[attempt]
        node.derive()
    world.out.restored(attempt.task)


def settle_node(world: World, node: Node) -> None:
    """Look after everybody who waits for cores on a node."""
    for attempt in list(node.lenders):
        if not attempt.lending:
            settle(world, attempt)
