"""Who is right when an agent comes back, as ``docs/specs/reconnect.md`` tells it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study import instructions as do

if TYPE_CHECKING:
    from pilot_hitl.study import events as ev
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.pilots import Pilot

NEW, SCHEDULED, RUNNING, HELD = int(State.NEW), int(State.SCHEDULED), int(State.RUNNING), int(State.HELD)


def reconcile(core: StudyCore, pilot: Pilot, known: Iterable[tuple[int, int, int]]) -> None:
    """Decide who wins, as ``docs/specs/reconnect.md`` tells it."""
    held: dict[int, Bulk] = {}
    unwanted: set[int] = set()
    unknown: list[tuple[int, int, int]] = []
    # The highest run first: of several attempts of one task that it knows, the last is the present one.
    for task, epoch, run in sorted(known, reverse=True):
        bulk = core.tasks.find(task)
        if bulk is not None and epoch == pilot.binding and _is_present(core, pilot, bulk, task - bulk.first, run):
            held[task] = bulk
        else:
            unwanted.add(task)
            if bulk is None:
                unknown.append((task, epoch, run))
    core.recovery.unknown(pilot.number, unknown)
    if ends := unwanted.difference(held):
        core.emit(do.EndAttempts(pilot.number, merged([(t, 1) for t in ends]), "the hub knows better"))
    ending = [(task, 1) for task, bulk in held.items() if task - bulk.first in bulk.ending]
    if ending:
        core.emit(do.EndAttempts(pilot.number, merged(ending), "it was canceled"))
    for condition in {id(bulk.condition): bulk.condition for bulk in held.values()}.values():
        core.tell(pilot, condition)
        if condition.truth is Truth.TRUE and condition.number:
            core.tell_state(pilot, condition)
    for bulk in core.tasks:
        if bulk.live:
            _send_missing(core, pilot, bulk, held)


def restore_bindings(core: StudyCore, event: ev.RestoreBindings) -> None:
    """Take tasks that act outside for running where an earlier hub sent them: nobody knows better yet."""
    pilot = core.fleet.get(event.pilot)
    for task, run in event.attempts:
        bulk = core.tasks.find(task)
        if bulk is not None and bulk.outside and bulk.states[task - bulk.first] == NEW:
            core.know(event.binding, pilot)
            pilot.binding = event.binding
            _adopt(pilot, bulk, task - bulk.first, run)
            bulk.states[task - bulk.first] = RUNNING
            pilot.presumed.add(task)


def _is_present(core: StudyCore, pilot: Pilot, bulk: Bulk, at: int, run: int) -> bool:
    """Return whether an attempt that an agent knows is the task's present one; adopt it when the task has none."""
    truth = bulk.condition.truth
    if bulk.states[at] >= HELD or truth is Truth.FALSE:
        return False
    if bulk.epochs[at]:
        return bulk.epochs[at] == pilot.binding and bulk.run(at) == run
    if at in bulk.runs or (truth is Truth.UNDECIDED and not bulk.restored):
        # It was tried again since; or its condition may have had another number when the agent heard of it.
        return False
    _adopt(pilot, bulk, at, run)
    core.adoption.bound(bulk.first + at)
    core.recovery.bound(bulk.first + at)
    return True


def _adopt(pilot: Pilot, bulk: Bulk, at: int, run: int) -> None:
    bulk.epochs[at] = pilot.binding
    bulk.states[at] = SCHEDULED
    bulk.runs[at] = run
    key = (bulk.tier, bulk.shape)
    pilot.bound[key] = pilot.bound.get(key, 0) + 1


def _send_missing(core: StudyCore, pilot: Pilot, bulk: Bulk, held: dict[int, Bulk]) -> None:
    """Send again what is bound to an agent that does not know it; what was to end has ended so."""
    missing = [i for i, e in enumerate(bulk.epochs) if e == pilot.binding and bulk.first + i not in held]
    again: list[tuple[int, int]] = []
    for at in missing:
        if bulk.condition.truth is Truth.FALSE or bulk.epochs[at] != pilot.binding:
            continue
        if at in bulk.ending:
            core.unbind(bulk, at)
            core.finish(bulk, at, State.CANCELED, None, Failure(Cause.CANCELED, "it was canceled"))
        elif again and sum(again[-1]) == at and bulk.run(again[-1][0]) == bulk.run(at):
            again[-1] = (again[-1][0], again[-1][1] + 1)
        else:
            again.append((at, 1))
    for at, count in again:
        if bulk.outside:
            bulk.states[at : at + count] = bytes((SCHEDULED,)) * count  # It never arrived.
        core.send(pilot, bulk, at, count)


def merged(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return ``(first, count)`` runs in order, neighbours joined."""
    merged: list[tuple[int, int]] = []
    for first, count in sorted(runs):
        if merged and merged[-1][0] + merged[-1][1] == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + count)
        else:
            merged.append((first, count))
    return tuple(merged)
