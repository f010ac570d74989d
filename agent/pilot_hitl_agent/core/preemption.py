"""Making room for needed work: who has to give way, and telling them."""

from __future__ import annotations

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.claims import Claim, Plan
from pilot_hitl_agent.core.instructions import EndMode
from pilot_hitl_agent.core.node import Node, View, carve
from pilot_hitl_agent.core.placement import Spread, claimed_nodes, search, view
from pilot_hitl_agent.core.queues import Queue
from pilot_hitl_agent.core.shapes import Form
from pilot_hitl_agent.core.world import PREEMPTED, World, used


def end(world: World, attempt: Attempt, reason: Failure, mode: str = "kill") -> None:
    """End a running or suspended attempt for good; nothing follows on its slots."""
    if attempt.phase is Phase.ENDING:
        return
    world.unchain(attempt)
    attempt.phase = Phase.ENDING
    attempt.fate = reason
    attempt.queue.victims.pop(attempt.task, None)
    how: EndMode = "requeue" if mode == "requeue" else "kill"
    for part in attempt.parts.values():
        world.out.end(part.node.id, attempt.task, how, attempt.bulk.grace, reason)


def evict(world: World, attempt: Attempt, *, entirely: bool = False) -> None:
    """Make an evictable attempt give way, in the manner it asked for; ``entirely``: suspending is not enough."""
    mode = attempt.bulk.on_preempt
    if mode == "suspend" and not entirely:
        world.unchain(attempt)
        attempt.phase = Phase.SUSPENDING
        attempt.queue.victims.pop(attempt.task, None)
        for part in attempt.parts.values():
            world.out.end(part.node.id, attempt.task, "suspend", attempt.bulk.grace, PREEMPTED)
    else:
        end(world, attempt, PREEMPTED, mode)


def worth(attempt: Attempt) -> tuple[int, float, float, int]:
    """Sort key of victims: lowest tier, lowest score, lowest priority, most recently started first."""
    tier, priority, score = attempt.queue.level
    return -tier, -score, -attempt.began, -attempt.sequence - priority


def hypothetical(world: World, node: Node, queue: Queue, gone: list[Attempt], *, entirely: bool) -> View:
    """Return what a needed queue might take of a node if some attempts had given way."""
    seen = view(world, node, queue, backfill=False)
    remaining = 0
    for attempt in node.attempts.values():
        if attempt.task not in node.suspended and attempt not in gone:
            remaining |= attempt.parts[node.id].mask
    barred = 0
    for claim in node.claims.values():
        if claim.holder is not queue.reservation:
            barred |= claim.mask
    mask = seen.mask | (node.full & ~remaining & ~barred)
    gpus, memory = dict(seen.gpus), seen.memory
    for attempt in gone:
        if entirely or attempt.bulk.on_preempt != "suspend" or attempt.phase is Phase.SUSPENDED:
            for slot in attempt.parts[node.id].slots:
                memory += slot.memory
                for device in slot.gpus:
                    gpus[device] += slot.gpu_shares
    return View(node, mask, gpus, memory)


Room = tuple[tuple[Slot, ...], list[Attempt], bool]
"""Slots, who must give way for them, and whether being suspended would not be enough."""


def victims_on(world: World, node: Node, queue: Queue, form: Form) -> Room | None:
    """Return slots on a node for all ranks of a needed queue and the fewest attempts that must give way, or None."""
    able = sorted((attempt for attempt in node.attempts.values() if attempt.evictable), key=worth)
    for entirely in (False, True):
        if entirely and form.simple:
            break
        candidates = able
        if entirely:
            stopped = [attempt for attempt in node.suspended.values() if attempt.queue.preemptible]
            candidates = sorted((*able, *stopped), key=worth)
        if carve(hypothetical(world, node, queue, candidates, entirely=entirely), form, form.ranks) is None:
            continue
        return _fewest(world, node, queue, form, candidates, entirely)
    return None


def _fewest(world: World, node: Node, queue: Queue, form: Form, able: list[Attempt], entirely: bool) -> Room:
    chosen: list[Attempt] = []
    found = carve(hypothetical(world, node, queue, chosen, entirely=entirely), form, form.ranks)
    for attempt in able:
        if found is not None:
            break
        chosen.append(attempt)
        found = carve(hypothetical(world, node, queue, chosen, entirely=entirely), form, form.ranks)
    for attempt in list(chosen):
        fewer = [other for other in chosen if other is not attempt]
        slots = carve(hypothetical(world, node, queue, fewer, entirely=entirely), form, form.ranks)
        if slots is not None:
            chosen, found = fewer, slots
    return found or (), chosen, entirely


