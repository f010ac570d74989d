"""Cores of tasks that wait: lent to preemptible tiers, taken back by preemption."""

from __future__ import annotations

from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import due, parent_lends
from pilot_hitl_agent.core.plans import release_children
from pilot_hitl_agent.core.preemption import evict, worth
from pilot_hitl_agent.core.queues import Queue
from pilot_hitl_agent.core.world import World


def lend(world: World, attempt: Attempt) -> None:
    """Lend all cores of a running attempt, on all its nodes. A whole node is not lent.

    What is itself borrowed is lent on: else the attempt would wait for its own children on the core that they need. The
    wish of one that does not run now is kept, for the same reason.
    """
    if attempt.lending or attempt.queue.form.exclusive:
        return
    if _waits(attempt):
        return  # It does not go on until what it lent before is there.
    if attempt.phase is not Phase.RUNNING:
        world.wishing[attempt] = None
        return
    world.wishing.pop(attempt, None)
    world.unchain(attempt)
    attempt.lending = True
    for part in attempt.parts.values():
        node = part.node
        node.lenders[attempt] = part.mask
        node.relend()
        world.dirty[node.id] = node
    release_children(world, attempt)


def grant(world: World) -> None:
    """Lend the cores of those who wished to lend while they did not run."""
    for attempt in list(world.wishing):
        if attempt.phase is Phase.RUNNING:
            lend(world, attempt)


def take_back(world: World, attempt: Attempt) -> None:
    """Make the borrowers give way; Restored follows when the last one has gone, at once when there is none."""
    world.wishing.pop(attempt, None)
    if _waits(attempt):
        return
    if not attempt.lending:
        world.out.restored(attempt.task)
        return
    attempt.lending = False
    for part in attempt.parts.values():
        call_in(world, attempt, part.node)
    settle(world, attempt)


def _waits(attempt: Attempt) -> bool:
    """Return whether an attempt wants cores back that others have still."""
    return not attempt.lending and any(attempt in part.node.lenders for part in attempt.parts.values())


def call_in(world: World, attempt: Attempt, node: Node) -> None:
    """Take the cores back that nobody has borrowed on a node, and make the borrowers of the others give way."""
    node.relend()
    world.dirty[node.id] = node
    for borrower in node.borrowers(attempt):
        if borrower.evictable:
            evict(world, borrower)


def clear(world: World, queue: Queue) -> None:
    """Make borrowers give way so that the first one of a queue gets the cores that its own parent lends.

    Until it has them all nobody else borrows them: those who gave way would come back one by one, for ever.
    """
    if not queue.form.alone or not parent_lends(world, queue):
        return
    parent = world.attempts[queue.parent]
    for part in parent.parts.values():
        node = part.node
        lent = node.lenders.get(parent, 0) & ~due(node)
        staying: list[Attempt] = []
        able: list[Attempt] = []
        for borrower in node.borrowers(parent):
            if borrower.phase in {Phase.ENDING, Phase.SUSPENDING}:
                continue
            (able if borrower.evictable else staying).append(borrower)
        if _without(node, lent, staying) < queue.form.alone:
            continue  # Nobody gives way for what would not be enough.
        node.promised |= lent
        world.promised[node.id] = node
        node.derive()
        world.index.move(node)
        able.sort(key=worth, reverse=True)
        while able and _without(node, lent, staying + able) < queue.form.alone:
            evict(world, able.pop())


def _without(node: Node, cores: int, users: list[Attempt]) -> int:
    """Return how many of these cores none of the users has."""
    for user in users:
        cores &= ~user.parts[node.id].mask
    return cores.bit_count()


def forget_promises(world: World) -> None:
    """Forget what was promised on the nodes that are looked at now: whoever waits still is promised it again."""
    for node in [node for node in world.promised.values() if node.id in world.dirty]:
        del world.promised[node.id]
        node.promised = 0
        node.derive()


def settle(world: World, attempt: Attempt) -> None:
    """Say so if an attempt that takes its cores back has them all."""
    if attempt.lending:
        return
    waiting = [part.node for part in attempt.parts.values() if attempt in part.node.lenders]
    if any(node.borrowers(attempt) for node in waiting):
        return
    for node in waiting:
        del node.lenders[attempt]
        node.relend()
    world.out.restored(attempt.task)


def settle_node(world: World, node: Node) -> None:
    """Look after everybody who waits for cores on a node."""
    for attempt in list(node.lenders):
        if not attempt.lending:
            settle(world, attempt)
