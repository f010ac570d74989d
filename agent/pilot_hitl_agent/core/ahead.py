"""Credit: what is held ahead at nodes, and what is asked back."""

from __future__ import annotations

from itertools import islice

from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.chains import Chain, Link
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import fit, parent_lends
from pilot_hitl_agent.core.queues import Level, Queue
from pilot_hitl_agent.core.world import World

WINDOW = 1024
"""By how many arrivals an attempt may be held ahead before an older one of its level that waits."""


def top(world: World) -> list[Queue]:
    """Return the queues of the best level that has anything to start."""
    for level in world.order:
        group = world.groups[level]
        if any(queue.count for queue in group):
            return group
    return []


def feed(world: World, group: list[Queue]) -> None:
    """Hold attempts of the best level ahead wherever credit is left."""
    if len(group) == 1:
        queue = group[0]
        if queue.count and queue.chain.hungry:
            _feed_chain(world, queue.chain, group)
        return
    heads = {queue: queue.head for queue in group if queue.count}
    by_chain: dict[Chain, list[Queue]] = {}
    for queue, head in heads.items():
        if queue.chain.hungry and not _overtakes(world, queue, head, heads):
            by_chain.setdefault(queue.chain, []).append(queue)
    for chain, queues in by_chain.items():
        _feed_chain(world, chain, queues)


def _feed_chain(world: World, chain: Chain, queues: list[Queue]) -> None:
    hungry = chain.hungry
    while hungry:
        # What gets the cores that its parent lends must be there when those who borrowed them are gone.
        waiting = [queue for queue in queues if queue.count and not parent_lends(world, queue)]
        if not waiting:
            return
        queue = waiting[0] if len(waiting) == 1 else min(waiting, key=_head)
        identifier, link = hungry.popitem(last=False)
        credit = link.room(world.credit)
        # Cores that become free where something is suspended may be what it waits for: the core decides then.
        if credit <= 0 or link.node.suspended:
            continue
        # Not all to one node when there is little: others may be done sooner. Only one when queues take turns.
        share = max(1, queue.count // (2 * len(hungry) + 2)) if len(waiting) == 1 else 1
        hold(world, link, queue, min(credit, share, queue.count))
        if (len(link.held) - link.leaving) * 2 <= link.running * world.credit:
            hungry[identifier] = link


def _overtakes(world: World, queue: Queue, mine: int, heads: dict[Queue, int]) -> bool:
    """Return whether older work waits that could use the slots which this queue's attempts would hand on.

    Without this a chain would keep its slots for as long as its queue lasts. Within the window shapes may overtake
    each other, so that a mix of them still gets by without round trips.
    """
    keeps_launchers = queue.form.launcher and world.launchers.left <= 0
    for other, head in heads.items():
        if head >= mine or other.chain is queue.chain:
            continue
        if keeps_launchers and other.form.launcher:
            return True  # What is started by launchers takes long, and a round trip does not count.
        if head < mine - WINDOW and other.form.within(queue.form):
            return True
    return False


def _head(queue: Queue) -> int:
    return queue.head


def hold(world: World, link: Link, queue: Queue, count: int) -> None:
    """Hold the first ``count`` attempts of a queue ahead."""
    node, pop, ours, theirs = link.node, world.pop, queue.held, link.held
    tasks = []
    for _ in range(count):
        attempt = pop(queue)
        attempt.phase = Phase.HELD
        attempt.link_node = node
        task = attempt.task
        ours[task] = theirs[task] = attempt
        tasks.append(task)
    world.held[queue] = None
    world.out.ahead(node.id, link.chain.id, (queue.level[0], queue.level[1]), tasks)


def pay(world: World, group: list[Queue]) -> None:
    """Ask back what is held ahead of a lower level, as many as the best level still wants to start."""
    level = group[0].level
    worse = [queue for queue in world.held if queue.level > level]
    if not worse:
        return
    due = sum(queue.count for queue in group) - len(world.asked)
    for queue in sorted(worse, key=lambda queue: queue.level, reverse=True):
        if due <= 0:
            return
        # The last ones sent are the last ones to start.
        for attempt in list(islice(reversed(queue.held.values()), due)):
            world.retract(attempt)
            due -= 1


def fetch(world: World, level: Level, nodes: list[Node]) -> bool:
    """Ask work of a better level back that is held ahead while cores are free for it; return whether some is coming.

    Without this, work behind a long attempt would see worse work start on every core that becomes free elsewhere.
    """
    better = sorted((queue for queue in world.held if queue.level < level), key=lambda queue: queue.level)
    on_the_way = [attempt.queue for attempt in world.asked.values() if attempt.queue.level < level and not attempt.fate]
    coming = len(on_the_way)
    kept = bool(world.parched and on_the_way)
    for node in nodes:
        fitting = 0
        for queue in dict.fromkeys((*on_the_way, *better)):
            fitting = max(fitting, _fits(world, queue, node.id))
            for attempt in list(islice(reversed(queue.held.values()), max(0, fitting - coming))):
                world.retract(attempt)
                coming += 1
        if fitting and coming > 0:
            world.parched[node.id] = node
            coming -= fitting
            kept = True
    return kept


def steal(world: World) -> None:
    """Ask held-ahead attempts back that cores elsewhere are free for."""
    asked = len(world.asked)
    for node in list(world.thirsty.values()):
        if not world.held:
            world.thirsty.clear()
            return
        if not node.loan:
            del world.thirsty[node.id]
            continue
        for queue in sorted(world.held, key=lambda queue: queue.level):
            fits = _fits(world, queue, node.id)
            if fits:
                # Its cores are spoken for once so many are on their way: work of another queue would come in vain, be
                # held ahead again and be asked back again.
                asked, fits = max(0, asked - fits), max(0, fits - asked)
                for attempt in list(islice(reversed(queue.held.values()), fits)):
                    world.retract(attempt)
                break


def _fits(world: World, queue: Queue, node: int) -> int:
    form = queue.form
    if not form.alone or world.tags.get(form.colocate, node) != node or not world.launchers.allow(queue):
        return 0
    found = world.nodes[node]
    if fit(world, found, queue, form, form.ranks) is None:
        return 0
    return max(1, (found.loan if queue.preemptible else found.open).bit_count() // form.alone)


def expire(world: World) -> None:
    """Ask back what could no longer end in time if it started now."""
    for queue in list(world.held):
        if queue.slowest and world.now + queue.slowest > world.ends:
            for attempt in list(queue.held.values()):
                if late(world, attempt):
                    world.retract(attempt)


def late(world: World, attempt: Attempt) -> bool:
    """Return whether an attempt that starts now would not end before the pilot does."""
    expected = attempt.bulk.expected_runtime
    return bool(world.ends and expected and world.now + expected > world.ends)
