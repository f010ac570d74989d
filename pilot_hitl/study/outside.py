"""What acts outside its sandbox and has begun: it never begins again, whoever forgot that it had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.states import State
from pilot_hitl.study.ends import LOST

if TYPE_CHECKING:
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.pilots import Pilot

SCHEDULED, RUNNING, HELD = int(State.SCHEDULED), int(State.RUNNING), int(State.HELD)


def begun(core: StudyCore, pilot: Pilot, acted: tuple[tuple[int, int, int], ...] | None) -> None:
    """Believe what an agent knows to have begun, now or in an earlier life, and that nothing else has.

    To be called while the attempts that it may speak of are still bound to the pilot.
    """
    for task, epoch, run in acted or ():
        bulk = core.tasks.find(task)
        at = task - bulk.first if bulk is not None else 0
        if bulk is None or not bulk.outside or bulk.states[at] >= HELD:
            continue
        if bulk.epochs[at] == epoch and bulk.run(at) == run:
            bulk.states[at] = RUNNING
            pilot.presumed.discard(task)
        elif not bulk.epochs[at] and at not in bulk.runs:
            # This hub has not tried it: an earlier one had.
            core.finish(bulk, at, State.FAILED, None, LOST)
    for task in pilot.presumed if acted is not None else ():
        bulk = core.tasks.find(task)
        at = task - bulk.first if bulk is not None else 0
        if bulk is not None and bulk.states[at] == RUNNING and bulk.epochs[at] == pilot.binding:
            bulk.states[at] = SCHEDULED
    pilot.presumed.clear()
