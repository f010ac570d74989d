"""Plans: slots that one attempt waits for, so that a big task is not starved and nothing slips onto freed slots."""

from __future__ import annotations

from pilot_hitl.model.resources import GPU_SHARES
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.claims import Claim, Holder, Plan
from pilot_hitl_agent.core.node import UNCOUNTED, Node, View, carve, lowest, room
from pilot_hitl_agent.core.placement import Spread, parent_lends, search
from pilot_hitl_agent.core.preemption import earmark, end, evict, give_up_launchers, slots_without_launcher, worth
from pilot_hitl_agent.core.queues import Queue
from pilot_hitl_agent.core.shapes import Form
from pilot_hitl_agent.core.world import PREEMPTED, World


def advance(world: World, plan: Plan) -> None:
    """Start a plan's attempt if all its slots are free; else see to it that they become so."""
    claims = list(plan.claims.values())
    if all(free(claim) for claim in claims) and world.launchers.allow_plan(plan):
        launch(world, plan)
        return
    blocking = [(claim, blockers(claim)) for claim in claims]
    hopeful = all(gone(attempt) or attempt.evictable for _, found in blocking for attempt in found)
    if plan in world.launchers.plans:
        hopeful = _gets_launcher(world, plan, hopeful=hopeful) and hopeful
    if hopeful and plan.waiting:
        plan.waiting = False
        world.waiting = None
        for claim in claims:
            claim.firm = True
            claim.node.derive()
            world.index.move(claim.node)
        if not any(found for _, found in blocking) and world.launchers.allow_plan(plan):
            launch(world, plan)
            return
    for claim, found in blocking:
        for attempt in found:
            if plan.waiting:
                world.unchain(attempt)
            elif attempt.phase is Phase.SUSPENDED and attempt.queue.preemptible:
                end(world, attempt, PREEMPTED)
            elif attempt.evictable:
                evict(world, attempt, entirely=not attempt.parts[claim.node.id].mask & claim.mask)
            elif attempt.phase is Phase.RUNNING:
                world.unchain(attempt)
    if plan.waiting:
        # Not of those who go when they are told: they borrow until then, and must not put it off.
        staying = [each for _, found in blocking for each in found if not (gone(each) or each.evictable)]
        until = expected_end(world, staying)
        if until != plan.until:
            plan.until = until
            world.dirty.update({claim.node.id: claim.node for claim in claims})


def _gets_launcher(world: World, plan: Plan, *, hopeful: bool) -> bool:
    """See to it that a launcher becomes free for a plan; return whether one is sure to."""
    short = world.launchers.short(plan)
    if not short:
        return True
    if not plan.waiting or (hopeful and len(world.launchers.victims()) >= short):
        give_up_launchers(world, plan)
        return True
    for attempt in world.launchers.used.values():
        world.unchain(attempt)
    return False


def expected_end(world: World, attempts: list[Attempt]) -> float:
    """Return when all of these are expected to have ended, 0 when it is not known of all of them."""
    latest = 0.0
    for attempt in attempts:
        if not attempt.bulk.expected_runtime:
            return 0.0
        latest = max(latest, attempt.began + attempt.bulk.expected_runtime)
    return latest if latest > world.now else 0.0


def gone(attempt: Attempt) -> bool:
    """Return whether an attempt is on its way out, or can be sent there although it is suspended."""
    if attempt.phase is Phase.SUSPENDED:
        return attempt.queue.preemptible
    return attempt.phase in {Phase.ENDING, Phase.SUSPENDING}


def free(claim: Claim) -> bool:
    """Return whether everything that a plan claims on one node is free."""
    node = claim.node
    if claim.mask & ~node.free or claim.memory > node.memory:
        return False
    return all(node.gpus[device] >= share for device, share in claim.gpus.items())


def blockers(claim: Claim) -> list[Attempt]:
    """Return the attempts that must go before a plan's claim on one node is free."""
    node = claim.node
    found = dict.fromkeys(node.overlapping(claim.mask))
    memory = claim.memory - node.memory
    gpus = {device: share - node.gpus[device] for device, share in claim.gpus.items()}
    if memory <= 0 and not any(share > 0 for share in gpus.values()):
        return list(found)
    rest = sorted((attempt for attempt in node.attempts.values() if attempt not in found), key=_leaving_first)
    for attempt in (*found, *rest):
        slots = attempt.parts[node.id].slots
        stays = attempt in found and (attempt.phase is Phase.SUSPENDING or attempt.bulk.on_preempt == "suspend")
        helps = any(slot.memory for slot in slots) and memory > 0
        helps = helps or any(gpus.get(device, 0) > 0 for slot in slots for device in slot.gpus)
        if attempt not in found and not helps:
            continue
        found[attempt] = None
        if stays and attempt.phase is not Phase.ENDING:
            continue
        for slot in slots:
            memory -= slot.memory
            for device in slot.gpus:
                if device in gpus:
                    gpus[device] -= slot.gpu_shares
    return list(found)


