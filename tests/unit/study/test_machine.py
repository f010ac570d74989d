"""Random stories: everything that can happen to a study, in any order, with every invariant verified at each step."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot_hitl.model.conditions import equals, matches, one_of
from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import NodeInventory, Resources
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import events as ev
from tests.seeds import examples
from tests.unit.study.world import EITHER, NODE, ONE, PAIR, TWO, WIDE, Report, World

ANSWERS = ['"a"', '"b"', "3"]
TERMS = [
    lambda number: equals(number, "a"),
    lambda number: equals(number, "b"),
    lambda number: one_of(number, ["a", 3]),
    lambda number: matches(number, {"minimum": 2}),
]
ENDINGS = st.sampled_from(
    [
        (State.DONE, Cause.NONE),
        (State.DONE, Cause.NONE),
        (State.DONE, Cause.NONE),
        (State.FAILED, Cause.EXIT),
        (State.FAILED, Cause.WORKER_DIED),
        (State.FAILED, Cause.PAYLOAD),
        (State.FAILED, Cause.NODE_LOST),
        (State.QUEUED, Cause.PREEMPTED),
        (State.QUEUED, Cause.NONE),
        (State.CANCELED, Cause.CANCELED),
    ]
)


PILOTS = {1: (0, "a"), 2: (0, "b"), 3: (1, "a")}
"""Pilot -> the one it renews, and its site."""


class Story(RuleBasedStateMachine):
    """One session's life."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.expected = 2
        self.incarnation = 1
        self.numbers = 0
        self.names = 0
        self.history: list[Report] = []
        self.mapped: dict[int, int] = {}
        """Task of an earlier incarnation -> the one that this incarnation submitted under its key."""

    @initialize(window=st.integers(1, 6))
    def begin(self, window: int) -> None:
        self.world.window = window

    # --- clients ------------------------------------------------------------------------------------------------------

    def some_tasks(self, data: Any, most: int) -> list[int]:
        tasks = [first + at for first, (event, _n) in self.world.submits.items() for at in range(event.count)]
        return data.draw(st.lists(st.sampled_from(tasks), max_size=most)) if tasks else []

    def some_condition(self, data: Any) -> int:
        name: int = data.draw(st.sampled_from([0, *self.world.names]))
        return name

    @rule(data=st.data(), count=st.integers(1, 5), outside=st.booleans(), backfill=st.booleans())
    def submit(self, data: Any, count: int, outside: bool, backfill: bool) -> None:
        deps = tuple(self.some_tasks(data, 2))
        first = self.incarnation << 32 | self.numbers
        self.numbers += count
        keys = b"".join(number.to_bytes(16, "big") for number in range(first, first + count))
        self.world.submit(
            first,
            count,
            shape=data.draw(st.sampled_from([ONE, ONE, TWO, WIDE, EITHER])),
            keys=keys,
            deps=deps,
            condition=self.some_condition(data),
            outside=outside and count < 3,
            backfill=backfill,
            retries=data.draw(st.integers(0, 1)),
            priority=data.draw(st.integers(0, 1)),
            pilot=data.draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3])),
            site=data.draw(st.sampled_from(["", "", "", "a", "b"])),
            parent=next(iter(self.some_tasks(data, 1)), 0),
            kind=data.draw(st.integers(0, 2)),
        )

    @precondition(lambda self: self.world.submits)
    @rule()
    def run_the_script_again(self) -> None:
        self.incarnation += 1
        self.numbers = 0
        self.mapped = {}

    @precondition(lambda self: self.incarnation > 1)
    @rule(data=st.data())
    def submit_again(self, data: Any) -> None:
        # An earlier incarnation's bulk, under the same keys; perhaps only a part of it, perhaps elsewhere.
        old = [f for f in self.world.submits if f >> 32 < self.incarnation and f not in self.mapped]
        if not old:
            return
        before = data.draw(st.sampled_from(sorted(old)))
        event, _number = self.world.submits[before]
        first = self.incarnation << 32 | self.numbers
        self.numbers += event.count
        for at in range(event.count):
            self.mapped[before + at] = first + at
        deps = tuple(self.mapped.get(dep, dep) for dep in event.deps)
        condition = data.draw(st.sampled_from([event.condition, event.condition, self.some_condition(data)]))
        self.world.keys[first] = self.world.keys[before]
        keeps = data.draw(st.booleans())
        again = msgspec.structs.replace(event, first=first, deps=deps, condition=condition, keeps_failures=keeps)
        self.world.take(again)

    @rule()
    def retire(self) -> None:
        self.world.retire()

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data())
    def define(self, data: Any) -> None:
        numbers = st.sampled_from(sorted(self.world.asks))
        terms = [
            data.draw(
                st.sampled_from([equals, lambda n, _v: one_of(n, ["a", 3]), lambda n, _v: matches(n, {"minimum": 2})])
            )(data.draw(numbers), data.draw(st.sampled_from(["a", "b"])))
            for _ in range(data.draw(st.integers(1, 2)))
        ]
        self.names += 1
        self.world.define(1 << 40 | self.names, *terms, probability=data.draw(st.sampled_from([-1.0, 0.25])))

    @precondition(lambda self: len(self.world.asks) < 5)
    @rule(data=st.data(), deadline=st.sampled_from([0.0, 0.0, 10.0]), default=st.sampled_from(["", '"a"']))
    def ask(self, data: Any, deadline: float, default: str) -> None:
        self.world.ask(
            max(self.world.asks, default=0) + 1,
            deadline=deadline,
            default=default,
            condition=self.some_condition(data),
            deps=tuple(self.some_tasks(data, 2)),
            reserve=data.draw(st.sampled_from([None, Resources(cores=2)])),
            parent=next(iter(self.some_tasks(data, 1)), 0),
            name=data.draw(st.sampled_from(["mesh", "model"])),
            expected=data.draw(st.sampled_from([(), (('"a"', 0.7), ("3", 0.1))])),
        )

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data(), changed=st.booleans(), on_change=st.sampled_from(["ask", "keep"]))
    def ask_again(self, data: Any, changed: bool, on_change: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.asks)))
        before = self.world.asks[number]
        event = msgspec.structs.replace(
            before,
            fingerprint=before.fingerprint + b"!" if changed else before.fingerprint,
            on_change=on_change,
            condition=data.draw(st.sampled_from([before.condition, self.some_condition(data)])),
            deps=tuple(self.some_tasks(data, 1)),
        )
        was = self.world.core.checkpoints.get(number)
        assert was is not None
        state, generation = was.state, was.generation
        kept = on_change == "keep" and state.closed and state is not CheckpointState.WITHDRAWN
        if changed and kept:
            # As the hub does: what is kept is what the answer was given to.
            event = msgspec.structs.replace(event, fingerprint=before.fingerprint)
        self.world.asks[number] = event
        self.world.step(event)
        again = (changed and not kept) or state is CheckpointState.WITHDRAWN
        assert was.generation == generation + (again and state is not CheckpointState.PENDING)

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data(), value=st.sampled_from(ANSWERS), off=st.sampled_from([-2, -1, 1]))
    def answer_another_version(self, data: Any, value: str, off: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.asks)))
        checkpoint = self.world.core.checkpoints.get(number)
        assert checkpoint is not None
        before = (checkpoint.state, checkpoint.answer, checkpoint.generation, checkpoint.deadline)
        refused = len(self.world.refused)
        self.world.answer(number, value, generation=max(1, checkpoint.generation + off) if off < 0 else 99)
        if off > 0 or checkpoint.generation > 1:
            assert self.world.refused[refused].code == ("unknown" if off > 0 else "asked-again")
            assert (checkpoint.state, checkpoint.answer, checkpoint.generation, checkpoint.deadline) == before

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data(), value=st.sampled_from(ANSWERS), late=st.booleans())
    def answer(self, data: Any, value: str, late: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.asks)))
        checkpoint = self.world.core.checkpoints.get(number)
        assert checkpoint is not None
        was, refused = checkpoint.state, len(self.world.refused)
        in_time = not checkpoint.deadline or self.world.now + 20 * late <= checkpoint.deadline
        self.world.answer(number, value, at=self.world.now + 20 * late)
        if was is CheckpointState.OPEN and in_time:
            assert (checkpoint.state, checkpoint.answer) == (CheckpointState.ANSWERED, value)
            assert len(self.world.refused) == refused
        else:
            assert len(self.world.refused) == refused + 1
            if was is CheckpointState.OPEN:
                assert checkpoint.state is CheckpointState.EXPIRED
                assert checkpoint.answer == checkpoint.ask.default

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data(), only=st.booleans())
    def withdraw(self, data: Any, only: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.asks)))
        self.world.step(ev.WithdrawCheckpoint(number, only))

    @precondition(lambda self: self.world.asks)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 5.0, 50.0]))
    def extend(self, data: Any, seconds: float) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.asks)))
        checkpoint = self.world.core.checkpoints.get(number)
        assert checkpoint is not None
        refused, closed = len(self.world.refused), checkpoint.state.closed
        opened = checkpoint.state is CheckpointState.OPEN
        self.world.step(ev.ExtendDeadline(9, number, seconds))
        assert len(self.world.refused) == refused + closed
        if opened:
            assert checkpoint.deadline == (self.world.now + seconds if seconds else 0.0)

    @rule(policy=st.sampled_from(["block", "backfill", "fifo", "score", "", "no such policy"]))
    def use_policy(self, policy: str) -> None:
        before = self.world.core.speculation.policy.name
        self.world.step(ev.UsePolicy(policy))
        now = self.world.core.speculation.policy.name
        assert now == (policy if policy in ("block", "backfill", "fifo", "score") else before)

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        tasks = self.some_tasks(data, 2)
        self.world.step(ev.CancelTasks(tuple((task, data.draw(st.integers(1, 3))) for task in tasks)))

    @rule(seconds=st.sampled_from([0.5, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        due = self.world.core.next_deadline()
        if self.world.core.backlog or (due is not None and due <= self.world.now):
            self.world.step(ev.Tick())

    # --- agents -------------------------------------------------------------------------------------------------------

    @rule(pilot=st.sampled_from([1, 2, 3]))
    def pilot_is_asked_for(self, pilot: int) -> None:
        if pilot not in self.world.gone:
            self.world.ask_pilot(pilot, *PILOTS[pilot])

    @rule(pilot=st.sampled_from([1, 1, 2, 3]), nodes=st.sampled_from([PAIR, PAIR, (NODE,)]))
    def agent_begins(self, pilot: int, nodes: tuple[NodeInventory, ...]) -> None:
        if pilot not in self.world.gone and pilot not in self.world.agents:
            self.world.ask_pilot(pilot, *PILOTS[pilot])
            self.world.arrive(pilot, nodes=nodes)

    @precondition(lambda self: any(not agent.away for agent in self.world.agents.values()))
    @rule(data=st.data(), nodes=st.sampled_from([PAIR, (NODE,), PAIR[1:], ()]))
    def nodes_change(self, data: Any, nodes: tuple[NodeInventory, ...]) -> None:
        here = [number for number, agent in self.world.agents.items() if not agent.away]
        self.world.has_nodes(data.draw(st.sampled_from(sorted(here))), nodes)

    @precondition(lambda self: self.world.agents)
    @rule(data=st.data(), final=st.sampled_from([False, False, False, True]))
    def agent_ends(self, data: Any, final: bool) -> None:
        self.world.end(data.draw(st.sampled_from(sorted(self.world.agents))), final=final)

    @precondition(lambda self: self.world.agents)
    @rule(data=st.data())
    def agent_comes_back(self, data: Any) -> None:
        agent = self.world.agents[data.draw(st.sampled_from(sorted(self.world.agents)))]
        said = list(agent.known())
        lost = [a for a in said if a[0] in agent.has and self.world.core.state_of(a[0]) is not State.RUNNING]
        if lost and not agent.away:
            # Some dispatches never reached it.
            forgotten = data.draw(st.lists(st.sampled_from(lost), max_size=3))
            said = [attempt for attempt in said if attempt not in forgotten]
        old = [(r.task, r.epoch, r.run) for r in self.history if r.epoch == agent.binding]
        if old:
            # Some acknowledgements never reached it.
            said = sorted({*said, *data.draw(st.lists(st.sampled_from(old), max_size=2))})
        self.world.come_back(agent.pilot, tuple(said))

    @precondition(lambda self: any(agent.awaited for agent in self.world.agents.values()))
    @rule()
    def agents_do_not_come_back_in_time(self) -> None:
        self.world.wait_in_vain()
        assert not any(agent.awaited for agent in self.world.agents.values())

    def held(self) -> list[int]:
        return [t for a in self.world.agents.values() if not a.away for t in a.has if self.is_present(t, a.has[t])]

    def is_present(self, task: int, entry: tuple[int, int, int]) -> bool:
        return self.world.present.get(task) == entry[:2]

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def attempt_runs(self, data: Any) -> None:
        task = data.draw(st.sampled_from(self.held()))
        self.world.report(self.world.begin(task))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), now=st.booleans())
    def attempts_end(self, data: Any, now: bool) -> None:
        reports = []
        for task in data.draw(st.lists(st.sampled_from(self.held()), min_size=1, max_size=4, unique=True)):
            agent = next(a for a in self.world.agents.values() if task in a.has)
            state, cause = data.draw(ENDINGS)
            if state is State.CANCELED and task not in agent.ended:
                state, cause = State.DONE, Cause.NONE
            if task in agent.ended and self.world.core.pilot_of(task) != agent.pilot:
                agent.has.pop(task)
                continue
            report = self.world.over(task, state, cause, left=data.draw(st.booleans()))
            reports.append(report)
            self.history.append(report)
            if not now:
                agent.mail.append(report)
        if now:
            self.world.report(*reports)

    @precondition(lambda self: any(a.mail and not a.away for a in self.world.agents.values()))
    @rule(data=st.data())
    def mail_arrives(self, data: Any) -> None:
        agent = data.draw(st.sampled_from([a for a in self.world.agents.values() if a.mail and not a.away]))
        order = data.draw(st.permutations(agent.mail))
        agent.mail = []
        self.world.report(*order)

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def stale_and_foreign_reports(self, data: Any) -> None:
        old = data.draw(st.sampled_from(self.history))
        wrong = [
            old,
            msgspec.structs.replace(old, epoch=0),
            msgspec.structs.replace(old, epoch=old.epoch + 100),
            msgspec.structs.replace(old, run=old.run + 100),
            msgspec.structs.replace(old, task=99 << 32),
        ]
        report = data.draw(st.sampled_from(wrong))
        pending = any(report in a.mail or report in a.unacknowledged for a in self.world.agents.values())
        if report == old and pending:
            return
        before = self.world.core.stale
        # Nobody sent it, so no agent counts it among what it reported.
        self.world.step(ev.Reported([report]))
        assert self.world.core.stale == before + 1

    @precondition(lambda self: self.world.left)
    @rule(data=st.data(), ok=st.booleans())
    def files_are_in_place(self, data: Any, ok: bool) -> None:
        world = self.world
        # Sometimes twice, or by an agent that was asked by an earlier hub, or although nobody asked.
        task = data.draw(st.sampled_from(sorted({*world.left, *world.to_publish})))
        ready = world.states[task] is State.HELD and world.truth_of(task) is Truth.TRUE
        before = world.core.stale
        world.publish(task, ok=ok)
        if ready:
            assert world.states[task] is (State.DONE if ok else State.FAILED)
        else:
            assert world.core.stale == before + 1

    # --- the hub ------------------------------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.world.commit()

    @precondition(lambda self: self.world.submits)
    @rule(forget=st.booleans(), revive=st.booleans())
    def hub_restarts(self, forget: bool, revive: bool) -> None:
        if not forget:
            self.world.commit()
        self.world.restart()
        self.mapped = {old: new for old, new in self.mapped.items() if self.world.core.tasks.find(new)}
        if revive:
            self.world.step(ev.Revive(self.incarnation))

    @rule(data=st.data())
    def revive(self, data: Any) -> None:
        self.world.step(ev.Revive(data.draw(st.integers(1, self.incarnation))))

    @invariant()
    def backlog_is_worked_off_by_ticks(self) -> None:
        # Not at once: what happens in between is the interesting part.
        assert self.world.core.backlog in (True, False)

    # --- the end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        world = self.world
        for incarnation in range(1, self.incarnation + 1):
            world.step(ev.Revive(incarnation))
        for agent in list(world.agents.values()):
            if agent.away:
                world.come_back(agent.pilot)
        for pilot, facts in PILOTS.items():
            if pilot not in world.agents:
                world.gone.discard(pilot)
                world.ask_pilot(pilot, *facts)
                world.arrive(pilot, nodes=PAIR)
            world.has_nodes(pilot, PAIR)
        world.wait_in_vain()
        for _round in range(400):
            world.settle()
            if not self.everybody_is_honest():
                break
        for bulk in world.core.tasks:
            assert not bulk.live, f"bulk {bulk.first} never ended: {list(bulk.states)}"
        assert not world.core.live
        for checkpoint in world.core.checkpoints:
            assert checkpoint.state.closed
        for pilot_core in world.core.pilots.values():
            assert not any(pilot_core.bound.values())

    def everybody_is_honest(self) -> bool:
        """Answer what is open, end what runs; return whether there was anything."""
        world = self.world
        open_ones = [c.number for c in world.core.checkpoints if c.state is CheckpointState.OPEN]
        for number in open_ones:
            world.answer(number, '"a"', at=0.0)
        ended = []
        for agent in world.agents.values():
            ended += agent.mail
            agent.mail = []
            for task in list(agent.has):
                if task in agent.ended and world.core.pilot_of(task) != agent.pilot:
                    del agent.has[task]
                else:
                    ended.append(world.over(task, left=bool(task % 2)))
        placed = list(world.to_publish)
        for task in placed:
            world.publish(task)
        if not ended and not open_ones and not placed and not world.core.backlog:
            return False
        world.report(*ended)
        return True


Story.TestCase.settings = settings(
    max_examples=examples(150),
    stateful_step_count=40,
    # Shrinking such stories takes minutes; the events that a failing story prints can be read as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestStory = Story.TestCase
