"""Everything the scheduling core knows, and the few ways in which it changes."""

from __future__ import annotations

from bisect import bisect_left, insort

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core.attempt import Attempt, Part, Phase
from pilot_hitl_agent.core.chains import Chain, ChainTable, Link
from pilot_hitl_agent.core.claims import Plan, Reservation
from pilot_hitl_agent.core.events import Bulk, Condition
from pilot_hitl_agent.core.index import NodeIndex
from pilot_hitl_agent.core.instructions import Placed
from pilot_hitl_agent.core.launchers import Launchers
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.outbox import Outbox
from pilot_hitl_agent.core.queues import Level, Queue, Run, RunFinder, slips_in
from pilot_hitl_agent.core.shapes import Form, ShapeTable

PREEMPTED = Failure(Cause.PREEMPTED, "its cores were needed for work of a higher tier")
QueueKey = tuple[Tier, int, int, int, int, int, int]


class World:
    """State of the core. Modules of functions work on it: placement, preemption, plans, ahead and others.

    Attributes:
        credit: how many attempts are held ahead for each attempt that they may follow.
        attempts: those that left their queue.
        dirty: nodes on which something became free or may be used by more than before.
        active: queues that were not empty at the last :meth:`sweep`; groups: the same by level; order: their levels.
        anew: some queue may be fresh.
        waiting: the one plan that waits for work that cannot be preempted.
        suspended: how many attempts are suspended.
        asked: held-ahead attempts that were asked back and whose nodes did not answer yet.
        emptied: a queue may have become empty since the last sweep.
        held: queues with attempts that are held ahead and not asked back.
        turned: queues whose new first attempt may use claims of the waiting plan that the one before it might not.
        changes: counts what lets plans be made that could not be made before.
        victims: queues that have (or had) attempts that may be told to give way.
        thirsty: nodes that had cores left over while work was held ahead elsewhere.
        touched: nodes whose cores changed hands since somebody looked.
        parched: nodes whose free cores are kept for better work that was asked back; the next event looks again.
    """

    def __init__(self, credit: int, launchers: int = 100) -> None:
        self.now = 0.0
        self.ends = 0.0
        self.credit = credit
        self.draining: Failure | None = None
        self.nodes: dict[int, Node] = {}
        self.index = NodeIndex()
        self.shapes = ShapeTable()
        self.chains = ChainTable()
        self.attempts: dict[int, Attempt] = {}
        self.queues: dict[QueueKey, Queue] = {}
        self.runs = RunFinder()
        self.active: dict[Queue, None] = {}
        self.held: dict[Queue, None] = {}
        self.conditions: dict[int, Condition] = {}
        self.by_condition: dict[int, list[Queue]] = {}
        self.by_parent: dict[int, dict[QueueKey, Queue]] = {}
        self.reservations: dict[int, Reservation] = {}
        self.plans: dict[Plan, None] = {}
        self.waiting: Plan | None = None
        self.turned: dict[Queue, None] = {}
        self.tags: dict[str, int] = {}
        self.dirty: dict[int, Node] = {}
        self.out = Outbox()
        self.sequence = 0
        self.suspended = 0
        self.launchers = Launchers(launchers)
        self.wishing: dict[Attempt, None] = {}
        self.promised: dict[int, Node] = {}
        self.emptied = False
        self.asked: dict[int, Attempt] = {}
        self.changes = 0
        self.victims: dict[Queue, None] = {}
        self.thirsty: dict[int, Node] = {}
        self.touched: dict[int, Node] = {}
        self.parched: dict[int, Node] = {}
        self.groups: dict[Level, list[Queue]] = {}
        self.order: list[Level] = []
        self.anew = True

    # --- queues -------------------------------------------------------------------------------------------------------

    def queue_of(self, bulk: Bulk) -> Queue:
        """Return the queue of a bulk."""
        form = self.shapes.form(bulk.shape)
        key = (bulk.tier, bulk.priority, bulk.condition, form.id, bulk.kind, bulk.parent, bulk.kept)
        queue = self.queues.get(key)
        if queue is None:
            chain = self.chains.chain(form.id, bulk.condition)
            queue = self.queues[key] = Queue(bulk.tier, bulk.priority, bulk.condition, form, bulk.kind, chain)
            queue.kept = bulk.kept
            if bulk.parent:
                queue.parent = bulk.parent
                self.by_parent.setdefault(bulk.parent, {})[key] = queue
            if bulk.condition:
                self.by_condition.setdefault(bulk.condition, []).append(queue)
            for reservation in self.reservations.values():
                if bulk.condition in reservation.conditions or bulk.kept == reservation.checkpoint:
                    queue.reservation = reservation
            self.settle(queue)
        return queue

    def settle(self, queue: Queue) -> None:
        """Bring tier, level and chain of a queue up to date with its condition."""
        known = self.conditions.get(queue.condition)
        truth = known.truth if known else Truth.UNDECIDED
        tier = queue.base_tier
        if queue.condition and truth is Truth.TRUE:
            tier = Tier.NEEDED if tier is Tier.SPECULATIVE else tier
        elif queue.condition:
            tier = max(tier, Tier.SPECULATIVE)
        score = 0.0
        if known and tier is Tier.SPECULATIVE:
            score = known.kinds.get(queue.kind, known.score)
        undecided = 0 if not queue.condition or truth is Truth.TRUE else queue.condition
        queue.tier = tier
        queue.preemptible = tier >= Tier.SPECULATIVE
        if not queue.preemptible:
            queue.victims = {}
        if queue in self.active:
            self._ungroup(queue)
            queue.level = (tier, -queue.priority, -score)
            self._group(queue)
        queue.level = (tier, -queue.priority, -score)
        queue.chain = self.chains.chain(queue.form.id, undecided)
        queue.fresh = self.anew = True

    def enqueue(self, run: Run) -> None:
        """Queue a run."""
        queue = run.queue
        queue.insert(run)
        self.runs.add(run)
        queue.slowest = max(queue.slowest, run.bulk.expected_runtime)
        self.activate(queue)

    def activate(self, queue: Queue) -> None:
        """Count a queue among those that are not empty."""
        self.anew = True
        if queue not in self.active:
            self.active[queue] = None
            self._group(queue)

    def requeue(self, attempt: Attempt) -> None:
        """Put an attempt that never started back where it came from."""
        run = Run(attempt.bulk, attempt.task, attempt.task + 1, attempt.sequence - attempt.task, attempt.queue)
        self.enqueue(run)

    def pop(self, queue: Queue) -> Attempt:
        """Take the first attempt out of a queue that is not empty."""
        run = queue.first
        task = run.next
        attempt = Attempt(task, run.bulk, run.base + task, queue)
        queue.count -= 1
        run.next = task + 1
        if run.holes:
            run.tidy()
        if run.next >= run.end:
            self.runs.drop(run)
        queue.settle_first(run)
        if not queue.count:
            self.emptied = True
        elif self.waiting is not None and slips_in(queue.first.bulk, run.bulk):
            queue.fresh = self.anew = True
            self.turned[queue] = None
        self.attempts[task] = attempt
        return attempt

    def _group(self, queue: Queue) -> None:
        group = self.groups.get(queue.level)
        if group is None:
            self.groups[queue.level] = [queue]
            insort(self.order, queue.level)
        else:
            group.append(queue)

    def _ungroup(self, queue: Queue) -> None:
        group = self.groups[queue.level]
        group.remove(queue)
        if not group:
            del self.groups[queue.level]
            del self.order[bisect_left(self.order, queue.level)]

    def sweep(self) -> None:
        """Forget which queues were active and are empty now."""
        if not self.emptied:
            return
        self.emptied = False
        empty = [queue for queue in self.active if not queue.count]
        for queue in empty:
            del self.active[queue]
            self._ungroup(queue)

    # --- slots --------------------------------------------------------------------------------------------------------

    def launch(self, attempt: Attempt, placed: list[tuple[Node, tuple[Slot, ...]]]) -> None:
        """Give an attempt slots that are free for it, and start it."""
        queue = attempt.queue
        attempt.phase = Phase.RUNNING
        attempt.began = self.now
        chain = attempt.chain = queue.chain
        rank = (queue.level[0], queue.level[1])
        # What follows takes slots as they are, and would not look whether its first choice is free elsewhere.
        alone = len(placed) == 1 and not queue.form.others
        parts: dict[int, Part] = {}
        attempt.parts = parts
        for node, slots in placed:
            mask = used(node, slots, queue.form)
            borrowed = mask & node.lend_mask if node.lenders else 0
            special = mask & node.kept | borrowed
            if special:
                self._consume(queue, node, mask, slots)
                special = mask & node.kept | borrowed
            parts[node.id] = Part(node, slots, mask)
            node.attempts[attempt.task] = attempt
            node.take(mask, slots)
            if borrowed and node.promised:
                self.dirty[node.id] = node  # what was promised may be kept now
            self.out.start(node.id, Placed(attempt.task, chain.id if alone else 0, rank, slots))
            if alone and not special:
                self.link(attempt, node)
            elif alone:
                # Nothing may slip onto slots that somebody else will want back.
                self.out.unchain(node.id, attempt.task)
        self.track(attempt)
        if queue.form.colocate:
            self.tags[queue.form.colocate] = placed[0][0].id

    def track(self, attempt: Attempt) -> None:
        """Count an attempt among those with slots."""
        queue = attempt.queue
        queue.running[attempt.task] = attempt
        if queue.form.launcher:
            self.launchers.used[attempt.task] = attempt
        if queue.preemptible and attempt.bulk.on_preempt != "finish":
            queue.victims[attempt.task] = attempt
            self.victims[queue] = None

    def _consume(self, queue: Queue, node: Node, mask: int, slots: tuple[Slot, ...]) -> None:
        reservation = queue.reservation
        if queue.preemptible or reservation is None:
            return
        claim = reservation.claims.get(node.id)
        if claim is not None and claim.mask & mask:
            claim.consume(mask, slots)
            node.rekeep()

    def link(self, attempt: Attempt, node: Node) -> None:
        """Let attempts of the same chain follow this one."""
        chain = attempt.chain
        link = node.links.get(chain.id)
        if link is None:
            link = node.links[chain.id] = Link(chain, node)
        link.running += 1
        attempt.link_node = node
        attempt.chainable = True
        if (len(link.held) - link.leaving) * 2 <= link.running * self.credit:
            chain.hungry[node.id] = link

    def unhold(self, attempt: Attempt) -> None:
        """Take an attempt off the held-ahead ones of its node: the node has answered, or is gone."""
        node, queue = attempt.link_node, attempt.queue
        if node is None:
            return
        link = node.links[attempt.chain.id]
        del link.held[attempt.task]
        if attempt.retracting:
            attempt.retracting = False
            link.leaving -= 1
            del self.asked[attempt.task]
        elif queue.held.pop(attempt.task, None) and not queue.held:
            self.held.pop(queue, None)

    def unlink(self, attempt: Attempt) -> None:
        """Let nothing follow this attempt any more. Sends nothing."""
        if attempt.chainable and attempt.link_node is not None:
            attempt.chainable = False
            link = attempt.link_node.links[attempt.chain.id]
            link.running -= 1
            self.settle_link(link)

    def settle_link(self, link: Link) -> None:
        """Ask back what nothing can start any more, and forget a link without use."""
        if link.running:
            return
        if link.held:
            for attempt in link.held.values():
                self.retract(attempt)
        else:
            link.node.links.pop(link.chain.id, None)
        link.chain.hungry.pop(link.node.id, None)

    def unchain(self, attempt: Attempt) -> None:
        """Let nothing follow this attempt, and tell its node."""
        if attempt.chainable and attempt.link_node is not None:
            self.out.unchain(attempt.link_node.id, attempt.task)
            self.unlink(attempt)

    def retract(self, attempt: Attempt) -> None:
        """Ask a held-ahead attempt back, once."""
        node = attempt.link_node
        if attempt.retracting or node is None:
            return
        attempt.retracting = True
        self.asked[attempt.task] = attempt
        if attempt.queue.held.pop(attempt.task, None) and not attempt.queue.held:
            self.held.pop(attempt.queue, None)
        link = node.links[attempt.chain.id]
        link.leaving += 1
        if link.running and (len(link.held) - link.leaving) * 2 <= link.running * self.credit:
            attempt.chain.hungry[node.id] = link
        self.out.retract(node.id, attempt.task)

    def release(self, attempt: Attempt, part: Part) -> None:
        """Free what an attempt used on one node."""
        node = part.node
        del attempt.parts[node.id]
        del node.attempts[attempt.task]
        if node.suspended.pop(attempt.task, None) is None:
            node.give_cores(part.mask & ~self.unlend(attempt, node))
        else:
            self.suspended -= 1
        node.give_rest(part.slots)
        node.derive()
        self.dirty[node.id] = node

    def unlend(self, attempt: Attempt, node: Node) -> int:
        """Let an attempt lend no more; return which of its cores somebody else uses still."""
        mask = node.lenders.get(attempt, 0)
        if not mask:
            return 0
        busy = 0
        for other in node.borrowers(attempt):
            busy |= other.parts[node.id].mask
        del node.lenders[attempt]
        node.relend(leaving=attempt)
        return mask & busy

    def forget(self, attempt: Attempt) -> None:
        """Forget an attempt that has no part left."""
        task = attempt.task
        del self.attempts[task]
        self.wishing.pop(attempt, None)
        attempt.queue.running.pop(task, None)
        if attempt.queue.tier is Tier.SERVICE:
            self.changes += 1
        attempt.queue.victims.pop(task, None)
        if self.launchers.used and self.launchers.used.pop(task, None) is not None:
            self.launcher_freed()
        if self.by_parent and (children := self.by_parent.pop(task, None)) is not None:
            self._orphan(children)

    def _orphan(self, children: dict[QueueKey, Queue]) -> None:
        """A task with children of its own ended: their queues are as all others, and forgotten when they are empty."""
        for key, queue in children.items():
            queue.parent = 0
            self.forget_queue(key, queue)

    def forget_queue(self, key: QueueKey, queue: Queue) -> None:
        """Forget a queue to which nothing will be added, when nothing is in it or may come back to it."""
        if self.queues.get(key) is not queue or queue in self.active or queue.late or queue.running or queue.held:
            return
        away = (*self.asked.values(), *(plan.attempt for plan in self.plans))
        if any(attempt.queue is queue for attempt in away):
            return
        del self.queues[key]
        if queue.condition:
            self.by_condition[queue.condition].remove(queue)

    def look_at_launchers(self) -> None:
        """Look at the plans that wait for a launcher."""
        for plan in self.launchers.plans:
            self.dirty.update((claim.node.id, claim.node) for claim in plan.claims.values())

    def launcher_freed(self) -> None:
        """A launcher is free again: look at who may wait for it."""
        self.look_at_launchers()
        if self.launchers.left == 1:
            for queue in self.active:
                if queue.form.launcher:
                    queue.fresh = self.anew = True

    def drop_plan(self, plan: Plan) -> None:
        """Give up what a plan claims."""
        self.plans.pop(plan, None)
        self.changes += 1
        if self.waiting is plan:
            self.waiting = None
        plan.attempt.plan = None
        if plan in self.launchers.plans:
            del self.launchers.plans[plan]
            self.launcher_freed()
        for claim in list(plan.claims.values()):
            claim.node.drop_claim(claim)
            self.dirty[claim.node.id] = claim.node


def used(node: Node, slots: tuple[Slot, ...], form: Form) -> int:
    """Return the cores that slots take on a node: all, when the form is exclusive."""
    if form.exclusive:
        return node.full
    mask = 0
    for slot in slots:
        mask |= slot.cores
    return mask


__all__ = ["PREEMPTED", "Chain", "World", "used"]
