"""The queue of a replica: against a simple model, and single cases."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_hitl_services.queue import ReplicaQueue, Verdict, Waiting
from tests.seeds import examples

MAX_BATCH, MAX_QUEUE = 4, 9


def item(
    name: int, arrived: float = 0.0, *, deadline: float = 0.0, alone: bool = False, condition: int = 0
) -> Waiting[int]:
    return Waiting(name, arrived, deadline=deadline, alone=alone, condition=condition)


class Machine(RuleBasedStateMachine):
    """Everything that was accepted leaves exactly once, in order of its tier."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: ReplicaQueue[int] = ReplicaQueue(MAX_BATCH, 0.0, MAX_QUEUE)
        self.now = 0.0
        self.names = 0
        self.needed: list[Waiting[int]] = []
        self.speculative: list[Waiting[int]] = []
        self.deferred: list[Waiting[int]] = []
        self.closed = False
        self.decided: dict[int, bool] = {}

    def size(self) -> int:
        return len(self.needed) + len(self.speculative) + len(self.deferred)

    @rule(
        speculative=st.booleans(),
        alone=st.booleans(),
        patience=st.sampled_from([0, 0, 1, 3]),
        condition=st.integers(0, 2),
    )
    def add(self, speculative: bool, alone: bool, patience: int, condition: int) -> None:
        self.names += 1
        deadline = self.now + patience if patience else 0.0
        new = item(self.names, self.now, deadline=deadline, alone=alone, condition=condition)
        full = self.size() >= MAX_QUEUE
        verdict, out = self.queue.add(new, speculative=speculative)
        if self.closed:
            assert (verdict, out) == (Verdict.CLOSED, None)
            return
        if condition in self.decided:
            if not self.decided[condition]:
                assert (verdict, out) == (Verdict.DROPPED, None)
                return
            condition, speculative = 0, False
        if full and (speculative or condition or not self.speculative):
            assert (verdict, out) == (Verdict.OVERLOADED, None)
            return
        assert verdict is Verdict.ACCEPTED
        assert (out is not None) == full
        if out is not None:
            assert out is self.speculative.pop(), "the latest speculative one makes room"
        (self.deferred if condition else self.speculative if speculative else self.needed).append(new)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.needed or self.speculative)
    @rule()
    def take(self) -> None:
        due = self.queue.ready_at(self.now)
        assert due is not None
        assert due <= self.now, "what waits is served at once"
        taken = self.queue.take(self.now)
        expected: list[Waiting[int]] = []
        late: list[Waiting[int]] = []
        over = False
        for tier in (self.needed, self.speculative):
            while tier and not over:
                first = tier[0]
                if first.deadline and first.deadline <= self.now:
                    late.append(tier.pop(0))
                elif len(expected) == MAX_BATCH or (first.alone and expected):
                    over = True
                else:
                    expected.append(tier.pop(0))
                    over = first.alone
            over = over or len(expected) == MAX_BATCH
        assert taken.batch == expected
        assert taken.late == late
        assert len(taken.batch) == 1 or not any(each.alone for each in taken.batch)

    @rule(condition=st.integers(1, 2), holds=st.booleans())
    def decide(self, condition: int, holds: bool) -> None:
        self.decided[condition] = holds
        decided = [each for each in self.deferred if each.condition == condition]
        self.deferred = [each for each in self.deferred if each.condition != condition]
        dropped = self.queue.decide(condition, holds=holds)
        assert dropped == ([] if holds else decided)
        if holds:
            self.needed += decided

    @rule(odd=st.booleans())
    def withdraw(self, odd: bool) -> None:
        gone = self.queue.withdraw(lambda name: name % 3 == int(odd))
        both = [*self.needed, *self.speculative, *self.deferred]
        assert sorted(each.what for each in gone) == sorted(e.what for e in both if e.what % 3 == int(odd))
        for kept in (self.needed, self.speculative, self.deferred):
            kept[:] = [each for each in kept if each.what % 3 != int(odd)]

    @precondition(lambda self: self.names > 20)
    @rule()
    def close(self) -> None:
        self.closed = True
        assert sorted(each.what for each in self.queue.close()) == sorted(each.what for each in self.deferred)
        self.deferred = []

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == self.size() <= MAX_QUEUE
        assert (self.queue.ready_at(self.now) is None) == (not self.needed and not self.speculative)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


def test_a_lone_request_is_not_held_unless_that_is_wanted() -> None:
    greedy: ReplicaQueue[int] = ReplicaQueue(8, 0.0, 100)
    greedy.add(item(1, 5.0))
    assert greedy.ready_at(5.0) == 5.0
    patient: ReplicaQueue[int] = ReplicaQueue(2, 0.5, 100)
    patient.add(item(1, 5.0))
    assert patient.ready_at(5.0) == 5.5
    patient.add(item(2, 5.1))
    assert patient.ready_at(5.1) == 5.1, "a full batch waits for nobody"
    hurried: ReplicaQueue[int] = ReplicaQueue(2, 0.5, 100)
    hurried.add(item(1, 5.0, deadline=5.2))
    assert hurried.ready_at(5.0) == 5.2, "not beyond its own deadline"
    closing: ReplicaQueue[int] = ReplicaQueue(2, 0.5, 100)
    closing.add(item(1, 5.0))
    closing.close()
    assert closing.ready_at(5.0) == 5.0, "nobody else will come"


def test_speculative_requests_wait_behind_needed_ones() -> None:
    queue: ReplicaQueue[int] = ReplicaQueue(2, 0.0, 100)
    for name in (1, 2, 3):
        queue.add(item(name), speculative=True)
    for name in (4, 5, 6):
        queue.add(item(name))
    batches = [[each.what for each in queue.take(0.0).batch] for _ in range(3)]
    assert batches == [[4, 5], [6, 1], [2, 3]]
