"""What is taken over of earlier incarnations, by resume keys: a value that is there, or an attempt that runs.

A task that takes over a value ends with it. One that takes over an attempt follows the task whose attempt it is: it
takes its value, and runs itself when there will be none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import instructions as do

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.core import StudyCore

SCHEDULED, HELD, DONE = int(State.SCHEDULED), int(State.HELD), int(State.DONE)
MET = (HELD, DONE)


class Adoption:
    """Who takes over what, and who follows whom.

    Attributes:
        followers: by the task whose attempt they follow.
    """

    def __init__(self, core: StudyCore) -> None:
        """Start without any; the tasks are those of ``core``."""
        self._core = core
        self.followers: dict[int, list[int]] = {}

    def claim(self, bulk: Bulk, sources: Iterable[tuple[int, int]]) -> None:
        """Take over what others made of the same tasks, given as ``(offset, task)``: what is DONE, else the latest."""
        best: dict[int, int] = {}
        state_of = self._core.tasks.state_of
        for offset, source in sources:
            before = best.get(offset)
            if before is not None and (state_of(before) == DONE or (before > source and state_of(source) != DONE)):
                continue
            best[offset] = source
        for offset, source in sorted(best.items()):
            self._claim_one(bulk, offset, source)

    def _claim_one(self, bulk: Bulk, offset: int, source: int) -> None:
        parent = self._core.tasks.find(source)
        if parent is None:
            return
        at = source - parent.first
        state = parent.states[at]
        same = parent.condition is bulk.condition
        if state == DONE or (state == HELD and same):
            self._reuse(bulk, offset, source)
        elif state < HELD and parent.epochs[at] and same and at not in parent.ending:
            bulk.states[offset] = SCHEDULED
            self.followers.setdefault(source, []).append(bulk.first + offset)
        elif state < DONE:
            superseded = Failure(Cause.SUPERSEDED, "the script submitted it anew")
            self._core.finish(parent, at, State.CANCELED, None, superseded)

    def _reuse(self, bulk: Bulk, at: int, source: int) -> None:
        core, task, truth = self._core, bulk.first + at, bulk.condition.truth
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

    def ended(self, source: int, state: State) -> None:
        """A task has an end, for now or for good: give its followers its value, or let them run themselves."""
        for follower in self.followers.pop(source, ()):
            bulk = self._core.tasks.find(follower)
            if bulk is None or bulk.states[follower - bulk.first] >= DONE:
                continue
            if state in MET:
                self._reuse(bulk, follower - bulk.first, source)
            else:
                self._core.queue_one(bulk, follower - bulk.first)

    def left(self, source: int) -> None:
        """A task lost its attempt and nobody wants another one: let those that follow it run themselves."""
        for follower in self.followers.pop(source, ()):
            bulk = self._core.tasks.find(follower)
            if bulk is not None and bulk.states[follower - bulk.first] < DONE:
                self._core.queue_one(bulk, follower - bulk.first)
