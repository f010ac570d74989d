"""What must hold after each step."""

from __future__ import annotations

from pilot_hitl.model.resources import GPU_SHARES
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core.attempt import NOWHERE, Attempt, Phase
from pilot_hitl_agent.core.claims import Plan
from pilot_hitl_agent.core.index import PLAIN, signature
from pilot_hitl_agent.core.node import UNCOUNTED, Node
from pilot_hitl_agent.core.placement import search
from pilot_hitl_agent.core.preemption import slots_without_launcher
from pilot_hitl_agent.core.queues import Level, Queue
from pilot_hitl_agent.core.world import World

NEVER: Level = (len(Tier), 0, 0.0)
"""A level behind all that there are."""


class InvariantBroken(AssertionError):
    """Something that must always hold does not: a fault in the core."""


def check(world: World) -> None:
    """Verify every invariant.

    Raises:
        InvariantBroken: one does not hold.
    """
    for node in world.nodes.values():
        _cores(node)
        _rest(node)
        _claims(world, node)
        _links(world, node)
        _indexed(world, node)
    for attempt in world.attempts.values():
        _attempt(world, attempt)
    for queue in world.queues.values():
        _queue(world, queue)
    for attempt in world.wishing:
        _must(world.attempts.get(attempt.task) is attempt, f"{attempt.task} wishes to lend and is not there")
        _must(not attempt.lending, f"{attempt.task} lends and wishes to")
        _must(attempt.phase is not Phase.RUNNING, f"{attempt.task} might lend and does not")
    _reservations(world)
    _plans(world)
    _order(world)
    _launchers(world)
    _credit(world)
    _at_rest(world)


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise InvariantBroken(what)


def _cores(node: Node) -> None:
    lenders, users = 0, 0
    for attempt, mask in node.lenders.items():
        _must(attempt.task in node.attempts, f"node {node.id}: {attempt.task} lends and is not there")
        lenders |= mask
    for attempt in node.attempts.values():
        if attempt.task in node.suspended or attempt in node.lenders:
            continue
        mask = attempt.parts[node.id].mask
        _must(not users & mask, f"node {node.id}: a core of {attempt.task} is used twice")
        users |= mask
        if mask & lenders:
            _must(attempt.began >= 0, "unreachable")
    _must(not node.free & (users | lenders), f"node {node.id}: a used core counts as free")
    _must(node.free | users | lenders == node.full, f"node {node.id}: a core is lost")
    lending = wanted = 0
    for attempt, mask in node.lenders.items():
        _must(mask == attempt.parts[node.id].mask, f"node {node.id}: {attempt.task} lends other cores than its own")
        lending |= mask if attempt.lending else 0
        wanted |= 0 if attempt.lending else mask
    _must(node.lent == lending & ~wanted & ~users, f"node {node.id}: lent cores are wrong")
    firm = kept = 0
    for claim in node.claims.values():
        kept |= claim.mask
        firm |= claim.mask if claim.firm else 0
    _must(node.kept == kept, f"node {node.id}: kept cores are wrong")
    _must(node.open == node.free & ~kept, f"node {node.id}: open cores are wrong")
    _must(node.loan == (node.free | node.lent & ~node.promised) & ~firm, f"node {node.id}: loan cores are wrong")


def _rest(node: Node) -> None:
    memory = node.inventory.memory or UNCOUNTED
    gpus = dict.fromkeys(node.inventory.gpus, GPU_SHARES)
    for attempt in node.attempts.values():
        part = attempt.parts[node.id]
        for slot in part.slots:
            _must(slot.cores & ~part.mask == 0, f"node {node.id}: slots of {attempt.task} outside its cores")
            memory -= slot.memory
            for device in slot.gpus:
                gpus[device] -= slot.gpu_shares
    _must(node.memory == memory >= 0, f"node {node.id}: memory is wrong ({node.memory}, should be {memory})")
    _must(node.gpus == gpus, f"node {node.id}: GPUs are wrong ({node.gpus}, should be {gpus})")
    _must(all(share >= 0 for share in gpus.values()), f"node {node.id}: a GPU is used twice")


def _claims(world: World, node: Node) -> None:
    seen = 0
    for holder, claim in node.claims.items():
        _must(not seen & claim.mask, f"node {node.id}: a core is claimed twice")
        seen |= claim.mask
        _must(claim.memory >= 0 and min(claim.gpus.values(), default=0) >= 0, f"node {node.id}: negative claim")
        _must(holder.claims.get(node.id) is claim, f"node {node.id}: a claim that its holder does not know")
        known = holder in world.plans if isinstance(holder, Plan) else holder in world.reservations.values()
        _must(known, f"node {node.id}: a claim of somebody who is gone")