def _leaving_first(attempt: Attempt) -> tuple[int, tuple[int, float, float, int]]:
    return (0 if attempt.phase is Phase.ENDING else 1 if gone(attempt) or attempt.evictable else 2), worth(attempt)


def launch(world: World, plan: Plan) -> None:
    """Start the attempt of a plan whose slots are all free."""
    attempt = plan.attempt
    placed: Spread = [(claim.node, claim.slots) for claim in plan.claims.values()]
    world.drop_plan(plan)
    if attempt.phase is Phase.SUSPENDED:
        resume(world, attempt)
    else:
        world.launch(attempt, placed)


def resume(world: World, attempt: Attempt) -> None:
    """Let a suspended attempt go on; its cores are free."""
    attempt.phase = Phase.RUNNING
    for part in attempt.parts.values():
        node = part.node
        world.suspended -= 1
        del node.suspended[attempt.task]
        node.free &= ~part.mask
        node.lent &= ~part.mask
        node.derive()
        world.index.move(node)
        world.out.end(node.id, attempt.task, "resume", attempt.bulk.grace, PREEMPTED)
    world.track(attempt)


def plan_resume(world: World, attempt: Attempt) -> bool:
    """Claim a needed suspended attempt's own cores for it, if nobody else does who can start without it."""
    parts = list(attempt.parts.values())
    if attempt.plan is not None:
        return False
    stuck: dict[Plan, None] = {}
    for part in parts:
        kept = part.mask & part.node.kept
        for holder, claim in part.node.claims.items():
            if claim.mask & kept and isinstance(holder, Plan) and _waits_for(holder, attempt):
                stuck[holder] = None
                kept &= ~claim.mask
        if kept:
            return False
    for plan in stuck:
        release(world, plan)
    plan = Plan(attempt, waiting=False)
    world.plans[plan] = None
    attempt.plan = plan
    for part in parts:
        claim = Claim(plan, part.node, part.mask)
        claim.firm = True
        part.node.add_claim(claim)
        world.dirty[part.node.id] = part.node
    return True


def _waits_for(plan: Plan, attempt: Attempt) -> bool:
    """Return whether a plan needs what a suspended attempt holds, which itself needs cores that the plan claims.

    The plan that waits for others gives way in any case: it is made again at once, without these cores.
    """
    if plan.attempt.phase is not Phase.PLANNED:
        return False
    return plan.waiting or any(attempt in blockers(claim) for claim in plan.claims.values())


# --- the plan that waits ----------------------------------------------------------------------------------------------


def plan_waiting(world: World) -> None:
    """Let the first needed attempt that could be starved claim slots as they free up."""
    for level in world.order:
        if level[0] > Tier.NEEDED or (world.waiting and world.waiting.attempt.queue.level <= level):
            return
        for queue in sorted((queue for queue in world.groups[level] if queue.count and not queue.form.tiny), key=_head):
            if _plan(world, queue):
                return


def _head(queue: Queue) -> int:
    return queue.head


def _plan(world: World, queue: Queue) -> bool:
    if queue.hopeless == world.changes or gets_its_parents(world, queue):
        return False
    if not world.launchers.allow(queue) and slots_without_launcher(world, queue):
        return False  # It waits for a launcher alone, and keeps no cores meanwhile.
    found = next(((form, slots) for form in queue.form.choices if (slots := _choose(world, queue, form))), None)
    if found is None:
        # Not looked at again before something changes that could help.
        queue.hopeless = world.changes
        return False
    if world.waiting is not None:
        release(world, world.waiting)
    form, slots = found
    attempt = world.pop(queue)
    plan = Plan(attempt, waiting=True, form=form)
    world.waiting = plan
    earmark(world, plan, slots)
    world.out.note("plan", attempt.task, f"claims slots on {len(slots)} node(s) as they free up")
    advance(world, plan)
    return True


def gets_its_parents(world: World, queue: Queue) -> bool:
    """Return whether a queue's parent lends enough for it: that is near, and slots of the parent's never get free."""
    enough = min((form.cores for form in queue.form.choices if form.simple), default=0)
    if not enough or not parent_lends(world, queue):
        return False
    parts = world.attempts[queue.parent].parts.values()
    return any(part.mask.bit_count() >= enough for part in parts)


