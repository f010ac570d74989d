"""What each question took, and what it cost."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from statistics import median

from pilot_hitl.model.canonical import Json
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.report.books import Piece
from pilot_hitl.report.records import GateRecord, Records
from pilot_hitl.report.summary import Gate, Person

ASKED_AGAIN = "ASKED_AGAIN"
"""State of a version of a question that nobody had answered when people were asked again."""
_REOPENED_SHIFT = 32
_SPECULATIVE = ("speculative_committed", "speculative_discarded", "speculative_undecided")


def gates_of(records: Records, pieces: Sequence[Piece], cores: int, now: float) -> list[Gate]:
    """Return every question of a session, by number. ``now`` ends those that are open."""
    conditions: defaultdict[int, set[int]] = defaultdict(set)
    for condition, checkpoints in records.about.items():
        for checkpoint in checkpoints:
            conditions[checkpoint].add(condition)
    idle = _InTime([piece for piece in pieces if piece.rows.get("idle") or piece.rows.get("reserved_idle")])
    speculative: defaultdict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.condition:
            speculative[piece.condition].append(piece)
    # What ran under an answer belongs to the last version that could be given it.
    last = {_named(gate): gate.generation for gate in records.gates}
    found = []
    for gate in records.gates:
        name = _named(gate)
        mine = conditions[name] if last[name] == gate.generation else set()
        under = [piece for condition in mine for piece in speculative[condition]]
        found.append(_gate(gate, idle, under, cores, now))
    return found


class _InTime:
    """Pieces in order of their beginning: those of some minutes among those of weeks."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        # The latest end so far never goes back, so what ended before a moment is found without looking at all of it.
        self._ends = list(accumulate((piece.ended for piece in pieces), max))

    def within(self, since: float, until: float) -> Iterator[Piece]:
        """Yield what may lie between two moments."""
        for at in range(bisect_left(self._ends, since), len(self._pieces)):
            if self._pieces[at].began >= until:
                return
            yield self._pieces[at]


def _named(gate: GateRecord) -> int:
    """Return by what conditions name a question."""
    return gate.reopened << _REOPENED_SHIFT | gate.number


def people_of(gates: Sequence[Gate]) -> list[Person]:
    """Return who answered, the busiest first. What a deadline decided is nobody's answer."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    for gate in gates:
        if gate.by and gate.state == CheckpointState.ANSWERED.name:
            took[gate.by].append(gate.took_s)
    people = [
        Person(name=name, answers=len(times), median_s=median(times), total_s=sum(times), longest_s=max(times))
        for name, times in took.items()
    ]
    return sorted(people, key=lambda person: (-person.answers, person.name))


def _gate(gate: GateRecord, free: _InTime, under: Sequence[Piece], cores: int, now: float) -> Gate:
    opened = gate.opened or None
    closed = _moment(gate.record.get("answered_at")) if gate.state.closed else None
    closed = closed if closed is not None or not gate.ended else gate.ended
    until = now if gate.state is CheckpointState.OPEN and not gate.ended else closed or opened or 0.0
    took = max(0.0, until - opened) if opened is not None else 0.0
    idle = dict.fromkeys(("reserved_idle", "idle"), 0.0)
    speculated = dict.fromkeys(_SPECULATIVE, 0.0)
    waited = 0.0
    for piece in free.within(opened, until) if opened is not None else ():
        share = piece.within(opened or 0.0, until)
        for row in idle:
            idle[row] += share * piece.core_seconds(row)
    for piece in under:
        for row in _SPECULATIVE:
            speculated[row] += piece.core_seconds(row)
        if opened is not None:
            waited += piece.within(opened, until) * piece.core_seconds("speculative_committed")
    ask = gate.ask
    return Gate(
        number=gate.number,
        name=ask.name,
        iteration=ask.iteration,
        question=ask.question,
        generation=gate.generation,
        changed=gate.changed,
        state=ASKED_AGAIN if gate.ended and not gate.state.closed else gate.state.name,
        answer=gate.answer,
        opened=opened,
        closed=closed,
        took_s=took,
        by=_text(gate.record.get("by")) if gate.state.closed else "",
        channel=_text(gate.record.get("channel")) if gate.state.closed else "",
        comment=_text(gate.record.get("comment")),
        reserved_idle_core_s=idle["reserved_idle"],
        idle_core_s=idle["idle"],
        speculative_committed_core_s=speculated["speculative_committed"],
        speculative_discarded_core_s=speculated["speculative_discarded"],
        speculative_undecided_core_s=speculated["speculative_undecided"],
        waited_core_s=waited,
        saved_s=min(took, waited / cores) if cores else 0.0,
    )


def _moment(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and value else None


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""
