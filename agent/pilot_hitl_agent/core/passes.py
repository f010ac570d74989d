"""One scheduling pass: what became free meets what is queued, level by level."""

from __future__ import annotations

from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import ahead, lending, plans, preemption
from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.claims import Plan
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import fit, fit_as_wished, search, spread
from pilot_hitl_agent.core.queues import Level, Queue
from pilot_hitl_agent.core.world import World


def schedule(world: World) -> None:
    """Bring everything to rest: nothing queued fits anywhere, and everything held ahead is within its credit."""
    if world.ends:
        _park(world)
    if world.parched:
        world.dirty.update(world.parched)
        world.parched.clear()
    world.dirty.update(world.promised)
    while True:
        _settle(world)
        _ahead(world)
        if not world.turned:
            return


def _settle(world: World) -> None:
    while True:
        if world.promised:
            lending.forget_promises(world)
        for queue in world.turned:
            queue.fresh = world.anew = True
        world.turned.clear()
        _settle_claims(world)
        nodes = list(world.dirty.values())
        world.dirty.clear()
        for node in nodes:
            world.index.move(node)
        if nodes or world.active:
            _pass(world, nodes)
            if world.launchers.used and not world.draining:
                preemption.free_launchers(world)
            world.sweep()
        if not world.dirty and not world.turned and not world.draining:
            _plan(world)
        if world.wishing:
            lending.grant(world)
        if not world.dirty and not world.turned:
            return


def _park(world: World) -> None:
    for queue in world.active:
        queue.park(world.now, world.ends)
    world.anew = world.emptied = True
    world.sweep()
    ahead.expire(world)


def _settle_claims(world: World) -> None:
    touched: dict[Plan, None] = {}
    for node in list(world.dirty.values()):
        if node.lenders:
            lending.settle_node(world, node)
        for holder in node.claims:
            if isinstance(holder, Plan):
                touched[holder] = None
    for plan in sorted(touched, key=lambda plan: (plan.attempt.queue.level, plan.attempt.sequence)):
        if plan in world.plans:
            plans.advance(world, plan)


def _plan(world: World) -> None:
    while True:
        before = len(world.plans)
        plans.plan_waiting(world)
        if len(world.plans) == before or world.waiting is not None:
            return


def _ahead(world: World) -> None:
    if world.thirsty:
        if world.held:
            ahead.steal(world)
        else:
            world.thirsty.clear()
    if not world.active or world.draining:
        return
    group = ahead.top(world)
    if group:
        if world.held:
            ahead.pay(world, group)
        ahead.feed(world, group)
        world.sweep()


def _pass(world: World, nodes: list[Node]) -> None:
    stopped = _stopped(nodes) if world.suspended else []
    order = [] if world.draining else world.order
    moved = world.waiting is None
    anew = False
    for level in order:
        group = world.groups[level]
        if stopped:
            stopped = _resume(world, stopped, level)
        if not moved and world.waiting is not None and world.waiting.attempt.queue.level <= level:
            moved = _relocate(world, nodes)
        if level[0] > Tier.NEEDED:
            nodes = [node for node in nodes if node.loan]
            if not nodes and not world.anew:
                break
        if (world.held or world.asked) and ahead.fetch(world, level, nodes):
            # What comes back goes first, so nothing of this level or a lower one is started before that.
            anew = world.anew
            world.parched.update((node.id, node) for node in nodes)
            stopped = []
            break
        if nodes or any(queue.fresh for queue in group):
            _level(world, group, nodes)
    _resume(world, stopped, None)
    world.anew = anew
    if not moved:
        _relocate(world, nodes)
    if world.held:
        for node in nodes:
            if node.loan:
                world.thirsty[node.id] = node


def _relocate(world: World, nodes: list[Node]) -> bool:
    if nodes:
        plans.reconsider(world)
    for node in nodes:
        plans.relocate(world, node)
    return True


def _level(world: World, group: list[Queue], nodes: list[Node]) -> None:
    for node in nodes:
        fill(world, node, group)
    fresh = [queue for queue in group if queue.fresh and queue.count]
    if fresh:
        scatter(world, list(fresh))
    for queue in group:
        if queue.count and (queue.form.ranks > 1 or queue.form.others) and nodes and not queue.fresh:
            _everywhere(world, queue)
    if group[0].level[0] <= Tier.NEEDED and world.victims:
        for queue in sorted((queue for queue in group if queue.count), key=_head):
            _preempt(world, queue, nodes)
    for queue in group:
        queue.fresh = False
        if queue.parent and queue.count and not queue.preemptible:
            lending.clear(world, queue)


def _everywhere(world: World, queue: Queue) -> None:
    """Start what needs several nodes, or was passed over on a node because its first choice was free on another."""
    form = queue.form
    while queue.count and world.launchers.allow(queue):
        found = None
        if form.others:
            found = search(world, queue)
        elif form.ranks > 1 and not form.colocate:
            found = spread(world, queue, form)
        if not found:
            return
        world.launch(world.pop(queue), found)
        for node, _ in found:
            world.index.move(node)


def _preempt(world: World, queue: Queue, nodes: list[Node]) -> None:
    if queue.fresh:
        while queue.count and preemption.preempt(world, queue):
            pass
    else:
        for node in nodes:
            for form in queue.form.choices:
                while queue.count and preemption.preempt_on(world, node, queue, form):
                    pass


def _head(queue: Queue) -> int:
    return queue.head


def fill(world: World, node: Node, group: list[Queue]) -> None:
    """Start on one node what fits of one level, the oldest first."""
    tags, pop, launch = world.tags, world.pop, world.launch
    while True:
        best = found = None
        for queue in group:
            form = queue.form
            if not queue.count or not form.alone or (best is not None and best.head < queue.head):
                continue
            if form.launcher and not world.launchers.allow(queue):
                continue
            if form.colocate and tags.get(form.colocate, node.id) != node.id:
                continue
            slots = fit_as_wished(world, node, queue) if form.others else fit(world, node, queue, form, form.ranks)
            if slots:
                best, found = queue, slots
        if best is None or found is None:
            break
        launch(pop(best), [(node, found)])
    world.index.move(node)


def scatter(world: World, queues: list[Queue]) -> None:
    """Start what fits anywhere of queues of one level, the oldest first."""
    while queues:
        queue = queues[0] if len(queues) == 1 else min(queues, key=_head)
        found = search(world, queue)
        if found is None:
            queues.remove(queue)
            world.turned.pop(queue, None)  # this first one was looked for everywhere
            continue
        world.launch(world.pop(queue), found)
        if len(queues) == 1 and len(found) == 1 and not queue.form.share:
            fill(world, found[0][0], queues)
        for node, _ in found:
            world.index.move(node)
        if not queue.count:
            queues.remove(queue)


def _stopped(nodes: list[Node]) -> list[Attempt]:
    # A gang that was told to suspend may have done so on some of its nodes only.
    found = {
        attempt: None
        for node in nodes
        for attempt in node.suspended.values()
        if attempt.phase is Phase.SUSPENDED and attempt.plan is None
    }
    return sorted(found, key=lambda attempt: (attempt.queue.level, attempt.sequence))


def _resume(world: World, stopped: list[Attempt], level: Level | None) -> list[Attempt]:
    """Let suspended attempts go on that come before a level; return the others."""
    for place, attempt in enumerate(stopped):
        if level is not None and attempt.queue.level > level:
            return stopped[place:]
        if not attempt.queue.preemptible:
            plans.plan_resume(world, attempt)
        elif all(not part.mask & ~part.node.loan for part in attempt.parts.values()):
            plans.resume(world, attempt)
    return []
