"""The node core against a model of what may happen: random launches, ends, retracts, deaths, decisions and time."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    End,
    EndMode,
    Ends,
    Launch,
    Launches,
    NodeCondition,
    NodeStop,
    Retract,
    Unchain,
)
from pilot_hitl_agent.node.core import BOUND, PACKET_CALLS, PACKETS_AHEAD, PATIENCE, QUEUE_LENGTH, NodeCore
from pilot_hitl_agent.node.events import (
    Died,
    Ended,
    HandedBack,
    Instruction,
    Late,
    Push,
    Recall,
    Release,
    Results,
    Send,
    Settle,
    Signal,
    Start,
    Tell,
    TemplateFacts,
    Tick,
)
from tests.seeds import examples

S, F, R, SUSPENDED, RESUMED = (
    ChangeKind.STARTED,
    ChangeKind.FINISHED,
    ChangeKind.RETRACTED,
    ChangeKind.SUSPENDED,
    ChangeKind.RESUMED,
)
EXECUTABLE, CALL, TIMED, ALONE, OTHER = 1, 2, 3, 4, 5
REASON = Failure(Cause.PREEMPTED, "wanted")


class Shell:
    """Executes instructions as the real shell would, without processes, and checks what must always hold."""

    def __init__(self) -> None:
        self.core = NodeCore("here")
        self.now = 100.0
        self.told: dict[int, list[ChangeKind]] = {}
        self.changes: list[Change] = []
        self.queues: dict[int, list[int]] = {}
        self.read: dict[int, int] = {}
        self.launched: dict[int, Launch] = {}
        self.alive: set[int] = set()
        self.slots: dict[int, tuple[Slot, ...]] = {}
        self.slots_of: dict[int, tuple[Slot, ...]] = {}
        self.lanes_of: dict[tuple[Slot, ...], int] = {}
        self.signals: dict[int, list[Send]] = {}
        self.signalled_at: dict[int, float] = {}
        self.hurried: dict[int, float] = {}
        self.closed: set[int] = set()
        self.slow: set[int] = set()
        self.recalled: set[int] = set()
        self.settled: list[tuple[int, bool]] = []
        for facts in (
            TemplateFacts(EXECUTABLE),
            TemplateFacts(CALL, group=1),
            TemplateFacts(TIMED, group=1, timeout=5.0, grace=2.0),
            TemplateFacts(ALONE, group=2, ahead=False),
            TemplateFacts(OTHER, group=3),
        ):
            self.step(facts)

    def step(self, event: Any) -> None:
        if isinstance(event, Ends):
            for end in event.ends:
                if end.task in self.signalled_at:
                    # Asked again after the signal: a shorter grace counts from now.
                    self.hurried[end.task] = min(self.hurried.get(end.task, math.inf), self.now + end.grace)
        follow = [event]
        while follow:
            for instruction in self.core.step(follow.pop(0), self.now):
                more = self.do(instruction)
                if more is not None:
                    follow.append(more)
        self.core.check()

    def do(self, instruction: Instruction) -> Any:
        match instruction:
            case Tell(change):
                self.tell(change)
            case Start(lane, launch, slots):
                assert not self.queues.get(lane), "only an empty lane starts"
                assert slots
                assert not launch.slots or slots == launch.slots
                self.queues[lane] = [launch.task]
                self.read[lane] = 1
                self.slots[launch.task] = self.slots_of[lane] = slots
                self.recalled.discard(lane)
                assert self.lanes_of.setdefault(slots, lane) == lane, "slots are in use once"
            case Push(lane, launches):
                assert lane not in self.closed, "nothing is sent behind what nothing may follow"
                assert lane not in self.slow, "nothing is sent to a stuck worker"
                head = self.launched[self.queues[lane][0]]
                assert all(launch.chain == head.chain for launch in launches)
                alike = (head.template,) if head.template in (OTHER, EXECUTABLE) else (CALL, TIMED)
                assert head.template in (OTHER, EXECUTABLE, CALL, TIMED)
                if head.template == EXECUTABLE:
                    assert len(self.slots_of[lane]) == 1
                    assert all(each.ranks == 1 for each in (head, *launches)), "a spawner knows of one rank only"
                    assert len(self.queues[lane]) + len(launches) <= 1 + QUEUE_LENGTH
                assert all(launch.template in alike for launch in launches), "one worker can run them all"
                self.queues[lane].extend(launch.task for launch in launches)
                assert len(self.queues[lane]) <= PACKETS_AHEAD * PACKET_CALLS
            case Recall(lane):
                if self.launched[self.queues[lane][0]].template == EXECUTABLE:
                    # The spawner is another process: it answers when it reads this.
                    self.recalled.add(lane)
                    return None
                unread = self.queues[lane][self.read[lane] :]
                del self.queues[lane][self.read[lane] :]
                return HandedBack(lane, unread) if unread else None
            case Signal(lane, task, send):
                assert self.queues[lane][0] == task, "only what runs is signalled"
                self.signals.setdefault(task, []).append(send)
                if send is Send.KILL and Send.TERM in self.signals[task][:-1]:
                    due = min(self.signalled_at[task] + 0.5, self.hurried.get(task, math.inf))
                    assert self.now >= due, "the grace is given"
                self.signalled_at[task] = self.now
            case Release(lane):
                assert not self.queues.pop(lane)
                self.read.pop(lane)
                self.closed.discard(lane)
                self.slow.discard(lane)
                self.recalled.discard(lane)
                self.lanes_of = {slots: each for slots, each in self.lanes_of.items() if each != lane}
            case Settle(condition, truth):
                self.settled.append((condition, truth))
        return None

    def tell(self, change: Change) -> None:
        self.changes.append(change)
        known = self.told.setdefault(change.task, [])
        launch = self.launched[change.task]
        assert (change.epoch, change.run) == (launch.epoch, launch.run)
        assert F not in known, "nothing follows the end"
        assert R not in known, "nothing follows a retract"
        if change.kind is S:
            assert S not in known, "started once"
            if launch.slots:
                assert change.after == 0
            else:
                assert self.told[change.after][-1] is F, "it follows what ended"
        elif change.kind is R:
            assert not known, "only what was held is given back"
            assert not launch.slots, "what has slots of its own is not given back"
        known.append(change.kind)
        if change.kind in (F, R):
            self.alive.discard(change.task)

    def results(self, lane: int, count: int, took: float = 0.0001, *, natural: bool = True) -> None:
        done, self.queues[lane] = self.queues[lane][:count], self.queues[lane][count:]
        self.read[lane] = max(0, self.read[lane] - count)
        self.slow.discard(lane)
        for task in done:
            asked = self.core.attempts[task]
            if asked.asked:
                self.closed.add(lane)
        self.step(Results(lane, [Ended(task, b"", None, 0.0, took, natural) for task in done]))
        if self.queues.get(lane):
            self.read[lane] = max(1, self.read[lane])


@settings(
    max_examples=examples(150),
    stateful_step_count=50,
    # Shrinking such stories takes minutes; the steps that a failing story prints can be read as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
)
class NodeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell()
        self.count = 0
        self.free = [(Slot(0, 1 << core),) for core in range(4)]
        self.retracted: set[int] = set()
        self.stopped = False

    def new(self, template: int, chain: int, rank: int, slots: tuple[Slot, ...], condition: int) -> Launch:
        self.count += 1
        launch = Launch(self.count, 1, 0, template, chain * 10 + condition, (1, rank), condition, slots, b"")
        self.shell.launched[launch.task] = launch
        self.shell.alive.add(launch.task)
        return launch

    def live(self) -> list[int]:
        return list(self.shell.alive)

    def pick(self, tasks: list[int], data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(tasks)))

    @rule(
        template=st.sampled_from([EXECUTABLE, EXECUTABLE, EXECUTABLE, CALL, CALL, CALL, TIMED, ALONE, OTHER]),
        chain=st.integers(1, 2),
        rank=st.integers(0, 2),
        condition=st.sampled_from([0, 0, 1, 2]),
        slots=st.booleans(),
        count=st.integers(1, 12),
    )
    def launch(self, template: int, chain: int, rank: int, condition: int, slots: bool, count: int) -> None:
        busy = set(self.shell.lanes_of)
        free = [each for each in self.free if each not in busy]
        if slots and free:
            launches = [self.new(template, chain, rank, free[0], condition)]
        else:
            launches = [self.new(template, chain, rank, (), condition) for _ in range(count)]
        self.shell.step(Launches(launches))
        if self.stopped:
            assert all({F, R} & set(self.shell.told[launch.task]) for launch in launches)

    @precondition(lambda self: self.shell.queues)
    @rule(data=st.data(), count=st.integers(1, 8), took=st.sampled_from([0.0001, 0.0001, 0.0005, 0.1]))
    def finish(self, data: st.DataObject, count: int, took: float) -> None:
        lane = self.pick(list(self.shell.queues), data)
        head = self.shell.queues[lane][0]
        if self.shell.core.attempts[head].suspended:
            return
        self.shell.results(lane, min(count, len(self.shell.queues[lane]), max(1, self.shell.read[lane])), took)

    @precondition(lambda self: self.shell.queues)
    @rule(data=st.data())
    def worker_reads(self, data: st.DataObject) -> None:
        lane = self.pick(list(self.shell.queues), data)
        self.shell.read[lane] = len(self.shell.queues[lane])

    @precondition(lambda self: any(len(queue) > 1 for queue in self.shell.queues.values()))
    @rule(data=st.data())
    def worker_is_stuck(self, data: st.DataObject) -> None:
        lane = self.pick([lane for lane, queue in self.shell.queues.items() if len(queue) > 1], data)
        back = self.shell.queues[lane][1:]
        del self.shell.queues[lane][1:]
        self.shell.read[lane] = 1
        self.shell.slow.add(lane)
        self.shell.step(HandedBack(lane, back, stuck=True))

    @precondition(lambda self: self.shell.recalled)
    @rule(data=st.data(), begun=st.integers(0, 2))
    def spawner_answers(self, data: st.DataObject, begun: int) -> None:
        """What had begun when it read the request has ended, but for the last of it; the rest comes back."""
        shell = self.shell
        lane = self.pick(list(shell.recalled), data)
        shell.recalled.discard(lane)
        begun = min(begun, len(shell.queues[lane]) - 1)
        back = shell.queues[lane][begun + 1 :]
        if begun and not shell.core.attempts[shell.queues[lane][0]].suspended:
            # In the order of the spawner's replies: an end is told before what was taken back after it.
            shell.results(lane, begun)
            back = [task for task in back if task in shell.queues.get(lane, [])[1:]]
        elif begun:
            back = shell.queues[lane][1:]
        if back:
            shell.queues[lane] = [task for task in shell.queues[lane] if task not in back]
            shell.step(HandedBack(lane, back))
        for task in back:
            assert shell.core.attempts.get(task) is None or shell.core.attempts[task].lane == 0 or task in self.live()

    @precondition(lambda self: self.shell.queues)
    @rule(data=st.data(), blame=st.integers(0, 3))
    def worker_dies(self, data: st.DataObject, blame: int) -> None:
        lane = self.pick(list(self.shell.queues), data)
        queue = self.shell.queues[lane]
        ending = self.shell.core.attempts[queue[0]].reason
        culprit = queue[blame] if blame < len(queue) else 0
        # Who was to be ended anyway ends for that reason.
        blamed = [culprit] if culprit and self.shell.core.attempts[culprit].reason is None else []
        self.shell.queues[lane] = []
        self.shell.read[lane] = 0
        self.shell.slow.discard(lane)
        if self.shell.core.attempts[queue[0]].asked:
            self.shell.closed.add(lane)
        before = {task: len(self.shell.told.get(task, [])) for task in queue}
        self.shell.step(Died(lane, culprit, Failure(Cause.WORKER_DIED, "died")))
        ended = [change for change in self.shell.changes if change.kind is F and change.task in before]
        died = [change.task for change in ended if change.failure and change.failure.cause is Cause.WORKER_DIED]
        if ending is None:
            assert died == blamed
        else:
            assert not died, "who was ended is not to blame"
            assert F in self.shell.told[queue[0]]

    @precondition(lambda self: self.shell.alive)
    @rule(data=st.data(), count=st.integers(1, 5))
    def retract(self, data: st.DataObject, count: int) -> None:
        tasks = sorted({self.pick(self.live(), data) for _ in range(count)})
        held = [task for task in tasks if not self.shell.told.get(task) and not self.shell.core.attempts[task].lane]
        self.shell.step(Retract(tasks))
        self.retracted.update(tasks)
        assert all(self.shell.told[task] == [R] for task in held), "what is held is given back at once"

    @precondition(lambda self: self.shell.queues)
    @rule(data=st.data())
    def unchain(self, data: st.DataObject) -> None:
        lane = self.pick(list(self.shell.queues), data)
        self.shell.closed.add(lane)
        self.shell.step(Unchain([self.shell.queues[lane][0]]))

    @precondition(lambda self: self.shell.alive)
    @rule(
        data=st.data(),
        mode=st.sampled_from(["kill", "requeue", "suspend", "resume"]),
        grace=st.sampled_from([0.0, 0.5, 3.0]),
    )
    def end(self, data: st.DataObject, mode: EndMode, grace: float) -> None:
        task = self.pick(self.live(), data)
        attempt = self.shell.core.attempts[task]
        was_running = bool(attempt.lane) and self.shell.queues[attempt.lane][0] == task
        fresh = attempt.reason is None
        if was_running and mode == "suspend" and fresh:
            self.shell.closed.add(attempt.lane)
        self.shell.step(Ends([End(task, mode, grace, REASON)]))
        if mode in ("kill", "requeue"):
            if was_running and fresh:
                assert self.shell.signals[task][-1] is (Send.TERM if grace else Send.KILL)
            elif not was_running:
                assert self.shell.told.get(task) == [R] or attempt.lane

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.shell.now += seconds
        due = self.shell.core.next_deadline()
        if due is not None and due <= self.shell.now:
            self.shell.step(Tick())
        due = self.shell.core.next_deadline()
        assert due is None or due > self.shell.now

    @rule(condition=st.integers(1, 2), truth=st.booleans())
    def decide(self, condition: int, truth: bool) -> None:
        affected = [task for task, each in self.shell.core.attempts.items() if each.condition == condition]
        self.shell.step(NodeCondition(condition, truth))
        assert self.shell.settled[-1] == (condition, truth)
        for task in affected:
            attempt = self.shell.core.attempts.get(task)
            if truth:
                assert attempt is None or attempt.condition == 0
            else:
                assert attempt is None or attempt.reason is not None

    @rule(dice=st.integers(0, 30))
    def stop(self, dice: int) -> None:
        if dice == 0:
            self.stopped = True
            self.shell.step(NodeStop(1.0, "over"))
            assert all(attempt.reason is not None for attempt in self.shell.core.attempts.values())

    @invariant()
    def the_shell_and_the_core_agree(self) -> None:
        shell = self.shell
        assert {lane: list(each.queue) for lane, each in shell.core.lanes.items()} == shell.queues
        assert set(self.live()) == set(shell.core.attempts)

    @invariant()
    def nothing_waits_without_need(self) -> None:
        for task in self.shell.core.attempts:
            if task in self.retracted:
                attempt = self.shell.core.attempts[task]
                assert attempt.lane, "what was wanted back is not held"

    @invariant()
    def timed_calls_have_a_timer(self) -> None:
        for lane, queue in self.shell.queues.items():
            head = self.shell.core.attempts[queue[0]]
            if head.launch.template == TIMED and head.reason is None and not head.suspended:
                assert head.deadline > 0, lane
            if head.reason is not None and head.signalled is Send.TERM:
                assert head.deadline > 0

    def teardown(self) -> None:
        """In the end everything that was launched has exactly one end."""
        shell = self.shell
        shell.step(NodeStop(1.0, "over"))
        for _ in range(10_000):
            if not shell.queues:
                break
            lane = next(iter(shell.queues))
            shell.queues[lane] = []
            shell.read[lane] = 0
            shell.step(Died(lane, 0, Failure(Cause.WORKER_DIED, "died")))
        assert not shell.core.attempts
        assert not shell.core.lanes
        for task in shell.launched:
            assert len([kind for kind in shell.told[task] if kind in (F, R)]) == 1


TestNodeMachine = NodeMachine.TestCase


def launch(task: int, template: int = CALL, core: int | None = None, **fields: Any) -> Launch:
    slots = () if core is None else (Slot(0, 1 << core),)
    values: dict[str, Any] = {
        "task": task, "epoch": 1, "run": 0, "template": template, "chain": 1, "rank": (1, 0), "condition": 0,
        "slots": slots, "body": b"", **fields,
    }  # fmt: skip
    return Launch(**values)


@pytest.fixture
def shell() -> Shell:
    return Shell()


def start(shell: Shell, *launches: Launch) -> None:
    for each in launches:
        shell.launched[each.task] = each
    shell.step(Launches(list(launches)))


def warm(shell: Shell, template: int = CALL) -> None:
    task = 990 + template
    start(shell, launch(task, template, core=9, chain=9))
    shell.results(next(lane for lane, queue in shell.queues.items() if queue == [task]), 1)
    shell.changes.clear()


def test_the_best_follows_then_the_first(shell: Shell) -> None:
    start(
        shell,
        launch(1, EXECUTABLE, core=0),
        launch(2, EXECUTABLE, rank=(2, 0)),
        launch(3, EXECUTABLE),
        launch(4, EXECUTABLE),
    )
    start(shell, launch(5, EXECUTABLE, rank=(0, 5)), launch(6, EXECUTABLE, chain=2, rank=(0, 0)))
    order = []
    while shell.queues:
        order += shell.queues[1]
        shell.results(1, 1, took=1.0)
    assert order == [1, 5, 3, 4, 2]
    follows = {change.task: change.after for change in shell.changes if change.kind is S}
    assert follows == {1: 0, 5: 1, 3: 5, 4: 3, 2: 4}


def test_short_calls_are_sent_ahead_and_long_ones_are_not(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), *(launch(task) for task in range(2, 100)))
    assert len(shell.queues[2]) == 40
    shell.results(2, 16, took=1.0)
    ahead = len(shell.queues[2])
    shell.results(2, ahead)
    assert len(shell.queues[2]) == 1, "the mean is long now"


def test_short_executables_wait_at_their_spawner_and_long_ones_do_not(shell: Shell) -> None:
    warm(shell, EXECUTABLE)
    start(shell, launch(1, EXECUTABLE, core=0), *(launch(task, EXECUTABLE) for task in range(2, 100)))
    assert len(shell.queues[2]) == 1 + QUEUE_LENGTH
    shell.results(2, 1 + QUEUE_LENGTH, took=0.005)
    assert len(shell.queues[2]) < 1 + QUEUE_LENGTH
    shell.results(2, len(shell.queues[2]), took=1.0)
    assert len(shell.queues[2]) == 1


def test_several_ranks_never_wait_at_a_spawner(shell: Shell) -> None:
    warm(shell, EXECUTABLE)
    start(shell, launch(1, EXECUTABLE, core=0, ranks=2), launch(2, EXECUTABLE))
    assert shell.queues[2] == [1]
    start(shell, launch(3, EXECUTABLE, core=1, chain=2), launch(4, EXECUTABLE, chain=2, ranks=2))
    assert shell.queues[3] == [3]
    two = (Slot(0, 1 << 4), Slot(0, 1 << 5))
    start(shell, launch(5, EXECUTABLE, chain=3, slots=two), launch(6, EXECUTABLE, chain=3))
    assert shell.queues[4] == [5]


def test_what_waits_behind_a_long_executable_comes_back(shell: Shell) -> None:
    warm(shell, EXECUTABLE)
    start(shell, launch(1, EXECUTABLE, core=0), *(launch(task, EXECUTABLE) for task in range(2, 5)))
    assert shell.queues[2] == [1, 2, 3, 4]
    # A stream moves the moment on without a timer each.
    for _ in range(2):
        shell.now += PATIENCE * 0.9
        deadline = shell.core.next_deadline()
        assert deadline is not None
        assert deadline > shell.now
        shell.results(2, 1)
    assert len(shell.core._timers) == 1
    shell.now += PATIENCE
    shell.step(Tick())
    assert shell.recalled == {2}
    assert shell.core.next_deadline() is None
    shell.queues[2] = [3]
    shell.step(HandedBack(2, [4]))
    start(shell, launch(5, EXECUTABLE))
    assert shell.queues[2] == [3], "nothing is sent behind it"
    shell.step(Retract([4]))
    assert shell.told[4] == [R]
    shell.results(2, 1)
    assert shell.queues[2] == [5]


def test_what_a_busy_worker_has_not_read_comes_back(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), *[launch(task) for task in range(2, 6)])
    assert shell.queues[2] == [1, 2, 3, 4, 5]
    for _ in range(2):
        shell.now += PATIENCE * 0.9
        shell.step(Tick())
        shell.results(2, 1)
    assert len(shell.core._timers) == 1, "what came together moves one timer on"
    # The worker has read one packet, with the call that takes long alone; it knows nothing of what lies behind.
    shell.now += PATIENCE
    shell.step(Tick())
    assert shell.queues[2] == [3]
    start(shell, launch(6, core=1), launch(7))
    assert shell.queues[2] == [3], "nothing is sent behind it"
    assert shell.queues[3][:3] == [6, 4, 5], "the other lane has them"


def test_retract_of_a_queued_executable_is_answered_once(shell: Shell) -> None:
    warm(shell, EXECUTABLE)
    start(shell, launch(1, EXECUTABLE, core=0), *(launch(task, EXECUTABLE) for task in range(2, 5)))
    shell.step(Retract([2, 3]))
    shell.step(Retract([2, 3]))
    assert 2 not in shell.told
    shell.results(2, 1)
    assert shell.told[2] == [S], "it had begun before the spawner heard of it"
    shell.queues[2] = [2]
    shell.step(HandedBack(2, [3, 4]))
    assert shell.told[3] == [R]
    assert 4 not in shell.told
    shell.results(2, 1)
    assert shell.told[2] == [S, F]
    assert shell.told[4] == [S]


def test_what_may_be_suspended_is_sent_alone(shell: Shell) -> None:
    warm(shell, ALONE)
    start(shell, launch(1, ALONE, core=0), *(launch(task, ALONE) for task in range(2, 10)))
    assert shell.queues[2] == [1]


def test_calls_of_another_environment_are_not_sent_ahead(shell: Shell) -> None:
    warm(shell)
    warm(shell, OTHER)
    start(shell, launch(1, core=0), launch(2, OTHER), launch(3))
    assert shell.queues[3] == [1]


def test_nothing_is_sent_ahead_on_a_closed_lane(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), launch(2), launch(3))
    shell.read[2] = 3
    shell.closed.add(2)
    shell.step(Unchain([1]))
    start(shell, launch(4))
    shell.results(2, 1)
    assert shell.queues[2] == [2, 3]
    shell.results(2, 2)
    assert not shell.queues


def test_nothing_is_sent_ahead_of_a_stuck_worker(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), launch(2))
    shell.slow.add(2)
    assert shell.queues[2].pop() == 2
    shell.step(HandedBack(2, [2], stuck=True))
    start(shell, launch(3))
    assert shell.queues[2] == [1]
    shell.results(2, 1)
    assert shell.queues[2] == [2, 3]


def test_two_lanes_share_what_is_held(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), launch(2, core=1), *(launch(task) for task in range(3, 13)))
    assert abs(len(shell.queues[2]) - len(shell.queues[3])) <= 5
    assert max(map(len, shell.queues.values())) <= 6


def test_an_end_of_the_agent_is_not_followed_and_a_timeout_is(shell: Shell) -> None:
    start(shell, launch(1, TIMED, core=0), launch(2, TIMED))
    shell.now += 5
    shell.step(Tick())
    assert shell.signals[1] == [Send.TERM]
    shell.now += 2
    shell.step(Tick())
    assert shell.signals[1] == [Send.TERM, Send.KILL]
    shell.queues[1] = []
    shell.step(Died(1, 1, Failure(Cause.WORKER_DIED, "died")))
    assert [change.failure.cause for change in shell.changes if change.failure] == [Cause.TIMEOUT]
    assert shell.queues[1] == [2]
    shell.step(Ends([End(2, "kill", 0.0, REASON)]))
    start(shell, launch(3, TIMED))
    shell.results(1, 1, natural=False)
    assert not shell.queues
    assert shell.changes[-1].failure is REASON
    assert not shell.told.get(3)


def test_what_ended_by_itself_before_the_signal_counts(shell: Shell) -> None:
    start(shell, launch(1, EXECUTABLE, core=0))
    shell.step(Ends([End(1, "kill", 5.0, REASON)]))
    shell.results(1, 1)
    assert shell.changes[-1].failure is None


def test_time_stands_still_for_a_suspended_call(shell: Shell) -> None:
    start(shell, launch(1, TIMED, core=0))
    shell.now += 4
    shell.step(Ends([End(1, "suspend", 0.0, REASON)]))
    shell.now += 100
    assert shell.core.next_deadline() is None
    shell.step(Ends([End(1, "resume", 0.0, REASON)]))
    assert shell.core.next_deadline() == shell.now + 1
    assert shell.signals[1] == [Send.STOP, Send.CONT]


def test_what_outlives_its_kill_is_told_once(shell: Shell) -> None:
    start(shell, launch(1, EXECUTABLE, core=0))
    shell.step(Ends([End(1, "kill", 1.0, REASON)]))
    shell.now += 1
    assert [type(each) for each in shell.core.step(Tick(), shell.now)] == [Signal]
    assert shell.core.next_deadline() == pytest.approx(shell.now + BOUND)
    shell.now += 1
    assert [type(each) for each in shell.core.step(Tick(), shell.now)] == [Late]
    assert shell.core.next_deadline() is None
    shell.results(1, 1, natural=False)
    assert shell.changes[-1].failure is REASON


def test_a_shorter_grace_counts(shell: Shell) -> None:
    start(shell, launch(1, EXECUTABLE, core=0))
    shell.step(Ends([End(1, "kill", 60.0, REASON)]))
    shell.step(Ends([End(1, "kill", 1.0, REASON)]))
    assert shell.core.next_deadline() == shell.now + 1
    shell.step(Ends([End(1, "kill", 30.0, REASON)]))
    assert shell.core.next_deadline() == shell.now + 1


def test_lost_results_run_again_and_only_the_culprit_is_blamed(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), *(launch(task) for task in range(2, 5)))
    queue = list(shell.queues[2])
    assert queue == [1, 2, 3, 4]
    shell.queues[2] = []
    shell.step(Died(2, 3, Failure(Cause.WORKER_DIED, "died")))
    assert shell.queues[2][0] == 1
    assert shell.told[3] == [F]
    while shell.queues:
        shell.results(2, 1)
    assert shell.told[1] == shell.told[2] == shell.told[4] == [S, F]


def test_retract_of_what_was_read_waits_for_the_worker(shell: Shell) -> None:
    warm(shell)
    start(shell, launch(1, core=0), launch(2), launch(3))
    shell.read[2] = 3
    shell.step(Retract([2, 3]))
    assert shell.told.get(2) is None
    back = shell.queues[2].pop()
    shell.step(HandedBack(2, [back]))
    assert shell.told[3] == [R]
    shell.results(2, 1)
    assert shell.told[2] == [S]


def test_unknown_things_are_ignored(shell: Shell) -> None:
    shell.step(Retract([4711]))
    shell.step(Unchain([4711]))
    shell.step(Ends([End(4711, "kill", 0.0, REASON)]))
    shell.step(Results(12, [Ended(1)]))
    shell.step(HandedBack(12, [1]))
    shell.step(Died(12, 1, REASON))
    shell.step(Tick())
    assert not shell.changes


def test_a_second_attempt_is_refused_while_the_first_is_here(shell: Shell) -> None:
    start(shell, launch(1, EXECUTABLE, core=0))
    again = launch(1, EXECUTABLE, core=1, run=1)
    for instruction in shell.core.step(Launches([again]), 0.0):
        assert isinstance(instruction, Tell)
        assert (instruction.change.run, instruction.change.kind) == (1, F)
        assert instruction.change.failure is not None
        assert instruction.change.failure.cause is Cause.PILOT_ENDED


def test_old_entries_do_not_pile_up(shell: Shell) -> None:
    start(shell, launch(1, TIMED, core=0))
    for task in range(2, 5000):
        start(shell, launch(task, TIMED))
        shell.results(1, 1)
    assert len(shell.core._timers) < 1100
    start(shell, *(launch(task, chain=5, rank=(9, 9)) for task in range(10_000, 10_010)))
    for task in range(20_000, 25_000):
        start(shell, launch(task, chain=5, rank=(0, task)))
        shell.step(Retract([task]))
    assert len(shell.core._held[5]) < 200
