"""What nodes say about attempts."""

from __future__ import annotations

from pilot_hitl.model.failures import UNFINISHED, Cause, Failure
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import lending
from pilot_hitl_agent.core.attempt import NOWHERE, Attempt, Part, Phase
from pilot_hitl_agent.core.chains import Link
from pilot_hitl_agent.core.events import FINISHED, RETRACTED, STARTED, SUSPENDED, NodeChanges
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.preemption import end, evict
from pilot_hitl_agent.core.world import PREEMPTED, World

GIVEN_BACK = UNFINISHED | {Cause.CANCELED, Cause.DISCARDED}
"""Causes of ends that are not the attempt's own outcome."""
Pending = dict[int, Attempt]
"""Attempts that finished in this event and whose slots nothing took over so far."""


def apply(world: World, event: NodeChanges) -> None:
    """Take in what happened on a node; slots that nothing took over are free afterwards."""
    node = world.nodes.get(event.node)
    if node is None:
        return
    attempts = world.attempts
    pending: Pending = {}
    for change in event.changes:
        attempt = attempts.get(change.task)
        if attempt is None or attempt.bulk.run != change.run or attempt.bulk.epoch != change.epoch:
            continue
        kind = change.kind
        if kind == FINISHED:
            _finished(world, node, attempt, change.failure, pending)
        elif kind == STARTED:
            if attempt.phase is Phase.HELD and attempt.link_node is node:
                _followed(world, node, attempt, pending.pop(change.after, None))
        elif kind == RETRACTED:
            if attempt.phase is Phase.HELD and attempt.link_node is node:
                retracted(world, attempt)
        elif kind == SUSPENDED:
            _suspended(world, node, attempt)
    for attempt in pending.values():
        world.unlink(attempt)
        world.release(attempt, attempt.parts[node.id])


def _finished(world: World, node: Node, attempt: Attempt, failure: Failure | None, pending: Pending) -> None:
    if attempt.phase is Phase.HELD:
        if attempt.link_node is node:
            link = node.links[attempt.chain.id]
            world.unhold(attempt)
            world.settle_link(link)
            over(world, attempt, failure)
        return
    if node.id not in attempt.parts or pending.get(attempt.task) is attempt:
        return
    if len(attempt.parts) == 1 and not attempt.lending:
        pending[attempt.task] = attempt
        over(world, attempt, failure)
        return
    if attempt.lending or len(attempt.parts) > 1:
        world.unlink(attempt)
        world.release(attempt, attempt.parts[node.id])
    if not attempt.parts:
        over(world, attempt, failure)
    elif failure is not None and not attempt.broken:
        attempt.broken = True
        reason = attempt.fate or failure
        end(world, attempt, reason)
        attempt.fate = reason
    else:
        settle_suspended(world, attempt)


def over(world: World, attempt: Attempt, failure: Failure | None) -> None:
    """Settle an attempt that ended everywhere, and forget it (its last slots may still be counted)."""
    if attempt.plan is not None:
        world.drop_plan(attempt.plan)
    world.forget(attempt)
    if failure is not None or attempt.broken:
        reason = attempt.fate or failure
        if reason is not None and reason.cause in GIVEN_BACK:
            world.out.give_back([(attempt.task, 1)], reason)
            return
    world.out.over.append(attempt.task)


def _followed(world: World, node: Node, attempt: Attempt, before: Attempt | None) -> None:
    """An attempt took the slots of one that just finished."""
    link = node.links[attempt.chain.id]
    fate = attempt.fate
    world.unhold(attempt)
    attempt.phase = Phase.RUNNING
    attempt.began = world.now
    node.attempts[attempt.task] = attempt
    world.track(attempt)
    if before is None:
        # Its slots were given away already, or never were: it must not run beside whoever has them.
        attempt.parts = {node.id: Part(node, (), 0)}
        world.out.note("astray", attempt.task, "it started on slots that were not free any more")
        end(world, attempt, fate or PREEMPTED)
        world.settle_link(link)
        return
    # It takes over the very objects: nothing is freed and taken again.
    attempt.parts = before.parts
    before.parts = NOWHERE
    part = attempt.parts[node.id]
    del node.attempts[before.task]
    if before.chainable:
        before.chainable = False
    else:
        link.running += 1
    attempt.chainable = True
    if (len(link.held) - link.leaving) * 2 <= link.running * world.credit:
        link.chain.hungry[node.id] = link
    like_it = attempt.bulk is before.bulk and before.phase is Phase.RUNNING
    if not like_it and attempt.evictable and not _could_be_told(before):
        _crossed(world, node, link)
    if world.launchers.plans and attempt.queue.form.launcher:
        # It took over what somebody waits for.
        world.unchain(attempt)
        world.look_at_launchers()
    if node.suspended or node.lenders or node.claims:
        _contested(world, node, attempt, before, part)
    if fate is not None:
        end(world, attempt, fate)


def _crossed(world: World, node: Node, link: Link) -> None:
    """What just followed can give way to needed work, and what it followed could not: let who waits have the slots."""
    world.dirty[node.id] = node
    for held in link.held.values():
        if held.queue.tier <= Tier.NEEDED and not held.retracting:
            # Held ahead because nobody could give way; back in its queue it makes room for itself.
            world.retract(held)
            return


def _could_be_told(attempt: Attempt) -> bool:
    """Return whether an attempt that just ended could still have been told to give way."""
    return attempt.phase is Phase.RUNNING and attempt.queue.preemptible and attempt.bulk.on_preempt != "finish"


def _contested(world: World, node: Node, attempt: Attempt, before: Attempt, part: Part) -> None:
    """Somebody waits for these slots: nothing more may follow here, and who can be told gives way."""
    if before in node.lenders:
        node.lenders = {attempt if each is before else each: mask for each, mask in node.lenders.items()}
        attempt.lending = False
        world.unchain(attempt)
        lending.call_in(world, attempt, node)
    elif part.mask & node.lend_mask:
        world.unchain(attempt)
        if attempt.evictable and any(not lender.lending for lender in node.lenders):
            evict(world, attempt)
    if part.mask & node.kept:
        world.unchain(attempt)
        world.dirty[node.id] = node


def retracted(world: World, attempt: Attempt) -> None:
    """An attempt came back without having started."""
    node = attempt.link_node
    if node is None:
        return
    link = node.links[attempt.chain.id]
    world.unhold(attempt)
    world.settle_link(link)
    del world.attempts[attempt.task]
    world.wishing.pop(attempt, None)
    if attempt.fate is not None:
        world.out.give_back([(attempt.task, 1)], attempt.fate)
    else:
        world.requeue(attempt)


def _suspended(world: World, node: Node, attempt: Attempt) -> None:
    part = attempt.parts.get(node.id)
    if attempt.phase is not Phase.SUSPENDING or part is None or attempt.task in node.suspended:
        return
    borrowed = world.unlend(attempt, node)
    node.give_cores(part.mask & ~borrowed)
    node.suspended[attempt.task] = attempt
    world.suspended += 1
    world.dirty[node.id] = node
    settle_suspended(world, attempt)


def settle_suspended(world: World, attempt: Attempt) -> None:
    """Once all that is left of an attempt is suspended, it may be resumed."""
    parts = attempt.parts.values()
    if attempt.phase is Phase.SUSPENDING and all(attempt.task in part.node.suspended for part in parts):
        attempt.phase = Phase.SUSPENDED
        if attempt.lending:
            attempt.lending = False
            world.wishing[attempt] = None  # it waits still when it goes on
        for part in parts:
            world.dirty[part.node.id] = part.node