def preempt_on(world: World, node: Node, queue: Queue, form: Form) -> bool:
    """Make room on one node for the first attempt of a needed queue in one of its forms; return whether it can be."""
    if not form.alone or (form.colocate and world.tags.get(form.colocate, node.id) != node.id):
        return False
    if not any(attempt.evictable for attempt in node.attempts.values()):
        return False
    found = victims_on(world, node, queue, form)
    if found is None or (form.launcher and not world.launchers.promised and not world.launchers.victims()):
        return False
    slots, victims, entirely = found
    plan = Plan(world.pop(queue), waiting=False, form=form)
    earmark(world, plan, [(node, slots)])
    give_up_launchers(world, plan)
    for victim in victims:
        if victim.phase is not Phase.ENDING:
            _tell(world, victim, plan, "cores", entirely=entirely)
    return True


def _tell(world: World, victim: Attempt, plan: Plan, wanted: str, *, entirely: bool) -> None:
    """Make a victim give way, and note for whom."""
    attempt = plan.attempt
    tier = attempt.queue.tier.name.lower()
    world.out.note("preempted", victim.task, f"{task_name(attempt.task)} ({tier}) wants its {wanted}")
    if victim.phase is Phase.SUSPENDED:
        end(world, victim, PREEMPTED)
    else:
        evict(world, victim, entirely=entirely)


def give_up_launchers(world: World, plan: Plan) -> None:
    """Make the least valuable holders of launchers end, as many as are missing for a plan."""
    short = world.launchers.short(plan)
    if short:
        for victim in sorted(world.launchers.victims(), key=worth)[:short]:
            _tell(world, victim, plan, "launcher", entirely=True)


def slots_without_launcher(world: World, queue: Queue) -> Spread | None:
    """Return slots that may be claimed for the first attempt of a queue that lacks a launcher, None when it lacks more.

    Not those that it might only have for a while: what a plan waits for, what its parent lends.
    """
    found = search(world, queue, launched=False)
    for node, slots in found or ():
        own = queue.reservation.claims.get(node.id) if queue.reservation is not None else None
        if used(node, slots, queue.form) & ~(node.open | (own.mask & node.free if own is not None else 0)):
            return None
    return found


def free_launchers(world: World) -> None:
    """Make lower tiers give up launchers for needed work that waits for nothing else."""
    for level in world.order:
        if level[0] > Tier.NEEDED:
            return
        waiting = [queue for queue in world.groups[level] if queue.count and queue.form.launcher]
        for queue in sorted(waiting, key=lambda queue: queue.head):
            while queue.count:
                if world.launchers.promised or not world.launchers.victims():
                    return
                found = slots_without_launcher(world, queue)
                if found is None:
                    break
                plan = Plan(world.pop(queue), waiting=False)
                earmark(world, plan, found)
                give_up_launchers(world, plan)


def earmark(world: World, plan: Plan, found: Spread) -> None:
    """Claim slots firmly for a plan; what a reservation of its own kept there is used up."""
    world.plans[plan] = None
    attempt = plan.attempt
    if attempt.queue.form.launcher and attempt.phase is Phase.PLANNED:
        world.launchers.plans[plan] = None
    attempt.plan = plan
    reservation = attempt.queue.reservation
    for node, slots in found:
        mask = node.full if attempt.queue.form.exclusive else 0
        for slot in slots:
            mask |= slot.cores
        own = reservation.claims.get(node.id) if reservation is not None else None
        if own is not None and own.mask & mask:
            own.consume(mask, slots)
        claim = Claim(plan, node, mask, slots)
        claim.firm = not plan.waiting
        node.add_claim(claim)
        world.dirty[node.id] = node
    if attempt.queue.form.colocate:
        world.tags.setdefault(attempt.queue.form.colocate, found[0][0].id)


def preempt(world: World, queue: Queue) -> bool:
    """Make room somewhere for the first attempt of a needed queue; return whether that was possible."""
    return any(_preempt_for(world, queue, form) for form in queue.form.choices)


def _preempt_for(world: World, queue: Queue, form: Form) -> bool:
    tried: set[int] = set()
    if queue.reservation is not None:
        for node in claimed_nodes(world, queue):
            tried.add(node.id)
            if preempt_on(world, node, queue, form):
                return True
    for victims in worst_first(world):
        for victim in reversed(victims.victims.values()):
            for part in victim.parts.values():
                node = part.node
                if node.id in tried:
                    continue
                tried.add(node.id)
                world.index.looks += 1
                if preempt_on(world, node, queue, form):
                    return True
    return False


def worst_first(world: World) -> list[Queue]:
    """Return the queues with attempts that may be told to give way, the least valuable first."""
    found = [queue for queue in world.victims if queue.victims]
    if len(found) < len(world.victims):
        world.victims = dict.fromkeys(found)
    found.sort(key=lambda queue: (-queue.level[0], -queue.level[2], -queue.level[1]))
    return found
