"""Values of tasks that count only once their condition is true, for those who may see them before."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pilot_hitl.model.states import State
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._waiting import Gong

Run = tuple[int, int]


class HeldValues:
    """What the hub told of watched tasks. Safe to use from several threads.

    Attributes:
        payloads: packed values by task.
    """

    def __init__(self, client: Client) -> None:
        """Watch nothing."""
        self._client = client
        self.payloads: dict[int, bytes] = {}
        self._watched: set[int] = set()
        self._values: dict[int, Any] = {}
        self._listeners: list[Gong] = []
        self._lock = threading.Lock()

    def watch(self, runs: Iterable[Run]) -> None:
        """Ask to be told of these tasks; what is watched already is not asked for again."""
        new: list[Run] = []
        with self._lock:
            for first, count in runs:
                tasks = [task for task in range(first, first + count) if task not in self._watched]
                self._watched.update(tasks)
                new += merged(tasks)
        if new:
            self._client.tell(m.Watch(new))

    @property
    def watched(self) -> list[Run]:
        """What is watched and has not ended."""
        with self._lock:
            return merged(sorted(self._watched))

    def value(self, task: int, load: Any) -> Any:
        """Return the value of a held task, the same object each time; ``load(payload)`` makes it."""
        with self._lock:
            if task in self._values:
                return self._values[task]
        made = load(self.payloads[task])
        with self._lock:
            return self._values.setdefault(task, made)

    def listen(self, gong: Gong) -> None:
        """Tell somebody of every value that comes."""
        with self._lock:
            self._listeners.append(gong)

    def ignore(self, gong: Gong) -> None:
        """Undo :meth:`listen`."""
        with self._lock:
            self._listeners.remove(gong)

    def arrived(self, message: m.HeldOutcomes) -> None:
        """Take values in; called in the link's thread, which then wakes those who wait for the tasks."""
        for outcome in message.outcomes:
            if outcome.state in (State.HELD, State.DONE):
                self.payloads[outcome.task] = outcome.payload
        with self._lock:
            listeners = list(self._listeners)
        for gong in listeners:
            gong.look()

    def ended(self, task: int) -> None:
        """Forget a task that ended for good."""
        if task in self._watched:
            with self._lock:
                self._watched.discard(task)
                self._values.pop(task, None)
            self.payloads.pop(task, None)


def merged(tasks: Iterable[int]) -> list[Run]:
    """Return consecutive ids as runs."""
    runs: list[Run] = []
    for task in tasks:
        if runs and sum(runs[-1]) == task:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((task, 1))
    return runs
