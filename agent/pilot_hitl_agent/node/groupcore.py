"""Which warm MPI group serves which call on one node. Pure.

A *group* is a set of processes that a launcher started together on the slots of one call, on one node or on several; it
waits for calls until it is ended. Each node's daemon sees the ranks of its own node only. The node of rank 0 *leads*:
it runs the launcher, and what that says about a death counts. ``docs/specs/mpi-groups.md`` has the whole story.

A call is in one of these states on a node:

* *waiting* for a group (``Work.token`` is empty), *bound* to one that does not have it yet, or *given* to its ranks;
* *lost*: a rank died before the call began, as far as is known by then. The others are killed, and may begin it until
  they are gone. The call stays bound to the dying group until no rank of it is left: before, nothing is said or given,
  and an end that is asked for ends it. Only then it is known for good. Had none begun, another group serves it; had one
  begun, it died. So a call never begins twice, nor in two groups at a time. Of a call that was not given, nobody can
  have begun: when its group is lost, it is served again at once;
* over: it was told.

On several nodes, each node decides this of its own ranks. As no rank begins before those of all nodes have been given
the call in the same group, none begins it in another group before all nodes have seen that none had begun.

What always holds is written out in :meth:`GroupCore.check`.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from pilot_hitl_agent.node.events import must

START = 60.0
"""Seconds that a group may take until all its ranks wait for calls."""
SETTLE = 0.25
"""Once a rank has failed, the others get so many seconds to come to an end of their own; then they hang."""
ABORT = 3.0
"""On several nodes, once a rank has died, the launcher gets so many seconds to end the others: it can say which."""
SPEAK = 3.0
"""Once all ranks are gone, the launcher gets so many seconds to end, and so to have said which of them died first."""
DEFER = 10.0
"""A part that does not lead leaves it to the leading one for so many seconds to say that: longer than that may take.

When the leading part has ended, the others are asked to end at once.
"""
LINGER = 2.0
"""Seconds that a launcher may stay once its ranks are gone and all is said."""
STRIKES = 3
"""Groups that a call may lose before it begins on any rank."""

# --- what happens -----------------------------------------------------------------------------------------------------


class Want(msgspec.Struct, frozen=True):
    """A call is to run on a lane.

    Attributes:
        key: equal for calls that the same group can serve.
        here: ranks on this node.
        leads: rank 0 is on this node.
        alone: all ranks are.
        token: unused so far; names the group that may have to be started. Later ones are greater.
    """

    lane: int
    task: int
    key: str
    here: int
    leads: bool
    alone: bool
    condition: int
    token: str


class Joined(msgspec.Struct, frozen=True):
    """A rank came up on this node; ``here`` and ``alone`` as in :class:`Want`."""

    token: str
    rank: int
    key: str
    here: int
    alone: bool


class Ready(msgspec.Struct, frozen=True):
    """A rank waits for calls."""

    token: str
    rank: int


class Unready(msgspec.Struct, frozen=True):
    """A rank says that it can never be ready."""

    token: str
    rank: int


class Said(msgspec.Struct, frozen=True):
    """A rank has run its part of a call."""

    token: str
    rank: int
    task: int
    failed: bool


class Gone(msgspec.Struct, frozen=True):
    """A rank's process ended. ``began``: it or a living rank on this node had begun with the group's call."""

    token: str
    rank: int
    began: bool


class LauncherGone(msgspec.Struct, frozen=True):
    """The launcher ended, or could not be started."""

    token: str


class Asked(msgspec.Struct, frozen=True):
    """A signal is meant for the call on a lane."""

    lane: int
    number: int


class Released(msgspec.Struct, frozen=True):
    """A lane is over."""

    lane: int


class Settled(msgspec.Struct, frozen=True):
    """A condition was decided."""

    condition: int
    truth: bool


class EndIdle(msgspec.Struct, frozen=True):
    """Groups that serve no call are to be ended."""


class Passed(msgspec.Struct, frozen=True):
    """Time passed."""


Event = Want | Joined | Ready | Unready | Said | Gone | LauncherGone | Asked | Released | Settled | EndIdle | Passed

# --- what follows -----------------------------------------------------------------------------------------------------


class Bring(msgspec.Struct, frozen=True):
    """Run the launcher of a group."""

    token: str
    lane: int


class Give(msgspec.Struct, frozen=True):
    """Send a lane's call to all ranks here; with ``anew`` they make themselves another communicator first."""

    token: str
    lane: int
    task: int
    anew: bool


