"""What ran ahead and left something outside of its value: it is put in place after the commit, and only then DONE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.states import State, Truth

if TYPE_CHECKING:
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.events import Published


class Unpublished(set[int]):
    """The HELD tasks whose files are not in place. What depends on them waits, whatever their condition.

    Attributes:
        committed: those whose files are wanted in place since somebody looked last; whoever looks empties it.
    """

    def __init__(self) -> None:
        """Start without any."""
        super().__init__()
        self.committed: list[int] = []

    def note(self, task: int, truth: Truth) -> None:
        """Add a task; with a true condition its files are wanted at once."""
        self.add(task)
        if truth is Truth.TRUE:
            self.committed.append(task)

    def commit(self, task: int) -> bool:
        """Want the files of a task in place; False when it left none."""
        if task not in self:
            return False
        self.committed.append(task)
        return True


def published(core: StudyCore, event: Published) -> None:
    """Let a task count whose files are in place, or end it because they cannot be put there."""
    bulk = core.tasks.find(event.task)
    if bulk is None or event.task not in core.unpublished or bulk.condition.truth is not Truth.TRUE:
        core.stale += 1
        return
    core.unpublished.discard(event.task)
    state = State.DONE if event.failure is None else State.FAILED
    core.finish(bulk, event.task - bulk.first, state, None, event.failure)
