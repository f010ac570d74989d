"""The node core: what runs on which lane of a node, what is held ahead, and what follows what. Pure.

A *lane* is a set of slots (one per rank on this node) from the launch that brought them to the moment when nothing
follows on them. Its queue holds the attempt that runs and, where they are short, a few that were sent to the same
worker or spawner behind it. All other attempts without slots of their own are *held*, best first, per chain.

What always holds is written out in :meth:`NodeCore.check`. Each held attempt leaves that state with exactly one change
(STARTED, RETRACTED or FINISHED), which is also the reply to a ``Retract`` that arrives too late.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    End,
    Ends,
    Launch,
    Launches,
    LeadEnded,
    NodeCondition,
    NodeRunApart,
    NodeStop,
    Retract,
    ToNode,
    Unchain,
)
from pilot_hitl_agent.node.events import (
    EXECUTABLE,
    Conclude,
    Died,
    Ended,
    Exceeded,
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
    must,
)

BOUND = 0.05
"""Seconds that a killed tree may take to be gone; each longer one is an event (P1)."""
SHORT = 0.001
"""Calls that last longer than this on average are sent to their worker one at a time."""
PACKET_SECONDS = 0.002
"""A worker gets about this much work per packet."""
PACKET_CALLS = 32
PACKETS_AHEAD = 2
BRIEF = 0.02
"""Executables that last longer than this on average are sent to their spawner one at a time."""
QUEUE_SECONDS = 0.016
"""A spawner gets about this much work behind the executable that runs."""
QUEUE_LENGTH = 16
BEHIND = 5.0
"""Seconds that the timeout of other parts of a gang is behind that of the leading one."""
PATIENCE = 0.03
"""Seconds that an executable may run, or a worker be silent, before what was sent to run behind it is taken back."""

Event = ToNode | TemplateFacts | Results | HandedBack | Died | Exceeded | Tick


class Attempt(msgspec.Struct, gc=False):
    """One attempt that this node has.

    Attributes:
        lane: 0 while it is held.
        reason: why it is being ended; None while it is not.
        grace: of the asked end.
        signalled: the last end signal that was sent.
        retract: it is wanted back as soon as its worker gives it back.
        deadline: when its timeout passes or its grace ends; 0 for never.
        left: seconds of its timeout that are left while it is suspended.
    """

    launch: Launch
    arrival: int
    condition: int
    lane: int = 0
    reason: Failure | None = None
    grace: float = 0.0
    signalled: int = 0
    retract: bool = False
    suspended: bool = False
    deadline: float = 0.0
    left: float = 0.0
    asked: bool = False


class Lane(msgspec.Struct, gc=False):
    """Slots in use.

    Attributes:
        closed: nothing may follow.
        slow: what runs takes long, so nothing is sent behind it.
        patience: when what was sent behind an executable is taken back; 0 for never.
        timer: when somebody looks at ``patience``; 0 for never. It may be too early, so that not every executable of
            a stream needs a timer of its own.
    """

    slots: tuple[Slot, ...]
    chain: int
    queue: deque[int]
    closed: bool = False
    slow: bool = False
    patience: float = 0.0
    timer: float = 0.0


class NodeCore:
    """Pure state machine of one node: ``step(event, now)`` returns what to do, in order."""

    def __init__(self, host: str = "") -> None:
        """Start empty; ``host`` is named in failures."""
        self.host = host
        self.attempts: dict[int, Attempt] = {}
        self.lanes: dict[int, Lane] = {}
        self._held: dict[int, list[tuple[tuple[int, int], int, int]]] = {}
        self._held_count: dict[int, int] = {}
        self._chain_lanes: dict[int, int] = {}
        self.apart: set[int] = set()
        """Tasks that run below processes that run nothing else."""
        self._facts: dict[int, TemplateFacts] = {}
        self._mean: dict[int, float] = {}
        self._timers: list[tuple[float, int]] = []
        self._arrivals = 0
        self._lane_numbers = 0
        self._stopping: Failure | None = None
        self._out: list[Instruction] = []
        self._now = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Launches: self._launches,
            Results: self._results,
            Retract: self._retract,
            Unchain: self._unchain,
            Ends: self._ends,
            NodeCondition: self._condition,
            NodeRunApart: lambda it: self.apart.update(it.tasks),
            NodeStop: self._stop,
            TemplateFacts: self._template,
            HandedBack: self._handed_back,
            Died: self._died,
            Exceeded: self._exceeded,
            Tick: self._tick,
            LeadEnded: self._lead_ended,
        }

    def step(self, event: Event, now: float) -> list[Instruction]:
        """Take one event at time ``now`` (seconds, monotonic) and return what follows, in order."""
        self._now = now
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        out, self._out = self._out, []
        return out

    def running(self, lane: int) -> int | None:
        """Return the task that runs on a lane and is not being ended, 0 for none; None when there is no such lane."""
        known = self.lanes.get(lane)
        if known is None:
            return None
        task = known.queue[0]
        return task if self.attempts[task].reason is None else 0

    def next_deadline(self) -> float | None:
        """Return when the next :class:`Tick` is due; None for never."""
        while self._timers:
            deadline, task = self._timers[0]
            if task < 0:
                lane = self.lanes.get(-task)
                if lane is None or lane.timer != deadline:
                    heapq.heappop(self._timers)
                elif not lane.patience:
                    lane.timer = 0.0
                    heapq.heappop(self._timers)
                elif lane.patience > deadline:
                    lane.timer = lane.patience
                    heapq.heapreplace(self._timers, (lane.timer, task))
                else:
                    return deadline
                continue
            attempt = self.attempts.get(task)
            if attempt is not None and attempt.deadline == deadline:
                return deadline
            heapq.heappop(self._timers)
        return None

    # --- launches -----------------------------------------------------------------------------------------------------

    def _template(self, facts: TemplateFacts) -> None:
        self._facts[facts.template] = facts

    def _launches(self, message: Launches) -> None:
        touched: dict[int, None] = {}
        for launch in message.launches:
            if (refusal := self._refusal(launch)) is not None:
                if launch.slots or refusal.cause is not Cause.PILOT_ENDED:
                    self._tell(launch, ChangeKind.FINISHED, failure=refusal)
                else:
                    self._tell(launch, ChangeKind.RETRACTED)
                continue
            known = self.attempts.get(launch.task)
            if known is not None:
                continue
            self._arrivals += 1
            self.attempts[launch.task] = Attempt(launch, self._arrivals, launch.condition)
            if launch.slots:
                self._lane_numbers += 1
                self.lanes[self._lane_numbers] = Lane(launch.slots, launch.chain, deque())
                self._chain_lanes[launch.chain] = self._chain_lanes.get(launch.chain, 0) + 1
                self._start(self._lane_numbers, launch.task, 0)
            else:
                self._hold(launch.task)
                touched[launch.chain] = None
        for chain in touched:
            if self._chain_lanes.get(chain):
                self._refill_chain(chain)

    def _refusal(self, launch: Launch) -> Failure | None:
        if self._stopping is not None:
            return self._stopping
        if launch.template not in self._facts:
            return Failure(Cause.PAYLOAD, f"template {launch.template} was never sent to this node", self.host)
        known = self.attempts.get(launch.task)
        if known is not None and (known.launch.epoch, known.launch.run) != (launch.epoch, launch.run):
            return Failure(Cause.PILOT_ENDED, "another attempt of this task is still on this node", self.host)
        return None

    def _hold(self, task: int) -> None:
        attempt = self.attempts[task]
        chain = attempt.launch.chain
        attempt.lane = 0
        heap = self._held.get(chain)
        if heap is None:
            heap = self._held[chain] = []
            self._held_count[chain] = 0
        heapq.heappush(heap, (attempt.launch.rank, attempt.arrival, task))
        self._held_count[chain] += 1
        if len(heap) > 64 + 2 * self._held_count[chain]:
            self._held[chain] = [entry for entry in heap if self._is_held(entry[2], entry[1])]
            heapq.heapify(self._held[chain])

    def _best_held(self, chain: int) -> int:
        """Return the task that goes next on a lane of this chain, 0 for none; it stays held."""
        heap = self._held.get(chain)
        while heap:
            _, arrival, task = heap[0]
            attempt = self.attempts.get(task)
            if attempt is not None and attempt.lane == 0 and attempt.arrival == arrival:
                return task
            heapq.heappop(heap)
        self._held.pop(chain, None)
        self._held_count.pop(chain, None)
        return 0

    def _unhold(self, task: int) -> None:
        """Take an attempt out of what is held; its heap entry is passed over later."""
        chain = self.attempts[task].launch.chain
        self._held_count[chain] -= 1
        if not self._held_count[chain]:
            del self._held[chain]
            del self._held_count[chain]

    # --- lanes --------------------------------------------------------------------------------------------------------

    def _start(self, lane_number: int, task: int, after: int) -> None:
        """Start an attempt on an empty lane."""
        lane, attempt = self.lanes[lane_number], self.attempts[task]
        lane.queue.append(task)
        attempt.lane = lane_number
        self._out.append(Start(lane_number, attempt.launch, lane.slots))
        self._tell(attempt.launch, ChangeKind.STARTED, after)
        self._set_timeout(attempt)

    def _set_timeout(self, attempt: Attempt) -> None:
        timeout = self._facts[attempt.launch.template].timeout
        if timeout > 0:
            slots = attempt.launch.slots
            if slots and not attempt.launch.leads(slots[0].node):
                # The leading part tells how its gang ended, so it comes first.
                timeout += BEHIND
            self._set_deadline(attempt, self._now + timeout)

    def _set_deadline(self, attempt: Attempt, deadline: float) -> None:
        attempt.deadline = deadline
        heapq.heappush(self._timers, (deadline, attempt.launch.task))
        if len(self._timers) > 1000 + 2 * len(self.attempts):
            # Most timeouts never pass; what ended long ago must not pile up until theirs would have.
            self._timers = [(each.deadline, task) for task, each in self.attempts.items() if each.deadline]
            self._timers += [(lane.timer, -number) for number, lane in self.lanes.items() if lane.timer]
            heapq.heapify(self._timers)

    def _refill_chain(self, chain: int) -> None:
        if not self._mean:
            return
        for number, lane in self.lanes.items():
            if lane.chain == chain:
                self._refill(number, lane)

    def _refill(self, number: int, lane: Lane) -> None:
        """Send short ones to the lane's worker or spawner before it runs dry, but never more than its share."""
        if lane.closed or lane.slow or not lane.queue or not self._held_count.get(lane.chain):
            return
        head = self.attempts[lane.queue[0]]
        if head.reason is not None or head.suspended or head.launch.task in self.apart:
            return
        facts = self._facts[head.launch.template]
        batch = self._batch(facts)
        processes = facts.group == EXECUTABLE
        limit = 1 + batch if processes else batch * PACKETS_AHEAD
        if not batch or len(lane.queue) > limit // 2:
            return
        if head.launch.ranks > 1 or len(lane.slots) > 1:
            # A spawner or worker waits for one process of a lane before the next, not for all ranks on all nodes.
            return
        share = -(-self._held_count[lane.chain] // self._chain_lanes[lane.chain])
        room = min(limit - len(lane.queue), share)
        launches: list[Launch] = []
        while len(launches) < room and (task := self._best_held(lane.chain)):
            attempt = self.attempts[task]
            theirs = self._facts[attempt.launch.template]
            if theirs.group != facts.group or not self._batch(theirs) or attempt.condition != head.condition:
                break
            if (processes and attempt.launch.ranks > 1) or task in self.apart:
                break
            self._unhold(task)
            attempt.lane = number
            lane.queue.append(task)
            launches.append(attempt.launch)
        if launches:
            self._out.append(Push(number, launches))
            if not lane.patience:
                self._be_patient(number, lane)

    def _be_patient(self, number: int, lane: Lane) -> None:
        """Something begins to run on a lane, with more behind it: see in time that it is no short one."""
        lane.patience = self._now + PATIENCE
        if not lane.timer:
            lane.timer = lane.patience
            heapq.heappush(self._timers, (lane.timer, -number))

    def _batch(self, facts: TemplateFacts) -> int:
        """Return how many calls of a template make a packet, or executables a queue; 0: they go one at a time."""
        mean = self._mean.get(facts.template)
        if mean is None or not facts.ahead:
            return 0
        if facts.group == EXECUTABLE:
            return max(1, min(QUEUE_LENGTH, int(QUEUE_SECONDS / max(mean, 1e-6)))) if mean <= BRIEF else 0
        if mean > SHORT:
            return 0
        return max(1, min(PACKET_CALLS, int(PACKET_SECONDS / max(mean, 1e-6))))

    def _advance(self, number: int, lane: Lane, after: int, over: int = 0) -> None:
        """Let what is next on a lane take over from ``after``, or end the lane.

        ``over`` is known to have ended too: a signal for it would hit whatever runs behind it.
        """
        lane.patience = 0.0
        if lane.queue:
            attempt = self.attempts[lane.queue[0]]
            if len(lane.queue) > 1 and self._facts[attempt.launch.template].group == EXECUTABLE:
                self._be_patient(number, lane)
            attempt.retract = False
            self._tell(attempt.launch, ChangeKind.STARTED, after)
            if lane.queue[0] == over:
                return
            if attempt.reason is not None:
                self._signal_end(number, attempt)
            else:
                self._set_timeout(attempt)
            return
        task = 0 if lane.closed else self._best_held(lane.chain)
        if task:
            self._unhold(task)
            self._start(number, task, after)
            return
        del self.lanes[number]
        self._chain_lanes[lane.chain] -= 1
        if not self._chain_lanes[lane.chain]:
            del self._chain_lanes[lane.chain]
        self._out.append(Release(number))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _results(self, results: Results) -> None:
        lane = self.lanes.get(results.lane)
        if lane is None:
            return
        following = [*(ended.task for ended in results.ended[1:]), 0]
        for ended, over in zip(results.ended, following, strict=True):
            if not lane.queue or lane.queue[0] != ended.task:
                # Not what runs there: an answer of something that was given up. Exactly one end each, so it is dropped.
                continue
            lane.queue.popleft()
            lane.slow = False
            self._finish(lane, ended)
            self._advance(results.lane, lane, ended.task, over)
        if results.lane in self.lanes:
            self._refill(results.lane, lane)
            if len(lane.queue) > 1 and not lane.patience:
                # Once for what came together: a worker gives back what waits behind a long call in a packet that it has
                # read, and knows of no later packet.
                self._be_patient(results.lane, lane)

    def _finish(self, lane: Lane, ended: Ended) -> None:
        attempt = self.attempts.pop(ended.task)
        self.apart.discard(ended.task)
        failure = ended.failure
        if attempt.reason is not None and not ended.natural:
            failure = attempt.reason
        if attempt.asked:
            # The agent ended it because it wants the slots, or will say what comes next there.
            lane.closed = True
        if ended.natural:
            template = attempt.launch.template
            before = self._mean.get(template)
            took = max(0.0, ended.ended - ended.began)
            self._mean[template] = took if before is None else before + (took - before) * 0.2
        launch = attempt.launch
        self._out.append(
            Tell(
                Change(
                    launch.task,
                    launch.epoch,
                    launch.run,
                    ChangeKind.FINISHED,
                    0,
                    ended.payload,
                    failure,
                    ended.began,
                    ended.ended,
                    ended.unpublished,
                )
            )
        )

    def _handed_back(self, event: HandedBack) -> None:
        lane = self.lanes.get(event.lane)
        if lane is None:
            return
        lane.slow = event.stuck or lane.slow
        back = set(event.tasks)
        if lane.queue:
            back.discard(lane.queue[0])
        self._take_back(lane, [task for task in lane.queue if task in back])

    def _take_back(self, lane: Lane, tasks: list[int]) -> None:
        """Hold attempts again that had been sent ahead, or give them up if they are wanted back."""
        gone = set(tasks)
        lane.queue = deque(task for task in lane.queue if task not in gone)
        for task in tasks:
            attempt = self.attempts[task]
            if attempt.retract or attempt.reason is not None:
                del self.attempts[task]
                self._tell(attempt.launch, ChangeKind.RETRACTED)
            else:
                self._hold(task)

    def _died(self, event: Died) -> None:
        lane = self.lanes.get(event.lane)
        if lane is None or not lane.queue:
            return
        head = lane.queue[0]
        ending = self.attempts[head].reason is not None
        culprit = head if ending else event.culprit
        if culprit not in lane.queue:
            culprit = 0
        self._take_back(lane, [task for task in lane.queue if task not in (head, culprit)])
        ended = Ended(culprit, event.payload, event.failure, event.began, event.ended, natural=False)
        if culprit == head:
            lane.queue.popleft()
            self._finish(lane, ended)
            self._advance(event.lane, lane, head)
            return
        if culprit:
            # Results of calls before it were lost with the worker: they run again, it does not.
            lane.queue.remove(culprit)
            self._finish(lane, ended)
        attempt = self.attempts[head]
        self._out.append(Start(event.lane, attempt.launch, lane.slots))
        self._set_timeout(attempt)

    def _exceeded(self, event: Exceeded) -> None:
        attempt = self.attempts.get(event.task)
        if attempt is None or not attempt.lane or attempt.reason is not None:
            return
        if self.lanes[attempt.lane].queue[0] != event.task:
            return
        attempt.reason, attempt.grace, attempt.suspended = event.failure, 0.0, False
        self._signal_end(attempt.lane, attempt)

    # --- what the agent asks ------------------------------------------------------------------------------------------

    def _retract(self, message: Retract) -> None:
        lanes: dict[int, None] = {}
        for task in message.tasks:
            attempt = self.attempts.get(task)
            if attempt is None:
                continue
            if not attempt.lane:
                self._unhold(task)
                del self.attempts[task]
                self._tell(attempt.launch, ChangeKind.RETRACTED)
            elif self.lanes[attempt.lane].queue[0] != task:
                attempt.retract = True
                lanes[attempt.lane] = None
        self._out.extend(Recall(lane) for lane in lanes)

    def _unchain(self, message: Unchain) -> None:
        for task in message.tasks:
            attempt = self.attempts.get(task)
            if attempt is None or not attempt.lane:
                continue
            lane = self.lanes[attempt.lane]
            if lane.queue[0] == task:
                lane.closed = True
                if len(lane.queue) > 1:
                    self._out.append(Recall(attempt.lane))

    def _ends(self, message: Ends) -> None:
        for end in message.ends:
            attempt = self.attempts.get(end.task)
            if attempt is None:
                continue
            if end.mode == "suspend":
                self._suspend(attempt)
            elif end.mode == "resume":
                self._resume(attempt)
            else:
                self._end(attempt, end)

    def _lead_ended(self, message: LeadEnded) -> None:
        for task in message.tasks:
            attempt = self.attempts.get(task)
            if attempt is not None and attempt.lane:
                self._out.append(Conclude(attempt.lane, task))

    def _suspend(self, attempt: Attempt) -> None:
        if not attempt.lane or attempt.suspended or attempt.reason is not None:
            return
        lane = self.lanes[attempt.lane]
        if lane.queue[0] != attempt.launch.task:
            return
        attempt.suspended = True
        # Its slots are lent from now on, so nothing may follow on them.
        lane.closed = True
        if len(lane.queue) > 1:
            self._out.append(Recall(attempt.lane))
        if attempt.deadline:
            attempt.left = max(0.001, attempt.deadline - self._now)
            attempt.deadline = 0.0
        self._out.append(Signal(attempt.lane, attempt.launch.task, Send.STOP))
        self._tell(attempt.launch, ChangeKind.SUSPENDED)

    def _resume(self, attempt: Attempt) -> None:
        if not attempt.suspended:
            return
        attempt.suspended = False
        if attempt.left and attempt.reason is None:
            self._set_deadline(attempt, self._now + attempt.left)
        attempt.left = 0.0
        self._out.append(Signal(attempt.lane, attempt.launch.task, Send.CONT))
        self._tell(attempt.launch, ChangeKind.RESUMED)

    def _end(self, attempt: Attempt, end: End) -> None:
        task = attempt.launch.task
        if not attempt.lane:
            self._unhold(task)
            del self.attempts[task]
            self._tell(attempt.launch, ChangeKind.RETRACTED)
            return
        if attempt.reason is not None:
            # It is being ended already: only a shorter grace is news.
            attempt.asked = True
            deadline = self._now + end.grace
            if attempt.signalled == Send.TERM and deadline < attempt.deadline:
                self._set_deadline(attempt, deadline)
            return
        attempt.reason = end.reason
        attempt.grace = end.grace
        attempt.asked = True
        attempt.suspended = False
        if self.lanes[attempt.lane].queue[0] == task:
            self._signal_end(attempt.lane, attempt)
        else:
            # Sent ahead: it comes back unread, or is ended the moment it starts.
            self._out.append(Recall(attempt.lane))

    def _signal_end(self, number: int, attempt: Attempt) -> None:
        lane = self.lanes[number]
        if len(lane.queue) > 1:
            self._out.append(Recall(number))
        send = Send.TERM if attempt.grace > 0 else Send.KILL
        attempt.signalled = send
        self._out.append(Signal(number, attempt.launch.task, send))
        self._set_deadline(attempt, self._now + (attempt.grace if send is Send.TERM else BOUND))

    def _condition(self, message: NodeCondition) -> None:
        if not message.condition:
            return
        reason = Failure(Cause.DISCARDED, "the branch it belongs to was discarded", self.host)
        for task, attempt in list(self.attempts.items()):
            if attempt.condition != message.condition:
                continue
            if message.truth:
                attempt.condition = 0
            else:
                self._end(attempt, End(task, "kill", self._facts[attempt.launch.template].grace, reason))
        self._out.append(Settle(message.condition, message.truth))

    def _stop(self, message: NodeStop) -> None:
        self._stopping = Failure(Cause.PILOT_ENDED, message.reason or "the pilot ended", self.host)
        held = [task for task, attempt in self.attempts.items() if not attempt.lane]
        running = [task for task, attempt in self.attempts.items() if attempt.lane]
        for task in held + running:
            attempt = self.attempts.get(task)
            if attempt is not None:
                self._end(attempt, End(task, "kill", message.grace, self._stopping))

    def _tick(self, _event: Tick) -> None:
        while (due := self.next_deadline()) is not None and due <= self._now:
            _, task = heapq.heappop(self._timers)
            if task < 0:
                lane = self.lanes[-task]
                lane.patience = lane.timer = 0.0
                if len(lane.queue) > 1:
                    lane.slow = True
                    self._out.append(Recall(-task))
                continue
            attempt = self.attempts[task]
            attempt.deadline = 0.0
            if attempt.reason is None:
                facts = self._facts[attempt.launch.template]
                attempt.reason = Failure(
                    Cause.TIMEOUT, f"it ran longer than its timeout of {facts.timeout:g} s", self.host
                )
                attempt.grace = facts.grace
                self._signal_end(attempt.lane, attempt)
            elif attempt.signalled == Send.TERM:
                attempt.signalled = Send.KILL
                self._out.append(Signal(attempt.lane, task, Send.KILL))
                self._set_deadline(attempt, self._now + BOUND)
            else:
                self._out.append(Late(attempt.lane, task, attempt.reason))

    def _tell(self, launch: Launch, kind: ChangeKind, after: int = 0, failure: Failure | None = None) -> None:
        self._out.append(Tell(Change(launch.task, launch.epoch, launch.run, kind, after, b"", failure)))

    # --- invariants ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        held: dict[int, int] = {}
        for task, attempt in self.attempts.items():
            must(attempt.launch.task == task, "attempt.launch.task == task")
            if attempt.lane:
                must(task in self.lanes[attempt.lane].queue, "an attempt's lane knows it")
                must(
                    not attempt.launch.slots or self.lanes[attempt.lane].slots == attempt.launch.slots,
                    "not attempt.launch.slots or self.lanes[attempt.lane].slots == attempt.launch.slots",
                )
            else:
                held[attempt.launch.chain] = held.get(attempt.launch.chain, 0) + 1
                must(not attempt.deadline, "what is held has no timer")
                must(not attempt.suspended, "not attempt.suspended")
                must(attempt.reason is None, "what is held is not being ended: it is given back")
                must(not attempt.retract, "not attempt.retract")
            if attempt.deadline:
                must((attempt.deadline, task) in self._timers, "(attempt.deadline, task) in self._timers")
            if attempt.signalled:
                must(attempt.reason is not None, "attempt.reason is not None")
        must(held == self._held_count, "the count of what is held is right")
        self._check_lanes()
        for chain, heap in self._held.items():
            present = {task for _, arrival, task in heap if self._is_held(task, arrival)}
            must(len(present) == held[chain], "what is held can be found")

    def _is_held(self, task: int, arrival: int) -> bool:
        attempt = self.attempts.get(task)
        return attempt is not None and not attempt.lane and attempt.arrival == arrival

    def _check_lanes(self) -> None:
        seen: set[int] = set()
        chains: dict[int, int] = {}
        for number, lane in self.lanes.items():
            must(lane.queue, "a lane that runs nothing is over")
            must(lane.slots, "lane.slots")
            chains[lane.chain] = chains.get(lane.chain, 0) + 1
            head = self.attempts[lane.queue[0]]
            must(not head.retract, "what runs cannot be taken back")
            must(head.reason is None or head.signalled, "what is to end was signalled")
            for task in lane.queue:
                must(task not in seen, "one lane each")
                seen.add(task)
                must(self.attempts[task].lane == number, "self.attempts[task].lane == number")
                must(self.attempts[task].launch.chain == lane.chain, "self.attempts[task].launch.chain == lane.chain")
            for task in list(lane.queue)[1:]:
                attempt = self.attempts[task]
                must(not attempt.deadline, "only what runs has a timer")
                must(not attempt.signalled, "not attempt.signalled")
                must(self._facts[attempt.launch.template].ahead, "self._facts[attempt.launch.template].ahead")
            must(not head.suspended or lane.closed, "not head.suspended or lane.closed")
            if lane.timer:
                must((lane.timer, -number) in self._timers, "a lane's timer is there")
            if lane.patience:
                must(lane.timer, "somebody looks at a lane's patience")
                must(lane.timer <= lane.patience, "in time")
            else:
                must(len(lane.queue) == 1 or lane.slow, "what waits behind something else is watched")
        must(chains == self._chain_lanes, "chains == self._chain_lanes")