class Hit(msgspec.Struct, frozen=True):
    """Signal all ranks here, with everything below them."""

    token: str
    number: int


class EndLauncher(msgspec.Struct, frozen=True):
    """Kill the launcher with all that it has started here."""

    token: str


class Verdict(enum.Enum):
    """How a call ended on this node."""

    SAID = "said"
    """Each rank said how, but those that hung after another one had failed."""
    DIED = "died"
    """A rank died, or the call was ended."""
    UNSTARTED = "unstarted"
    """There is no group to run it."""


class Told(msgspec.Struct, frozen=True):
    """A call is over here, and no rank runs any of it.

    Attributes:
        culprit: the rank that died first; -1 when it was none of this node's.
        hung: ranks that were ended because they did not come to an end of their own.
    """

    lane: int
    task: int
    token: str
    verdict: Verdict
    culprit: int = -1
    hung: tuple[int, ...] = ()


class Drop(msgspec.Struct, frozen=True):
    """Nothing of a group is left here."""

    token: str


Instruction = Bring | Give | Hit | EndLauncher | Told | Drop


class Group(msgspec.Struct):
    """One group, as far as it is on this node.

    Attributes:
        lane: that it belongs to, 0 while it is idle; ``task`` the call that it runs or is started for, 0 for none.
        tag: condition under which it ran something.
        launched: its launcher runs.
        up: all its ranks here have been ready once.
        given: its call was sent to the ranks.
        anew: its communicator may have messages in it that nobody received.
        doomed: it is ended when its call is over; ``ending``: it is being ended.
        asked: its call is being ended by the node.
        began: a rank here had begun its call when one was gone. It is known of all ranks once they are gone.
        lost: a rank died before its call began, so far as was known: it may be served again when all are gone.
        patient: a rank died, and it is left to the launcher for a while to end the others.
        lingered: the launcher had time enough to speak.
        deadline: when something is done about it; 0 for never.
    """

    token: str
    key: str
    here: int
    leads: bool
    alone: bool
    launched: bool = False
    lane: int = 0
    task: int = 0
    tag: int = 0
    up: bool = False
    given: bool = False
    anew: bool = False
    doomed: bool = False
    ending: bool = False
    asked: bool = False
    began: bool = False
    lost: bool = False
    spoiled: bool = False
    patient: bool = False
    lingered: bool = False
    culprit: int = -1
    deadline: float = 0.0
    joined: set[int] = set()
    ready: set[int] = set()
    said: set[int] = set()
    failed: set[int] = set()
    hung: tuple[int, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether all ranks here wait for calls or run one."""
        return len(self.ready) == self.here and not self.ending


class Work(msgspec.Struct):
    """The call of a lane; ``token`` is empty while it waits for a group. ``task`` is 0 between two calls.

    ``paused``: it is suspended, so no rank is to begin it. ``strikes``: groups that it has lost.
    """

    lane: int
    want: Want
    task: int
    token: str = ""
    paused: bool = False
    strikes: int = 0
    deadline: float = 0.0


class GroupCore:
    """Pure state machine of one node's groups: ``step(event, now)`` returns what to do, in order."""

    def __init__(self, most_idle: int) -> None:
        """Keep groups of up to ``most_idle`` idle ranks altogether; beyond that, those idle for longest go."""
        self.most_idle = most_idle
        self.groups: dict[str, Group] = {}
        self.lanes: dict[int, Work] = {}
        self._idle: dict[str, None] = {}
        self._true: set[int] = set()
        self._out: list[Instruction] = []
        self._now = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Want: self._want,
            Joined: self._joined,
            Ready: self._ready,
            Unready: self._unready,
            Said: self._said,
            Gone: self._gone,
            LauncherGone: self._launcher_gone,
            Asked: self._asked,
            Released: self._released,
            Settled: self._settled,
            EndIdle: self._end_idle,
            Passed: self._passed,
        }

    def step(self, event: Event, now: float) -> list[Instruction]:
        """Take one event at time ``now`` (seconds, monotonic) and return what follows, in order."""
        self._now = now
        self._handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """Return when the next :class:`Passed` is due; None for never."""
        moments = [group.deadline for group in self.groups.values() if group.deadline]
        moments += [work.deadline for work in self.lanes.values() if work.deadline]
        return min(moments, default=None)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _want(self, want: Want) -> None:
        before = self.lanes.get(want.lane)
        tag = 0 if want.condition in self._true else want.condition
        work = self.lanes[want.lane] = Work(want.lane, want, want.task)
        if before is not None and before.token:
            group = self.groups[before.token]
            if group.key == want.key and group.tag in (0, tag) and not group.ending and not group.doomed:
                self._bind(work, group)
                return
            self._detach(group)
        self._serve(work)

    def _serve(self, work: Work) -> None:
        """Find a group for a call, or have one made."""
        want = work.want
        group = self._pick(want)
        if group is not None:
            self._bind(work, group)
        elif want.leads:
            group = Group(want.token, want.key, want.here, want.leads, want.alone, launched=True)
            group.deadline = self._now + START
            self.groups[group.token] = group
            self._bind(work, group)
            self._out.append(Bring(group.token, work.lane))
        else:
            # The node that leads starts one, or has one that has not quite come up here.
            work.deadline = self._now + START

    def _pick(self, want: Want) -> Group | None:
        """Return the group to take: of those under the same condition, else of the others, the latest."""
        tag = 0 if want.condition in self._true else want.condition
        found = [
            group
            for group in self.groups.values()
            if group.key == want.key and not group.lane and not group.ending and group.tag in (0, tag)
        ]
        return max(found, key=lambda group: (group.tag == tag, group.token), default=None)

    def _bind(self, work: Work, group: Group) -> None:
        self._idle.pop(group.token, None)
        tag = 0 if work.want.condition in self._true else work.want.condition
        group.lane, group.task, group.tag = work.lane, work.task, tag
        group.given = group.asked = group.began = group.lost = False
        group.said, group.failed, group.hung, group.culprit = set(), set(), (), -1
        work.token, work.deadline = group.token, 0.0
        self._give(group)

    def _give(self, group: Group) -> None:
        work = self.lanes[group.lane]
        if group.is_ready and group.task and not group.given and not work.paused:
            group.given = True
            self._out.append(Give(group.token, group.lane, group.task, group.anew))
            group.anew = False

    def _detach(self, group: Group) -> None:
        """The group's lane needs it no more."""
        work = self.lanes.get(group.lane)
        if work is not None and work.token == group.token:
            work.token = ""
        group.lane = group.task = 0
        group.given = group.asked = group.began = group.lost = False
        if group.doomed:
            self._end(group)
        elif not group.ending:
            self._rest(group)

    def _rest(self, group: Group) -> None:
        """Keep an idle group, but not two of a kind and not too many."""
        self._idle[group.token] = None
        same = [
            each
            for each in (self.groups[token] for token in self._idle)
            if (each.key, each.tag) == (group.key, group.tag)
        ]
        for twin in sorted(same, key=lambda each: each.token)[:-1]:
            self._end(twin)
        while sum(self.groups[token].here for token in self._idle) > self.most_idle:
            self._end(self.groups[next(iter(self._idle))])

    def _released(self, event: Released) -> None:
        work = self.lanes.pop(event.lane, None)
        if work is not None and work.token:
            group = self.groups[work.token]
            if group.lane == event.lane:
                self._detach(group)

    def _asked(self, event: Asked) -> None:
        work = self.lanes.get(event.lane)
        if work is None or not work.task:
            return
        ends = event.number in (signal.SIGTERM, signal.SIGKILL)
        # Also of what was given: it may be lost, and be served again.
        work.paused = event.number == signal.SIGSTOP
        group = self.groups.get(work.token)
        if group is None or not group.given:
            if ends:
                # Nothing of it runs. A group that comes up is the next one's.
                self._tell(work, group, Verdict.DIED)
            elif group is not None:
                self._give(group)
            return
        group.asked = group.asked or ends
        group.doomed = group.doomed or ends
        if group.ending:
            if ends and group.patient:
                self._kill(group)
            self._settle(group)
        elif event.number == signal.SIGKILL:
            self._end(group)
        else:
            self._out.append(Hit(group.token, event.number))

    # --- ranks --------------------------------------------------------------------------------------------------------

    def _joined(self, event: Joined) -> None:
        group = self.groups.get(event.token)
        if group is None:
            group = Group(event.token, event.key, event.here, leads=False, alone=event.alone)
            group.deadline = self._now + START
            self.groups[event.token] = group
        group.joined.add(event.rank)
        if group.ending:
            self._out.append(Hit(group.token, signal.SIGKILL))

    def _ready(self, event: Ready) -> None:
        group = self.groups.get(event.token)
        if group is None or event.rank not in group.joined:
            return
        group.ready.add(event.rank)
        if not group.is_ready:
            return
        group.up, group.deadline = True, 0.0
        if group.lane:
            self._give(group)
            return
        waiting = next((work for work in self._waiting() if self._pick(work.want) is group), None)
        if waiting is not None:
            self._bind(waiting, group)
        else:
            self._rest(group)

    def _waiting(self) -> list[Work]:
        return [work for work in self.lanes.values() if work.task and not work.token]

    def _unready(self, event: Unready) -> None:
        group = self.groups.get(event.token)
        if group is None:
            return
        if not group.lane:
            # A call that waits for this group learns why it will never come.
            waiting = next((work for work in self._waiting() if work.want.key == group.key), None)
            if waiting is not None:
                self._bind(waiting, group)
        group.spoiled = True
        self._end(group)

    def _said(self, event: Said) -> None:
        group = self.groups.get(event.token)
        if group is None or group.task != event.task or not group.given or event.rank in group.said:
            return
        group.said.add(event.rank)
        if event.failed:
            group.failed.add(event.rank)
        if group.ending:
            return
        if len(group.said) < group.here:
            if group.failed and not group.deadline:
                group.deadline = self._now + SETTLE
            return
        group.deadline = 0.0
        if group.failed:
            # Elsewhere ranks of it may have failed or not: only where all of them are known can they go on as one.
            group.anew = True
            group.doomed = group.doomed or not group.alone
        self._tell(self.lanes[group.lane], group, Verdict.SAID)

    def _gone(self, event: Gone) -> None:
        group = self.groups.get(event.token)
        if group is None:
            return
        waited = group.is_ready and not group.given
        group.joined.discard(event.rank)
        group.ready.discard(event.rank)
        group.began = group.given and (group.began or event.began or bool(group.said))
        if group.ending:
            self._settle(group)
        elif group.task and waited:
            group.doomed = True
            if not self._again(group):
                self._end(group)
        elif group.given:
            group.culprit = event.rank
            group.lost = not group.began
            self._end(group, patient=group.began and not group.alone)
        else:
            group.spoiled = bool(group.task)
            self._end(group)

    def _again(self, group: Group) -> bool:
        """Let another group serve a call of which no rank here has begun, or ever will; False when it lost too many."""
        work = self.lanes[group.lane]
        if work.strikes + 1 >= STRIKES:
            group.spoiled, group.culprit = True, -1
            return False
        work.strikes += 1
        self._detach(group)
        work.want = msgspec.structs.replace(work.want, token=f"{work.want.token}+")
        self._serve(work)
        return True

    def _launcher_gone(self, event: LauncherGone) -> None:
        group = self.groups.get(event.token)
        if group is None:
            return
        group.launched = False
        if group.ending:
            self._settle(group)
            return
        if group.task and not group.given:
            group.spoiled = True
        self._end(group)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, group: Group, *, patient: bool = False) -> None:
        """End all ranks here; the launcher ends when it sees that. ``patient``: leave even that to it for a while."""
        if group.ending:
            return
        self._idle.pop(group.token, None)
        group.ending = group.doomed = True
        if group.lane and not group.task:
            # Between two calls: the next one on this lane gets another group.
            self._detach(group)
        if patient:
            group.patient, group.deadline = True, self._now + ABORT
        else:
            self._kill(group)
        self._settle(group)

    def _kill(self, group: Group) -> None:
        group.patient, group.deadline = False, self._now + (SPEAK if group.leads else DEFER)
        if group.joined:
            self._out.append(Hit(group.token, signal.SIGKILL))
        if group.launched and not group.up:
            # Ranks that have not shown up yet are known to nobody but the launcher.
            self._out.append(EndLauncher(group.token))

    def _settle(self, group: Group) -> None:
        """Say what there is to say of a group that is being ended, as soon as it can be said."""
        if group.joined:
            return
        if group.patient:
            self._kill(group)
        if group.lost and not (group.began or group.asked):
            self._again(group)
        known = group.asked or group.spoiled or bool(group.failed) or group.lingered or not group.task
        if group.task and (known or (group.leads and not group.launched)):
            verdict = Verdict.DIED
            if group.spoiled:
                verdict = Verdict.UNSTARTED
            elif group.failed and not group.asked:
                verdict = Verdict.SAID
            self._tell(self.lanes[group.lane], group, verdict)
        if group.token in self.groups and not group.task and not group.launched:
            del self.groups[group.token]
            self._out.append(Drop(group.token))

    def _tell(self, work: Work, group: Group | None, verdict: Verdict) -> None:
        """A call is over."""
        task, work.task, work.deadline, work.paused, work.strikes = work.task, 0, 0.0, False, 0
        if group is None:
            self._out.append(Told(work.lane, task, "", verdict))
            return
        self._out.append(Told(work.lane, task, group.token, verdict, group.culprit, group.hung))
        group.task = 0
        group.given = group.asked = group.began = group.lost = False
        if group.doomed or not group.is_ready:
            self._detach(group)

    def _settled(self, event: Settled) -> None:
        if event.truth:
            # Calls that were held ahead still name it.
            self._true.add(event.condition)
        for group in list(self.groups.values()):
            if group.tag != event.condition or not event.condition:
                continue
            if event.truth and group.alone:
                group.tag = 0
                if not group.lane and group.token in self._idle:
                    self._rest(group)
            elif not group.task:
                # Also when it is true: of two groups of a kind, all nodes must know the one to take.
                self._end(group)
            elif event.truth:
                group.tag, group.doomed = 0, True

    def _end_idle(self, _event: EndIdle) -> None:
        for group in list(self.groups.values()):
            if not group.task:
                self._end(group)

    def _passed(self, _event: Passed) -> None:
        for work in list(self.lanes.values()):
            if work.deadline and work.deadline <= self._now:
                work.deadline = 0.0
                self._tell(work, None, Verdict.UNSTARTED)
        for group in list(self.groups.values()):
            if not group.deadline or group.deadline > self._now:
                continue
            group.deadline = 0.0
            if group.ending:
                self._wait_no_longer(group)
            elif group.given:
                group.hung = tuple(sorted(group.ready - group.said))
                self._end(group)
            else:
                group.spoiled = bool(group.task)
                self._end(group)

    def _wait_no_longer(self, group: Group) -> None:
        if group.patient:
            self._kill(group)
        elif not group.lingered:
            group.lingered, group.deadline = True, self._now + LINGER
            self._settle(group)
        elif group.launched:
            self._out.append(EndLauncher(group.token))

    # --- invariants ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for lane, work in self.lanes.items():
            must(work.lane == lane, "a lane's work knows its lane")
            if work.token:
                group = self.groups[work.token]
                must(group.lane == lane, "a lane's group belongs to it")
                must(group.task == work.task, "a lane's group runs the lane's call")
                must(group.key == work.want.key, "a call runs in a group of its kind")
            else:
                must(not work.task or work.deadline, "a call that waits for a group waits no longer than some time")
        for token, group in self.groups.items():
            must(group.token == token, "a group is known by its token")
            self._check_group(group)
        kinds = [(self.groups[token].key, self.groups[token].tag) for token in self._idle]
        must(len(kinds) == len(set(kinds)), "of each kind one group is idle")
        must(sum(self.groups[token].here for token in self._idle) <= self.most_idle, "not too many ranks are idle")

    def _check_group(self, group: Group) -> None:
        if group.lane:
            must(self.lanes[group.lane].token == group.token, "a group's lane has it")
            must(not group.doomed or group.task, "a doomed group serves its last call at most")
        else:
            must(not group.task, "what runs has a lane")
            starting = bool(group.deadline) and not group.is_ready
            must(group.ending or group.token in self._idle or starting, "a group of no lane is idle, or not ready")
        must(group.token not in self._idle or not (group.lane or group.ending), "what is idle is free")
        must(not group.given or group.task, "what was given is a call")
        must(not (group.lost or group.began) or group.given, "what can be lost, or begin, was given")
        must(not group.lost or group.ending, "ranks that lost one of them are ended")
        must(not (group.lost and group.patient), "a call that is served again does not wait for a launcher")
        undecided = group.lost and not (group.began or group.asked)
        must(not undecided or group.joined, "once its ranks are gone, it is decided of a lost call whether it began")
        must(group.said <= group.joined or group.ending, "who spoke is there")
        must(not group.ending or group.deadline or group.lingered, "an end does not take for ever")
        must(not (group.ending and group.joined) or group.doomed, "what is being ended is not used again")
        must(group.joined or group.launched or not group.ending or group.task, "what is gone is forgotten")
        must(group.ready <= group.joined, "who is ready is there")
        waits = bool(group.failed) and len(group.said) < group.here and not group.ending and group.given
        must(not waits or group.deadline, "nobody hangs for ever after another one failed")
