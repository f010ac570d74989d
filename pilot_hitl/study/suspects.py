"""Tasks that ran when a process died that runs tasks: one of them may be what killed it.

At a first death nobody is blamed: all that ran there runs again, each *apart*, below processes that run nothing else.
When those die too, the task that ran there is to blame: it uses up one of its retries, or fails alone. When the whole
pilot's processes died again, it is the third time that tells, and only when exactly one task was there each time.
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

DEATHS = 3
"""Deaths of a whole pilot that one task alone has seen, after which it is to blame."""


def died(bulk: Bulk, at: int, failure: Failure) -> Failure | None:
    """Note that what ran a task died; return how the task fails when it is to blame."""
    before = bulk.deaths.get(at, 0)
    bulk.deaths[at] = before + 1
    return _blamed(before + 1, failure.host) if before else None


def tries_again(bulk: Bulk, at: int) -> bool:
    """Use up one of the retries of a task; return whether there was one."""
    tries = bulk.tries.get(at, 0)
    if tries >= bulk.retries:
        return False
    bulk.tries[at] = tries + 1
    return True


def ran(core: StudyCore, tasks: Iterable[int]) -> None:
    """Take in what ran when all that runs tasks on a pilot died."""
    found: list[tuple[Bulk, int, int]] = []
    for task in tasks:
        bulk = core.tasks.find(task)
        if bulk is not None and bulk.states[task - bulk.first] < State.HELD:
            at = task - bulk.first
            bulk.deaths[at] = bulk.deaths.get(at, 0) + 1
            found.append((bulk, at, bulk.deaths[at]))
    worst = [each for each in found if each[2] >= DEATHS]
    if len(worst) == 1:
        bulk, at, deaths = worst[0]
        if not bulk.outside and tries_again(bulk, at):
            return
        undecided = bulk.condition.truth is Truth.UNDECIDED
        core.finish(bulk, at, State.HELD_FAILED if undecided else State.FAILED, None, _blamed(deaths, ""))


def tell(core: StudyCore, pilot: int, bulk: Bulk, offset: int, count: int) -> None:
    """Tell an agent which of the tasks that it is about to get are to run apart."""
    apart = [bulk.first + at for at in bulk.deaths if offset <= at < offset + count]
    if apart:
        core.emit(do.RunApart(pilot, tuple(apart)))


def _blamed(deaths: int, host: str) -> Failure:
    times = "both times" if deaths == 2 else f"all {deaths} times"
    text = (
        f"it was running {times} when the process that runs tasks died, the last time as the only one: it kills "
        "its parent process, or something that it does ends that as well"
    )
    return Failure(Cause.SPAWNER_DIED, text, host, -9)
