"""What a new hub must not bind yet: work that an agent which has not reconnected may be running.

A hub does not write down where it binds a task, because that would cost every task a write. So after it was killed, the
next one knows which pilots were active, and not what their agents hold. Until each of these agents has reconnected, or
is known to have ended, tasks that an earlier hub may have dispatched stay unbound. Other tasks do not wait. The wait is
bounded: an agent behind a dead network must not stop the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import instructions as do

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.events import AttemptReport
    from pilot_hitl.study.ready import Key

HELD, HELD_FAILED, DONE = int(State.HELD), int(State.HELD_FAILED), int(State.DONE)
GRACE = 20.0
"""Seconds that agents have to reconnect to a new hub before their work may be bound elsewhere."""
STEP = 1.0
"""Seconds that count at most between two events: a clock that jumped, or a hub that was stopped, gives up nobody."""


class Recovery:
    """Agents that an earlier hub may have left with work, and which tasks that may be.

    Attributes:
        missing: pilots whose agents have not reconnected, and may; or have, and are ending what nobody here knows: its
            script may be about to submit it again.
    """

    def __init__(self, core: StudyCore) -> None:
        """Start without any; the tasks and pilots are those of ``core``."""
        self._core = core
        self.missing: set[int] = set()
        self._waits = False
        self._left = GRACE
        self._at = inf
        self._ending: dict[int, set[tuple[int, int, int]]] = {}
        """Attempts of unknown tasks that an agent was told to end, by pilot."""
        self._dispatched: set[int] = set()
        """Tasks of which an attempt may run, although their bulk does not tell."""
        self._claimed: set[int] = set()
        """Tasks that later ones follow in case that an attempt of them runs."""

    # --- agents -------------------------------------------------------------------------------------------------------

    def expect(self, pilot: int) -> None:
        """Wait for the agent of a pilot that was active under an earlier hub."""
        if not self._core.fleet.get(pilot).active:
            self._wait_for(pilot)

    def _wait_for(self, pilot: int) -> None:
        self.missing.add(pilot)
        if not self._waits:
            self._waits, self._left, self._at = True, GRACE, inf

    def heard(self, pilot: int) -> None:
        """Wait for a pilot no more: its agent has reconnected, or ended."""
        self.missing.discard(pilot)
        self._ending.pop(pilot, None)

    def unknown(self, pilot: int, attempts: Iterable[tuple[int, int, int]]) -> None:
        """Wait for an agent that has reconnected until ``(task, epoch, run)`` that nobody knows here have ended."""
        if ending := set(attempts):
            self._ending[pilot] = ending
            self._wait_for(pilot)

    def reported(self, reports: Iterable[AttemptReport]) -> None:
        """Take note of attempts that ended."""
        for report in reports if self._ending else ():
            if report.state not in (State.SCHEDULED, State.RUNNING):
                for pilot, ending in list(self._ending.items()):
                    ending.discard((report.task, report.epoch, report.run))
                    if not ending:
                        self.heard(pilot)

    def next_deadline(self) -> float | None:
        """Return when time must be counted again, None while nobody is waited for."""
        return self._at + STEP if self._waits else None

    def settle(self, now: float) -> None:
        """Take note of the time; end the wait when nobody is missing any more, or for long enough."""
        if not self._waits:
            return
        self._left -= min(STEP, max(0.0, now - self._at))
        self._at = now
        if self.missing and self._left > 0.0:
            return
        given_up = tuple(number for number in sorted(self.missing) if not self._core.pilots[number].active)
        self.missing, self._waits = set(), False
        self._ending.clear()
        for source in sorted(self._claimed):
            bulk = self._core.tasks.find(source)
            if bulk is not None and bulk.states[source - bulk.first] < HELD and not bulk.epochs[source - bulk.first]:
                self._core.adoption.supersede(bulk, source - bulk.first)
        self._claimed.clear()
        self._dispatched.clear()
        self._core.emit(do.RecoveryEnded(given_up))

    # --- tasks --------------------------------------------------------------------------------------------------------

    def restored(self, bulk: Bulk) -> None:
        """Take note of a bulk of an earlier hub: what failed ahead of an answer that counts now may run again."""
        if bulk.condition.truth is Truth.TRUE:
            self._dispatched.update(bulk.first + at for at, state in enumerate(bulk.states) if state == HELD_FAILED)

    def claim(self, bulk: Bulk, at: int, task: int, *, follows: bool) -> None:
        """Let ``task`` wait as an earlier one of the same work would, of which an attempt may run.

        ``follows``: it takes over that attempt when there is one; else the earlier one ends with the wait.
        """
        self._dispatched.add(task)
        if follows:
            self._claimed.add(bulk.first + at)

    def bound(self, task: int) -> None:
        """Take note that the attempt of a task is known."""
        self._dispatched.discard(task)

    def waited_for(self, bulk: Bulk, at: int) -> list[int]:
        """Return the pilots whose agents may hold an attempt of a task of which this hub knows none."""
        state, decided = bulk.states[at], bulk.condition.truth is Truth.TRUE
        if not self.missing or bulk.epochs[at] or state >= DONE or state == HELD:
            return []
        if (state == HELD_FAILED and not decided) or not self._may_run(bulk, at):
            return []
        return self._missing_for(bulk.pilot, bulk.site)

    def push(self, bulk: Bulk, offset: int, count: int) -> None:
        """Queue a slice of a bulk; what may run elsewhere apart from what may be bound at once."""
        ready = self._core.ready
        if not self.missing:
            ready.push(bulk, offset, count)
            return
        for first, length, inherited in self._pieces(bulk, offset, count):
            ready.push(bulk, first, length, inherited=inherited)

    def blocked(self) -> set[Key]:
        """Return the queues of which nothing may be bound yet."""
        if not self.missing:
            return set()
        keys = self._core.ready.ordered_keys()
        return {key for key in keys if key.inherited and self._missing_for(key.pilot, key.site)}

    def _missing_for(self, number: int, site: str) -> list[int]:
        fleet = self._core.fleet
        return [each for each in sorted(self.missing) if fleet.admits(fleet.pilots[each], number, site)]

    def _may_run(self, bulk: Bulk, at: int) -> bool:
        """Return whether an earlier hub may have dispatched a task, and this one has not heard of an attempt."""
        # Whoever was adopted, or is tried again, has a run number of its own.
        return bulk.first + at in self._dispatched or ((bulk.restored or bulk.resent) and at not in bulk.runs)

    def _pieces(self, bulk: Bulk, offset: int, count: int) -> Iterator[tuple[int, int, bool]]:
        for inherited, group in groupby(range(offset, offset + count), lambda at: self._may_run(bulk, at)):
            offsets = list(group)
            yield offsets[0], len(offsets), inherited
