"""The agent's ledger: whatever happens, every core is accounted for once at every moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ledger import Account
from pilot_hitl.wire.node import Change, ChangeKind
from pilot_hitl_agent.ledger import LONGEST, OWN, Entry, Ledger, bits, key_of

NODES = (3, 2)
BEGAN = 1_000_000.0
CLOSE = 1e-5
"""Seconds: sums of doubles near a million round off."""
NEEDED = key_of(Account.NEEDED)


class Known(NamedTuple):
    tier: int = int(Account.NEEDED)
    condition: int = 0


def booked(change: Change) -> tuple[int, bool]:
    """Tasks above 1000 run under condition 7; a failure is one to ask the hub about."""
    key = key_of(Account.SPECULATIVE, 7) if change.task > 1000 else NEEDED
    return key, change.failure is not None


def ended(task: int, times: tuple[float, float], failure: Failure | None = None) -> Change:
    return Change(task, 1, 1, ChangeKind.FINISHED, 0, b"", failure, *times)


def started(task: int, after: int) -> Change:
    return Change(task, 1, 1, ChangeKind.STARTED, after)


def seconds(entries: Sequence[Entry]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for entry in entries:
        account = Account(entry.key & 7)
        if not account.in_sum:
            found[account.name] += entry.busy
            continue
        found["busy"] += entry.busy
        found["overhead"] += entry.overhead
        found["idle"] += entry.idle
        found["reserved"] += entry.reserved
    return found


class OneCore:
    """A ledger of one core whose agent was ready after a second."""

    def __init__(self, cores: int = 1) -> None:
        self.ledger = Ledger({0: cores}, BEGAN)
        self.ledger.ready(BEGAN + 1)

    def hear(self, now: float, *changes: Change, condition: int = 0) -> None:
        tasks = {change.task: Known(condition=condition) for change in changes}
        self.ledger.hear(0, list(changes), tasks, booked, BEGAN + now)
        self.ledger.settle(0, BEGAN + now)

    def end(self, now: float) -> list[Entry]:
        self.ledger.end(BEGAN + now)
        return self.ledger.take()


def at(began: float, finished: float) -> tuple[float, float]:
    return BEGAN + began, BEGAN + finished


def test_what_lies_between_placing_and_freeing_but_is_not_busy_is_overhead() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 2)
    one.hear(6, ended(5, at(3, 5)))
    entries = one.end(10)
    assert seconds(entries) == pytest.approx({"busy": 2, "overhead": 1 + 1 + 1, "idle": 1 + 4, "reserved": 0})
    named = next(entry for entry in entries if entry.attempt[0] == 5)
    assert (named.began, named.ended, named.busy, named.overhead) == pytest.approx((BEGAN + 2, BEGAN + 5, 2, 1))


def test_thousands_of_short_calls_are_a_few_entries() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 1, BEGAN + 1)
    for call in range(1, 10_000):
        when = 1 + call * 1e-3
        one.hear(when + 1e-3, ended(call, at(when, when + 4e-4)), started(call + 1, call))
    entries = one.end(12)
    assert len(entries) < 12
    assert sum(entry.attempts for entry in entries) == 10_000  # the last is still there: it is lost
    assert seconds(entries)["busy"] >= 9_999 * 4e-4 - CLOSE
    assert all(entry.ended - entry.began <= LONGEST + OWN for entry in entries)


def test_a_suspended_attempt_uses_no_core_and_its_time_before_is_told_when_it_ended() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 2)
    one.hear(4, Change(5, 1, 1, ChangeKind.SUSPENDED))
    one.ledger.placed(0, 1, 6, BEGAN + 4)
    one.hear(7, ended(6, at(5, 7)))
    one.hear(8, Change(5, 1, 1, ChangeKind.RESUMED))
    one.hear(9, ended(5, at(3, 9)))
    found = seconds(one.end(10))
    # Of attempt 5: 3…4 and 8…9, of attempt 6: 5…7.
    assert found == pytest.approx(
        {"busy": 1 + 1 + 2, "overhead": 1 + 1 + 1, "idle": 1 + 1 + 1, "reserved": 0, "SUSPENDED": 4}
    )
    assert not one.ledger.faults


def test_the_cores_of_a_lender_belong_to_the_borrower() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 1)
    one.ledger.lending(0, frozenset({5}), BEGAN + 3)
    one.ledger.placed(0, 1, 1006, BEGAN + 3)
    one.hear(5, ended(1006, at(3.5, 5)), condition=7)
    one.ledger.lending(0, frozenset(), BEGAN + 5)
    one.hear(9, ended(5, at(1.5, 9)))
    entries = one.end(9)
    found = seconds(entries)
    assert found["LENT"] == pytest.approx(2)
    assert found["busy"] == pytest.approx((3 - 1.5) + (5 - 3.5) + (9 - 5))
    speculative = sum(entry.busy for entry in entries if entry.key == key_of(Account.SPECULATIVE, 7))
    assert speculative == pytest.approx(1.5)
    assert sum(found[row] for row in ("busy", "overhead", "idle", "reserved")) == pytest.approx(9)
    assert not one.ledger.faults


def test_free_cores_that_a_reservation_keeps_are_a_row_of_their_own() -> None:
    one = OneCore(2)
    one.ledger.reserve(0, 0b10, BEGAN + 2)
    one.ledger.placed(0, 0b01, 5, BEGAN + 2)
    one.ledger.reserve(0, 0b11, BEGAN + 4)
    one.hear(6, ended(5, at(2, 6)))
    one.ledger.reserve(0, 0, BEGAN + 9)
    found = seconds(one.end(10))
    assert found == pytest.approx({"busy": 4, "overhead": 2, "idle": 2 + 2, "reserved": 7 + 3})


def test_an_overlap_is_a_fault_and_shows_in_the_sum() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 1)
    one.hear(6, ended(5, at(1, 4)), started(6, 5), ended(6, at(3, 6)))
    found = seconds(one.end(6))
    assert one.ledger.faults == 1
    assert one.ledger.fault_seconds == pytest.approx(1)
    assert [fault.task for fault in one.ledger.described] == [6]
    assert sum(found.values()) == pytest.approx(6 + 1)


def test_what_took_over_cores_that_were_given_away_is_a_fault() -> None:
    one = OneCore()
    one.hear(3, started(5, 4))
    one.hear(6, ended(5, at(2, 4)))
    assert one.ledger.faults == 1
    assert one.ledger.fault_seconds == pytest.approx(2)


def test_what_ended_with_its_worker_before_anybody_knew_that_it_ran_is_overhead() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 1)
    one.hear(6, ended(6, at(2, 4), Failure(Cause.WORKER_DIED, "")))
    one.hear(9, ended(5, at(7, 9)))
    assert not one.ledger.faults
    assert seconds(one.end(9)) == pytest.approx({"busy": 2, "overhead": 1 + 6, "idle": 0, "reserved": 0})


def test_what_still_holds_cores_at_the_end_is_lost() -> None:
    one = OneCore(2)
    one.ledger.placed(0, 0b11, 5, BEGAN + 2)
    entries = one.end(5)
    lost = [entry for entry in entries if entry.key & 7 == Account.LOST]
    assert sum(entry.busy for entry in lost) == pytest.approx(6)
    assert sum(seconds(entries).values()) == pytest.approx(10)


def test_a_clock_that_is_set_back_is_a_fault_and_time_never_runs_backwards() -> None:
    one = OneCore()
    one.ledger.placed(0, 1, 5, BEGAN + 5)
    one.hear(4, ended(5, at(3, 3.5)))
    assert one.ledger.faults >= 1
    entries = one.end(8)
    assert all(entry.ended >= entry.began for entry in entries)


class Machine(RuleBasedStateMachine):
    """Random stories over two nodes, beside a model that knows what each core really did."""

    @initialize()
    def begin(self) -> None:
        self.now = BEGAN
        self.ledger = Ledger(dict(enumerate(NODES)), BEGAN)
        self.entries: list[Entry] = []
        self.tasks: dict[int, tuple[int, int]] = {}  # task → node, mask
        self.since: dict[int, float] = {}
        self.away: dict[int, str] = {}
        self.owned: dict[int, list[tuple[float, float]]] = {}
        self.expected: defaultdict[int, float] = defaultdict(float)
        self.memory = 0.0
        self.numbers = 0
        self.advance(0.5)
        self.ledger.ready(self.now)

    # --- what the model says ------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def used(self, node: int) -> int:
        mask = 0
        for task, (where, cores) in self.tasks.items():
            if where == node and task not in self.away:
                mask |= cores
        return mask

    def own_until_now(self, task: int) -> None:
        self.owned[task].append((self.since.pop(task), self.now))

    def known(self) -> dict[int, Known]:
        return {task: Known(condition=7 if task > 1000 else 0) for task in [*self.tasks, self.numbers + 1]}

    # --- stories ------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1e-4, 2e-3, 0.04, 0.3, 7.0]))
    def wait(self, seconds: float) -> None:
        self.advance(seconds)

    @rule(node=st.sampled_from([0, 1]), pick=st.integers(1, 7), speculative=st.booleans())
    def place(self, node: int, pick: int, speculative: bool) -> None:
        mask = pick & ((1 << NODES[node]) - 1) & ~self.used(node)
        if not mask:
            return
        self.numbers += 1
        task = self.numbers + (1000 if speculative else 0)
        self.ledger.placed(node, mask, task, self.now)
        self.tasks[task], self.since[task], self.owned[task] = (node, mask), self.now, []

    @precondition(lambda self: bool(self.tasks))
    @rule(data=st.data(), lead=st.floats(0, 1), tail=st.floats(0, 1), fails=st.booleans(), follow=st.booleans())
    def finish(self, data: st.DataObject, lead: float, tail: float, fails: bool, follow: bool) -> None:
        task = data.draw(st.sampled_from(sorted(self.tasks)))
        node, mask = self.tasks[task]
        here = task not in self.away
        if here:
            self.own_until_now(task)
        owned = self.owned[task]
        # It may have begun late in its first stretch of cores, and have ended early in its last one.
        first, last = owned[0], owned[-1]
        began = first[0] + lead * (first[1] - first[0]) * 0.9
        end = max(began, last[1] - tail * (last[1] - last[0]) * 0.9)
        if not here:
            end = self.now
        for since, until in owned:
            ran = max(0.0, min(until, end) - max(since, began))
            self.expected[booked(ended(task, (began, end)))[0]] += ran * mask.bit_count()
        if not here:
            self.memory += (self.now - self.left.pop(task)) * mask.bit_count()
            del self.away[task]
        failure = Failure(Cause.EXIT, "it failed") if fails else None
        changes = [ended(task, (began, end), failure)]
        known = self.known()
        del self.tasks[task], self.owned[task]
        if follow and here:
            self.numbers += 1
            after = self.numbers
            changes.append(started(after, task))
            self.tasks[after], self.owned[after] = (node, mask), []
            # The cores are the follower's from the end of what it follows.
            self.since[after] = end
        self.ledger.hear(node, changes, known, booked, self.now)
        self.ledger.lending(node, self.lenders(node), self.now)
        self.ledger.settle(node, self.now)

    left: dict[int, float]

    def lenders(self, node: int) -> frozenset[int]:
        return frozenset(task for task, why in self.away.items() if why == "lent" and self.tasks[task][0] == node)

    @precondition(lambda self: bool(set(self.tasks) - set(self.away)))
    @rule(data=st.data(), lends=st.booleans())
    def leave(self, data: st.DataObject, lends: bool) -> None:
        task = data.draw(st.sampled_from(sorted(set(self.tasks) - set(self.away))))
        node = self.tasks[task][0]
        self.own_until_now(task)
        self.away[task] = "lent" if lends else "suspended"
        if not hasattr(self, "left"):
            self.left = {}
        self.left[task] = self.now
        if lends:
            self.ledger.lending(node, self.lenders(node), self.now)
        else:
            self.ledger.hear(node, [Change(task, 1, 1, ChangeKind.SUSPENDED)], {}, booked, self.now)

    @precondition(lambda self: bool(self.away))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.away)))
        node, mask = self.tasks[task]
        if mask & self.used(node):
            return  # a borrower has its cores still
        why = self.away.pop(task)
        self.memory += (self.now - self.left.pop(task)) * mask.bit_count()
        self.since[task] = self.now
        if why == "lent":
            self.ledger.lending(node, self.lenders(node), self.now)
        else:
            self.ledger.hear(node, [Change(task, 1, 1, ChangeKind.RESUMED)], {}, booked, self.now)

    @rule(node=st.sampled_from([0, 1]), mask=st.integers(0, 7))
    def reserve(self, node: int, mask: int) -> None:
        self.ledger.reserve(node, mask & ((1 << NODES[node]) - 1), self.now)

    @precondition(lambda self: bool(self.tasks))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.tasks)))
        node, mask = self.tasks.pop(task)
        if task in self.away:
            self.memory += (self.now - self.left.pop(task)) * mask.bit_count()
        else:
            self.own_until_now(task)
        self.expected[key_of(Account.LOST)] += sum(b - a for a, b in self.owned.pop(task)) * mask.bit_count()
        self.away.pop(task, None)
        self.ledger.gone(node, task, self.now)
        self.ledger.lending(node, self.lenders(node), self.now)
        self.ledger.settle(node, self.now)

    @rule()
    def tell(self) -> None:
        self.entries += self.ledger.take()

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def every_core_is_accounted_for_once(self) -> None:
        entries = self.taken()
        spans: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for entry in entries:
            if Account(entry.key & 7).in_sum:
                parts = entry.busy + entry.overhead + entry.idle + entry.reserved
                assert parts == pytest.approx(entry.ended - entry.began, abs=CLOSE)
                spans[entry.node, entry.core].append((entry.began, entry.ended))
        for each in self.ledger.ongoing():
            spans[each.node, each.core].append((each.since, each.until or self.now))
        for node, cores in enumerate(NODES):
            for core in range(cores):
                mine = sorted(span for span in spans[node, core] if span[0] < span[1])
                assert mine[0][0] == BEGAN
                assert mine[-1][1] == self.now
                assert all(before[1] == after[0] for before, after in pairwise(mine)), mine
        assert not self.ledger.faults, self.ledger.described

    @invariant()
    def busy_is_what_the_processes_measured(self) -> None:
        found: defaultdict[int, float] = defaultdict(float)
        memory = 0.0
        for entry in self.taken():
            account = Account(entry.key & 7)
            if account.in_sum:
                found[entry.key] += entry.busy
            else:
                memory += entry.busy
        found.pop(key_of(Account.NOTHING), None)
        for key in {*found, *self.expected}:
            assert found[key] == pytest.approx(self.expected[key], abs=CLOSE)
        assert memory == pytest.approx(self.memory, abs=CLOSE)

    def taken(self) -> list[Entry]:
        """All that was measured so far."""
        self.entries += self.ledger.take()
        return self.entries

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.advance(1.0)
        self.ledger.closing(self.now)
        self.advance(1.0)
        self.ledger.end(self.now)
        found = seconds([*self.entries, *self.ledger.take()])
        total = sum(found[row] for row in ("busy", "overhead", "idle", "reserved"))
        assert total == pytest.approx(sum(NODES) * (self.now - BEGAN), abs=CLOSE)


TestLedger = Machine.TestCase


def test_bits() -> None:
    assert bits(0) == []
    assert bits(0b1011) == [0, 1, 3]


class Said(NamedTuple):
    """What a process says of itself, in seconds from the agent's clock, and how far that clock jumps then."""

    began: float
    took: float
    jump: float
    follows: bool


