"""The study core: tasks, dependencies, conditions, checkpoints, attempts and bindings, as one state machine.

It has no clock, socket, file or thread. :meth:`StudyCore.step` takes an event and the time and returns what is to be
done; the hub does it. Rules that it keeps (``docs/specs/task-and-attempt.md``, ``condition-and-commit.md``):

* a task gets one final record; a report of an attempt that is not the task's present one changes nothing;
* a task is bound only when all it depends on is DONE, or HELD under a condition that its own implies and without
  anything that is to be put in place after the commit;
* nothing under an undecided condition is recorded as final, except what no answer and no other try can change: a
  cancellation, a request that no pilot can hold, a payload that cannot be moved, and what depends on such a task;
* under a false condition nothing is bound, and nothing ends but DISCARDED (or CANCELED, when that came first).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pilot_hitl.model.conditions import SchemaTest
from pilot_hitl.model.failures import RETRYABLE, UNFINISHED, Cause, Failure
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study import suspects
from pilot_hitl.study.adoption import Adoption
from pilot_hitl.study.bulk import Bulk, Table
from pilot_hitl.study.conditions import Condition, Conditions
from pilot_hitl.study.ends import DECIDED_OTHERWISE, LOST, inherited, unsaid
from pilot_hitl.study.fleet import Fleet
from pilot_hitl.study.outside import begun
from pilot_hitl.study.pilots import Pilot
from pilot_hitl.study.publication import Unpublished, published
from pilot_hitl.study.ready import Ready, Run
from pilot_hitl.study.reconnect import merged, reconcile, restore_bindings
from pilot_hitl.study.recovery import Recovery
from pilot_hitl.study.requests import Requests
from pilot_hitl.study.speculation import Speculation

NEW, QUEUED, SCHEDULED, RUNNING = int(State.NEW), int(State.QUEUED), int(State.SCHEDULED), int(State.RUNNING)
HELD, HELD_FAILED, DONE = int(State.HELD), int(State.HELD_FAILED), int(State.DONE)
DISCARDED, CANCELED = int(State.DISCARDED), int(State.CANCELED)
MET = (HELD, DONE)
ENDS = frozenset({State.DONE, State.FAILED, State.CANCELED, State.QUEUED})
STRAYS = (Cause.WORKER_DIED, Cause.OOM_KILLED)
"""Ends that somebody else may be to blame for."""
BATCH = 2000
"""How many tasks of a decided condition are handled in one step; the rest waits in the backlog."""


class StudyCore:
    """What exists and what is true in one session."""

    def __init__(
        self,
        schema_test: SchemaTest,
        first_run: int = 0,
        recorded: Callable[[int], ev.RestoreTasks | None] = lambda _task: None,
    ) -> None:
        """Start empty.

        ``schema_test(schema, answer)`` says whether an answer (both canonical JSON) is valid; it must not raise.
        ``first_run`` is the run number of first attempts. A hub that may have handed out attempts which it does not
        remember gives one above all that an earlier life of it can have used, so that no number ever repeats.
        ``recorded(task)`` returns the whole bulk of a task that was retired (``tasks.retire``), as it was recorded:
        what has ended never changes, so it may look on a disk.
        """
        self._recorded = recorded
        self.tasks = Table(self._recall)
        self.conditions = Conditions(schema_test)
        self.fleet = Fleet()
        self.pilots = self.fleet.pilots
        self.ready = Ready()
        self.requests = Requests(self.tasks, self.conditions, self.pilots, self.emit, self._joined)
        self.checkpoints = self.requests.all
        self.speculation = Speculation(self.tasks, self.conditions, self.checkpoints, schema_test)
        self.stale = 0
        """Reports that changed nothing, because their attempt is not the task's present one."""
        self._first_run = first_run
        self._out: list[do.Instruction] = []
        self._now = 0.0
        self._waiters: dict[int, list[Bulk]] = {}
        self._bindings: dict[int, int] = {}
        self.adoption = Adoption(self)
        self.recovery = Recovery(self)
        self.unpublished = Unpublished()
        self._backlog: deque[tuple[Condition, Bulk, int]] = deque()
        self._live = 0
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.SubmitTasks: self._submit,
            ev.RestoreTasks: self._restore,
            ev.RestoreBindings: lambda event: restore_bindings(self, event),
            ev.Revive: self._revive,
            ev.CancelTasks: self._cancel,
            ev.DefineCondition: self._define,
            ev.RestoreCondition: self._restore_condition,
            ev.AgentReady: self._agent_ready,
            ev.PilotAsked: self._pilot_asked,
            ev.AgentExpected: lambda event: self.recovery.expect(event.pilot),
            ev.PilotNodes: self._pilot_nodes,
            ev.PilotEnded: self._pilot_ended,
            ev.Reported: self._reported,
            ev.Published: lambda event: published(self, event),
            ev.AskPeople: self._ask,
            ev.RestoreCheckpoint: self._restore_checkpoint,
            ev.AnswerGiven: self._answer,
            ev.ExtendDeadline: self._extend,
            ev.WithdrawCheckpoint: self._withdraw,
            ev.UsePolicy: self._use_policy,
            ev.Tick: self._tick,
        }

    # --- the face of the machine --------------------------------------------------------------------------------------

    def step(self, event: ev.Event, now: float) -> list[do.Instruction]:
        """Let something happen and return what is to be done, in this order.

        ``now`` is what the wall clock shows; it may jump either way, and deadlines of questions follow it. Raises
        nothing for anything that a peer can cause.
        """
        self._now = now
        self._handlers[type(event)](event)
        while abandoned := self.requests.abandoned:
            self.requests.abandoned = []
            self._decide([condition for each in abandoned for condition in self.requests.abandon(each, now)])
        self.recovery.settle(now)
        self._pump()
        if self.speculation.stale:
            self._judge()
        if self.unpublished.committed:
            self._out.append(do.Publish(self.unpublished.committed))
            self.unpublished.committed = []
        out, self._out = self._out, []
        return out

    @property
    def backlog(self) -> bool:
        """Whether a :class:`~pilot_hitl.study.events.Tick` would do more work at once."""
        return bool(self._backlog or self.requests.restored)

    @property
    def live(self) -> int:
        """Tasks without a final state that somebody wants."""
        return self._live

    def next_deadline(self) -> float | None:
        """Return when a Tick is due, None when nothing waits for time."""
        asked, missing = self.checkpoints.next_deadline(), self.recovery.next_deadline()
        return asked if missing is None else missing if asked is None else min(asked, missing)

    def state_of(self, task: int) -> State | None:
        """Return the state of a task as recorded or last heard, None for an unknown task."""
        bulk = self.tasks.find(task)
        return None if bulk is None else State(bulk.states[task - bulk.first])

    def emit(self, instruction: do.Instruction) -> None:
        """Add to what this step wants done."""
        self._out.append(instruction)

    def pilot_of(self, task: int) -> int:
        """Return the pilot that a task is bound to, 0 for none."""
        bulk = self.tasks.find(task)
        epoch = bulk.epochs[task - bulk.first] if bulk is not None else 0
        return self._bindings.get(epoch, 0)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _assumed(self, event: ev.SubmitTasks) -> tuple[Condition, Failure | None]:
        """Return the condition of new tasks, and why they cannot run when that is known already."""
        blocker: Failure | None = None
        try:
            condition = self.conditions.named(event.condition)
        except KeyError:
            condition = self.conditions.always
            blocker = Failure(Cause.DEPENDENCY, "its condition was never defined")
        for dep in event.deps:
            parent = self.tasks.find(dep)
            if parent is None:
                blocker = Failure(Cause.DEPENDENCY, "it depends on a task that was never submitted")
                continue
            condition = self._joined(condition, parent.condition)
        if event.parent and (asker := self.tasks.find(event.parent)) is not None:
            condition = self._joined(condition, asker.condition)
        return condition, blocker

    def _submit(self, event: ev.SubmitTasks) -> None:
        if event.count < 1:
            return
        condition, blocker = self._assumed(event)
        bulk = Bulk(event, condition, self._first_run, self._now)
        try:
            self.tasks.add(bulk)
        except ValueError:
            return  # A resend after a lost connection: it is here already.
        self._live += bulk.count
        if blocker is None and condition.impossible:
            blocker = Failure(Cause.DEPENDENCY, "it would need two different answers to one checkpoint")
        if blocker is None:
            blocker = self.fleet.unfit(bulk)
        if blocker is not None:
            self._end_all(bulk, State.FAILED, blocker)
            return
        if condition.truth is Truth.FALSE:
            self._backlog.append((condition, bulk, 0))
            return
        if condition.truth is Truth.UNDECIDED:
            condition.bulks.append(bulk)
            self.speculation.added(bulk)
        if event.sources:
            self.adoption.claim(bulk, event)
        for parent in self._wait_for_deps(bulk):
            self._wake(parent)

    def _wait_for_deps(self, bulk: Bulk) -> list[Bulk]:
        """Make a bulk ready, or let it wait; return the bulks that it waits for and that are asleep."""
        asleep = []
        for dep in bulk.deps:
            parent = self.tasks.find(dep)
            if parent is None:
                self._end_all(bulk, State.FAILED, Failure(Cause.DEPENDENCY, "a task that it depends on is unknown"))
                return []
            state = parent.states[dep - parent.first]
            if state in MET and dep not in self.unpublished:
                continue
            if state >= DONE:
                self._end_all(bulk, *inherited(State(state), None, dep))
                return []
            bulk.missing += 1
            self._waiters.setdefault(dep, []).append(bulk)
            if parent.asleep:
                asleep.append(parent)
        if not bulk.missing:
            self._make_ready(bulk)
        return asleep

    def _make_ready(self, bulk: Bulk) -> None:
        """Queue all tasks of a bulk that wait for nothing but a pilot; its dependencies are met."""
        truth = bulk.condition.truth
        if truth is Truth.FALSE or bulk.asleep:
            return
        if truth is Truth.UNDECIDED and self._may_not_speculate(bulk):
            bulk.condition.parked.append(bulk)
            return
        pieces = list(bulk.pieces(0, bulk.count, NEW))
        failure = self.fleet.unfit(bulk) if pieces else None
        for offset, count in pieces:
            if failure is None:
                self._queue(bulk, offset, count)
                continue
            for at in range(offset, offset + count):
                self.finish(bulk, at, State.FAILED, None, failure)

    def _may_not_speculate(self, bulk: Bulk) -> bool:
        return bulk.outside or not self.speculation.policy.speculates

    def _queue(self, bulk: Bulk, offset: int, count: int) -> None:
        bulk.states[offset : offset + count] = bytes((QUEUED,)) * count
        self.recovery.push(bulk, offset, count)

    def _restore(self, event: ev.RestoreTasks) -> None:
        tasks = event.tasks
        condition = self.conditions.named(tasks.condition)
        for dep in tasks.deps:
            parent = self.tasks.find(dep)
            if parent is not None:
                condition = self._joined(condition, parent.condition)
        bulk = Bulk(tasks, condition, self._first_run)
        bulk.states[:] = event.states
        bulk.live = sum(1 for _ in bulk.unfinished())
        bulk.asleep = bulk.restored = True
        self.tasks.add(bulk)
        self.recovery.restored(bulk)
        self.unpublished.update(event.unpublished)
        if condition.truth is Truth.UNDECIDED:
            condition.bulks.append(bulk)
            self.speculation.added(bulk)
        elif condition.number and bulk.live:
            # The answer was recorded, and perhaps not yet all that follows from it.
            self._backlog.append((condition, bulk, 0))

    def _recall(self, task: int) -> Bulk | None:
        event = self._recorded(task)
        if event is None:
            return None
        bulk = Bulk(event.tasks, self.conditions.numbered(event.tasks.condition), self._first_run)
        bulk.states[:] = event.states
        bulk.live, bulk.restored = 0, True
        return bulk

    def _revive(self, event: ev.Revive) -> None:
        for bulk in self.tasks.of(event.incarnation):
            self._wake(bulk)

    def _wake(self, bulk: Bulk) -> None:
        """Want a sleeping bulk again, and everything asleep that it depends on."""
        todo = [bulk]
        while todo:
            bulk = todo.pop()
            if bulk.asleep:
                bulk.asleep = False
                self._live += bulk.live
                todo.extend(self._wait_for_deps(bulk))

    def _cancel(self, event: ev.CancelTasks) -> None:
        failure = Failure(Cause.CANCELED, event.reason or "it was canceled")
        ends: dict[int, list[tuple[int, int]]] = {}
        torn: set[int] = set()
        for first, count in event.runs:
            for bulk, offset, length in self.tasks.overlapping(first, count, ended=False):
                for at in range(offset, offset + length):
                    self._cancel_one(bulk, at, failure, ends, torn)
        for pilot, runs in ends.items():
            self._out.append(do.EndAttempts(pilot, merged(runs), failure.message))
        if torn:
            self._end_users_of(torn)

    def _cancel_one(
        self, bulk: Bulk, at: int, failure: Failure, ends: dict[int, list[tuple[int, int]]], torn: set[int]
    ) -> None:
        state = bulk.states[at]
        if state >= DONE:
            return
        epoch = bulk.epochs[at]
        if not epoch:
            if state == HELD:
                torn.add(bulk.first + at)
            self.finish(bulk, at, State.CANCELED, None, failure)
        elif at not in bulk.ending:
            bulk.ending.add(at)
            ends.setdefault(self._bindings[epoch], []).append((bulk.first + at, 1))

    def _end_users_of(self, canceled: set[int]) -> None:
        """End what was going to use held values that were canceled: their dependants no longer wait for them."""
        for bulk in self.tasks:
            if bulk.live and not canceled.isdisjoint(bulk.deps):
                first = next(dep for dep in bulk.deps if dep in canceled)
                state, failure = inherited(State.CANCELED, None, first)
                for at in list(bulk.unfinished()):
                    if bulk.states[at] != HELD:
                        self.finish(bulk, at, state, None, failure)

    # --- reports of attempts ------------------------------------------------------------------------------------------

    def _reported(self, event: ev.Reported) -> None:
        find = self.tasks.find
        self.recovery.reported(event.reports)
        for report in event.reports:
            bulk = find(report.task)
            if bulk is None:
                self.stale += 1
                continue
            at = report.task - bulk.first
            epoch = bulk.epochs[at]
            if not epoch or epoch != report.epoch or bulk.run(at) != report.run:
                self.stale += 1
                continue
            state = report.state
            if state is State.RUNNING:
                bulk.states[at] = RUNNING
            elif state not in ENDS:
                self.stale += 1
            elif bulk.condition.truth is Truth.FALSE:
                self.finish(bulk, at, State.DISCARDED, None, DECIDED_OTHERWISE)
            elif state is State.DONE:
                self._succeeded(bulk, at, report)
            else:
                self._did_not_succeed(bulk, at, report)

    def _succeeded(self, bulk: Bulk, at: int, report: ev.AttemptReport) -> None:
        truth = bulk.condition.truth
        seconds = report.ended - report.began
        if self.speculation.runtimes.wants(bulk.kind):
            self.speculation.ran(bulk.kind, seconds)
        self.fleet.ran(bulk.shape, seconds)
        held = truth is Truth.UNDECIDED
        if report.unpublished:
            self.unpublished.note(report.task, truth)
            held = True
        self.finish(bulk, at, State.HELD if held else State.DONE, report, None)

    def _did_not_succeed(self, bulk: Bulk, at: int, report: ev.AttemptReport) -> None:
        failure = report.failure or unsaid(report.state)
        cause = failure.cause
        if at in bulk.ending or report.state is State.CANCELED or cause is Cause.CANCELED:
            if cause is not Cause.CANCELED:
                failure = Failure(Cause.CANCELED, "it was canceled")
            self.finish(bulk, at, State.CANCELED, report, failure)
        elif report.unpublished and bulk.condition.truth is Truth.TRUE and cause not in (Cause.UNFIT, Cause.PAYLOAD):
            # It ran apart from where it would have run, which may be why: now that it counts, it runs there.
            bulk.tries.pop(at, None)
            self.unbind(bulk, at)
            self._again(bulk, at)
        elif cause is Cause.SPAWNER_DIED and (blamed := suspects.died(bulk, at, failure)) is not None:
            if not bulk.outside and suspects.tries_again(bulk, at):
                self.unbind(bulk, at)
                self._again(bulk, at)
                return
            undecided = bulk.condition.truth is Truth.UNDECIDED
            self.finish(bulk, at, State.HELD_FAILED if undecided else State.FAILED, report, blamed)
        elif self._runs_again(bulk, at, report, cause):
            if cause is Cause.WALLTIME:
                self.pilots[self._bindings[bulk.epochs[at]]].short.add(bulk.shape)
            self.unbind(bulk, at)
            self._again(bulk, at)
        elif bulk.condition.truth is Truth.UNDECIDED and cause not in (Cause.UNFIT, Cause.PAYLOAD):
            self.finish(bulk, at, State.HELD_FAILED, report, failure)
        else:
            self.finish(bulk, at, State.FAILED, report, failure)

    def _runs_again(self, bulk: Bulk, at: int, report: ev.AttemptReport, cause: Cause) -> bool:
        if cause in UNFINISHED or (report.state is State.QUEUED and cause in (Cause.NONE, Cause.DISCARDED)):
            return not (bulk.outside and bulk.states[at] == RUNNING)
        if cause in STRAYS and not bulk.outside and at not in bulk.strays:
            # Somebody else may have killed the worker (the kernel, short of memory): that costs no retry, once.
            bulk.strays.add(at)
            return True
        return cause in RETRYABLE and suspects.tries_again(bulk, at)

    def _again(self, bulk: Bulk, at: int) -> None:
        """Let a task be tried again, under a run number that it never had."""
        bulk.runs[at] = max(bulk.run(at), bulk.base) + 1
        if bulk.asleep:
            # Nobody wants it but those who follow it, and they can run themselves.
            bulk.states[at] = NEW
            self.adoption.left(bulk.first + at)
        else:
            self.queue_one(bulk, at)

    def queue_one(self, bulk: Bulk, at: int) -> None:
        """Queue one task, or let it wait with its bulk for what is missing."""
        truth = bulk.condition.truth
        if truth is Truth.FALSE:
            self.finish(bulk, at, State.DISCARDED, None, DECIDED_OTHERWISE)
        elif bulk.missing or bulk.asleep:
            bulk.states[at] = NEW
        elif truth is Truth.UNDECIDED and self._may_not_speculate(bulk):
            bulk.states[at] = NEW
            if not any(other is bulk for other in bulk.condition.parked):
                bulk.condition.parked.append(bulk)
        elif (failure := self.fleet.unfit(bulk)) is not None:
            self.finish(bulk, at, State.FAILED, None, failure)
        else:
            self._queue(bulk, at, 1)

    def finish(
        self, bulk: Bulk, at: int, state: State, report: ev.AttemptReport | None, failure: Failure | None
    ) -> None:
        """Record an end, tell those who wait for it, and end those who cannot succeed any more."""
        todo = [(bulk, at, state, report, failure)]
        while todo:
            bulk, at, state, report, failure = todo.pop()
            if bulk.states[at] >= DONE:
                continue
            task = bulk.first + at
            if bulk.epochs[at]:
                if report is None and state is not State.DISCARDED:
                    # Of a discard the agent hears with the condition.
                    message = failure.message if failure is not None else ""
                    self._out.append(do.EndAttempts(self._bindings[bulk.epochs[at]], ((task, 1),), message))
                self.unbind(bulk, at)
            if bulk.condition.number and bulk.states[at] < HELD:
                self.speculation.ended(bulk)
            bulk.states[at] = state
            self.count_final(bulk, state)
            if state >= DONE:
                self.unpublished.discard(task)
            self._out.append(do.Record(task, state, report, failure))
            if self.adoption.followers:
                self.adoption.ended(task, state)
            if state in MET:
                self.met(task)
            elif state >= DONE:
                ended, why = inherited(state, failure, task)
                todo.extend(
                    (child, offset, ended, None, why)
                    for child in self._waiters.pop(task, ())
                    for offset in child.unfinished()
                    if child.states[offset] != HELD
                )
                self.requests.arrived(task, self._now)
            if state >= DONE and not (failure is not None and failure.cause is Cause.SUPERSEDED):
                self.requests.asker_ended(task)

    def met(self, task: int) -> None:
        """A task has a value: let those run that waited for it as the last one."""
        for child in self._waiters.pop(task, ()) if self._waiters and task not in self.unpublished else ():
            child.missing -= 1
            if not child.missing:
                self._make_ready(child)
        self.requests.arrived(task, self._now)

    def count_final(self, bulk: Bulk, state: int) -> None:
        """Count one live task of a bulk less when its new state is final."""
        if state >= DONE:
            bulk.live -= 1
            if not bulk.asleep:
                self._live -= 1

    def _end_all(self, bulk: Bulk, state: State, failure: Failure) -> None:
        for at in list(bulk.unfinished()):
            self.finish(bulk, at, state, None, failure)

    def unbind(self, bulk: Bulk, at: int) -> None:
        """Let no attempt be the task's present one."""
        epoch = bulk.epochs[at]
        if epoch:
            bulk.epochs[at] = 0
            bulk.ending.discard(at)
            pilot = self.pilots[self._bindings[epoch]]
            key = (bulk.tier, bulk.shape)
            pilot.bound[key] -= 1

    # --- pilots -------------------------------------------------------------------------------------------------------

    def _pilot_asked(self, event: ev.PilotAsked) -> None:
        self.fleet.asked(event)
        self._refuse_unfit()

    def _agent_ready(self, event: ev.AgentReady) -> None:
        pilot = self.fleet.get(event.pilot)
        if pilot.binding != event.binding:
            begun(self, pilot, event.acted)
            if pilot.binding:
                self._lose(pilot)
            pilot.short.clear()
        self.recovery.heard(event.pilot)
        pilot.active, pilot.binding = True, event.binding
        pilot.nodes, pilot.window = event.nodes, event.window
        pilot.expected = max(pilot.expected, event.expected)
        pilot.conditions.clear()
        self.know(event.binding, pilot)
        suspects.ran(self, event.ran)
        reconcile(self, pilot, event.known)
        begun(self, pilot, event.acted)
        self._refuse_unfit()
        self.requests.pilot_ready(pilot)

    def know(self, binding: int, pilot: Pilot) -> None:
        """Remember which pilot's agent a life is of."""
        self._bindings[binding] = pilot.number

    def _pilot_nodes(self, event: ev.PilotNodes) -> None:
        pilot = self.pilots.get(event.pilot)
        if pilot is not None and pilot.active:
            pilot.nodes = event.nodes
            self._refuse_unfit()

    def _refuse_unfit(self) -> None:
        for bulk in {id(run.bulk): run.bulk for _key, run in self.ready}.values():
            failure = self.fleet.unfit(bulk)
            if failure is not None:
                for at in [i for i in bulk.unfinished() if bulk.states[i] == QUEUED]:
                    self.finish(bulk, at, State.FAILED, None, failure)

    def _pilot_ended(self, event: ev.PilotEnded) -> None:
        self.recovery.heard(event.pilot)
        pilot = self.pilots.get(event.pilot)
        if pilot is not None:
            self._lose(pilot)
            self.requests.pilot_lost(pilot.number)
        if event.final:
            self.fleet.end(event.pilot)
            self._refuse_unfit()

    def _lose(self, pilot: Pilot) -> None:
        """Bind everything anew that the agent's life held; what acts outside and ran is lost."""
        pilot.active, binding = False, pilot.binding
        for bulk in self.tasks if binding else ():
            if not bulk.live:
                continue
            for at in [i for i, epoch in enumerate(bulk.epochs) if epoch == binding]:
                if bulk.epochs[at] != binding:
                    continue  # It ended with another one that it depends on.
                ran = bulk.states[at] == RUNNING
                canceled = at in bulk.ending
                self.unbind(bulk, at)
                if canceled:
                    self.finish(bulk, at, State.CANCELED, None, Failure(Cause.CANCELED, "it was canceled"))
                elif bulk.outside and ran and bulk.condition.truth is not Truth.FALSE:
                    self.finish(bulk, at, State.FAILED, None, LOST)
                else:
                    self._again(bulk, at)
        pilot.binding = 0
        pilot.presumed.clear()
        pilot.bound.clear()
        pilot.conditions.clear()

    def _pump(self) -> None:
        """Bind what is ready, higher ranks and earlier arrivals first, as far as the agents' windows allow."""
        if not self.ready.count:
            return
        active = any(pilot.active for pilot in self.pilots.values())
        blocked = self.recovery.blocked()
        while active and (key := self.ready.next_key(blocked)) is not None:
            run = self.ready.pop(key)
            pilot, credit = self.fleet.choose(run.bulk)
            if pilot is None:
                self.ready.push_back(key, run)
                blocked.add(key)
                continue
            take = min(credit, run.length)
            for offset, count in run.bulk.pieces(run.offset, take, QUEUED):
                self._bind(pilot, run.bulk, offset, count)
            if take < run.length:
                rest = Run(run.arrival, run.bulk, run.offset + take, run.length - take)
                self.ready.push_back(key, rest)

    def _bind(self, pilot: Pilot, bulk: Bulk, offset: int, count: int) -> None:
        bulk.states[offset : offset + count] = bytes((SCHEDULED,)) * count
        for at in range(offset, offset + count):
            bulk.epochs[at] = pilot.binding
        key = (bulk.tier, bulk.shape)
        pilot.bound[key] = pilot.bound.get(key, 0) + count
        self.send(pilot, bulk, offset, count)

    def send(self, pilot: Pilot, bulk: Bulk, offset: int, count: int) -> None:
        """Dispatch tasks of one run that are bound to a pilot, after the condition that they run under."""
        condition, run = bulk.condition, bulk.run(offset)
        self.tell(pilot, condition)
        number, kept = condition.number, 0
        if condition.truth is not Truth.UNDECIDED:
            number, kept = 0, self.requests.kept_for(bulk, pilot.number) if self.requests.lingering else 0
        epoch = bulk.epochs[offset]
        if bulk.deaths:
            suspects.tell(self, pilot.number, bulk, offset, count)
        self._out.append(do.Dispatch(pilot.number, bulk.first + offset, count, epoch, run, number, kept))

    def tell(self, pilot: Pilot, condition: Condition) -> None:
        """Make an undecided condition known to a pilot that was not told of it."""
        if condition.truth is Truth.UNDECIDED and condition.number not in pilot.conditions:
            pilot.conditions.add(condition.number)
            if condition.number in self.speculation.stale:
                self._judge_one(condition)
            self.tell_state(pilot, condition)

    def tell_state(self, pilot: Pilot, condition: Condition) -> None:
        """Tell a pilot the present state and scores of a condition."""
        kinds = self.speculation.scores(condition) if condition.truth is Truth.UNDECIDED else {}
        number, truth, weight = condition.number, condition.truth, condition.weight
        self._out.append(do.TellCondition(pilot.number, number, truth, weight, kinds))

    def _judge(self) -> None:
        """Tell the scores that moved in this step."""
        for condition in list(self.speculation.stale.values()):
            if self._judge_one(condition):
                self._tell_all(condition)

    def _judge_one(self, condition: Condition) -> bool:
        self.speculation.stale.pop(condition.number, None)
        moved = False
        for kind, judgement in self.speculation.judge(condition):
            self._out.append(do.Judged(condition.number, kind, judgement.score, judgement.reason))
            moved = True
        return moved

    # --- conditions ---------------------------------------------------------------------------------------------------

    def _define(self, event: ev.DefineCondition) -> None:
        condition, new = self.conditions.define(event.terms, name=event.name, probability=event.probability)
        self._out.append(do.DefinedCondition(condition.number, event.name))
        if new:
            self._resolve_if_decided(condition)
        if event.probability >= 0:
            self.speculation.expected(condition)

    def _joined(self, first: Condition, second: Condition) -> Condition:
        condition, new = self.conditions.join(first, second)
        if new:
            self._out.append(do.DefinedCondition(condition.number, 0))
            self._resolve_if_decided(condition)
        return condition

    def _resolve_if_decided(self, condition: Condition) -> None:
        if condition.truth is not Truth.UNDECIDED:
            self._out.append(do.Resolve(condition.number, condition.truth))

    def _restore_condition(self, event: ev.RestoreCondition) -> None:
        self.conditions.restore(
            event.terms, event.truth, number=event.number, name=event.name, probability=event.probability
        )

    def _tell_all(self, condition: Condition) -> None:
        for pilot in self.pilots.values():
            if condition.number in pilot.conditions:
                self.tell_state(pilot, condition)

    def _decide(self, decided: list[Condition]) -> None:
        """Tell the agents first; what hangs on it follows in batches."""
        while decided:
            for condition in decided:
                self._tell_all(condition)
                self._out.append(do.Resolve(condition.number, condition.truth))
            for condition in decided:
                self.speculation.decided(condition)
                self._release(condition)
            # A request inside a branch that was not chosen is withdrawn, and that may decide further conditions.
            decided = [further for condition in decided for further in self.requests.resume(condition, self._now)]
        self._work_off()

    def _release(self, condition: Condition) -> None:
        for run in self.ready.take_condition(condition.number):
            if condition.truth is Truth.TRUE:
                self.recovery.push(run.bulk, run.offset, run.length)
        parked, condition.parked = condition.parked, []
        for bulk in parked:
            self._make_ready(bulk)
        self._backlog.extend((condition, bulk, 0) for bulk in condition.bulks)
        condition.bulks = []

    def _work_off(self) -> None:
        budget = BATCH
        while self._backlog and budget > 0:
            condition, bulk, start = self._backlog.popleft()
            stop = min(bulk.count, start + budget)
            budget -= stop - start
            if condition.truth is Truth.TRUE:
                self._commit(bulk, start, stop)
            else:
                self._discard(bulk, start, stop)
            if stop < bulk.count:
                self._backlog.appendleft((condition, bulk, stop))

    def _commit(self, bulk: Bulk, start: int, stop: int) -> None:
        done = []
        for at in range(start, stop):
            state = bulk.states[at]
            if state == HELD and not self.unpublished.commit(bulk.first + at):
                bulk.states[at] = DONE
                self.count_final(bulk, DONE)
                self.requests.asker_ended(bulk.first + at)
                done.append(bulk.first + at)
            elif state == HELD_FAILED:
                # What counts has all its retries: nobody asked for the ones before.
                bulk.tries.pop(at, None)
                self._again(bulk, at)
        if done:
            self._out.append(do.Release(done, State.DONE))

    def _discard(self, bulk: Bulk, start: int, stop: int) -> None:
        released = []
        for at in range(start, stop):
            state = bulk.states[at]
            if state in (HELD, HELD_FAILED):
                bulk.states[at] = DISCARDED
                self.unpublished.discard(bulk.first + at)
                self.count_final(bulk, DISCARDED)
                self._waiters.pop(bulk.first + at, None)
                self.requests.arrived(bulk.first + at, self._now)
                self.requests.asker_ended(bulk.first + at)
                released.append(bulk.first + at)
            elif state < DONE:
                self.finish(bulk, at, State.DISCARDED, None, DECIDED_OTHERWISE)
        if released:
            self._out.append(do.Release(released, State.DISCARDED))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _ask(self, event: ev.AskPeople) -> None:
        self._decide(self.requests.ask(event, self._now))
        for number in self.conditions.naming(event.checkpoint):
            self.speculation.expected(self.conditions.numbered(number))

    def _restore_checkpoint(self, event: ev.RestoreCheckpoint) -> None:
        if event.state is CheckpointState.ANSWERED:
            self.speculation.answers.note(event.ask.name, event.answer)
        self._decide(self.requests.restore(event))

    def _answer(self, event: ev.AnswerGiven) -> None:
        before = self.checkpoints.get(event.checkpoint)
        was_open = before is not None and before.state is CheckpointState.OPEN
        decided = self.requests.answer(event, self._now)
        if was_open and before is not None and before.state is CheckpointState.ANSWERED:
            self.speculation.answered(event.checkpoint, before.answer)
        self._decide(decided)

    def _extend(self, event: ev.ExtendDeadline) -> None:
        self.requests.extend(event, self._now)

    def _use_policy(self, event: ev.UsePolicy) -> None:
        """Let what may speculate now be queued; what may not any more, and is not bound, waits for its answer."""
        if not self.speculation.use(event.policy):
            return
        for condition in [each for each in self.conditions if each.truth is Truth.UNDECIDED]:
            parked, condition.parked = condition.parked, []
            if not self.speculation.policy.speculates:
                for run in self.ready.take_condition(condition.number):
                    for offset, count in run.bulk.pieces(run.offset, run.length, QUEUED):
                        run.bulk.states[offset : offset + count] = bytes((NEW,)) * count
                    parked.append(run.bulk)
            for bulk in {id(bulk): bulk for bulk in parked}.values():
                self._make_ready(bulk)
        self.requests.lend(lends=self.speculation.policy.lends)

    def _withdraw(self, event: ev.WithdrawCheckpoint) -> None:
        self._decide(self.requests.withdraw(event, self._now))

    def _tick(self, _event: ev.Tick) -> None:
        self._decide(self.requests.tick(self._now))
