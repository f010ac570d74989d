"""Verifies the invariants of a study core. Costs time that follows the number of tasks: for tests."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from pilot_hitl.model.resources import places
from pilot_hitl.model.states import CheckpointState, State, Truth

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.core import StudyCore

NEW, QUEUED, SCHEDULED, RUNNING = int(State.NEW), int(State.QUEUED), int(State.SCHEDULED), int(State.RUNNING)
HELD, HELD_FAILED, DONE = int(State.HELD), int(State.HELD_FAILED), int(State.DONE)
STATES = frozenset({NEW, QUEUED, SCHEDULED, RUNNING, HELD, HELD_FAILED, DONE, DONE + 1, DONE + 2, DONE + 3})


class Broken(AssertionError):
    """An invariant does not hold; the message says which, and for what."""


def check(core: StudyCore) -> None:
    """Verify every invariant.

    Raises:
        Broken: one does not hold.
    """
    _Check(core).all()


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


class _Check:
    def __init__(self, core: StudyCore) -> None:
        self.core = core
        self.queued: Counter[int] = Counter()
        """How often each QUEUED task is in a ready run."""
        self.bound: dict[int, Counter[object]] = {}
        self.behind: dict[int, int] = {}
        """From which offset on a bulk waits in the backlog."""
        self.followers: set[int] = set()

    def all(self) -> None:
        core = self.core
        self._ready()
        for condition, bulk, start in core._backlog:  # invariants are looked at from inside
            _must(condition is bulk.condition, f"backlog: bulk {bulk.first} under another condition")
            _must(condition.truth is not Truth.UNDECIDED, f"backlog: condition {condition.number} is undecided")
            _must(id(bulk) not in self.behind, f"backlog: bulk {bulk.first} is there twice")
            self.behind[id(bulk)] = start
        for tasks in core.adoption.followers.values():
            self.followers.update(tasks)
        live = 0
        for bulk in core.tasks:
            self._bulk(bulk)
            live += 0 if bulk.asleep else bulk.live
        _must(core.live == live, f"live is {core.live}, and {live} tasks are")
        self._pilots()
        self._conditions()
        self._checkpoints()
        self._speculation()
        self._nothing_waits_needlessly()
        self._recovery()

    def _ready(self) -> None:
        ready, total = self.core.ready, 0
        for key, run in ready:
            bulk = run.bulk
            total += run.length
            _must(run.length > 0, f"ready: an empty run of bulk {bulk.first}")
            _must(run.offset + run.length <= bulk.count, f"ready: a run beyond bulk {bulk.first}")
            _must(not bulk.asleep, f"ready: bulk {bulk.first} is asleep")
            _must(bulk.condition.truth is not Truth.FALSE, f"ready: bulk {bulk.first} is under a false condition")
            _must(key == ready.key(bulk, inherited=key.inherited), f"ready: bulk {bulk.first} is in the queue {key}")
            for at in range(run.offset, run.offset + run.length):
                if bulk.states[at] == QUEUED:
                    self.queued[bulk.first + at] += 1
        _must(ready.count == total, f"ready: count is {ready.count}, and {total} are there")
        keys = ready.ordered_keys()
        _must(Counter(keys) == Counter({key for key, _run in ready}), "ready: keys and queues differ")
        _must(all(a.rank <= b.rank for a, b in pairwise(keys)), "ready: keys out of order")

    def _bulk(self, bulk: Bulk) -> None:
        core, condition = self.core, bulk.condition
        _must(core.tasks.find(bulk.first) is bulk, f"table: bulk {bulk.first} is not found")
        _must(core.tasks.find(bulk.first + bulk.count - 1) is bulk, f"table: end of bulk {bulk.first} is not found")
        live = sum(state < DONE for state in bulk.states)
        _must(bulk.live == live, f"bulk {bulk.first}: live is {bulk.live}, and {live} tasks are")
        for at, state in enumerate(bulk.states):
            self._task(bulk, at, state)
        decided = condition.truth is not Truth.UNDECIDED
        if bulk.live and condition.number:
            _must(
                decided or any(other is bulk for other in condition.bulks),
                f"bulk {bulk.first}: its condition {condition.number} does not know it",
            )
        if bulk.live and condition.truth is Truth.FALSE:
            _must(id(bulk) in self.behind, f"bulk {bulk.first}: alive under a false condition")
        for dep in bulk.deps:
            parent = core.tasks.find(dep)
            if parent is not None and bulk.live:
                _must(parent.condition.terms <= condition.terms, f"bulk {bulk.first}: its condition misses {dep}'s")
        self._dependencies(bulk)

    def _dependencies(self, bulk: Bulk) -> None:
        core = self.core
        unmet = Counter(
            d
            for d in bulk.deps
            if (s := core.tasks.state_of(d)) is not None and (s not in (HELD, DONE) or d in core.unpublished)
        )
        waiting = {d: sum(b is bulk for b in core._waiters.get(d, ())) for d in set(bulk.deps)}
        pending = any(state in (NEW, QUEUED) for state in bulk.states)
        alive = pending and not bulk.asleep and bulk.condition.truth is not Truth.FALSE
        if alive:
            _must(bulk.missing == unmet.total(), f"bulk {bulk.first}: missing is {bulk.missing}, not {unmet.total()}")
            for dep, times in unmet.items():
                _must(waiting[dep] == times, f"bulk {bulk.first}: waits {waiting[dep]} times for {dep}")
                parent = core.tasks.find(dep)
                _must(parent is not None and not parent.asleep, f"bulk {bulk.first}: waits for {dep}, which sleeps")
        if bulk.asleep:
            _must(bulk.missing == 0, f"bulk {bulk.first}: asleep and waiting")

    def _task(self, bulk: Bulk, at: int, state: int) -> None:
        core, task, epoch = self.core, bulk.first + at, bulk.epochs[at]
        truth = bulk.condition.truth
        late = truth is Truth.FALSE
        _must(state in STATES, f"task {task}: its state is {state}")
        if epoch:
            _must(state in (SCHEDULED, RUNNING), f"task {task}: bound and {State(state).name}")
            pilot = core.pilots.get(core._bindings.get(epoch, 0))
            _must(pilot is not None, f"task {task}: bound to a pilot that is gone")
            assert pilot is not None  # for the type checker
            # An earlier hub may have left word that it runs, and its agent has not been heard yet.
            left = bulk.restored and bulk.outside and state == RUNNING
            _must((pilot.active or left) and pilot.binding == epoch, f"task {task}: bound to an inactive pilot")
            # Nor has this hub said by then whose successor that pilot is, and of which site.
            told = pilot.active or pilot.number in core.fleet._lineages
            admitted = core.fleet.admits(pilot, bulk.pilot, bulk.site) or (left and not told)
            _must(admitted, f"task {task}: pinned to {bulk.pilot} {bulk.site}, bound to {pilot.number} {pilot.site}")
            _must(core.pilot_of(task) == pilot.number, f"task {task}: pilot_of says {core.pilot_of(task)}")
            self.bound.setdefault(pilot.number, Counter())[(bulk.tier, bulk.shape)] += 1
            _must(
                truth is not Truth.UNDECIDED or bulk.condition.number in pilot.conditions,
                f"task {task}: pilot {pilot.number} was not told of condition {bulk.condition.number}",
            )
            _must(not (bulk.outside and truth is Truth.UNDECIDED), f"task {task}: acts outside and speculates")
        else:
            _must(state != RUNNING, f"task {task}: running and not bound")
            if state == SCHEDULED:
                _must(task in self.followers, f"task {task}: scheduled, not bound, and follows nobody")
        _must(epoch != 0 or at not in bulk.ending, f"task {task}: told to end and not bound")
        if state == QUEUED and not late:
            _must(self.queued[task] > 0, f"task {task}: queued and in no ready run")
            _must(bulk.missing == 0, f"task {task}: queued while its bulk waits")
            _must(self.queued[task] == 1 or bulk.runs.get(at) is not None, f"task {task}: queued twice")
        if state == NEW and not bulk.asleep and not late and not bulk.missing:
            parked = any(other is bulk for other in bulk.condition.parked)
            _must(parked, f"task {task}: waits for nothing, and nobody looks at it")
        if state in (HELD, HELD_FAILED) and truth is not Truth.UNDECIDED:
            ahead = self.behind.get(id(bulk))
            behind = ahead is not None and ahead <= at
            asked = state == HELD and truth is Truth.TRUE and task in core.unpublished
            _must(behind or asked, f"task {task}: held under a decided condition")
        _must(state == HELD or task not in core.unpublished, f"task {task}: not held, and to be put in place")
        if state == DONE:
            _must(truth is Truth.TRUE or bulk.restored, f"task {task}: done under a condition that is not true")
        _must(bulk.run(at) >= 0, f"task {task}: run {bulk.run(at)}")

    def _pilots(self) -> None:
        core = self.core
        for number, pilot in core.pilots.items():
            _must(pilot.number == number, f"pilot {number}: is called {pilot.number}")
            counted = {key: count for key, count in pilot.bound.items() if count}
            real = dict(self.bound.get(number, Counter()))
            _must(counted == real, f"pilot {number}: bound is {counted}, and really {real}")
            # An earlier hub may have left word of an agent that has not been heard yet.
            _must(bool(pilot.binding) or not pilot.active, f"pilot {number}: active without a binding")
            if pilot.binding:
                _must(core._bindings[pilot.binding] == number, f"pilot {number}: its binding belongs to another")
            _must(number not in core.fleet.ended, f"pilot {number}: is there, and gone")
            _must(pilot.expected >= len(pilot.nodes), f"pilot {number}: has more nodes than it is to have")
            _must(pilot.lineage <= number, f"pilot {number}: succeeds {pilot.lineage}, which is later")
            # How many it is to have, its agent can say to a hub that has never seen one of its nodes.
            _must(pilot.best is not None or not pilot.nodes, f"pilot {number}: has nodes, and none is the best")
            _must(pilot.best is None or pilot.expected > 0, f"pilot {number}: has seen a node, and is to have none")
            for shape in [*pilot._places]:
                _must(pilot.places(shape) == places(shape, pilot.nodes), f"pilot {number}: places of {shape}")

    def _conditions(self) -> None:
        core = self.core
        for condition in core.conditions:
            _must(core.conditions.numbered(condition.number) is condition, f"condition {condition.number}: misfiled")
            if condition.truth is not Truth.UNDECIDED:
                empty = not (condition.bulks or condition.parked or condition.checkpoints)
                _must(empty, f"condition {condition.number}: decided, and things hang on it")
            for bulk in (*condition.bulks, *condition.parked):
                _must(bulk.condition is condition, f"condition {condition.number}: bulk {bulk.first} is not under it")
            _must(
                len({id(b) for b in condition.bulks}) == len(condition.bulks),
                f"condition {condition.number}: has a bulk twice",
            )

    def _checkpoints(self) -> None:
        core = self.core
        for checkpoint in core.checkpoints:
            name, state = f"checkpoint {checkpoint.number}", checkpoint.state
            _must(state is CheckpointState.OPEN or not checkpoint.deadline, f"{name}: {state.name} with a deadline")
            passes = not state.closed or checkpoint.unreserve_at
            _must(not passes or checkpoint in core.checkpoints.unsettled(), f"{name}: no time passes for it")
            if state is CheckpointState.PENDING and checkpoint not in core.requests.restored:
                inside = checkpoint.inside
                _must(inside.truth is not Truth.FALSE, f"{name}: pending in a branch that was not chosen")
                _must(
                    bool(checkpoint.missing) or inside.truth is Truth.UNDECIDED, f"{name}: pending, and nothing missing"
                )
                if inside.truth is Truth.UNDECIDED:
                    _must(checkpoint.number in inside.checkpoints, f"{name}: its branch does not know it")
                for task in checkpoint.missing or ():
                    value = core.tasks.state_of(task)
                    here = value is not None and (value < HELD or value == HELD_FAILED)
                    _must(here, f"{name}: waits for {task}, which is there")
                    shown = core.requests._shown.get(task, ())
                    _must(checkpoint in shown, f"{name}: task {task} does not know that it is shown")
            if state is CheckpointState.OPEN:
                _must(checkpoint.opened > 0, f"{name}: open since never")
            if checkpoint.reserved_on:
                pilot = core.pilots.get(checkpoint.reserved_on)
                _must(pilot is not None and pilot.active, f"{name}: reserved on a pilot that is not there")
                _must(checkpoint.reserve is not None, f"{name}: reserves nothing")
            elif state is CheckpointState.OPEN and checkpoint.reserve is not None:
                _must(not any(p.active for p in core.pilots.values()), f"{name}: no pilot keeps its reservation")

    def _speculation(self) -> None:
        speculation = self.core.speculation
        _must(not speculation.stale, "speculation: scores are out of date at the end of a step")
        left: Counter[tuple[int, int]] = Counter()
        for bulk in self.core.tasks:
            if bulk.condition.truth is Truth.UNDECIDED and not bulk.outside:
                left[bulk.condition.number, bulk.kind] += sum(1 for _ in bulk.open())
        for number, kinds in speculation._kinds.items():
            undecided = self.core.conditions.numbered(number).truth is Truth.UNDECIDED
            _must(undecided, f"speculation: condition {number} is decided")
            for kind, facts in kinds.items():
                real = left.pop((number, kind), 0)
                _must(facts.left == real, f"speculation: {facts.left} of kind {kind} are left, and really {real}")
        _must(not left.total(), f"speculation: nobody counts {dict(left)}")

    def _recovery(self) -> None:
        core, recovery = self.core, self.core.recovery
        _must(
            recovery._waits == bool(recovery.missing), f"recovery: {recovery.missing} are missing at the end of a step"
        )
        for number in recovery.missing:
            pilot = core.pilots.get(number)
            waits = pilot is not None and (not pilot.active or number in recovery._ending)
            _must(waits, f"recovery: pilot {number} is waited for, and here or gone")

    def _nothing_waits_needlessly(self) -> None:
        core = self.core
        blocked = core.recovery.blocked()
        for key, run in core.ready:
            bulk = run.bulk
            if key in blocked:
                continue
            if QUEUED not in bulk.states[run.offset : run.offset + run.length]:
                continue
            _must(core.fleet.unfit(bulk) is None, f"ready: bulk {bulk.first} waits for a pilot that will never come")
            for pilot in core.pilots.values():
                free = core.fleet.credit(pilot, bulk)
                _must(free <= 0, f"ready: bulk {bulk.first} waits, and pilot {pilot.number} wants {free} more")
            _must(core.fleet.choose(bulk)[0] is None, f"ready: bulk {bulk.first} waits, and somebody would get it")