def _links(world: World, node: Node) -> None:
    for identifier, link in node.links.items():
        running = [
            attempt
            for attempt in node.attempts.values()
            if attempt.chainable and attempt.chain.id == identifier and attempt.link_node is node
        ]
        _must(link.running == len(running), f"node {node.id}: chain {identifier} counts {link.running} running")
        leaving = [attempt for attempt in link.held.values() if attempt.retracting]
        _must(link.leaving == len(leaving), f"node {node.id}: chain {identifier} counts {link.leaving} leaving")
        for attempt in link.held.values():
            _must(attempt.phase is Phase.HELD, f"{attempt.task} is held ahead and is not")
            _must(world.attempts.get(attempt.task) is attempt, f"{attempt.task} is held ahead and unknown")
            _must(link.running > 0 or attempt.retracting, f"{attempt.task} is held ahead behind nothing")
        _must(
            len(link.held) - link.leaving <= link.running * world.credit
            or not link.held
            or link.leaving > 0
            or _was_unchained(world, link.running, len(link.held)),
            f"node {node.id}: chain {identifier} exceeds its credit",
        )
        _must(bool(link.running or link.held), f"node {node.id}: chain {identifier} is empty")


def _was_unchained(world: World, running: int, held: int) -> bool:
    # Attempts that lost their follower's right since do not take back what was granted.
    return running > 0 and held > running * world.credit


def _indexed(world: World, node: Node) -> None:
    rest, partly = signature(node) if node.gpus or node.inventory.memory else (PLAIN, False)
    _must(node.place == (node.open.bit_count(), rest), f"node {node.id}: the index has it elsewhere")
    _must((node.id in world.index.started) == bool(partly and node.open), f"node {node.id}: started devices are wrong")
    _must((node.id in world.index.loans) == bool(node.loan & ~node.open), f"node {node.id}: loans are wrong")


def _attempt(world: World, attempt: Attempt) -> None:
    task, queue = attempt.task, attempt.queue
    _must(world.runs.find(task) is None, f"{task} is queued and placed")
    for identifier, part in attempt.parts.items():
        node = world.nodes.get(identifier)
        _must(node is part.node and node.attempts.get(task) is attempt, f"{task}: its node does not know it")
    placed = bool(attempt.parts)
    _must(placed == (attempt.phase not in {Phase.PLANNED, Phase.HELD}), f"{task}: slots in phase {attempt.phase!r}")
    _must(placed == (task in queue.running), f"{task}: running in its queue is wrong")
    _must((task in queue.victims) == attempt.evictable, f"{task}: victims of its queue are wrong")
    _must(not attempt.evictable or queue in world.victims, f"{task}: its queue is not among those with victims")
    held = attempt.phase is Phase.HELD and not attempt.retracting
    _must((task in queue.held) == held, f"{task}: held of its queue is wrong")
    _must(attempt.plan is None or attempt.plan in world.plans, f"{task}: its plan is gone")
    _must(attempt.phase is not Phase.PLANNED or attempt.plan is not None, f"{task} waits for a plan that is not")
    _must(not attempt.chainable or attempt.phase is Phase.RUNNING, f"{task} may be followed in {attempt.phase!r}")
    for part in attempt.parts.values():
        if attempt.chainable:
            _must(not part.mask & (part.node.kept | part.node.lend_mask), f"{task} may be followed on kept cores")
    if attempt.phase is Phase.SUSPENDED:
        _must(all(task in part.node.suspended for part in attempt.parts.values()), f"{task} is not suspended")


def _queue(world: World, queue: Queue) -> None:
    name = f"queue {queue.level} of {queue.form.shape}"
    _must(queue.count == sum(map(len, queue.waiting())), f"{name}: counts {queue.count}")
    _must(not queue.count or queue in world.active, f"{name}: not empty and not active")
    grouped = queue in world.groups.get(queue.level, ())
    _must(grouped == (queue in world.active), f"{name}: not in the group of its level")
    put_off = bool(world.draining) or queue.level > _coming(world)
    _must(not queue.count or not queue.fresh or put_off, f"{name}: was not looked for")
    _must(bool(queue.held) == (queue in world.held), f"{name}: held is wrong")
    order = [run.base + run.next for run in queue.runs]
    _must(order == sorted(order), f"{name}: not in order of arrival")
    came_back = [start for start, _ in queue.back]
    _must(came_back == [run.base + run.next for _, run in queue.back], f"{name}: what came back is not in order")
    for run in (*queue.waiting(), *queue.late):
        _must(len(run) > 0, f"{name}: an empty run")
        _must(world.runs.find(run.next) is run, f"{name}: {run.next} is not found")
    known = world.conditions.get(queue.condition)
    truth = known.truth if known else Truth.UNDECIDED
    if queue.condition and truth is Truth.UNDECIDED:
        _must(queue.tier >= Tier.SPECULATIVE, f"{name}: needed under an undecided condition")
    if queue.condition and truth is Truth.TRUE:
        _must(queue.tier is not Tier.SPECULATIVE, f"{name}: speculative under a true condition")
    if queue.condition and truth is Truth.FALSE:
        _must(not queue.count and not queue.late, f"{name}: queued under a false condition")
    _must(queue.preemptible == (queue.tier >= Tier.SPECULATIVE), f"{name}: preemptible is wrong")