SAID = st.builds(
    Said,
    began=st.floats(-2, 2),
    took=st.floats(-0.5, 3),
    jump=st.sampled_from([0.0, 0.0, 0.0, -1.5, 2.0]),
    follows=st.booleans(),
)


@given(st.lists(SAID, max_size=20))
def test_whatever_clocks_say_each_core_has_one_story_and_the_sum_is_wrong_by_no_more_than_the_faults(
    story: list[Said],
) -> None:
    ledger = Ledger({0: 1}, BEGAN)
    now = BEGAN + 1
    ledger.ready(now)
    task = 0
    held = False
    for said in story:
        changes = []
        if not held:
            task += 1
            ledger.placed(0, 1, task, now)
        began = now + said.began
        changes.append(ended(task, (began, began + said.took)))
        if held := said.follows:
            changes.append(started(task + 1, task))
            task += 1
        now += max(0.0, said.began + said.took) + 0.01 + said.jump
        ledger.hear(0, changes, {each.task: Known() for each in changes}, booked, now)
        ledger.settle(0, now)
    ledger.end(now)
    entries = [entry for entry in ledger.take() if Account(entry.key & 7).in_sum]
    last = BEGAN
    for entry in entries:
        assert entry.began == last
        assert entry.ended >= entry.began
        assert min(entry.busy, entry.overhead, entry.idle, entry.reserved) >= 0.0
        last = entry.ended
    excess = sum(seconds(entries).values()) - (last - BEGAN)
    assert -CLOSE <= excess <= ledger.fault_seconds + CLOSE
    if not ledger.faults:
        assert excess == pytest.approx(0, abs=CLOSE)
        assert last == pytest.approx(now, abs=CLOSE)
