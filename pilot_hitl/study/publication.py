"""What ran ahead and left something outside of its value: it is put in place after the commit, and only then DONE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State, Truth

if TYPE_CHECKING:
    from pilot_hitl.study.core import StudyCore
    from pilot_hitl.study.events import Published


class Unpublished:
    """The HELD tasks whose files are not in place. What depends on them waits, whatever their condition."""

    __slots__ = ("_committed", "_tasks")

    def __init__(self) -> None:
        """Start without any."""
        self._tasks: set[int] = set()
        self._committed: list[int] = []

    def __contains__(self, task: object) -> bool:
        """Return whether a task is one of them."""
        return task in self._tasks

    def add(self, task: int, truth: Truth) -> None:
        """Note a task; with a true condition its files are wanted at once."""
        self._tasks.add(task)
        if truth is Truth.TRUE:
            self._committed.append(task)

    def update(self, tasks: Iterable[int]) -> None:
        """Note tasks of an earlier life of the hub."""
        self._tasks.update(tasks)

    def commit(self, task: int) -> bool:
        """Want the files of a task in place; False when it left none."""
        if task not in self._tasks:
            return False
        self._committed.append(task)
        return True

    def discard(self, task: int) -> None:
        """Forget a task."""
        self._tasks.discard(task)

    def take(self) -> list[int]:
        """Return the tasks whose files are wanted in place since this was called last."""
        committed, self._committed = self._committed, []
        return committed


def published(core: StudyCore, event: Published) -> None:
    """Let a task count whose files are in place, or end it because they cannot be put there."""
    bulk = core.tasks.find(event.task)
    if bulk is None or event.task not in core.unpublished or bulk.condition.truth is not Truth.TRUE:
        core.stale += 1
        return
    core.unpublished.discard(event.task)
    state = State.DONE if event.failure is None else State.FAILED
    core.finish(bulk, event.task - bulk.first, state, None, event.failure)
