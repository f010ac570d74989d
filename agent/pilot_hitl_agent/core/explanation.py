"""Why a task is where it is."""

from __future__ import annotations

import enum

import msgspec

from pilot_hitl.model.ids import task_name
from pilot_hitl.model.resources import GPU_SHARES
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.claims import Plan
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import search, view
from pilot_hitl_agent.core.queues import Queue, Run
from pilot_hitl_agent.core.shapes import Form
from pilot_hitl_agent.core.world import World


class Holds(enum.StrEnum):
    """What holds a task."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    ENDING = "ending"
    SUSPENDED = "suspended"
    AHEAD = "ahead"
    PLAN = "plan"
    ORDER = "order"
    TIER = "tier"
    CORES = "cores"
    GPUS = "gpus"
    MEMORY = "memory"
    RESERVATION = "reservation"
    COLOCATION = "colocation"
    WALLTIME = "walltime"
    LAUNCHERS = "launchers"
    DRAIN = "drain"
    NODES = "nodes"
    SERVICES = "services"


SOFT = frozenset(
    {
        Holds.ENDING, Holds.SUSPENDED, Holds.AHEAD, Holds.PLAN, Holds.ORDER, Holds.TIER, Holds.CORES, Holds.GPUS,
        Holds.MEMORY, Holds.COLOCATION, Holds.LAUNCHERS,
    }
)  # fmt: skip
"""What ends by itself when other work ends."""


class Explanation(msgspec.Struct, frozen=True):
    """What holds a task.

    Attributes:
        holds: the one thing to look at first.
        text: one sentence for a person.
        tier: the tier that it is in now, None when it is not here.
        condition: the undecided condition that it runs or waits under, 0 for none.
        nodes: where it runs, is held ahead, or has slots claimed.
        before: how many attempts of its own queue come first.
        checkpoint: RESERVATION: for which the slots are kept.
        reason: what holds it, as the end of a sentence that says that a task waits.
    """

    task: int
    holds: Holds
    text: str
    tier: Tier | None = None
    condition: int = 0
    nodes: list[int] = []
    before: int = 0
    checkpoint: int = 0
    reason: str = ""


def explain(world: World, task: int) -> Explanation:
    """Return what holds a task, or where it is."""
    name = task_name(task)
    attempt = world.attempts.get(task)
    if attempt is not None:
        return _placed(world, attempt)
    run = world.runs.find(task)
    if run is None:
        return Explanation(task, Holds.UNKNOWN, f"{name} is not here: it ended, was given back, or never came")
    return _queued(world, task, run)


def _condition(queue: Queue) -> int:
    return queue.condition if queue.preemptible else 0


def _placed(world: World, attempt: Attempt) -> Explanation:
    queue, name = attempt.queue, task_name(attempt.task)
    nodes = sorted(attempt.parts)
    where = ", ".join(world.nodes[node].inventory.name for node in nodes)
    services = "" if attempt.parts else _held_by_services(world, queue)
    if services:
        nodes = list(world.nodes)
        return Explanation(
            attempt.task, Holds.SERVICES, f"{name} waits: {services}", queue.tier, _condition(queue), nodes,
            reason=services,
        )  # fmt: skip
    if attempt.phase is Phase.HELD and attempt.link_node is not None:
        nodes = [attempt.link_node.id]
        holds = Holds.AHEAD
        text = f"is held ahead at {attempt.link_node.inventory.name}: it starts when cores are free there"
    elif attempt.phase is Phase.PLANNED and attempt.plan is not None:
        nodes = sorted(attempt.plan.claims)
        names = ", ".join(world.nodes[node].inventory.name for node in nodes)
        holds, text = Holds.PLAN, f"has slots claimed on {names} and starts when they are free"
    elif attempt.phase is Phase.SUSPENDED:
        holds, text = Holds.SUSPENDED, f"is suspended on {where} until its own cores are free again"
    elif attempt.phase is Phase.RUNNING:
        holds, text = Holds.RUNNING, f"runs on {where}" + (" and lends its cores" if attempt.lending else "")
    else:
        why = attempt.fate.message if attempt.fate else "its cores are needed"
        holds, text = Holds.ENDING, f"gives way on {where}: {why}"
    return Explanation(attempt.task, holds, f"{name} {text}", queue.tier, _condition(queue), nodes, reason=f"it {text}")


def _held_by_services(world: World, queue: Queue) -> str:
    """Say so if services leave no room for what a queue asks: they end only when somebody stops them."""
    if not any(each.queue.tier is Tier.SERVICE and each.parts for each in world.attempts.values()):
        return ""
    nodes = [_Left(node) for node in world.nodes.values()]
    for form in queue.form.choices:
        if sum(node.room(form, held=False) for node in nodes) < form.ranks:
            continue  # it would not fit either if there were no services
        if sum(node.room(form, held=True) for node in nodes) >= form.ranks:
            return ""
    short = "GPU" if sum(node.cores - node.held for node in nodes) >= queue.form.total[0] else "core"
    total = sum(node.gpus if short == "GPU" else node.cores for node in nodes)
    held = sum(-(-node.held_gpus // GPU_SHARES) if short == "GPU" else node.held for node in nodes)
    if not held:
        return ""
    where = nodes[0].name if len(nodes) == 1 else f"{len(nodes)} nodes"
    share = f"{held} of {total}" if held < total else f"all {total}" if total > 1 else "1"
    return (
        f"services hold {share} {short}{'s' if total > 1 else ''} of {where} and end only when they are stopped; stop "
        "one, ask for fewer replicas, or submit a larger pilot"
    )


class _Left:
    """What services hold and leave of a node, in cores and in shares of GPUs."""

    def __init__(self, node: Node) -> None:
        self.name = node.inventory.name
        self.cores, self.gpus = len(node.inventory.cores), len(node.inventory.gpus)
        mask = self.held_gpus = 0
        for attempt in node.attempts.values():
            if attempt.queue.tier is Tier.SERVICE:
                part = attempt.parts[node.id]
                mask |= part.mask
                self.held_gpus += sum(slot.gpu_shares * len(slot.gpus) for slot in part.slots)
        self.held = mask.bit_count()

    def room(self, form: Form, *, held: bool) -> int:
        """Return how many ranks of a form there is room for, beside what is held or without it."""
        if form.exclusive and held and self.held:
            return 0
        cores = self.cores - (self.held if held else 0)
        room = min(form.per_node, cores // max(1, form.cores))
        if shares := form.shape.gpu_shares:
            room = min(room, (self.gpus * GPU_SHARES - (self.held_gpus if held else 0)) // shares)
        return room


def _queued(world: World, task: int, run: Run) -> Explanation:
    queue = run.queue
    before = sum(len(other) for other in queue.waiting() if other.base + other.next < run.base + run.next)
    before += sum(1 for other in run.tasks() if other < task) if len(run) < 100_000 else task - run.next
    holds, reason, checkpoint = _reason(world, queue, run)
    tier = queue.tier.name.lower()
    text = (
        f"{task_name(task)} ({tier}) waits behind {before} like it: {reason}"
        if before
        else (f"{task_name(task)} ({tier}) waits: {reason}")
    )
    if _condition(queue):
        text += f"; its condition {queue.condition} is undecided"
    return Explanation(task, holds, text, queue.tier, _condition(queue), [], before, checkpoint, reason)


def _reason(world: World, queue: Queue, run: Run) -> tuple[Holds, str, int]:
    form = queue.form
    if world.draining is not None:
        return Holds.DRAIN, "nothing is started any more", 0
    if run in queue.late:
        left = max(0.0, world.ends - world.now)
        return Holds.WALLTIME, f"it takes {run.bulk.expected_runtime:g} s and the pilot ends in {left:g} s", 0
    if not world.nodes:
        return Holds.NODES, "no node is up", 0
    if form.colocate and form.colocate in world.tags:
        bound = world.nodes[world.tags[form.colocate]].inventory.name
        return Holds.COLOCATION, f"it must run on {bound}, with the others tagged {form.colocate!r}", 0
    if not world.launchers.allow(queue) and search(world, queue, launched=False):
        total = world.launchers.total
        return Holds.LAUNCHERS, f"all {total} launchers that may run at a time are in use", 0
    kept = _kept_for(world, queue)
    holds, text, checkpoint = kept if kept is not None else _short(world, queue)
    if form.others:
        text += ", and no alternative fits now"
    return holds, text, checkpoint


def _short(world: World, queue: Queue) -> tuple[Holds, str, int]:
    """Say which resource is short, and who goes first."""
    if services := _held_by_services(world, queue):
        return Holds.SERVICES, services, 0
    form = queue.form
    total = form.ranks * form.cores
    seen = [view(world, node, queue) for node in world.nodes.values()]
    cores = sum(found.mask.bit_count() for found in seen)
    if form.memory and sum(found.memory // form.memory for found in seen) < form.ranks:
        return Holds.MEMORY, f"{form.ranks} x {form.memory} MB are not free", 0
    if form.shape.gpu_shares and sum(sum(found.gpus.values()) for found in seen) < form.ranks * form.shape.gpu_shares:
        return Holds.GPUS, "not enough GPUs are free", 0
    better = [other for other in world.active if other.count and other.level < queue.level]
    if better and cores < total:
        first = min(better, key=lambda other: other.level)
        if first.tier != queue.tier:
            return Holds.TIER, f"{first.count} {first.tier.name.lower()} tasks go first", 0
        return Holds.ORDER, f"{first.count} tasks of higher priority or score go first", 0
    return Holds.CORES, f"{total} cores are not free where it may run ({cores} are, over all nodes)", 0


def _kept_for(world: World, queue: Queue) -> tuple[Holds, str, int] | None:
    """Say so if the cores that are free are kept for somebody else."""
    total = queue.form.ranks * queue.form.cores
    for node in world.nodes.values():
        if not node.claims or node.free.bit_count() < min(total, queue.form.cores):
            continue  # there would not be enough either if nobody had claimed any
        kept = node.free & ~view(world, node, queue).mask
        for claim in node.claims.values():
            if not claim.mask & kept:
                continue
            if isinstance(claim.holder, Plan):
                waiting = task_name(claim.holder.attempt.task)
                return Holds.PLAN, f"the free cores of {node.inventory.name} are claimed for {waiting}", 0
            for reservation in world.reservations.values():
                if reservation is claim.holder:
                    text = f"the free cores of {node.inventory.name} are reserved for checkpoint"
                    return Holds.RESERVATION, f"{text} {reservation.checkpoint}", reservation.checkpoint
    return None
