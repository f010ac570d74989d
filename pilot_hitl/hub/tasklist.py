"""The tasks of a session in order of their ids, a page at a time: of what has ended only the page is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State

if TYPE_CHECKING:
    from pilot_hitl.hub.store import Store
    from pilot_hitl.study.bulk import Table


def page(tasks: Table, store: Store, state: State | None, skip: int, limit: int) -> Iterator[int]:
    """Yield ids of tasks in a state (None: any), in order, without the first ``skip``, ``limit`` at most."""
    found: Iterable[int]
    parts: list[tuple[int, int, int]] = [(bulk.first, bulk.count, -1) for bulk in tasks]
    ended = list(tasks.ended)
    parts += [(run.first, run.count, number) for number, run in enumerate(ended)]
    for first, count, number in sorted(parts):
        if limit <= 0:
            return
        if number < 0:
            bulk = tasks.find(first)
            states = bulk.states if bulk is not None else bytearray()
            matching = [at for at in range(len(states)) if state is None or states[at] == state]
            there = len(matching)
            found = [first + at for at in matching[skip : skip + limit]]
        else:
            there = count if state is None else ended[number].states.get(state, 0)
            if skip >= there:
                found = ()
            elif state is None:
                found = range(first + skip, first + min(count, skip + limit))
            else:
                found = store.tasks_in(state, first, first + count, skip, limit)
        for task in found:
            limit -= 1
            yield task
        skip = max(0, skip - there)
