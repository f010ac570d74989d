"""When replicas are started, given up and started again."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pilot_hitl.hub.servicecore import RECOVERY, SILENCE, End, Launch, Order, ServiceCore, Stop, Withdraw
from pilot_hitl.model.services import ReplicaState, ServiceSettings, ServiceState
from tests.seeds import examples


def started(**more: float) -> ServiceCore:
    settings_ = ServiceSettings(name="s", replicas=2, restarts=2, backoff=1.0)
    core = ServiceCore(msgspec.structs.replace(settings_, **more))
    assert core.start() == [Launch(1), Launch(2)]
    core.launched(1, 11)
    core.launched(2, 12)
    return core


def state(core: ServiceCore) -> ServiceState:
    return core.state  # a call, so that mypy does not take it for constant


def test_it_is_ready_while_one_replica_is() -> None:
    core = started()
    assert core.next_deadline() is None, "it may wait for a pilot for ever"
    assert core.hello(11, "", 5.0) == []
    assert core.next_deadline() == 5.0 + core.settings.start_timeout
    core.hello(11, "ipc://a", 6.0)
    assert state(core) is ServiceState.READY
    assert core.gone(11, 7.0) == [Withdraw("ipc://a")]
    assert state(core) is ServiceState.STARTING


def test_what_is_not_ready_in_time_or_silent_is_ended() -> None:
    core = started(start_timeout=10.0)
    core.hello(11, "", 0.0)
    assert core.tick(9.9) == []
    (order,) = core.tick(10.0)
    assert isinstance(order, End)
    assert "not ready within 10 s" in order.reason
    assert core.replicas[1].state is ReplicaState.UNHEALTHY
    core.hello(12, "ipc://b", 20.0)
    core.beat(12, 30.0)
    assert core.tick(20.0 + SILENCE) == []
    assert core.tick(30.0 + SILENCE) == [Withdraw("ipc://b"), End(12, f"nothing was heard of it for {SILENCE:g} s")]
    assert core.hello(12, "ipc://b", 60.0) == [End(12, "its service does not want it any more")]


def test_restarts_pause_longer_each_time_and_end() -> None:
    core = started(replicas=2)
    core.hello(12, "ipc://b", 100.0)
    for number, pause in enumerate((1.0, 2.0)):
        core.ended(11 + 10 * number, "it crashed", 100.0)
        assert core.tick(100.0 + pause - 0.01) == []
        assert core.tick(100.0 + pause) == [Launch(1)]
        core.launched(1, 21 + 10 * number)
    core.ended(31, "it crashed", 100.0)
    assert core.replicas[1].state is ReplicaState.STOPPED
    assert state(core) is ServiceState.READY, "the other one serves"
    core.ended(12, "no pilot can hold it", 100.0, hopeless=True)
    assert state(core) is ServiceState.FAILED
    assert "replica 1" in core.message
    assert core.next_deadline() is None


def test_a_replica_that_was_long_ready_counts_anew() -> None:
    core = started(restarts=1)
    for round_, task in enumerate((11, 21, 31)):
        core.hello(task, f"ipc://{task}", 1000.0 * round_)
        core.ended(task, "it crashed", 1000.0 * round_ + 100)
        assert core.tick(1000.0 * round_ + 102) == [Launch(1)]
        core.launched(1, task + 10)


def test_stop_drains_what_is_ready_and_ends_the_rest() -> None:
    core = started(drain_timeout=5.0)
    core.hello(11, "ipc://a", 0.0)
    assert core.stop("enough", 10.0, drain=True) == [Stop(11), End(12, "enough")]
    assert state(core) is ServiceState.DRAINING
    core.ended(12, "", 11.0)
    assert core.tick(15.0) == [Withdraw("ipc://a"), End(11, "it did not finish what waited in time")]
    core.ended(11, "", 16.0)
    assert state(core) is ServiceState.STOPPED
    assert core.stop("again", 17.0, drain=True) == []


def test_a_new_hub_waits_for_replicas_that_ran() -> None:
    core = ServiceCore(ServiceSettings(name="s", replicas=3))
    core.restore({1: 11, 2: 12}, 0.0)
    assert core.complete() == [Launch(3)]
    core.launched(3, 13)
    core.hello(11, "ipc://a", 1.0)
    assert state(core) is ServiceState.READY
    assert core.replicas[1].starts == 1
    assert core.tick(RECOVERY, frozenset({12})) == [], "it waits for a pilot"
    assert core.next_deadline() == 1.0 + SILENCE


class Machine(RuleBasedStateMachine):
    """Whatever happens: one task a replica, no endpoint outside READY, and in the end it stops."""

    def __init__(self) -> None:
        super().__init__()
        self.core = ServiceCore(ServiceSettings(name="s", replicas=3, restarts=3, drain_timeout=4.0, start_timeout=7.0))
        self.now = 0.0
        self.tasks = 0
        self.live: set[int] = set()
        self.ending: set[int] = set()
        self.shown: set[str] = set()
        self.obey(self.core.start())

    def obey(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Launch):
                assert self.core.replicas[order.number].task == 0
                self.tasks += 1
                self.core.launched(order.number, self.tasks)
                self.live.add(self.tasks)
            elif isinstance(order, End):
                self.ending.add(order.task)
            elif isinstance(order, Withdraw):
                assert order.endpoint in self.shown
                self.shown.discard(order.endpoint)

    def pick(self, number: int) -> int:
        return sorted(self.live)[number % len(self.live)] if self.live else 99

    @rule(number=st.integers(0, 5), ready=st.booleans())
    def hello(self, number: int, ready: bool) -> None:
        task = self.pick(number)
        endpoint = f"ipc://{task}/{self.now}" if ready else ""
        replica = self.core.find(task)
        if endpoint and replica is not None and not replica.ending and not self.core.state.final:
            self.shown.add(endpoint)
        self.obey(self.core.hello(task, endpoint, self.now))

    @rule(number=st.integers(0, 5))
    def gone(self, number: int) -> None:
        self.obey(self.core.gone(self.pick(number), self.now))

    @rule(number=st.integers(0, 5), hopeless=st.booleans())
    def ended(self, number: int, hopeless: bool) -> None:
        task = self.pick(number)
        self.live.discard(task)
        self.ending.discard(task)
        self.obey(self.core.ended(task, "it crashed", self.now, hopeless=hopeless))

    @rule(number=st.integers(0, 5))
    def hang(self, number: int) -> None:
        self.obey(self.core.unhealthy(self.pick(number), "it hangs"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 8.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.core.tick(self.now))

    @rule(drain=st.booleans())
    def stop(self, drain: bool) -> None:
        if self.now > 100:
            self.obey(self.core.stop("enough", self.now, drain=drain))

    @invariant()
    def holds(self) -> None:
        tasks = [replica.task for replica in self.core.replicas.values() if replica.task]
        assert len(tasks) == len(set(tasks))
        assert set(tasks) <= self.live
        for replica in self.core.replicas.values():
            assert bool(replica.endpoint) == (replica.state is ReplicaState.READY)
            assert (replica.state is ReplicaState.STOPPED) <= (not replica.task)
        assert {replica.endpoint for replica in self.core.replicas.values() if replica.endpoint} == self.shown
        if self.core.state.final:
            assert not tasks

    def teardown(self) -> None:
        self.obey(self.core.stop("the end", self.now, drain=False))
        for task in sorted(self.live):
            self.obey(self.core.ended(task, "", self.now))
        assert self.core.state.final


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
