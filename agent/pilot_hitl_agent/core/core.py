"""The scheduling core: where and when things run, as a state machine without clock, socket, file or thread."""

from __future__ import annotations

from collections.abc import Iterable

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl_agent.core import changes, events, lending, passes, plans, preemption, reservations
from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.claims import Plan, Reservation
from pilot_hitl_agent.core.events import Bulk, Event
from pilot_hitl_agent.core.explanation import Explanation, explain
from pilot_hitl_agent.core.instructions import Instruction
from pilot_hitl_agent.core.invariants import check
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.placement import may_ever_fit
from pilot_hitl_agent.core.queues import Queue, Run
from pilot_hitl_agent.core.shapes import Form
from pilot_hitl_agent.core.standstill import Standstill, TaskRuns, look
from pilot_hitl_agent.core.world import World

DISCARDED = Failure(Cause.DISCARDED, "the person decided otherwise")
Runs = list[tuple[int, int]]


class SchedulingCore:
    """Schedules the attempts of one pilot.

    Feed it events in the order in which they happened; do what it answers, in the answered order. It is not safe to
    use from several threads.

    Args:
        credit: how many attempts are held ahead for each running attempt that they may follow.
        nodes: how many nodes the pilot will have. Before so many have come up nothing is called unfit.
        launchers: how many attempts of shapes with ``launcher`` may run at a time, at least 1.
    """

    def __init__(self, credit: int = 2, nodes: int = 1, launchers: int = 100) -> None:
        self._world = World(credit, launchers)
        self._expected = nodes
        self._fits: dict[Form, bool] = {}
        self._lost: dict[int, Node] = {}
        """Nodes that went down; they may come back."""

    # --- in ---------------------------------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Instruction]:
        """Take one event in; return what to do. ``now`` is in seconds, on any clock that does not go back."""
        return self.steps((event,), now)

    def steps(self, happened: Iterable[Event], now: float) -> list[Instruction]:
        """Take several events in before anything is decided: as :meth:`step`, but cheaper."""
        world = self._world
        world.now = now
        for event in happened:
            if type(event) is events.NodeChanges:
                changes.apply(world, event)
            else:
                self._apply(event)
        passes.schedule(world)
        return world.out.flush()

    def _apply(self, event: Event) -> None:
        match event:
            case events.Submit():
                for bulk in event.bulks:
                    self._submit(bulk)
            case events.Condition():
                self._condition(event)
            case events.Cancel():
                self._cancel(event)
            case events.Lend():
                self._lend(event)
            case events.Reserve():
                reservations.reserve(self._world, event)
            case events.Unreserve():
                reservations.unreserve(self._world, event.checkpoint)
            case events.WalltimeEnds():
                self._walltime(event)
            case events.NodeUp():
                self._node_up(event)
            case events.NodeDown():
                self._node_down(event)
            case events.Drain():
                self._drain(event)
            case _:
                pass

    # --- work -------------------------------------------------------------------------------------------------------

    def _submit(self, bulk: Bulk) -> None:
        world = self._world
        if world.draining is not None:
            world.out.give_back([(bulk.first, bulk.count)], world.draining)
            return
        known = world.conditions.get(bulk.condition)
        if known is not None and known.truth is Truth.FALSE:
            world.out.give_back([(bulk.first, bulk.count)], DISCARDED)
            return
        queue = world.queue_of(bulk)
        base = world.sequence - bulk.first
        world.sequence += bulk.count
        run = Run(bulk, bulk.first, bulk.first + bulk.count, base, queue)
        for task in self._known(bulk):
            run.holes.add(task)
        run.tidy()
        if not len(run):
            return
        if not self._fit(queue.form):
            world.out.give_back(run.spans(), self._unfit(queue.form))
            return
        world.enqueue(run)

    def _known(self, bulk: Bulk) -> list[int]:
        """Return the tasks of a bulk that are here already; give back those whose attempt is another one."""
        world = self._world
        end = bulk.first + bulk.count
        attempts = world.attempts
        if bulk.count < len(attempts):
            found = {task: attempts[task].bulk for task in range(bulk.first, end) if task in attempts}
        else:
            found = {task: attempt.bulk for task, attempt in attempts.items() if bulk.first <= task < end}
        for run in world.runs.overlapping(bulk.first, bulk.count):
            found.update({task: run.bulk for task in run.tasks() if bulk.first <= task < end})
        newer = [task for task, old in found.items() if (old.epoch, old.run) < (bulk.epoch, bulk.run)]
        if newer:
            failure = Failure(Cause.PILOT_ENDED, "an earlier attempt of it has not ended here yet")
            world.out.give_back([(task, 1) for task in newer], failure)
        return list(found)

    def _fit(self, form: Form) -> bool:
        """Return whether a form fits on this pilot when nothing else runs (True while that cannot be said)."""
        world = self._world
        if self._expected:
            return True
        fits = self._fits.get(form)
        if fits is None:
            fits = self._fits[form] = may_ever_fit(world.nodes.values(), form)
        return fits

    def _unfit(self, form: Form) -> Failure:
        """Return why a form fits nowhere: for good, or while nodes are missing that may come back."""
        lost = self._lost.values()
        if lost and may_ever_fit((*self._world.nodes.values(), *lost), form):
            names = ", ".join(node.inventory.name for node in lost)
            return Failure(Cause.NODE_LOST, f"without {names} this pilot cannot hold {form.shape.describe()}")
        return Failure(Cause.UNFIT, f"this pilot cannot hold {form.shape.describe()}, even when nothing else runs")

    def _judge(self) -> None:
        """Give back what is queued and fits no longer, or never did."""
        self._fits.clear()
        world = self._world
        for queue in list(world.queues.values()):
            if (queue.count or queue.late) and not self._fit(queue.form):
                self._give_back_queue(queue, self._unfit(queue.form))

    def _give_back_queue(self, queue: Queue, failure: Failure) -> None:
        world = self._world
        for run in sorted((*queue.waiting(), *queue.late), key=lambda run: run.base + run.next):
            world.out.give_back(run.spans(), failure)
            world.runs.drop(run)
        queue.clear()
        world.emptied = True

    def _cancel(self, event: events.Cancel) -> None:
        world = self._world
        failure = Failure(Cause.CANCELED, event.reason or "somebody asked for it")
        for first, count in event.runs:
            for run in world.runs.overlapping(first, count):
                self._cut(run, first, first + count, failure)
            if count < len(world.attempts):
                found = [world.attempts[task] for task in range(first, first + count) if task in world.attempts]
            else:
                found = [attempt for task, attempt in world.attempts.items() if first <= task < first + count]
            for attempt in found:
                self._end(attempt, failure)

    def _cut(self, run: Run, first: int, end: int, failure: Failure) -> None:
        """Take the tasks ``first … end-1`` out of a queued run."""
        world, queue = self._world, run.queue
        tasks = [task for task in run.tasks() if first <= task < end]
        if not tasks:
            return
        world.out.give_back(_runs(tasks), failure)
        late = run in queue.late
        if not late:
            queue.count -= len(tasks)
            queue.fresh = world.anew = world.emptied = True
        if len(tasks) < len(run):
            run.holes.update(tasks)
            run.tidy()
            queue.reorder()
        else:
            world.runs.drop(run)
            queue.remove(run)

    def _end(self, attempt: Attempt, failure: Failure) -> None:
        """End an attempt wherever it is."""
        world = self._world
        if attempt.phase is Phase.PLANNED:
            if attempt.plan is not None:
                world.drop_plan(attempt.plan)
            world.forget(attempt)
            world.out.give_back([(attempt.task, 1)], failure)
        elif attempt.phase is Phase.HELD:
            attempt.fate = failure
            world.retract(attempt)
        elif attempt.phase is Phase.ENDING:
            if attempt.fate is None or attempt.fate.cause is not Cause.CANCELED:
                attempt.fate = failure
        else:
            if attempt.plan is not None:
                world.drop_plan(attempt.plan)
            preemption.end(world, attempt, failure)

    # --- conditions -------------------------------------------------------------------------------------------------

    def _condition(self, event: events.Condition) -> None:
        world = self._world
        world.conditions[event.condition] = event
        queues = world.by_condition.get(event.condition, [])
        if event.truth is Truth.FALSE:
            for queue in queues:
                self._discard(queue)
            return
        for queue in queues:
            world.settle(queue)
            for attempt in (*queue.running.values(), *queue.held.values()):
                for part in attempt.parts.values():
                    if attempt.phase is Phase.SUSPENDED or part.node.claims or part.node.lenders:
                        world.dirty[part.node.id] = part.node
        if event.truth is Truth.TRUE:
            for reservation in {queue.reservation for queue in queues}:
                if reservation is not None:
                    reservations.absorb(world, reservation)

    def _discard(self, queue: Queue) -> None:
        self._give_back_queue(queue, DISCARDED)
        for attempt in (*queue.running.values(), *queue.held.values()):
            self._end(attempt, DISCARDED)
        planned = [plan.attempt for plan in self._world.plans if plan.attempt.phase is Phase.PLANNED]
        for attempt in (*self._world.asked.values(), *planned):
            if attempt.queue is queue:
                self._end(attempt, DISCARDED)

    # --- resources --------------------------------------------------------------------------------------------------

    def _lend(self, event: events.Lend) -> None:
        attempt = self._world.attempts.get(event.task)
        if attempt is None:
            return
        if event.on:
            lending.lend(self._world, attempt)
        else:
            lending.take_back(self._world, attempt)

    def _walltime(self, event: events.WalltimeEnds) -> None:
        world = self._world
        world.ends = event.at
        for queue in world.queues.values():
            if queue.late:
                queue.unpark()
                if queue.count:
                    world.activate(queue)

    def _node_up(self, event: events.NodeUp) -> None:
        world = self._world
        self._lose_node(event.node, "it was started anew")
        self._lost.pop(event.node, None)
        node = world.nodes[event.node] = Node(event.node, event.inventory, world.touched)
        world.dirty[node.id] = node
        world.changes += 1
        if len(world.nodes) >= self._expected:
            self._expected = 0
        for reservation in world.reservations.values():
            if any(reservation.missing):
                reservations.choose(world, reservation)
        self._judge()

    def _node_down(self, event: events.NodeDown) -> None:
        node = self._lose_node(event.node, event.reason or "the node is gone")
        if node is None:
            return
        self._lost[node.id] = node
        if self._world.nodes:
            self._judge()

    def _lose_node(self, identifier: int, reason: str) -> Node | None:
        """Forget a node and give back what it had; its gangs end elsewhere too. None: it was not up."""
        world = self._world
        node = world.nodes.pop(identifier, None)
        if node is None:
            return None
        world.index.remove(node)
        world.dirty.pop(node.id, None)
        world.promised.pop(node.id, None)
        world.thirsty.pop(node.id, None)
        world.parched.pop(node.id, None)
        for tag in [tag for tag, bound in world.tags.items() if bound == node.id]:
            del world.tags[tag]
            for queue in world.active:
                queue.fresh = queue.fresh or queue.form.colocate == tag
            world.anew = True
        failure = Failure(Cause.NODE_LOST, reason, node.inventory.name)
        self._lose_attempts(node, failure)
        self._lose_claims(node)
        world.dirty.pop(node.id, None)
        return node

    def _lose_attempts(self, node: Node, failure: Failure) -> None:
        world = self._world
        for link in list(node.links.values()):
            link.chain.hungry.pop(node.id, None)
            for attempt in list(link.held.values()):
                world.unhold(attempt)
                changes.over(world, attempt, attempt.fate or failure)
        for attempt in list(node.attempts.values()):
            attempt.chainable = False
            attempt.broken = True
            attempt.fate = attempt.fate if attempt.fate and attempt.fate.cause in changes.GIVEN_BACK else failure
            world.release(attempt, attempt.parts[node.id])
            if not attempt.parts:
                changes.over(world, attempt, failure)
            else:
                preemption.end(world, attempt, attempt.fate)

    def _lose_claims(self, node: Node) -> None:
        world = self._world
        for claim in list(node.claims.values()):
            holder = claim.holder
            if isinstance(holder, Plan):
                plans.release(world, holder)
            elif isinstance(holder, Reservation):
                reservations.lose(claim, holder)
                reservations.choose(world, holder)

    def _drain(self, event: events.Drain) -> None:
        world = self._world
        world.draining = Failure(Cause.PILOT_ENDED, event.reason or "the pilot takes no more work")
        for queue in list(world.queues.values()):
            self._give_back_queue(queue, world.draining)
        world.sweep()
        for attempt in list(world.attempts.values()):
            if attempt.phase is Phase.PLANNED or attempt.phase is Phase.HELD:
                self._end(attempt, attempt.fate or world.draining)

    # --- out --------------------------------------------------------------------------------------------------------

    def explain(self, task: int) -> Explanation:
        """Return what holds a task, or where it is."""
        return explain(self._world, task)

    def standstill(self, runs: TaskRuns) -> Standstill:
        """Return whether tasks in runs of ids move, and what holds those that do not."""
        return look(self._world, runs)

    def check(self) -> None:
        """Verify every invariant.

        Raises:
            InvariantBroken: one does not hold; the message says which, and where.
        """
        check(self._world)

    @property
    def queued(self) -> int:
        """Attempts that are queued here, those that come too late included."""
        return sum(queue.count + sum(map(len, queue.late)) for queue in self._world.queues.values())

    @property
    def started(self) -> int:
        """Attempts that have slots, suspended ones included."""
        return sum(len(queue.running) for queue in self._world.queues.values())

    @property
    def held(self) -> int:
        """Attempts that are held ahead at nodes."""
        return len(self._world.attempts) - self.started - self.planned

    @property
    def planned(self) -> int:
        """Attempts that wait for slots claimed for them."""
        return sum(1 for plan in self._world.plans if plan.attempt.phase is Phase.PLANNED)

    @property
    def live(self) -> int:
        """Attempts that left their queue and did not end."""
        return len(self._world.attempts)

    @property
    def nodes(self) -> int:
        """Nodes that are up."""
        return len(self._world.nodes)

    @property
    def free_cores(self) -> int:
        """Cores that nothing uses, lent ones not counted."""
        return sum(node.free.bit_count() for node in self._world.nodes.values())

    def touched(self) -> list[tuple[int, int, frozenset[int]]]:
        """Return nodes whose cores changed hands since the last call: what reservations keep there, and who lends.

        Each is ``(node, cores that reservations keep, tasks that lend cores or wait to get them back)``.
        """
        touched = self._world.touched
        if not touched:
            return []
        found = []
        for node in touched.values():
            kept = 0
            for claim in node.claims.values():
                if isinstance(claim.holder, Reservation):
                    kept |= claim.mask
            lenders = frozenset(attempt.task for attempt in node.lenders) if node.lenders else frozenset()
            found.append((node.id, kept, lenders))
        touched.clear()
        return found

    @property
    def idle(self) -> bool:
        """Whether preemptible work would find a core: one that is free, or lent."""
        return any(node.loan for node in self._world.nodes.values())

    @property
    def looks(self) -> int:
        """Nodes looked at so far in searches: what the cost of placement is made of."""
        return self._world.index.looks

    def tiers(self) -> dict[Tier, tuple[int, int]]:
        """Return ``(queued, started)`` by tier."""
        found: dict[Tier, tuple[int, int]] = {}
        for queue in self._world.queues.values():
            queued, started = found.get(queue.tier, (0, 0))
            found[queue.tier] = (queued + queue.count, started + len(queue.running))
        return found


def _runs(tasks: list[int]) -> Runs:
    """Return ascending tasks as ``(first, count)`` runs."""
    found: Runs = []
    for task in tasks:
        if found and sum(found[-1]) == task:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((task, 1))
    return found