def release_children(world: World, parent: Attempt) -> None:
    """Give up the plans that wait for slots for children of one who lends enough for them now."""
    for plan in [plan for plan in world.plans if plan.attempt.bulk.parent == parent.task]:
        if plan.attempt.phase is Phase.PLANNED and gets_its_parents(world, plan.attempt.queue):
            release(world, plan)


def release(world: World, plan: Plan) -> None:
    """Give up a plan and queue its attempt again."""
    attempt = plan.attempt
    world.drop_plan(plan)
    if attempt.phase is Phase.PLANNED:
        del world.attempts[attempt.task]
        world.requeue(attempt)


def claimable(node: Node, *own: Holder | None) -> View:
    """Return what may be claimed: all but what others keep and what services use, which never end."""
    mask = node.full
    gpus = dict.fromkeys(node.gpus, GPU_SHARES)
    memory = node.inventory.memory or UNCOUNTED
    for claim in node.claims.values():
        if claim.holder in own:
            continue
        mask &= ~claim.mask
        memory -= claim.memory
        for device, share in claim.gpus.items():
            gpus[device] -= share
    for attempt in node.attempts.values():
        if attempt.queue.tier is Tier.SERVICE:
            part = attempt.parts[node.id]
            mask &= ~part.mask
            for slot in part.slots:
                memory -= slot.memory
                for device in slot.gpus:
                    gpus[device] -= slot.gpu_shares
    return View(node, mask, gpus, memory)


def preferring_free(seen: View, form: Form, ranks: int) -> Spread | None:
    """Return slots on one node, as far as can be on what is free, or else can be preempted."""
    node = seen.node
    soft = node.free
    for attempt in node.attempts.values():
        if attempt.evictable or gone(attempt):
            soft |= attempt.parts[node.id].mask
    mask = 0
    for better in (node.free, soft, node.full):
        more = seen.mask & better & ~mask
        mask |= more if form.exclusive else _some(more, ranks * form.cores - mask.bit_count())
        slots = carve(View(node, mask, seen.gpus, seen.memory), form, ranks)
        if slots:
            return [(node, slots)]
    return None


def _some(mask: int, count: int) -> int:
    """Return so many of these cores, all when there are fewer."""
    return mask if mask.bit_count() <= count else lowest(mask, count) if count > 0 else 0


def _choose(world: World, queue: Queue, form: Form) -> Spread | None:
    own = (queue.reservation, world.waiting)
    if form.colocate and form.colocate in world.tags:
        bound = world.nodes.get(world.tags[form.colocate])
        return preferring_free(claimable(bound, *own), form, form.ranks) if bound else None
    if form.alone:
        # Any node will do for freedom from starvation; the emptiest is likely to be ready first.
        for node in world.index.emptiest(0):
            found = preferring_free(claimable(node, *own), form, form.ranks)
            if found:
                return found
    if form.ranks == 1 or form.colocate:
        return None
    left, spread = form.ranks, []
    for node in world.index.emptiest(0):
        seen = claimable(node, *own)
        count = min(left, room(seen, form))
        found = preferring_free(seen, form, count) if count else None
        if found:
            spread.extend(found)
            left -= count
        if not left:
            return spread
    return None


def reconsider(world: World) -> None:
    """Start the attempt of the waiting plan in another form, or elsewhere, if its form has several and one fits now."""
    plan = world.waiting
    if plan is None or not plan.attempt.queue.form.others or plan.attempt.phase is not Phase.PLANNED:
        return
    if not world.launchers.allow_plan(plan):
        return
    found = search(world, plan.attempt.queue, launched=False)
    if found:
        world.drop_plan(plan)
        world.launch(plan.attempt, found)
        for node, _ in found:
            world.index.move(node)


def relocate(world: World, node: Node) -> None:
    """Let the waiting plan use slots that just became open on a node instead of slots that are still busy."""
    plan = world.waiting
    if plan is None or plan.attempt.phase is Phase.SUSPENDED:
        return
    here = plan.claims.get(node.id)
    form = plan.form
    if form.colocate and form.colocate in world.tags:
        return
    others = [claim for claim in node.claims.values() if claim is not here]
    memory = node.memory - sum(claim.memory for claim in others)
    gpus = dict(node.gpus)
    for claim in others:
        for device, share in claim.gpus.items():
            gpus[device] -= share
    seen = View(node, node.open | (here.mask & node.free if here else 0), gpus, memory)
    # One node, one claim: where there is one, only that one moves, to other slots of the node.
    for claim in [here] if here else list(plan.claims.values()):
        if free(claim):
            continue
        slots = carve(seen, form, len(claim.slots))
        if slots:
            claim.node.drop_claim(claim)
            world.dirty[claim.node.id] = claim.node
            earmark(world, plan, [(node, slots)])
            advance(world, plan)
            return
