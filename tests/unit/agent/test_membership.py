"""The membership core: leases that end in time, elections, and nodes that are cut off."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_hitl_agent.cluster import membership as ms
from pilot_hitl_agent.cluster.roster import FENCING
from tests.seeds import examples

LEASE = 10.0


class Driver:
    """One member, with a clock that the test moves."""

    def __init__(self, node: int = 1) -> None:
        self.now = 100.0
        self.core = ms.Membership(node, LEASE, self.now)
        self.done: list[ms.Instruction] = []

    def feed(self, event: ms.Event, at: float | None = None) -> list[ms.Instruction]:
        """Feed an event; returns what follows."""
        self.now = self.now if at is None else at
        found = self.core.step(event, self.now)
        self.core.check()
        self.done += found
        return found

    def run_until(self, at: float, beat: Any = None) -> list[ms.Instruction]:
        """Let time pass, deadline by deadline; looks see term 1 of another node with ``beat(now)``."""
        found: list[ms.Instruction] = []
        while self.now < at and not self.core.left:
            self.now = min(at, max(self.core.next_deadline(), self.now + 0.001))
            found += self.feed(ms.Tick())
            if beat is not None and isinstance(found[-1] if found else None, ms.Look):
                found += self.feed(ms.Looked(1, mine=False, beat=beat(self.now)))
        return found

    def join(self) -> None:
        """Become a member of term 1, with its first ping answered."""
        pings = [it for it in self.welcome(self.feed(ms.Looked(1, mine=False, beat=1))) if isinstance(it, ms.Ping)]
        self.feed(ms.Ponged(pings[0].number))

    def welcome(self, found: list[ms.Instruction]) -> list[ms.Instruction]:
        """Answer the hello that is among these."""
        hello = next(it for it in found if isinstance(it, ms.Hello))
        return self.feed(ms.Welcomed(hello.term, hello.number))


def kinds(instructions: list[ms.Instruction]) -> list[str]:
    """Return the names of instructions."""
    return [type(it).__name__ for it in instructions]


def test_the_first_node_elects_itself_at_once_and_others_wait() -> None:
    first, second = Driver(0), Driver(1)
    assert kinds(first.feed(ms.Looked(0, mine=False, beat=0)))[0] == "Elect"
    assert "Elect" not in kinds(second.feed(ms.Looked(0, mine=False, beat=0)))
    second.now += LEASE * 1.2
    assert "Elect" in kinds(second.feed(ms.Looked(0, mine=False, beat=0)))


def test_what_runs_is_fenced_one_lease_after_the_last_answered_ping_was_sent() -> None:
    driver = Driver()
    driver.join()
    joined = driver.now
    found = driver.run_until(joined + 2 * LEASE)
    assert "Fence" in kinds(found)
    assert not driver.core.busy
    at = joined + LEASE
    fresh = Driver()
    fresh.join()
    fresh.run_until(at - 0.01)
    assert fresh.core.busy
    fresh.run_until(at + 0.01)
    assert not fresh.core.busy


def test_a_late_answer_extends_nothing() -> None:
    driver = Driver()
    driver.join()
    pings = [it for it in driver.run_until(driver.now + 5.0) if isinstance(it, ms.Ping)]
    found = driver.feed(ms.Ponged(pings[-1].number), driver.now + 2 * LEASE)
    assert kinds(found)[0] == "Fence"
    assert not driver.core.busy


def test_a_member_cut_off_from_an_agent_that_beats_leaves() -> None:
    driver = Driver()
    driver.join()
    start = driver.now
    found = driver.run_until(start + 3 * LEASE, beat=lambda now: int(now / (LEASE / 5)))
    assert kinds(found)[-1] == "Leave"
    assert "Elect" not in kinds(found)
    assert driver.now <= start + LEASE * (1 + ms.CUT_OFF + 2 / ms.LOOKS)


def test_members_elect_when_the_beat_stops_and_the_first_is_first() -> None:
    moments = {}
    for node in (1, 2, 3):
        driver = Driver(node)
        driver.join()
        while "Elect" not in kinds(driver.done) and driver.now < 200:
            driver.run_until(driver.now + 0.1, beat=lambda _now: 7)
        assert not driver.core.busy
        moments[node] = driver.now
    assert moments[1] < moments[2] < moments[3]


def test_an_earlier_life_of_the_same_node_was_agent() -> None:
    driver = Driver(2)
    assert ms.Elect(5) in driver.feed(ms.Looked(4, mine=True, beat=9))


def test_another_agent_is_followed_and_what_runs_is_fenced_first() -> None:
    driver = Driver()
    driver.join()
    found = driver.feed(ms.Looked(2, mine=False, beat=1))
    assert kinds(found)[:2] == ["Fence", "Hello"]
    assert "Ping" in kinds(driver.welcome(found))
    assert driver.core.busy


def test_a_welcome_of_an_old_agent_is_not_obeyed() -> None:
    driver = Driver()
    hello = next(it for it in driver.feed(ms.Looked(2, mine=False, beat=1)) if isinstance(it, ms.Hello))
    driver.feed(ms.Welcomed(1, hello.number))
    assert not driver.core.busy


def test_a_welcome_that_comes_late_gives_no_lease() -> None:
    driver = Driver()
    hello = next(it for it in driver.feed(ms.Looked(1, mine=False, beat=1)) if isinstance(it, ms.Hello))
    driver.feed(ms.Welcomed(1, hello.number), driver.now + LEASE + 1)
    assert not driver.core.busy


def test_a_forgotten_member_ends_what_runs_and_comes_again() -> None:
    driver = Driver()
    driver.join()
    found = driver.feed(ms.Forgotten())
    assert kinds(found)[:2] == ["Fence", "Hello"]
    driver.welcome(found)
    assert driver.core.busy


class Network(RuleBasedStateMachine):
    """Members and one agent over a network that loses and delays; clocks that agree on nothing but their speed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.beat = 1
        self.agent_lives = True
        self.offsets = [0.0, 1e6, -50.0]
        self.members = [ms.Membership(node + 1, LEASE, off) for node, off in enumerate(self.offsets)]
        self.heard: dict[int, float] = {}
        self.wire: list[tuple[int, str, int]] = []

    def _step(self, node: int, event: ms.Event) -> None:
        for order in self.members[node].step(event, self.now + self.offsets[node]):
            if isinstance(order, ms.Ping):
                self.wire.append((node, "ping", order.number))
            elif isinstance(order, ms.Hello):
                self.wire.append((node, "hello", order.number))

    @rule(seconds=st.floats(0.01, 4.0))
    def pass_time(self, seconds: float) -> None:
        """Let time pass; every member's deadlines are met in time."""
        end = self.now + seconds
        while True:
            due = [m.next_deadline() - off for m, off in zip(self.members, self.offsets, strict=True) if not m.left]
            moment = min([end, *(max(d, self.now + 0.001) for d in due)])
            if moment >= end:
                break
            self.now = moment
            for node in range(len(self.members)):
                self._step(node, ms.Tick())
        self.now = end
        for node in range(len(self.members)):
            self._step(node, ms.Tick())

    @rule(node=st.integers(0, 2))
    def look(self, node: int) -> None:
        """A member sees the file system."""
        self._step(node, ms.Looked(1, mine=False, beat=self.beat))

    @rule()
    @precondition(lambda self: self.agent_lives)
    def beats(self) -> None:
        """The agent shows that it lives."""
        self.beat += 1

    @rule()
    def agent_dies(self) -> None:
        """The agent is gone; what is on the wire to it is lost."""
        self.agent_lives = False

    @rule(data=st.data())
    @precondition(lambda self: self.wire)
    def deliver(self, data: st.DataObject) -> None:
        """Something arrives, late perhaps and out of order."""
        node, what, number = self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))
        if what == "pong":
            self._step(node, ms.Ponged(number))
        elif what == "welcome":
            self._step(node, ms.Welcomed(1, number))
        elif not self.agent_lives:
            return
        elif what == "hello":
            self.heard[node] = self.now
            self.wire.append((node, "welcome", number))
        elif node in self.heard:
            self.heard[node] = self.now
            self.wire.append((node, "pong", number))

    @rule(data=st.data())
    @precondition(lambda self: self.wire)
    def lose(self, data: st.DataObject) -> None:
        """The network loses something."""
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @invariant()
    def nothing_runs_on_a_node_that_is_given_up(self) -> None:
        """What the agent counts as lost runs no more: so it may run elsewhere."""
        for node, at in list(self.heard.items()):
            if self.now > at + LEASE + FENCING:
                assert not self.members[node].busy
                del self.heard[node]

    @invariant()
    def each_is_sound(self) -> None:
        """Each member's own invariants hold."""
        for member in self.members:
            member.check()


Network.TestCase.settings = settings(
    max_examples=examples(150), stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestNetwork = pytest.mark.filterwarnings("ignore")(Network.TestCase)
