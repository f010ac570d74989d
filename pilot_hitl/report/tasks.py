"""The tasks of a session by its file: what the hub says of them too, but without a hub."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.errors import SessionError
from pilot_hitl.hub.counts import ended, gaps
from pilot_hitl.hub.tasklist import Part, page, recorded_in
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.failures import Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State, Truth, effective
from pilot_hitl.model.templates import Template
from pilot_hitl.report.records import database_of
from pilot_hitl.study.reconnect import merged
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.completed import written_of
from pilot_hitl.wire.messages import Submit

_failures = msgspec.msgpack.Decoder(Failure)
_templates: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)
_specs = msgspec.msgpack.Decoder(Submit)
_OUTCOMES = """
SELECT task, state, epoch, run, began, ended, pilot, node, cores, reused, failure FROM outcome
WHERE task >= ? AND task < ? ORDER BY task
"""


def task_records(where: Path, state: str = "", limit: int = 1000, offset: int = 0) -> list[dict[str, Json]]:
    """Return the tasks of a session, in order, with the attempt that decided each; ``state`` leaves out others.

    Raises:
        SessionError: there is no session, or it cannot be read.
    """
    if state and state not in State.__members__:
        return []
    with _opened(where) as database:
        tasks = list(_page(database, State[state] if state else None, offset, limit))
        runs = merged([(task, 1) for task in tasks])
        return [record for first, count in runs for record in _read(database, first, first + count)]


def _page(database: sqlite3.Connection, state: State | None, skip: int, limit: int) -> Iterator[int]:
    over = ended(database)
    parts = [Part(each.first, each.count, each.states) for each in over]
    truths = _truths(database)
    conditions: dict[int, int] = {}
    query = "SELECT first, count, condition FROM bulk WHERE first>=? AND first<?"
    for gap in gaps(over):
        for first, count, condition in database.execute(query, gap):
            parts.append(Part(first, count))
            conditions[first] = condition

    def states_of(part: Part) -> bytes:
        truth = truths.get(conditions[part.first], Truth.TRUE)
        states = bytearray(effective(State.QUEUED, truth) for _ in range(part.size))
        query = "SELECT task, state FROM outcome WHERE task>=? AND task<?"
        for task, recorded in database.execute(query, (part.first, part.first + part.size)):
            states[task - part.first] = effective(State(recorded), truth)
        return bytes(states)

    return page(parts, states_of, partial(recorded_in, database), state, skip, limit)


def _truths(database: sqlite3.Connection) -> dict[int, Truth]:
    return {number: Truth(truth) for number, truth in database.execute("SELECT number, truth FROM condition")}


def task_record(where: Path, task: int) -> dict[str, Json]:
    """Return one task of a session.

    Raises:
        SessionError: there is no such task or session, or it cannot be read.
    """
    with _opened(where) as database:
        record = next(_read(database, task, task + 1), None)
        row = database.execute("SELECT payload FROM outcome WHERE task=?", (task,)).fetchone()
    if record is None:
        raise SessionError(f"session {where.name!r} has no {task_name(task)}")
    return record | (written_of(row[0]).view() if row is not None else {})


def why_task_reused(where: Path, task: int) -> str:
    """Return in words why a task took over a result of an earlier run, or why it did not.

    Raises:
        SessionError: there is no such task or session, or it cannot be read.
    """
    from pilot_hitl.hub.whyreused import WhyReused  # imports the study core: not for every list

    with _opened(where) as database:
        why = WhyReused(database.execute, BlobStore(where / "blobs")).of(task)
    if not why:
        raise SessionError(f"session {where.name!r} has no {task_name(task)}")
    return why


@contextlib.contextmanager
def _opened(where: Path) -> Iterator[sqlite3.Connection]:
    path = database_of(where)
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            yield database
        finally:
            database.close()
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise SessionError(f"{path} cannot be read as a session: {error}") from error


def _read(database: sqlite3.Connection, first: int, end: int) -> Iterator[dict[str, Json]]:
    truths = _truths(database)
    names: dict[int, str] = {}
    query = (
        "SELECT first, count, condition, spec FROM bulk"
        " WHERE first >= coalesce((SELECT max(first) FROM bulk WHERE first <= ?), ?) AND first < ? ORDER BY first"
    )
    for start, count, condition, spec in database.execute(query, (first, first, end)).fetchall():
        if start + count <= first:
            continue
        name = _name(database, spec, names)
        low, high = max(start, first), min(start + count, end)
        outcomes = {row[0]: row for row in database.execute(_OUTCOMES, (low, high))}
        truth = truths.get(condition, Truth.TRUE)
        for task in range(low, high):
            yield _record(task, name, condition, truth, outcomes.get(task))


def _name(database: sqlite3.Connection, spec: bytes, known: dict[int, str]) -> str:
    """Return what people call the tasks of a bulk; empty when another release wrote it in another way."""
    try:
        template = _specs.decode(spec).template
        if template not in known:
            row = database.execute("SELECT blob FROM template WHERE id=?", (template,)).fetchone()
            known[template] = "" if row is None else _templates.decode(row[0]).name
    except (msgspec.MsgspecError, ValueError):
        return ""
    return known[template]


def _record(task: int, name: str, condition: int, truth: Truth, row: tuple[Any, ...] | None) -> dict[str, Json]:
    state = effective(State(row[1]) if row is not None else State.QUEUED, truth)
    record: dict[str, Json] = {
        "task": task_name(task),
        "name": name,
        "state": state.name,
        "condition": condition,
        "condition_truth": truth.name,
    }
    if row is None:
        return record
    _task, _state, epoch, run, began, ended, pilot, node, cores, reused, blob = row
    record |= {"epoch": epoch, "run": run, "pilot": pilot, "node": node, "cores": cores, "began": began, "ended": ended}
    record["reused"] = bool(reused)
    if blob:
        failure = _failures.decode(blob)
        record["failure"] = {"cause": failure.cause.name, "message": failure.message, "host": failure.host}
    return record
