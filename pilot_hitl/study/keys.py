"""Which task of an earlier incarnation has a resume key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk, Table

KEY_BYTES = 16
DONE = int(State.DONE)


class Keys:
    """Resume keys of all incarnations.

    A bulk's keys are only looked at when *another* incarnation submits with keys: most sessions never pay for them.
    """

    def __init__(self, tasks: Table) -> None:
        """Start empty; ``tasks`` are those that the keys belong to."""
        self._tasks = tasks
        self._by_key: dict[bytes, int] = {}
        self._unread: dict[int, list[tuple[int, bytes]]] = {}

    def note(self, bulk: Bulk, keys: bytes) -> None:
        """Remember a bulk's keys, ``KEY_BYTES`` a task."""
        if keys:
            self._unread.setdefault(bulk.first >> 32, []).append((bulk.first, keys))

    def sources(self, first: int, count: int, keys: bytes) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, task)`` of the tasks of other incarnations that have the keys of a new bulk."""
        incarnation = first >> 32
        for other in [number for number in self._unread if number != incarnation]:
            for start, theirs in self._unread.pop(other):
                self._read(start, theirs)
        if not self._by_key:
            return
        for offset in range(min(count, len(keys) // KEY_BYTES)):
            source = self._by_key.get(keys[KEY_BYTES * offset : KEY_BYTES * (offset + 1)])
            if source is not None and source >> 32 != incarnation:
                yield offset, source

    def _read(self, first: int, keys: bytes) -> None:
        """Index a bulk's keys. A later task takes the place of an earlier one, unless that alone is DONE.

        Of two that are, the later one is the better: an earlier one may be there again only because it lost its files.
        """
        state_of = self._tasks.state_of
        for offset in range(len(keys) // KEY_BYTES):
            key, task = keys[KEY_BYTES * offset : KEY_BYTES * (offset + 1)], first + offset
            before = self._by_key.get(key)
            if before is None or state_of(before) != DONE or (task > before and state_of(task) == DONE):
                self._by_key[key] = task
