"""How many tasks a session has, and in which states: each once, however often a script was run.

A task that a later run submitted again, by the same key, is one task. The study core counts those that stand for an
earlier one by the earlier one's state; the counts are kept in the session's file (:data:`KEPT`). Replicas of services
are no tasks. What has ended and left the core's memory is counted already, by runs of ids.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pilot_hitl.model.states import State, Truth, effective
from pilot_hitl.study.ended import Range

if TYPE_CHECKING:  # every list imports this, none the study core
    from pilot_hitl.study.adoption import Repeats
    from pilot_hitl.study.bulk import Bulk, Table

KEPT = "repeats"
"""Key in the table ``meta``: a JSON object, how many by the name of a state."""
ENDS = (int(State.DONE), int(State.FAILED), int(State.CANCELED), int(State.DISCARDED))
"""States in the order of the columns of the table ``ended``."""
_LAST = (1 << 63) - 1
_SETTLES = (State.HELD, State.HELD_FAILED)
_REPLICAS = "SELECT count(*), outcome.state FROM replica LEFT JOIN outcome USING (task) GROUP BY outcome.state"


def kept(repeats: Repeats) -> str:
    """Return what is written of counts."""
    return json.dumps({State(state).name: count for state, count in sorted(repeats.items()) if count})


def of_kept(text: str | None) -> Repeats:
    """Return counts as they were written."""
    return Counter({int(State[name]): int(count) for name, count in json.loads(text or "{}").items()})


def counts_of(tasks: Table, repeats: Repeats) -> tuple[int, dict[str, int]]:
    """Return how many tasks there are, and by state, of an open session."""
    total, states = 0, Counter[int]()
    for over in tasks.ended:
        total += over.count
        states.update(over.states)
    for bulk in tasks:
        if not bulk.service:
            total += bulk.count
            states += _states(bulk)
    return total - repeats.total(), _named(states, repeats)


def _states(bulk: Bulk) -> Counter[int]:
    return Counter({state: bulk.states.count(state) for state in set(bulk.states)})


def ended(database: sqlite3.Connection) -> list[Range]:
    """Return the runs of ended tasks in a session's file, by id."""
    query = "SELECT first, count, done, failed, canceled, discarded FROM ended ORDER BY first"
    return [
        Range(first, count, dict(zip(ENDS, states, strict=True))) for first, count, *states in database.execute(query)
    ]


def gaps(ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
    """Yield ``(first, end)`` of what lies between runs of ids in order, before the first and after the last."""
    before = 0
    for found in ranges:
        if found.first > before:
            yield before, found.first
        before = found.end
    yield before, _LAST


def read_counts(database: sqlite3.Connection, truths: Mapping[int, Truth]) -> tuple[int, dict[str, int]]:
    """Return how many tasks a session's file knows, and how many of them have which state; others have none yet.

    Args:
        database: open for reading.
        truths: of conditions, by number: what was held under a decided one is what it became.
    """
    over = ended(database)
    total = sum(each.count for each in over)
    states = Counter[int]({state: sum(each.states[state] for each in over) for state in ENDS})
    for gap in gaps(over):
        total += database.execute("SELECT coalesce(sum(count),0) FROM bulk WHERE first>=? AND first<?", gap).fetchone()[
            0
        ]
        rows = database.execute("SELECT state, count(*) FROM outcome WHERE task>=? AND task<? GROUP BY state", gap)
        states.update(dict(rows))
    if any(states[held] for held in _SETTLES):
        _settle(database, truths, states)
    for count, state in database.execute(_REPLICAS):
        total -= count
        if state is not None:
            states[state] -= count
    written = database.execute("SELECT value FROM meta WHERE key=?", (KEPT,)).fetchone()
    repeats = of_kept(written[0] if written else None)
    return total - repeats.total(), _named(states, repeats)


def _settle(database: sqlite3.Connection, truths: Mapping[int, Truth], states: Counter[int]) -> None:
    """Count what was held under a condition that is decided as what it became."""
    bulks = database.execute("SELECT first, count, condition FROM bulk WHERE condition <> 0").fetchall()
    query = "SELECT state, count(*) FROM outcome WHERE task >= ? AND task < ? AND state IN (?, ?) GROUP BY state"
    for first, count, condition in bulks:
        truth = truths.get(condition, Truth.UNDECIDED)
        for number, held in database.execute(query, (first, first + count, *_SETTLES)):
            states[number] -= held
            states[effective(State(number), truth)] += held


def _named(states: Counter[int], repeats: Repeats) -> dict[str, int]:
    """Return counts by name without those that stand for others; what was held then may be decided now."""
    left = Counter(states)
    for state, count in repeats.items():
        over = count
        for place in (state, State.DONE, State.DISCARDED) if state in _SETTLES else (state,):
            taken = min(over, max(0, left[place]))
            left[place] -= taken
            over -= taken
    return {State(state).name: count for state, count in sorted(left.items()) if count > 0}
