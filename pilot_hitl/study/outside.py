"""What acts outside its sandbox and has begun: it never begins again, whoever forgot that it had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State
from pilot_hitl.study.ends import LOST

if TYPE_CHECKING:
    from pilot_hitl.study.core import StudyCore

RUNNING, HELD = int(State.RUNNING), int(State.HELD)


def begun(core: StudyCore, attempts: Iterable[tuple[int, int, int]]) -> None:
    """Believe that attempts have begun: those that are present run, and what is not bound to anybody was lost."""
    for task, epoch, run in attempts:
        bulk = core.tasks.find(task)
        at = task - bulk.first if bulk is not None else 0
        if bulk is None or not bulk.outside or bulk.states[at] >= HELD:
            continue
        if bulk.epochs[at] == epoch and bulk.run(at) == run:
            bulk.states[at] = RUNNING
        elif not bulk.epochs[at] and at not in bulk.runs:
            # This hub has not tried it: an earlier one had.
            core.finish(bulk, at, State.FAILED, None, LOST)
