"""A small model of everything around a study core: store, agents, clients, people. Drives it and watches it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, cast

import msgspec

from pilot_hitl.model.conditions import Term
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Shape, fits
from pilot_hitl.model.states import CheckpointState, State, Tier, Truth
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.check import check
from pilot_hitl.study.core import StudyCore
from pilot_hitl.study.recovery import GRACE

ONE = Shape()
TWO = Shape(cores=2)
BIG = Shape(cores=64)
WIDE = Shape(ranks=2, cores=4)
"""Needs two nodes."""
EITHER = Shape(gpu_shares=GPU_SHARES, alternatives=(Shape(cores=2),))
"""A GPU, which no pilot here has, or two cores."""
NODE = NodeInventory(name="n1", cores=[0, 1, 2, 3], memory=1000)
PAIR = (NODE, NodeInventory(name="n2", cores=[0, 1, 2, 3], memory=1000))
START = 1000.0
A, B = 1 << 40 | 1, 1 << 40 | 2
CLIENTS = (ev.SubmitTasks, ev.DefineCondition, ev.AskPeople, ev.CancelTasks, ev.WithdrawCheckpoint)


class Report(msgspec.Struct, frozen=True):
    """An attempt report as an agent makes it."""

    task: int
    epoch: int
    run: int
    state: State
    failure: Failure | None = None
    began: float = 0.0
    ended: float = 0.0
    unpublished: str = ""


def schema_test(schema: str, answer: str) -> bool:
    """Understand only ``{"minimum": n}`` and ``{"not": [...]}``."""
    rule = msgspec.json.decode(schema)
    value = msgspec.json.decode(answer)
    if "minimum" in rule:
        return isinstance(value, int) and value >= rule["minimum"]
    return value not in rule.get("not", [])


class Agent:
    """An honest agent: does what it is told, in any order that the test chooses, and says so."""

    def __init__(self, pilot: int, binding: int, window: int) -> None:
        self.pilot, self.binding, self.window = pilot, binding, window
        self.has: dict[int, tuple[int, int, int]] = {}
        """Task -> (epoch, run, condition) of attempts that it holds."""
        self.ended: set[int] = set()
        """Tasks that it was told to end."""
        self.truths: dict[int, Truth] = {}
        self.nodes: tuple[NodeInventory, ...] = (NODE,)
        self.mail: list[Report] = []
        """Reports that are under way."""
        self.unacknowledged: list[Report] = []
        """Reports that reached the hub since its last commit."""
        self.away = False
        """The hub was restarted and the agent has not said hello yet."""
        self.awaited = False
        """Nor was it waited for in vain."""

    def known(self) -> tuple[tuple[int, int, int], ...]:
        """What it says when it comes back: everything that it holds or has not been acknowledged."""
        attempts = {(task, epoch, run) for task, (epoch, run, _c) in self.has.items()}
        return tuple(sorted(attempts | {(r.task, r.epoch, r.run) for r in (*self.mail, *self.unacknowledged)}))

    def end_false(self) -> None:
        """Drop what is under a condition that became false."""
        for task, (_epoch, _run, condition) in list(self.has.items()):
            if self.truths.get(condition) is Truth.FALSE:
                del self.has[task]


class World:
    """A core with its surroundings."""

    def __init__(self, windows: int = 4) -> None:
        self.now = START
        self.lives = 0
        self.window = windows
        self.core = StudyCore(schema_test, recorded=self.recorded)
        self.agents: dict[int, Agent] = {}
        self.bindings = 0
        self.gone: set[int] = set()
        self.asked: dict[int, tuple[int, str]] = {}
        """Pilot -> the first one of its row, and its site."""
        self.expected = 0
        # The store.
        self.submits: dict[int, tuple[ev.SubmitTasks, int]] = {}
        self.keys: dict[int, bytes] = {}
        """First task of a bulk -> its resume keys."""
        self.conditions: dict[int, tuple[tuple[Term, ...], Truth, float]] = {}
        self.names: dict[int, int] = {}
        self.asks: dict[int, ev.AskPeople] = {}
        self.checkpoints: dict[int, do.SaveCheckpoint] = {}
        self.states: dict[int, State] = {}
        self.causes: dict[int, Cause] = {}
        self.deciding: dict[int, Report | None] = {}
        self.left: dict[int, bool] = {}
        """Tasks whose record says that they left what is not in place."""
        # What was seen.
        self.dispatched: Counter[tuple[int, int, int]] = Counter()
        self.present: dict[int, tuple[int, int]] = {}
        self.finals: Counter[int] = Counter()
        self.reasked: Counter[int] = Counter()
        self.expired: Counter[tuple[int, int]] = Counter()
        self.refused: list[do.RefuseAnswer] = []
        self.to_publish: list[int] = []
        """What an agent was asked to put in place, and has not yet."""
        self.out: list[do.Instruction] = []
        self.unwritten: list[ev.Event] = []
        """What clients said since the last commit; they say it again to a new hub."""
        self.bound: dict[int, tuple[int, int, int]] = {}
        """Tasks that act outside -> pilot, agent's life and run to which they were sent; on disk before that."""
        self.restarted = START
        self._writes_first = False
        self._committed: list[Any] = []
        self._restoring = False
        self.commit()

    # --- stepping -----------------------------------------------------------------------------------------------------

    def step(self, event: ev.Event, *, resends: bool = False) -> list[do.Instruction]:
        """Let the core take an event; execute and judge what it wants; verify its invariants."""
        out = self.core.step(event, self.now)
        if isinstance(event, ev.AgentReady):
            if event.pilot in self.agents:
                self.agents[event.pilot].awaited = False
            for task, epoch, run in event.known:
                bulk = self.core.tasks.find(task)
                if bulk is not None and (bulk.epochs[task - bulk.first], bulk.run(task - bulk.first)) == (epoch, run):
                    self.present[task] = (epoch, run)
        if isinstance(event, CLIENTS) and not self._restoring:
            self.unwritten.append(event)
        for instruction in out:
            if isinstance(instruction, do.Dispatch):
                self._dispatch(instruction, resends=resends)
            else:
                name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(instruction).__name__).lower()
                getattr(self, f"_do_{name}")(instruction)
        check(self.core)
        self.out = out
        self._unbind(event)
        if self._writes_first and not isinstance(event, ev.SubmitTasks):
            self.commit()
        if not self._restoring:
            self._judge()
        return out

    def _unbind(self, event: ev.Event) -> None:
        """Note what the hub notes of tasks that act outside."""
        if isinstance(event, ev.Reported):
            for report in event.reports:
                if report.state is State.QUEUED and self.bound.get(report.task, ())[1:] == (report.epoch, report.run):
                    del self.bound[report.task]
        elif isinstance(event, ev.PilotEnded) or (isinstance(event, ev.AgentReady) and not event.known):
            binding = event.binding if isinstance(event, ev.AgentReady) else 0
            self.bound = {
                task: sent for task, sent in self.bound.items() if sent[0] != event.pilot or sent[1] == binding
            }

    def _judge(self) -> None:
        for task, state in self.states.items():
            seen = self.core.state_of(task)
            assert seen is state or (state is State.HELD_FAILED and seen is not None and seen < State.HELD), task
        for agent in self.agents.values():
            if not agent.away:
                self._judge_agent(agent)

    def _judge_agent(self, agent: Agent) -> None:
        for task, (epoch, run, number) in agent.has.items():
            if task in agent.ended:
                continue
            others = [a for a in self.agents.values() if a is not agent and not a.away and a.has.get(task)]
            twice = any(a.has[task][:2] == (epoch, run) for a in others)
            assert not twice, f"two agents have attempt {epoch, run} of {task}"
            bulk = self.core.tasks.find(task)
            assert bulk is not None, f"nobody told the agent that {task} is unknown"
            at = task - bulk.first
            if bulk.condition.truth is Truth.FALSE and bulk.states[at] < State.DONE:
                continue
            assert (bulk.epochs[at], bulk.run(at)) == (epoch, run), f"nobody told the agent that {task} is over"
            truth = self.core.conditions.numbered(number).truth
            assert truth is Truth.UNDECIDED or not number or agent.truths.get(number) is truth, "agent was not told"

    def wait_in_vain(self) -> None:
        """Let time pass until nobody is waited for who has not come back."""
        while self.core.recovery.missing:
            self.now += 1.0
            self.step(ev.Tick())

    def settle(self) -> None:
        """Let the backlog be worked off."""
        while self.core.backlog:
            self.step(ev.Tick())

    def _do_run_apart(self, order: do.RunApart) -> None:
        assert all(self.core.pilot_of(task) == order.pilot for task in order.tasks), "only what is sent there"

    def _dispatch(self, order: do.Dispatch, *, resends: bool) -> None:
        core, agent = self.core, self.agents[order.pilot]
        assert order.epoch == agent.binding
        bulk = core.tasks.find(order.first)
        assert bulk is not None
        assert bulk is core.tasks.find(order.first + order.count - 1), "a dispatch spans bulks"
        condition = core.conditions.numbered(order.condition)
        assert core.pilots[order.pilot].active, "dispatched to a pilot without an agent"
        assert self.may_run(bulk.pilot, bulk.site, order.pilot), "dispatched to a pilot that was not asked for"
        assert resends or fits(bulk.shape, agent.nodes), "dispatched to nodes that cannot hold it"
        assert bulk.condition.truth is not Truth.FALSE, "dispatched under a false condition"
        if order.condition:
            assert core.speculation.policy.speculates or resends, "dispatched ahead of an answer under such a policy"
            assert not order.kept, "kept for what is not needed yet"
            assert condition is bulk.condition
            assert order.condition in agent.truths, "the agent was not told of the condition first"
            assert not bulk.outside, "acts outside and speculates"
        else:
            assert bulk.condition.truth is Truth.TRUE
            kept = core.checkpoints.get(order.kept)
            assert not order.kept or (kept is not None and kept.state.closed and kept.reserved_on == order.pilot)
        for dep in bulk.deps:
            state = core.state_of(dep)
            parent = core.tasks.find(dep)
            assert parent is not None
            assert state is State.DONE or (state is State.HELD and parent.condition.terms <= bulk.condition.terms), dep
            assert not self.left.get(dep), f"dispatched before what {dep} left is in place"
        most = self.agents[order.pilot].window * (2 if bulk.tier == Tier.SPECULATIVE else 1)
        again = False
        for task in range(order.first, order.first + order.count):
            attempt = (task, order.epoch, order.run)
            assert not self.elsewhere(task, order.pilot), f"{task} may be running on another pilot"
            again = again or attempt in self.dispatched
            assert attempt not in self.dispatched or resends, f"attempt {attempt} was given twice"
            self.dispatched[attempt] += 1
            assert self.states.get(task, State.NEW) in (State.NEW, State.HELD_FAILED), "dispatched after its end"
            if bulk.outside:
                others = [a.has[task][:2] for a in self.agents.values() if task in a.has and task not in a.ended]
                assert not set(others) - {(order.epoch, order.run)}, f"{task} acts outside and may run twice"
                self.bound[task] = (order.pilot, order.epoch, order.run)
                self._writes_first = True
            agent.has[task] = (order.epoch, order.run, order.condition)
            agent.ended.discard(task)
            self.present[task] = (order.epoch, order.run)
        if not resends:
            assert core.pilots[order.pilot].bound[bulk.tier, bulk.shape] <= most, "beyond the agent's window"

    def elsewhere(self, task: int, pilot: int) -> bool:
        """Whether an agent that may still reconnect to this hub holds a live attempt of a task, or its result."""
        for agent in self.agents.values():
            if agent.awaited and agent.pilot != pilot and task not in agent.ended:
                done = [(r.epoch, r.run) for r in agent.mail if r.task == task and r.state is State.DONE]
                if self.present.get(task) in [*done, agent.has.get(task, (0, 0))[:2]]:
                    return True
        return False

    def _do_recovery_ended(self, order: do.RecoveryEnded) -> None:
        awaited = {agent.pilot for agent in self.agents.values() if agent.awaited}
        assert set(order.missing) == awaited, f"pilots {awaited} are missing, not {order.missing}"
        assert not awaited or self.now >= self.restarted + GRACE, "given up too soon"
        for agent in self.agents.values():
            agent.awaited = False

    def _do_tell_condition(self, order: do.TellCondition) -> None:
        agent = self.agents.get(order.pilot)
        if agent is not None:
            agent.truths[order.condition] = order.truth
            agent.end_false()

    def _do_judged(self, order: do.Judged) -> None:
        assert order.score >= 0, f"a score of {order.score}"
        assert order.reason, f"condition {order.condition} was judged without a reason"
        assert order.condition in self.conditions, f"judged: condition {order.condition} was never announced"

    def _do_end_attempts(self, order: do.EndAttempts) -> None:
        agent = self.agents.get(order.pilot)
        if agent is not None:
            for first, count in order.runs:
                agent.ended.update(set(range(first, first + count)) & set(agent.has))

    def _do_record(self, order: do.Record) -> None:
        if isinstance(order.report, Report):
            attempt = (order.report.epoch, order.report.run)
            assert self.present.get(order.task) == attempt, f"a stale attempt {attempt} was recorded for {order.task}"
        if order.failure is not None and order.report is None and order.failure.cause is Cause.PILOT_ENDED:
            self._judge_pilots(order.task)
        if order.state.final:
            self.left.pop(order.task, None)
        elif order.state is State.HELD and isinstance(order.report, Report) and order.report.unpublished:
            self.left[order.task] = True
        self._record(order.task, order.state)
        self.deciding[order.task] = cast("Report | None", order.report)
        self.causes[order.task] = order.failure.cause if order.failure is not None else Cause.NONE

    def may_run(self, pin: int, site: str, pilot: int) -> bool:
        """Whether a task that asks for a pilot and a site may run on a pilot."""
        here = self.asked.get(pilot, (0, ""))[1]
        return site in ("", here) and (pin in (0, pilot) or (pin < pilot and self._row(pin) == self._row(pilot)))

    def _row(self, pilot: int) -> int:
        before = self.asked.get(pilot, (0, ""))[0]
        return self._row(before) if before else pilot

    def _judge_pilots(self, task: int) -> None:
        """A task ended for want of its pilot: there is none left that could have taken it."""
        bulk = self.core.tasks.find(task)
        assert bulk is not None
        if bulk.pilot or bulk.site:
            left = [p for p in self.core.pilots if self.may_run(bulk.pilot, bulk.site, p)]
            assert not left or bulk.outside, f"{task} was given up, and {left} might have taken it"

    def _do_reuse(self, order: do.Reuse) -> None:
        if order.state in (State.FAILED, State.HELD_FAILED):
            assert self.states.get(order.source) in (State.FAILED, State.HELD_FAILED), "kept what did not fail"
            self.causes[order.task] = self.causes[order.source]
        else:
            assert self.states.get(order.source) in (State.DONE, State.HELD), "reused what has no result"
        if self.left.get(order.source):
            self.left[order.task] = True
        self._record(order.task, order.state)

    def _do_publish(self, order: do.Publish) -> None:
        for task in order.tasks:
            assert self.left.get(task), f"{task} left nothing"
            assert self.states[task] is State.HELD
            assert self.truth_of(task) is Truth.TRUE, "its files are wanted in place before it counts"
            self.to_publish.append(task)

    def publish(self, task: int, *, ok: bool = True) -> list[do.Instruction]:
        """An agent put in place what a task left, or could not."""
        self.to_publish = [each for each in self.to_publish if each != task]
        return self.step(ev.Published(task, None if ok else Failure(Cause.SETUP, "the disk is full")))

    def _do_release(self, order: do.Release) -> None:
        for task in order.tasks:
            before = self.states.get(task)
            assert order.state is not State.DONE or not self.left.get(task), f"{task} counts before its files"
            if order.state is State.DONE:
                assert before is State.HELD
            else:
                assert before in (State.HELD, State.HELD_FAILED)
            self._record(task, order.state)

    def _record(self, task: int, state: State) -> None:
        assert self.finals[task] == 0, f"{task} has a final record already"
        truth = self.truth_of(task)
        if state is State.DONE:
            assert truth is Truth.TRUE, "done under a condition that is not true"
        if state is State.DISCARDED:
            assert truth is Truth.FALSE, "discarded, and its condition is not false"
        if truth is Truth.FALSE:
            assert state in (State.DISCARDED, State.CANCELED, State.FAILED)
        self.finals[task] += state.final
        self.states[task] = state

    def truth_of(self, task: int) -> Truth:
        """The truth of a task's condition as it was told so far: a step may go on to decide it."""
        bulk = self.core.tasks.find(task)
        assert bulk is not None
        known = self.conditions.get(bulk.condition.number)
        return bulk.condition.truth if known is None else known[1]

    def _do_resolve(self, order: do.Resolve) -> None:
        assert order.truth is not Truth.UNDECIDED
        terms, before, probability = self.conditions[order.condition]
        assert before in (Truth.UNDECIDED, order.truth), "a condition changed its mind"
        self.conditions[order.condition] = (terms, order.truth, probability)

    def _do_defined_condition(self, order: do.DefinedCondition) -> None:
        condition = self.core.conditions.numbered(order.condition)
        before = self.conditions.get(order.condition)
        truth = before[1] if before else Truth.UNDECIDED
        self.conditions[order.condition] = (tuple(condition.terms), truth, condition.probability)
        if order.name:
            self.names[order.name] = order.condition

    def _do_save_checkpoint(self, order: do.SaveCheckpoint) -> None:
        before = self.checkpoints.get(order.checkpoint)
        if before is not None and before.state.closed and before.generation == order.generation:
            assert (order.state, order.answer) == (before.state, before.answer), "a closed request changed"
        if order.state is CheckpointState.EXPIRED and (before is None or before.state is not CheckpointState.EXPIRED):
            self.expired[order.checkpoint, order.generation] += 1
            assert self.expired[order.checkpoint, order.generation] == 1, "a deadline fired twice"
        self.checkpoints[order.checkpoint] = order

    def _do_refuse_answer(self, order: do.RefuseAnswer) -> None:
        self.refused.append(order)

    def _do_keep_reservation(self, order: do.KeepReservation) -> None:
        pass

    # --- what clients do ----------------------------------------------------------------------------------------------

    def submit(self, first: int, count: int = 1, *, keys: bytes = b"", **fields: Any) -> list[do.Instruction]:
        """Submit a bulk."""
        self.keys[first] = keys
        return self.take(ev.SubmitTasks(first, count, fields.pop("shape", ONE), **fields))

    def define(self, name: int, *terms: Term, probability: float = -1.0) -> list[do.Instruction]:
        """Define a condition."""
        return self.step(ev.DefineCondition(name, terms, probability))

    def ask(self, number: int, **fields: Any) -> list[do.Instruction]:
        """Ask people."""
        event = ev.AskPeople(number, 1, **fields)
        self.asks[number] = event
        return self.step(event)

    def answer(
        self, number: int, value: str, at: float | None = None, token: int = 7, generation: int = 0
    ) -> list[do.Instruction]:
        """Answer the question as it is now, or another generation of it."""
        known = self.core.checkpoints.get(number)
        generation = generation or (known.generation if known is not None else 1)
        return self.step(ev.AnswerGiven(token, number, generation, value, self.now if at is None else at))

    # --- what agents do -----------------------------------------------------------------------------------------------

    def ask_pilot(self, pilot: int, lineage: int = 0, site: str = "") -> None:
        """A pilot is asked for."""
        self.asked[pilot] = (lineage, site)
        self.step(ev.PilotAsked(pilot, lineage, site))

    def arrive(
        self,
        pilot: int = 1,
        window: int = 0,
        nodes: tuple[NodeInventory, ...] = (NODE,),
        acted: tuple[tuple[int, int, int], ...] | None = None,
    ) -> Agent:
        """A new agent's life begins; it says what acts outside and had begun in earlier ones."""
        self.bindings += 1
        agent = self.agents[pilot] = Agent(pilot, self.bindings, window or self.window)
        agent.nodes = nodes
        self.step(ev.AgentReady(pilot, agent.binding, nodes, (), agent.window, self.expected, acted=acted))
        return agent

    def has_nodes(self, pilot: int, nodes: tuple[NodeInventory, ...]) -> list[do.Instruction]:
        """Nodes of a pilot are lost, or come."""
        self.agents[pilot].nodes = nodes
        return self.step(ev.PilotNodes(pilot, nodes))

    def come_back(self, pilot: int, known: tuple[tuple[int, int, int], ...] | None = None) -> None:
        """An agent reports for duty again."""
        agent = self.agents[pilot]
        agent.truths.clear()
        said = agent.known() if known is None else known
        agent.away = False
        agent.has = {task: entry for task, entry in agent.has.items() if (task, *entry[:2]) in said}
        event = ev.AgentReady(pilot, agent.binding, agent.nodes, said, agent.window, self.expected)
        self.step(event, resends=True)
        agent.mail, agent.unacknowledged = [*agent.unacknowledged, *agent.mail], []

    def end(self, pilot: int, *, final: bool = False) -> None:
        """A pilot, or its agent's life, ends."""
        self.agents.pop(pilot, None)
        self.gone |= {pilot} if final else set()
        self.step(ev.PilotEnded(pilot, final))

    def report(self, *reports: Report) -> list[do.Instruction]:
        """Reports reach the hub."""
        for report in reports:
            for agent in self.agents.values():
                if agent.binding == report.epoch and report not in agent.unacknowledged:
                    agent.unacknowledged.append(report)
        return self.step(ev.Reported(list(reports)))

    def begin(self, task: int) -> Report:
        """Return the report that a task runs."""
        epoch, run = self.present[task]
        return Report(task, epoch, run, State.RUNNING)

    def over(self, task: int, state: State = State.DONE, cause: Cause = Cause.NONE, *, left: bool = False) -> Report:
        """Return the report of an end; the agent forgets the task. ``left``: it left something besides its value."""
        epoch, run = self.present[task]
        ahead = any(agent.has[task][2] for agent in self.agents.values() if task in agent.has)
        for agent in self.agents.values():
            agent.has.pop(task, None)
            agent.ended.discard(task)
        failure = Failure(cause, "why") if cause else None
        folder = f"/tasks/{task}.{epoch}.{run}" if left and ahead else ""
        return Report(task, epoch, run, state, failure, unpublished=folder)

    # --- the hub is killed and starts again ---------------------------------------------------------------------------

    def commit(self) -> None:
        """Everything so far is on disk."""
        store = (self.submits, self.conditions, self.names, self.asks, self.checkpoints, self.states, self.left)
        self._committed = [dict(table) for table in (*store, self.bound)]
        self._writes_first = False
        self.unwritten = []
        for agent in self.agents.values():
            agent.unacknowledged = []

    def restart(self) -> None:
        """Make a new core from what was written; what was not is lost."""
        self.lives += 1
        self._restoring = True
        tables = [dict(table) for table in self._committed]
        self.submits, self.conditions, self.names, self.asks, self.checkpoints, self.states, self.left, self.bound = (
            tables
        )
        self.to_publish = []
        self.finals = Counter({task: 1 for task, state in self.states.items() if state.final})
        self.expired = Counter({(c.checkpoint, c.generation): 1 for c in self.checkpoints.values() if c.state == 3})
        self.core = StudyCore(schema_test, 1000 * self.lives, self.recorded)
        names: dict[int, list[int]] = {}
        for name, number in self.names.items():
            names.setdefault(number, []).append(name)
        for number in sorted(self.conditions):
            terms, truth, probability = self.conditions[number]
            for name in [*names.get(number, []), 0]:
                self.step(ev.RestoreCondition(name, terms, truth, probability, number))
        for number, saved in sorted(self.checkpoints.items()):
            self.step(
                ev.RestoreCheckpoint(
                    self.asks[number],
                    saved.state,
                    saved.answer,
                    saved.opened,
                    saved.generation,
                    saved.reopened,
                    saved.deadline,
                )
            )
        for first in sorted(self.submits):
            self.step(self._restored(first))
        lives: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for task, (pilot, binding, run) in self.bound.items():
            lives.setdefault((pilot, binding), []).append((task, run))
        for (pilot, binding), attempts in sorted(lives.items()):
            self.step(ev.RestoreBindings(pilot, binding, tuple(attempts)))
        for agent in self.agents.values():
            agent.away = True
            # What the old hub did not write, the agent reports again to the new one.
            agent.mail, agent.unacknowledged = [*agent.unacknowledged, *agent.mail], []
            self.step(ev.PilotAsked(agent.pilot, *self.asked.get(agent.pilot, (0, ""))))
        for pilot in self.gone:
            self.step(ev.PilotEnded(pilot, final=True))
        self.restarted = self.now
        for agent in self.agents.values():
            agent.awaited = True
            self.step(ev.AgentExpected(agent.pilot))
        self._restoring = False
        again, self.unwritten = self.unwritten, []
        for event in again:
            if isinstance(event, ev.SubmitTasks):
                self.take(msgspec.structs.replace(event, resent=True))
            elif isinstance(event, ev.AskPeople):
                self.asks[event.checkpoint] = event
                self.step(event)
            else:
                self.step(event)

    def take(self, event: ev.SubmitTasks) -> list[do.Instruction]:
        """Submit a bulk, perhaps again."""
        new = self.core.tasks.find(event.first) is None
        out = self.step(msgspec.structs.replace(event, sources=self._sources(event.first)))
        bulk = self.core.tasks.find(event.first)
        assert bulk is not None
        if new:
            self.submits[event.first] = (msgspec.structs.replace(event, resent=False), bulk.condition.number)
        if self._writes_first:
            self.commit()
        return out

    def _sources(self, first: int) -> tuple[tuple[int, int], ...]:
        """What the store finds under the keys of a bulk, in no order."""
        wanted = {key: at for at, key in enumerate(_split(self.keys.get(first, b"")))}
        others = [other for other in self.submits if other >> 32 != first >> 32]
        found = [(key, other + at) for other in others for at, key in enumerate(_split(self.keys.get(other, b"")))]
        return tuple((wanted[key], source) for key, source in found if key in wanted)

    def _restored(self, first: int) -> ev.RestoreTasks:
        submit, number = self.submits[first]
        states = bytes(self.states.get(task, State.NEW) for task in range(first, first + submit.count))
        left = tuple(task for task in range(first, first + submit.count) if self.left.get(task))
        return ev.RestoreTasks(msgspec.structs.replace(submit, condition=number), states, left)

    def recorded(self, task: int) -> ev.RestoreTasks | None:
        """The bulk of a task as the store has it."""
        bulks = [first for first, (event, _n) in self.submits.items() if first <= task < first + event.count]
        return self._restored(bulks[0]) if bulks else None

    def retire(self) -> None:
        """Everything is on disk; what has ended is forgotten by the core."""
        self.commit()
        self.core.tasks.retire(list(self.core.tasks))
        check(self.core)

    def live_incarnations(self) -> set[int]:
        """Incarnations that ever submitted."""
        return {first >> 32 for first in self.submits}


def task(number: int, incarnation: int = 1) -> int:
    """An id."""
    return incarnation << 32 | number


def kinds(out: list[do.Instruction]) -> list[str]:
    """The names of instructions."""
    return [type(instruction).__name__ for instruction in out]


def only(out: list[do.Instruction], kind: type[Any]) -> list[Any]:
    """The instructions of one kind."""
    return [instruction for instruction in out if isinstance(instruction, kind)]


def _split(keys: bytes) -> list[bytes]:
    return [keys[at : at + 16] for at in range(0, len(keys), 16)]


def keys(*numbers: int) -> bytes:
    """Resume keys."""
    return b"".join(number.to_bytes(16, "big") for number in numbers)


def state_of(world: World, number: int) -> CheckpointState:
    """The recorded state of a checkpoint."""
    return world.checkpoints[number].state


def again(world: World) -> None:
    """Write everything and start the hub again."""
    world.commit()
    world.restart()
