"""What is taken over of earlier incarnations, by resume keys: a value that is there, or an attempt that runs.

A task that takes over a value ends with it. One that takes over an attempt follows the task whose attempt it is: it
takes its value, and runs itself when there will be none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import instructions as do

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.events import SubmitTasks

SCHEDULED, HELD, DONE = int(State.SCHEDULED), int(State.HELD), int(State.DONE)
HELD_FAILED, FAILED = int(State.HELD_FAILED), int(State.FAILED)
MET = (HELD, DONE)


Repeats = Counter[int]
"""How many tasks of earlier incarnations were submitted again, by their states."""


class Adoption:
    """Who takes over what, and who follows whom.

    Attributes:
        followers: by the task whose attempt they follow, or may follow once its agent has reconnected.
        repeats: those whose place later ones took: a session has each task once.
    """

    def __init__(self, core: StudyCore) -> None:
        """Start without any; the tasks are those of ``core``."""
        self._core = core
        self.followers: dict[int, list[int]] = {}
        self._follows: dict[int, int] = {}
        self.repeats: Repeats = Counter()

    def best(self, sources: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Return which one counts for each offset of several ``(offset, task)``: what is DONE, and of those the latest.

        Of two that are DONE, the earlier one may be there again only because it lost its files.
        """
        found: dict[int, tuple[bool, int]] = {}
        state_of = self._core.tasks.state_of
        for offset, source in sources:
            found[offset] = max(found.get(offset, (False, 0)), (state_of(source) == DONE, source))
        return {offset: source for offset, (_done, source) in sorted(found.items())}

    def replaced(self, sources: Iterable[int]) -> None:
        """Count earlier tasks of which nothing is taken over, although later ones are the same work."""
        for source in sources:
            self.repeats[self._core.tasks.state_of(source) or State.NEW] += 1

    def claim(self, bulk: Bulk, event: SubmitTasks) -> None:
        """Take over what other incarnations made of the same work."""
        for offset, source in self.best(event.sources).items():
            self._claim_one(bulk, offset, source, keeps=event.keeps_failures)

    def _claim_one(self, bulk: Bulk, offset: int, source: int, *, keeps: bool) -> None:
        parent = self._core.tasks.find(source)
        if parent is None:
            return
        at = source - parent.first
        state = parent.states[at]
        same = parent.condition is bulk.condition
        if state == DONE or (state == HELD and same):
            self._reuse(bulk, offset, source)
        elif keeps and (state == FAILED or (state == HELD_FAILED and same)):
            self._fail(bulk, offset, source)
        elif state < HELD and parent.epochs[at] and same and at not in parent.ending:
            self._follow(bulk, offset, source)
        elif state == SCHEDULED and not parent.epochs[at] and same:
            # It has no attempt itself, and follows an even earlier task that has one.
            self._follow(bulk, offset, self._follows[source])
            self.supersede(parent, at)
        elif self._core.recovery.waited_for(parent, at):
            follows = state < HELD and same
            self._core.recovery.claim(parent, at, bulk.first + offset, follows=follows)
            if follows:
                self._follow(bulk, offset, source)
            else:
                self.supersede(parent, at)
        elif state < DONE:
            self.supersede(parent, at)
        else:
            self.repeats[state] += 1

    def _follow(self, bulk: Bulk, at: int, source: int) -> None:
        bulk.states[at] = SCHEDULED
        self.followers.setdefault(source, []).append(bulk.first + at)
        self._follows[bulk.first + at] = source

    def bound(self, task: int) -> None:
        """A task that was submitted to an earlier hub as well has an attempt of its own: it follows no other."""
        if (source := self._follows.pop(task, None)) is not None:
            self.followers[source].remove(task)

    def supersede(self, bulk: Bulk, at: int) -> None:
        """End a task because a later one takes its place."""
        superseded = Failure(Cause.SUPERSEDED, "the script submitted it anew")
        self._core.finish(bulk, at, State.CANCELED, None, superseded)
        self.repeats[State.CANCELED] += 1

    def _reuse(self, bulk: Bulk, at: int, source: int) -> None:
        core, task, truth = self._core, bulk.first + at, bulk.condition.truth
        self.repeats[core.tasks.state_of(source) or DONE] += 1
        unpublished = source in core.unpublished
        state = State.HELD if truth is Truth.UNDECIDED or unpublished else State.DONE
        if unpublished:
            core.unpublished.note(task, truth)
        if bulk.condition.number and bulk.states[at] < HELD:
            core.speculation.ended(bulk)
        bulk.states[at] = state
        core.count_final(bulk, state)
        core.emit(do.Reuse(task, source, state))
        core.met(task)

    def _fail(self, bulk: Bulk, at: int, source: int) -> None:
        """Let a task fail as its source did; it is new, so nobody waits for it yet."""
        core, undecided = self._core, bulk.condition.truth is Truth.UNDECIDED
        self.repeats[core.tasks.state_of(source) or FAILED] += 1
        state = State.HELD_FAILED if undecided else State.FAILED
        if bulk.condition.number:
            core.speculation.ended(bulk)
        bulk.states[at] = state
        core.count_final(bulk, state)
        core.emit(do.Reuse(bulk.first + at, source, state))

    def ended(self, source: int, state: State) -> None:
        """A task has an end, for now or for good: give its followers its value, or let them run themselves."""
        for follower in self.followers.pop(source, ()):
            self._follows.pop(follower, None)
            bulk = self._core.tasks.find(follower)
            if bulk is None or bulk.states[follower - bulk.first] >= DONE:
                continue
            if state in MET:
                self._reuse(bulk, follower - bulk.first, source)
            else:
                self.repeats[state] += 1
                self._core.queue_one(bulk, follower - bulk.first)

    def left(self, source: int) -> None:
        """A task lost its attempt and nobody wants another one: let those that follow it run themselves."""
        for follower in self.followers.pop(source, ()):
            self._follows.pop(follower, None)
            bulk = self._core.tasks.find(follower)
            if bulk is not None and bulk.states[follower - bulk.first] < DONE:
                self.repeats[self._core.tasks.state_of(source) or State.NEW] += 1
                self._core.queue_one(bulk, follower - bulk.first)
