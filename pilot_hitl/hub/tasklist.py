"""The tasks of a session in order of their ids, a page at a time: of what has ended only the page is looked at."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pilot_hitl.model.states import State


class Part(NamedTuple):
    """Tasks ``first … first+size-1``; ``ended`` says how many in which state when all of them ended."""

    first: int
    size: int
    ended: dict[int, int] | None = None


def page(
    parts: Iterable[Part],
    states_of: Callable[[Part], bytes],
    ended_in: Callable[[State, Part, int, int], Iterable[int]],
    state: State | None,
    skip: int,
    limit: int,
) -> Iterator[int]:
    """Yield ids of tasks in a state (None: any), in order, without the first ``skip``, ``limit`` at most.

    ``states_of`` returns the states of a part with unended tasks. ``ended_in(state, part, skip, limit)`` returns those
    of an ended part.
    """
    found: Iterable[int]
    for part in sorted(parts, key=lambda part: part.first):
        first, count, ended = part
        if limit <= 0:
            return
        if ended is None:
            states = states_of(part)
            matching = [first + at for at in range(count) if state is None or states[at] == state]
            there, found = len(matching), matching[skip : skip + limit]
        elif state is None:
            there, found = count, range(first + skip, first + min(count, skip + limit))
        else:
            there = ended.get(state, 0)
            found = ended_in(state, part, skip, limit) if skip < there else ()
        for task in found:
            limit -= 1
            yield task
        skip = max(0, skip - there)


def recorded_in(database: sqlite3.Connection, state: State, part: Part, skip: int, limit: int) -> Iterator[int]:
    """Yield tasks of a part that are recorded in a state, in order, without the first ``skip``."""
    query = "SELECT task FROM outcome WHERE state=? AND task>=? AND task<? ORDER BY task LIMIT ? OFFSET ?"
    if state is not State.DONE:
        query = query.replace("WHERE", "INDEXED BY outcome_other WHERE state<>10 AND")
    for (task,) in database.execute(query, (state, part.first, part.first + part.size, limit, skip)):
        yield task
