"""The study core: tasks, dependencies, conditions, checkpoints, attempts and bindings, as one state machine.

It has no clock, socket, file or thread. :meth:`StudyCore.step` takes an event and the time and returns what is to be
done; the hub does it. Rules that it keeps (``docs/specs/task-and-attempt.md``, ``condition-and-commit.md``):

* a task gets one final record; a report of an attempt that is not the task's present one changes nothing;
* a task is bound only when all it depends on is DONE, or HELD under a condition that its own implies;
* nothing under an undecided condition is recorded as final, except a cancellation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from pilot_hitl.model.conditions import SchemaTest
from pilot_hitl.model.failures import RETRYABLE, UNFINISHED, Cause, Failure
from pilot_hitl.model.states import CheckpointState, State, Tier, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.bulk import Bulk, Table
from pilot_hitl.study.checkpoints import Checkpoint, Checkpoints, refusal
from pilot_hitl.study.conditions import Condition, Conditions
from pilot_hitl.study.pilots import Pilot, fits
from pilot_hitl.study.ready import Key, Ready, Run

NEW, QUEUED, SCHEDULED, RUNNING = int(State.NEW), int(State.QUEUED), int(State.SCHEDULED), int(State.RUNNING)
HELD, HELD_FAILED, DONE = int(State.HELD), int(State.HELD_FAILED), int(State.DONE)
DISCARDED, CANCELED = int(State.DISCARDED), int(State.CANCELED)
MET = (HELD, DONE)
BATCH = 2000
"""How many tasks of a decided condition are handled in one step; the rest waits in the backlog."""
LOST = Failure(Cause.PILOT_ENDED, "its pilot ended while it ran")


class StudyCore:
    """What exists and what is true in one session."""

    def __init__(self, schema_test: SchemaTest) -> None:
        """Start empty. ``schema_test(schema, answer)`` says whether an answer (both canonical JSON) is valid."""
        self.tasks = Table()
        self.conditions = Conditions(schema_test)
        self.checkpoints = Checkpoints()
        self.pilots: dict[int, Pilot] = {}
        self.ready = Ready()
        self.stale = 0
        """Reports that changed nothing, because their attempt is not the task's present one."""
        self._out: list[do.Instruction] = []
        self._now = 0.0
        self._waiters: dict[int, list[Bulk]] = {}
        self._shown: dict[int, list[Checkpoint]] = {}
        self._bindings: dict[int, int] = {}
        self._keys: dict[bytes, int] = {}
        self._followers: dict[int, list[int]] = {}
        self._backlog: deque[tuple[Condition, Bulk, int]] = deque()
        self._live = 0
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.SubmitTasks: self._submit,
            ev.RestoreTasks: self._restore,
            ev.Revive: self._revive,
            ev.CancelTasks: self._cancel,
            ev.DefineCondition: self._define,
            ev.RestoreCondition: self._restore_condition,
            ev.AgentReady: self._agent_ready,
            ev.PilotAsked: self._pilot_asked,
            ev.PilotEnded: self._pilot_ended,
            ev.Reported: self._reported,
            ev.AskPeople: self._ask,
            ev.RestoreCheckpoint: self._restore_checkpoint,
            ev.AnswerGiven: self._answer,
            ev.WithdrawCheckpoint: self._withdraw,
            ev.Tick: self._tick,
        }

    # --- the face of the machine --------------------------------------------------------------------------------------

    def step(self, event: ev.Event, now: float) -> list[do.Instruction]:
        """Let something happen and return what is to be done, in this order.

        ``now`` is in seconds and never goes back. Raises nothing for anything that a peer can cause.
        """
        self._now = now
        self._handlers[type(event)](event)
        self._pump()
        out, self._out = self._out, []
        return out

    @property
    def backlog(self) -> bool:
        """Whether a :class:`~pilot_hitl.study.events.Tick` would do more work at once."""
        return bool(self._backlog)

    @property
    def live(self) -> int:
        """Tasks without a final state that somebody wants."""
        return self._live

    def next_deadline(self) -> float | None:
        """Return when a Tick is due, None when nothing waits for time."""
        return self.checkpoints.next_deadline()

    def state_of(self, task: int) -> State | None:
        """Return the state of a task as recorded or last heard, None for an unknown task."""
        bulk = self.tasks.find(task)
        return None if bulk is None else State(bulk.states[task - bulk.first])

    def pilot_of(self, task: int) -> int:
        """Return the pilot that a task is bound to, 0 for none."""
        bulk = self.tasks.find(task)
        epoch = bulk.epochs[task - bulk.first] if bulk is not None else 0
        return self._bindings.get(epoch, 0)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _submit(self, event: ev.SubmitTasks) -> None:
        try:
            condition = self.conditions.named(event.condition)
        except KeyError:
            condition = self.conditions.always
        blocker: Failure | None = None
        for dep in event.deps:
            parent = self.tasks.find(dep)
            if parent is None:
                blocker = Failure(Cause.DEPENDENCY, "it depends on a task that was never submitted")
                continue
            condition = self._define_joined(condition, parent.condition)
        bulk = Bulk(event, condition)
        try:
            self.tasks.add(bulk)
        except ValueError:
            return  # A resend after a lost connection: it is here already.
        self._live += bulk.count
        if blocker is None and self.conditions.contradictory(condition):
            blocker = Failure(Cause.DEPENDENCY, "it would need two different answers to one checkpoint")
        if blocker is None:
            blocker = self._unfit(bulk)
        if blocker is not None:
            self._end_all(bulk, State.FAILED, blocker)
            return
        self._enroll(bulk)
        if self._keys and event.keys:
            self._claim(bulk, event.keys)
        self._wait_for_deps(bulk)

    def _enroll(self, bulk: Bulk) -> None:
        if bulk.condition.truth is Truth.UNDECIDED:
            bulk.condition.bulks.append(bulk)
        elif bulk.condition.truth is Truth.FALSE:
            self._backlog.append((bulk.condition, bulk, 0))

    def _wait_for_deps(self, bulk: Bulk) -> None:
        for dep in bulk.deps:
            parent = self.tasks.find(dep)
            if parent is None:
                continue
            state = parent.states[dep - parent.first]
            if state in MET:
                continue
            if state >= DONE:
                self._end_all(bulk, *_inherited(State(state)))
                return
            bulk.missing += 1
            self._waiters.setdefault(dep, []).append(bulk)
        if not bulk.missing:
            self._make_ready(bulk)

    def _make_ready(self, bulk: Bulk) -> None:
        truth = bulk.condition.truth
        if truth is Truth.FALSE or bulk.asleep:
            return
        if truth is Truth.UNDECIDED and bulk.outside:
            bulk.condition.parked.append(bulk)
            return
        for offset, count in list(bulk.pieces(0, bulk.count, NEW)):
            self._queue(bulk, offset, count)

    def _queue(self, bulk: Bulk, offset: int, count: int) -> None:
        bulk.states[offset : offset + count] = bytes((QUEUED,)) * count
        self.ready.push(bulk, offset, count)

    def _unfit(self, bulk: Bulk) -> Failure | None:
        """Return why no pilot could ever hold it. While a pilot's size is unknown, nobody can say."""
        candidates = [p for p in self.pilots.values() if bulk.pilot in (0, p.number)]
        if not candidates or any(not p.nodes or fits(bulk.shape, p.nodes) for p in candidates):
            return None
        return Failure(Cause.UNFIT, f"no pilot of the session could ever hold {describe(bulk)}; ask for a larger pilot")

    def _claim(self, bulk: Bulk, keys: bytes) -> None:
        """Take over what earlier incarnations made under the same keys."""
        for offset in range(bulk.count):
            source = self._keys.get(keys[16 * offset : 16 * offset + 16])
            if source is not None:
                self._claim_one(bulk, offset, source)

    def _claim_one(self, bulk: Bulk, offset: int, source: int) -> None:
        parent = self.tasks.find(source)
        if parent is None:
            return
        at = source - parent.first
        state = parent.states[at]
        same = parent.condition is bulk.condition
        if state == DONE or (state == HELD and same):
            bulk.states[offset] = state
            self._count_final(bulk, state)
            self._out.append(do.Reuse(bulk.first + offset, source, State(state)))
            self._met(bulk.first + offset)
        elif state < HELD and parent.epochs[at] and same:
            bulk.states[offset] = SCHEDULED
            self._followers.setdefault(source, []).append(bulk.first + offset)
        elif state < DONE:
            self._finish(parent, at, State.CANCELED, None, Failure(Cause.SUPERSEDED, "the script submitted it anew"))

    def _restore(self, event: ev.RestoreTasks) -> None:
        tasks = event.tasks
        condition = self.conditions.named(tasks.condition)
        bulk = Bulk(tasks, condition)
        bulk.states[:] = event.states
        bulk.live = sum(1 for _ in bulk.unfinished())
        bulk.asleep = True
        self.tasks.add(bulk)
        for offset in range(len(tasks.keys) // 16):
            state = bulk.states[offset]
            if state <= DONE and state != HELD_FAILED:
                self._keys[tasks.keys[16 * offset : 16 * offset + 16]] = bulk.first + offset

    def _revive(self, event: ev.Revive) -> None:
        for bulk in self.tasks.of(event.incarnation):
            if bulk.asleep:
                bulk.asleep = False
                self._live += bulk.live
                self._enroll(bulk)
                self._wait_for_deps(bulk)

    def _cancel(self, event: ev.CancelTasks) -> None:
        ends: dict[int, list[tuple[int, int]]] = {}
        failure = Failure(Cause.CANCELED, event.reason or "it was canceled")
        for first, count in event.runs:
            for bulk, offset, length in self.tasks.overlapping(first, count):
                for at in range(offset, offset + length):
                    self._cancel_one(bulk, at, failure, ends)
        for pilot, runs in ends.items():
            self._out.append(do.EndAttempts(pilot, _merged(runs), failure.message))

    def _cancel_one(self, bulk: Bulk, at: int, failure: Failure, ends: dict[int, list[tuple[int, int]]]) -> None:
        if bulk.states[at] >= DONE:
            return
        epoch = bulk.epochs[at]
        if not epoch:
            self._finish(bulk, at, State.CANCELED, None, failure)
        elif at not in bulk.ending:
            bulk.ending.add(at)
            ends.setdefault(self._bindings[epoch], []).append((bulk.first + at, 1))

    # --- reports of attempts ------------------------------------------------------------------------------------------

    def _reported(self, event: ev.Reported) -> None:
        find = self.tasks.find
        for report in event.reports:
            bulk = find(report.task)
            if bulk is None:
                self.stale += 1
                continue
            at = report.task - bulk.first
            if bulk.epochs[at] != report.epoch or bulk.states[at] >= HELD or bulk.runs.get(at, 0) != report.run:
                self.stale += 1
                continue
            state = report.state
            if state is State.DONE:
                self._succeeded(bulk, at, report)
            elif state is State.RUNNING:
                bulk.states[at] = RUNNING
            else:
                self._did_not_succeed(bulk, at, report)

    def _succeeded(self, bulk: Bulk, at: int, report: ev.AttemptReport) -> None:
        undecided = bulk.condition.truth is Truth.UNDECIDED
        self._finish(bulk, at, State.HELD if undecided else State.DONE, report, None)

    def _did_not_succeed(self, bulk: Bulk, at: int, report: ev.AttemptReport) -> None:
        failure = report.failure or Failure(Cause.PILOT_ENDED, "the agent gave it back")
        cause = failure.cause
        if at in bulk.ending or cause is Cause.CANCELED:
            if failure.cause is not Cause.CANCELED:
                failure = Failure(Cause.CANCELED, "it was canceled")
            self._finish(bulk, at, State.CANCELED, report, failure)
        elif self._runs_again(bulk, at, report, cause):
            self._unbind(bulk, at)
            self._again(bulk, at)
        elif bulk.condition.truth is Truth.UNDECIDED and cause not in (Cause.UNFIT, Cause.PAYLOAD):
            self._finish(bulk, at, State.HELD_FAILED, report, failure)
        else:
            self._finish(bulk, at, State.FAILED, report, failure)

    def _runs_again(self, bulk: Bulk, at: int, report: ev.AttemptReport, cause: Cause) -> bool:
        if report.state is State.QUEUED and (cause in UNFINISHED or cause in (Cause.NONE, Cause.DISCARDED)):
            return not (bulk.outside and bulk.states[at] == RUNNING)
        if cause is Cause.WORKER_DIED and not bulk.outside and at not in bulk.strays:
            # Somebody else may have killed the worker (the kernel, short of memory): that costs no retry, once.
            bulk.strays.add(at)
            return True
        tries = bulk.tries.get(at, 0)
        if cause in RETRYABLE and tries < bulk.retries:
            bulk.tries[at] = tries + 1
            return True
        return False

    def _again(self, bulk: Bulk, at: int) -> None:
        bulk.runs[at] = bulk.runs.get(at, 0) + 1
        self._queue(bulk, at, 1)

    def _finish(
        self, bulk: Bulk, at: int, state: State, report: ev.AttemptReport | None, failure: Failure | None
    ) -> None:
        """Record an end, tell those who wait for it, and end those who cannot succeed any more."""
        todo = [(bulk, at, state, report, failure)]
        while todo:
            bulk, at, state, report, failure = todo.pop()
            if bulk.states[at] >= DONE:
                continue
            task = bulk.first + at
            self._unbind(bulk, at)
            bulk.states[at] = state
            self._count_final(bulk, state)
            self._out.append(do.Record(task, state, report, failure))
            for follower in self._followers.pop(task, ()) if self._followers else ():
                self._follow(follower, task, state, failure)
            if state in MET:
                self._met(task)
            elif state >= DONE:
                ended, why = _inherited(state)
                todo.extend(
                    (child, offset, ended, None, why)
                    for child in self._waiters.pop(task, ())
                    for offset in child.unfinished()
                )
                self._show_without(task)

    def _follow(self, follower: int, source: int, state: State, failure: Failure | None) -> None:
        bulk = self.tasks.find(follower)
        if bulk is None or bulk.states[follower - bulk.first] >= DONE:
            return
        if state in MET:
            bulk.states[follower - bulk.first] = state
            self._count_final(bulk, state)
            self._out.append(do.Reuse(follower, source, state))
            self._met(follower)
        else:
            self._queue(bulk, follower - bulk.first, 1)

    def _met(self, task: int) -> None:
        for child in self._waiters.pop(task, ()) if self._waiters else ():
            child.missing -= 1
            if not child.missing:
                self._make_ready(child)
        self._show_without(task)

    def _show_without(self, task: int) -> None:
        for checkpoint in self._shown.pop(task, ()) if self._shown else ():
            checkpoint.missing -= 1
            self._open_if_possible(checkpoint)

    def _count_final(self, bulk: Bulk, state: int) -> None:
        if state >= DONE:
            bulk.live -= 1
            if not bulk.asleep:
                self._live -= 1

    def _end_all(self, bulk: Bulk, state: State, failure: Failure) -> None:
        for at in list(bulk.unfinished()):
            self._finish(bulk, at, state, None, failure)

    def _unbind(self, bulk: Bulk, at: int) -> None:
        epoch = bulk.epochs[at]
        if epoch:
            bulk.epochs[at] = 0
            bulk.ending.discard(at)
            pilot = self.pilots[self._bindings[epoch]]
            key = (bulk.tier, bulk.shape)
            pilot.bound[key] -= 1

    # --- pilots -------------------------------------------------------------------------------------------------------

    def _pilot_asked(self, event: ev.PilotAsked) -> None:
        self.pilots.setdefault(event.pilot, Pilot(event.pilot))

    def _agent_ready(self, event: ev.AgentReady) -> None:
        pilot = self.pilots.setdefault(event.pilot, Pilot(event.pilot))
        if pilot.binding and pilot.binding != event.binding:
            self._lose(pilot)
        pilot.active, pilot.binding = True, event.binding
        pilot.nodes, pilot.window = event.nodes, event.window
        pilot.conditions.clear()
        self._bindings[event.binding] = pilot.number
        self._reconcile(pilot, event.known)
        self._refuse_unfit()
        for checkpoint in self.checkpoints:
            if checkpoint.state is CheckpointState.OPEN:
                self._reserve(checkpoint)

    def _reconcile(self, pilot: Pilot, known: Iterable[tuple[int, int, int]]) -> None:
        """Decide who wins, as ``docs/specs/reconnect.md`` tells it."""
        held = {}
        ends = []
        for task, epoch, run in known:
            bulk = self.tasks.find(task)
            at = task - bulk.first if bulk else 0
            if bulk is None or bulk.states[at] >= HELD or bulk.epochs[at] not in (0, epoch):
                ends.append((task, 1))
                continue
            held[task] = True
            if not bulk.epochs[at]:
                self._adopt(pilot, bulk, at, epoch, run)
        if ends:
            self._out.append(do.EndAttempts(pilot.number, _merged(ends), "the hub recorded another end"))
        for bulk in self.tasks:
            for at in [i for i, e in enumerate(bulk.epochs) if e == pilot.binding and bulk.first + i not in held]:
                self._send(pilot, bulk, at, 1)

    def _adopt(self, pilot: Pilot, bulk: Bulk, at: int, epoch: int, run: int) -> None:
        self._bindings.setdefault(epoch, pilot.number)
        bulk.epochs[at] = epoch
        bulk.states[at] = SCHEDULED
        if run:
            bulk.runs[at] = run
        key = (bulk.tier, bulk.shape)
        pilot.bound[key] = pilot.bound.get(key, 0) + 1
        self._tell(pilot, bulk.condition)

    def _refuse_unfit(self) -> None:
        for bulk in {id(run.bulk): run.bulk for _key, run in self.ready}.values():
            failure = self._unfit(bulk)
            if failure is not None:
                for at in [i for i in bulk.unfinished() if bulk.states[i] == QUEUED]:
                    self._finish(bulk, at, State.FAILED, None, failure)

    def _pilot_ended(self, event: ev.PilotEnded) -> None:
        pilot = self.pilots.get(event.pilot)
        if pilot is None:
            return
        self._lose(pilot)
        for checkpoint in self.checkpoints:
            if checkpoint.reserved_on == pilot.number:
                checkpoint.reserved_on = 0
        if event.final:
            del self.pilots[event.pilot]
            self._refuse_unfit()

    def _lose(self, pilot: Pilot) -> None:
        """Bind everything anew that the agent's life held; what acts outside and ran is lost."""
        bindings = {binding for binding, number in self._bindings.items() if number == pilot.number}
        for bulk in self.tasks:
            if not bulk.live:
                continue
            for at in [i for i, epoch in enumerate(bulk.epochs) if epoch in bindings]:
                ran = bulk.states[at] == RUNNING
                canceled = at in bulk.ending
                self._unbind(bulk, at)
                if canceled:
                    self._finish(bulk, at, State.CANCELED, None, Failure(Cause.CANCELED, "it was canceled"))
                elif bulk.outside and ran:
                    self._finish(bulk, at, State.FAILED, None, LOST)
                else:
                    self._again(bulk, at)
        pilot.active, pilot.binding = False, 0
        pilot.bound.clear()
        pilot.conditions.clear()

    def _pump(self) -> None:
        """Bind what is ready, higher ranks and earlier arrivals first, as far as the agents' windows allow."""
        if not self.ready.count:
            return
        active = [pilot for pilot in self.pilots.values() if pilot.active]
        blocked: set[Key] = set()
        while active and (key := self._next_key(blocked)) is not None:
            run = self.ready.pop(key)
            pilot, credit = self._choose(active, run.bulk)
            if pilot is None:
                self.ready.push_back(key, run)
                blocked.add(key)
                continue
            take = min(credit, run.count)
            for offset, count in run.bulk.pieces(run.offset, take, QUEUED):
                self._bind(pilot, run.bulk, offset, count)
            if take < run.count:
                rest = Run(run.arrival, run.bulk, run.offset + take, run.count - take)
                self.ready.push_back(key, rest)

    def _next_key(self, blocked: set[Key]) -> Key | None:
        best: Key | None = None
        arrival = 0
        for key in self.ready.keys():
            if key in blocked:
                continue
            if best is not None and key.rank != best.rank:
                break
            head = self.ready.head(key)
            if head is not None and (best is None or head.arrival < arrival):
                best, arrival = key, head.arrival
        return best

    def _choose(self, active: list[Pilot], bulk: Bulk) -> tuple[Pilot | None, int]:
        best: Pilot | None = None
        most = 0
        for pilot in active:
            if bulk.pilot not in (0, pilot.number):
                continue
            credit = pilot.credit(bulk.tier, bulk.shape)
            if bulk.tier == Tier.SPECULATIVE and bulk.condition.truth is Truth.TRUE:
                # Committed work must not wait behind a window full of guesses.
                credit += pilot.window
            if credit > most and fits(bulk.shape, pilot.nodes):
                best, most = pilot, credit
        return best, most

    def _bind(self, pilot: Pilot, bulk: Bulk, offset: int, count: int) -> None:
        bulk.states[offset : offset + count] = bytes((SCHEDULED,)) * count
        for at in range(offset, offset + count):
            bulk.epochs[at] = pilot.binding
        key = (bulk.tier, bulk.shape)
        pilot.bound[key] = pilot.bound.get(key, 0) + count
        self._send(pilot, bulk, offset, count)

    def _send(self, pilot: Pilot, bulk: Bulk, offset: int, count: int) -> None:
        self._tell(pilot, bulk.condition)
        run = bulk.runs.get(offset, 0)
        number = bulk.condition.number if bulk.condition.truth is Truth.UNDECIDED else 0
        self._out.append(do.Dispatch(pilot.number, bulk.first + offset, count, bulk.epochs[offset], run, number))

    def _tell(self, pilot: Pilot, condition: Condition) -> None:
        if condition.truth is Truth.UNDECIDED and condition.number not in pilot.conditions:
            pilot.conditions.add(condition.number)
            self._out.append(do.TellCondition(pilot.number, condition.number, condition.truth, condition.score))

    # --- conditions ---------------------------------------------------------------------------------------------------

    def _define(self, event: ev.DefineCondition) -> None:
        condition, new = self.conditions.define(event.terms, name=event.name, probability=event.probability)
        self._out.append(do.DefinedCondition(condition.number, event.name))
        if not new and event.probability >= 0:
            self._tell_all(condition)

    def _define_joined(self, first: Condition, second: Condition) -> Condition:
        condition, new = self.conditions.join(first, second)
        if new:
            self._out.append(do.DefinedCondition(condition.number, 0))
        return condition

    def _restore_condition(self, event: ev.RestoreCondition) -> None:
        condition, _new = self.conditions.define(event.terms, name=event.name, probability=event.probability)
        condition.truth = event.truth

    def _tell_all(self, condition: Condition) -> None:
        for pilot in self.pilots.values():
            if condition.number in pilot.conditions:
                message = do.TellCondition(pilot.number, condition.number, condition.truth, condition.score)
                self._out.append(message)

    def _decide(self, decided: list[Condition]) -> None:
        """Tell the agents first; what hangs on it follows in batches."""
        for condition in decided:
            self._tell_all(condition)
            self._out.append(do.Resolve(condition.number, condition.truth))
        for condition in decided:
            for run in self.ready.take_condition(condition.number):
                if condition.truth is Truth.TRUE:
                    self.ready.push(run.bulk, run.offset, run.count)
            parked, condition.parked = condition.parked, []
            for bulk in parked:
                self._make_ready(bulk)
            self._backlog.extend((condition, bulk, 0) for bulk in condition.bulks)
            condition.bulks = []
        for condition in decided:
            inside, condition.checkpoints = condition.checkpoints, []
            for number in inside:
                self._resume_checkpoint(number, condition.truth)
        self._work_off()

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
            if state == HELD:
                bulk.states[at] = DONE
                self._count_final(bulk, DONE)
                done.append(bulk.first + at)
            elif state == HELD_FAILED:
                self._again(bulk, at)
        if done:
            self._out.append(do.Release(done, State.DONE))

    def _discard(self, bulk: Bulk, start: int, stop: int) -> None:
        released = []
        failure = Failure(Cause.DISCARDED, "the person decided otherwise")
        for at in range(start, stop):
            state = bulk.states[at]
            if state in (HELD, HELD_FAILED):
                bulk.states[at] = DISCARDED
                self._count_final(bulk, DISCARDED)
                released.append(bulk.first + at)
            elif state < DONE:
                self._finish(bulk, at, State.DISCARDED, None, failure)
        if released:
            self._out.append(do.Release(released, State.DISCARDED))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _ask(self, event: ev.AskPeople) -> None:
        checkpoint = self.checkpoints.get(event.checkpoint) if event.checkpoint else None
        if checkpoint is None:
            checkpoint = self.checkpoints.add(event)
        elif checkpoint.state is CheckpointState.WITHDRAWN or (
            event.on_change == "ask" and checkpoint.fingerprint != event.fingerprint
        ):
            self.conditions.reopen(checkpoint.number)
            checkpoint.ask_again(event)
        else:
            checkpoint.asker = event.asker
            if checkpoint.state is not CheckpointState.PENDING:
                self._save(checkpoint)
                return
            checkpoint.missing = 0
        condition = self.conditions.named(event.condition)
        for dep in event.deps:
            state = self.state_of(dep)
            if state is not None and state < State.HELD:
                checkpoint.missing += 1
                self._shown.setdefault(dep, []).append(checkpoint)
        if condition.truth is Truth.UNDECIDED:
            condition.checkpoints.append(checkpoint.number)
        elif condition.truth is Truth.FALSE:
            self._close(checkpoint, CheckpointState.WITHDRAWN, "")
            return
        self._open_if_possible(checkpoint)
        if checkpoint.state is CheckpointState.PENDING:
            self._save(checkpoint)

    def _restore_checkpoint(self, event: ev.RestoreCheckpoint) -> None:
        checkpoint = self.checkpoints.add(event.ask)
        checkpoint.state, checkpoint.answer = event.state, event.answer
        checkpoint.opened, checkpoint.generation = event.opened, event.generation
        if event.state is CheckpointState.OPEN:
            checkpoint.open(event.opened)
        elif event.state in (CheckpointState.ANSWERED, CheckpointState.EXPIRED) and event.answer:
            self.conditions.answer(checkpoint.number, event.answer)
        elif event.state is CheckpointState.PENDING:
            condition = self.conditions.named(event.ask.condition)
            if condition.truth is Truth.UNDECIDED:
                condition.checkpoints.append(checkpoint.number)
        elif event.state.closed:
            self.conditions.close(checkpoint.number)

    def _open_if_possible(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state is not CheckpointState.PENDING or checkpoint.missing:
            return
        if self.conditions.named(checkpoint.condition).truth is not Truth.TRUE:
            return
        checkpoint.open(self._now)
        self._save(checkpoint)
        self._reserve(checkpoint)

    def _resume_checkpoint(self, number: int, truth: Truth) -> None:
        checkpoint = self.checkpoints.get(number)
        if checkpoint is None or checkpoint.state is not CheckpointState.PENDING:
            return
        if truth is Truth.TRUE:
            self._open_if_possible(checkpoint)
        else:
            self._close(checkpoint, CheckpointState.WITHDRAWN, "")

    def _answer(self, event: ev.AnswerGiven) -> None:
        checkpoint = self.checkpoints.get(event.checkpoint)
        if checkpoint is not None and checkpoint.state is CheckpointState.OPEN:
            if checkpoint.deadline and event.at > checkpoint.deadline:
                self._expire(checkpoint)
            else:
                self._close(checkpoint, CheckpointState.ANSWERED, event.value, event.token)
                return
        code, message = refusal(checkpoint)
        self._out.append(do.RefuseAnswer(event.token, event.checkpoint, event.value, code, message))

    def _withdraw(self, event: ev.WithdrawCheckpoint) -> None:
        checkpoint = self.checkpoints.get(event.checkpoint)
        if checkpoint is None:
            return
        if event.reservation_only:
            self._unreserve(checkpoint)
        elif not checkpoint.state.closed:
            self._close(checkpoint, CheckpointState.WITHDRAWN, "")

    def _expire(self, checkpoint: Checkpoint) -> None:
        self._close(checkpoint, CheckpointState.EXPIRED, checkpoint.default)

    def _close(self, checkpoint: Checkpoint, state: CheckpointState, answer: str, token: int = 0) -> None:
        checkpoint.close(state, answer, self._now)
        self._save(checkpoint, token)
        if answer:
            self._decide(self.conditions.answer(checkpoint.number, answer))
        else:
            self._decide(self.conditions.close(checkpoint.number))

    def _save(self, checkpoint: Checkpoint, token: int = 0) -> None:
        self._out.append(
            do.SaveCheckpoint(
                checkpoint.number,
                checkpoint.state,
                checkpoint.answer,
                checkpoint.opened,
                checkpoint.deadline,
                checkpoint.generation,
                token,
            )
        )

    def _reserve(self, checkpoint: Checkpoint) -> None:
        if checkpoint.reserve is None or checkpoint.reserved_on:
            return
        for pilot in self.pilots.values():
            if pilot.active:
                checkpoint.reserved_on = pilot.number
                message = do.KeepReservation(pilot.number, checkpoint.number, checkpoint.reserve)
                self._out.append(message)
                return

    def _unreserve(self, checkpoint: Checkpoint) -> None:
        checkpoint.unreserve_at = 0.0
        if checkpoint.reserved_on:
            self._out.append(do.KeepReservation(checkpoint.reserved_on, checkpoint.number, None))
            checkpoint.reserved_on = 0
        checkpoint.reserve = None

    def _tick(self, _event: ev.Tick) -> None:
        for checkpoint in self.checkpoints.due(self._now):
            self._expire(checkpoint)
        for checkpoint in self.checkpoints.lapsed(self._now):
            self._unreserve(checkpoint)
        self._work_off()


def describe(bulk: Bulk) -> str:
    """Return a bulk's resource request in words."""
    shape = bulk.shape
    parts = [f"{shape.ranks} × {shape.cores} core{'s' if shape.cores != 1 else ''}"]
    if shape.gpu_shares:
        parts.append(f"{shape.gpu_shares / 10_000:g} GPU a rank")
    if shape.memory:
        parts.append(f"{shape.memory} MB a rank")
    return " with ".join(parts[:2]) + (f" and {parts[2]}" if len(parts) > 2 else "")


def _inherited(state: State) -> tuple[State, Failure]:
    """Return how a task ends whose dependency ended so."""
    if state is State.DISCARDED:
        return State.DISCARDED, Failure(Cause.DISCARDED, "the person decided otherwise")
    verb = "was canceled" if state is State.CANCELED else "failed"
    return State.FAILED, Failure(Cause.DEPENDENCY, f"a task that it depends on {verb}")


def _merged(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, count in sorted(runs):
        if merged and merged[-1][0] + merged[-1][1] == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + count)
        else:
            merged.append((first, count))
    return tuple(merged)