def _reservations(world: World) -> None:
    for queue in world.queues.values():
        if queue.reservation is not None:
            _must(queue.reservation in world.reservations.values(), "a queue with a reservation that is gone")
    for reservation in world.reservations.values():
        cores = sum(claim.mask.bit_count() for claim in reservation.claims.values())
        _must(cores <= reservation.resources.cores, f"checkpoint {reservation.checkpoint} has {cores} cores")


def _plans(world: World) -> None:
    waiting = [plan for plan in world.plans if plan.waiting]
    _must(waiting == ([world.waiting] if world.waiting else []), "more than one plan waits")
    for plan in world.plans:
        task = plan.attempt.task
        _must(world.attempts.get(task) is plan.attempt, f"the plan of {task}: unknown")
        _must(plan.attempt.plan is plan, f"the plan of {task}: not its own")
        _must(all(claim.firm != plan.waiting for claim in plan.claims.values()), f"the plan of {task}: firmness")
        _must(bool(plan.claims), f"the plan of {task}: claims nothing")
        ready = all(not claim.mask & ~claim.node.free for claim in plan.claims.values())
        enough = all(claim.memory <= claim.node.memory for claim in plan.claims.values())
        devices = all(
            claim.node.gpus[device] >= share for claim in plan.claims.values() for device, share in claim.gpus.items()
        )
        startable = ready and enough and devices and world.launchers.allow_plan(plan)
        _must(not startable, f"the plan of {task}: ready and not started")
        if plan.waiting:
            continue
        for claim in plan.claims.values():
            for attempt in claim.node.overlapping(claim.mask):
                _must(not attempt.evictable, f"{attempt.task} sits on slots of {task} and was not told")


def _order(world: World) -> None:
    _must(world.order == sorted(world.groups), "the order of levels is wrong")
    _must(sum(map(len, world.groups.values())) == len(world.active), "a queue is in the groups of two levels")


def _launchers(world: World) -> None:
    launchers = world.launchers
    away = {Phase.PLANNED, Phase.HELD}
    used = {t for t, attempt in world.attempts.items() if attempt.queue.form.launcher and attempt.phase not in away}
    _must(launchers.used.keys() == used, f"launchers are said to be with {sorted(launchers.used)}, not {sorted(used)}")
    _must(len(used) <= launchers.total, f"{len(used)} launchers are in use, of {launchers.total}")
    plans = {p for p in world.plans if p.attempt.queue.form.launcher and p.attempt.phase is Phase.PLANNED}
    _must(launchers.plans.keys() == plans, "launchers are laid by for other plans than there are")
    for plan in launchers.plans:
        told = plan.waiting or not launchers.short(plan) or not launchers.victims()
        _must(told, f"the plan of {plan.attempt.task}: nobody was told to give it a launcher")


def _credit(world: World) -> None:
    asked = {task for task, attempt in world.attempts.items() if attempt.retracting}
    _must(world.asked.keys() == asked, f"{sorted(world.asked)} are said to be asked back, {sorted(asked)} are")
    stopped = sum(len(node.suspended) for node in world.nodes.values())
    _must(world.suspended == stopped, f"{world.suspended} are said to be suspended, {stopped} are")


def _coming(world: World) -> Level:
    """Return the best level of what was asked back for cores that are kept free for it: the next ones wait for that."""
    levels = [attempt.queue.level for attempt in world.asked.values() if not attempt.fate]
    return min(levels, default=NEVER) if world.parched else NEVER


def _alternatives(world: World) -> None:
    plan = world.waiting
    if plan is None or not plan.attempt.queue.form.others or plan.attempt.phase is not Phase.PLANNED:
        return
    fits = world.launchers.allow_plan(plan) and search(world, plan.attempt.queue, launched=False)
    _must(not fits, f"the plan of {plan.attempt.task} waits, and another form fits")


def _at_rest(world: World) -> None:
    """Work conserving: nothing queued fits anywhere; strict tiers: no needed task waits where one can be told to go.

    But for what is worse than something that is on its way back from where it was held ahead.
    """
    _must(not NOWHERE, "the parts of what has none were changed")
    _must(not world.dirty, "a node was not looked at")
    _must(not world.parched or bool(world.asked), "cores are kept free for nobody")
    if world.draining is not None:
        return
    _alternatives(world)
    for queue in world.active:
        if not queue.count or queue.level > _coming(world):
            continue
        _must(search(world, queue) is None, f"the first of {queue.level} {queue.form.shape} fits and is not started")
        if queue.tier <= Tier.NEEDED and queue.form.launcher and not world.launchers.promised:
            kept_waiting = world.launchers.victims() and slots_without_launcher(world, queue)
            _must(not kept_waiting, f"a launcher of a lower tier keeps the first of {queue.level} waiting")
        if queue.tier <= Tier.NEEDED and queue.form.tiny:
            for node in world.nodes.values():
                for attempt in node.attempts.values():
                    usable = attempt.parts[node.id].mask & ~node.kept & ~node.lend_mask
                    _must(not (attempt.evictable and usable), f"{attempt.task} keeps a needed task waiting")
