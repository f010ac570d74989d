"""What a session's file holds of its ledger and its gates, read without owning it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.errors import SessionError
from pilot_hitl.hub.counts import read_counts
from pilot_hitl.inbox import changes
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.ledger import Account
from pilot_hitl.model.states import CheckpointState, PilotState, Truth
from pilot_hitl.wire.messages import Ask, OpenSpan

_ACCOUNTS = {int(account): account for account in Account}
DATABASE = "session.sqlite"
LEASE = 120.0
"""Seconds after which an owner that does not renew its lease is taken for dead."""
_open = msgspec.msgpack.Decoder(list[OpenSpan])
_terms = msgspec.msgpack.Decoder(list[Term])
_ask = msgspec.msgpack.Decoder(Ask)
_SPANS = """
SELECT s.pilot, s.binding, s.node, s.cores, s.began, s.ended, s.busy, s.overhead, s.idle, s.reserved, s.account,
       s.condition, s.attempts, s.task, s.failed, s.epoch, s.run, o.epoch, o.run
FROM span s LEFT JOIN outcome o ON s.task <> 0 AND o.task = s.task
"""
_SUMS = """
SELECT s.pilot, s.binding, s.node, s.cores, min(s.began), max(s.ended), sum(s.busy), sum(s.overhead), sum(s.idle),
       sum(s.reserved), s.account, s.condition, sum(s.attempts), 0, s.failed,
       CASE WHEN o.epoch IS NULL THEN NULL ELSE (o.epoch = s.epoch AND o.run = s.run) OR (o.epoch = 0 AND o.run = 0) END
       AS decided, 1, 1, 1
FROM span s LEFT JOIN outcome o ON s.task <> 0 AND o.task = s.task
GROUP BY s.pilot, s.binding, s.node, s.cores, s.account, s.condition, s.failed, decided
"""


class SpanRecord(msgspec.Struct, frozen=True):
    """A row of the table ``span``; ``decided`` says whether its attempt decided its task (None: nothing has)."""

    pilot: int
    binding: int
    node: int
    cores: tuple[int, ...]
    began: float
    ended: float
    busy: float
    overhead: float
    idle: float
    reserved: float
    account: Account
    condition: int
    attempts: int
    task: int
    failed: bool
    decided: bool | None


class LifeRecord(msgspec.Struct, frozen=True):
    """One life of an agent; see :class:`~pilot_hitl.wire.messages.Spans`."""

    pilot: int
    binding: int
    job: float
    began: float
    at: float
    final: bool
    cores: int
    faults: int
    fault_s: float
    open: list[OpenSpan]


class PilotRecord(msgspec.Struct, frozen=True):
    """A pilot as the hub knows it; ``ended`` is 0 while it has not, or when nobody saw it."""

    number: int
    state: PilotState
    began: float
    ended: float
    message: str


class GateRecord(msgspec.Struct, frozen=True):
    """A request to people, or an earlier version of one; ``record`` says who answered when and by which channel.

    ``generation``: which version of the question. ``reopened``: how often it had been closed before; conditions name
    that. ``ended``: 0, or when people were asked again. ``changed``: why it was asked, unless it was the first time.
    """

    number: int
    ask: Ask
    state: CheckpointState
    answer: str
    record: dict[str, Json]
    opened: float
    generation: int
    reopened: int
    ended: float = 0.0
    changed: str = ""


class Records(msgspec.Struct, frozen=True):
    """All that a report is made of."""

    name: str
    file: str
    live: bool
    spans: list[SpanRecord]
    lives: list[LifeRecord]
    pilots: list[PilotRecord]
    gates: list[GateRecord]
    truths: dict[int, Truth]
    about: dict[int, frozenset[int]]
    """Checkpoints (``reopened << 32 | number``) by the conditions that speak of them."""
    tasks: int
    states: dict[str, int]


def database_of(where: Path) -> Path:
    """Return the file of a session, given as that file or its folder.

    Raises:
        SessionError: there is none.
    """
    path = where / DATABASE if where.is_dir() else where
    if not path.exists():
        raise SessionError(f"{where} holds no session: name its folder; pilot-hitl session list shows all")
    return path


def read(where: Path, *, sums: bool = False) -> Records:
    """Read a session's file; whoever owns it is not disturbed. ``sums``: spans of one kind are one, and tell no times.

    Raises:
        SessionError: there is none, or it cannot be read.
    """
    path = database_of(where)
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            # One transaction: what is read belongs together while a hub goes on writing.
            database.execute("BEGIN")
            return _read(database, path, sums=sums)
        finally:
            database.close()
    except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
        raise SessionError(f"{path} cannot be read as a session: {error}") from error


def _read(database: sqlite3.Connection, path: Path, *, sums: bool) -> Records:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    booked = {"span", "life"} <= tables
    meta = dict(database.execute("SELECT key, value FROM meta"))
    truths: dict[int, Truth] = {0: Truth.TRUE}
    about: dict[int, frozenset[int]] = {}
    for number, terms, truth in database.execute("SELECT number, terms, truth FROM condition"):
        truths[number] = Truth(truth)
        about[number] = frozenset(term.checkpoint for term in _terms.decode(terms))
    tasks, states = read_counts(database, truths)
    return Records(
        name=path.parent.name,
        file=str(path),
        live=_owned(meta),
        spans=(_sums if sums else _spans)(database) if booked else [],
        lives=_lives(database.execute("SELECT * FROM life ORDER BY pilot, began")) if booked else [],
        pilots=[
            PilotRecord(number, PilotState(state), began, ended, message)
            for number, state, began, ended, message in database.execute(
                "SELECT number, state, began, ended, message FROM pilot ORDER BY number"
            )
        ],
        gates=_gates(database.execute("SELECT * FROM checkpoint ORDER BY number")),
        truths=truths,
        about=about,
        tasks=tasks,
        states=states,
    )


def _owned(meta: dict[str, Any]) -> bool:
    """Return whether a hub has the session open, as far as its file tells."""
    return bool(meta.get("owner_host")) and time.time() - (meta.get("renewed") or 0.0) < LEASE


def _spans(database: sqlite3.Connection) -> list[SpanRecord]:
    found = []
    cores = _Cores()
    for row in database.execute(_SPANS):
        attempt, deciding = row[15:17], row[17:19]
        # A row without an attempt says that the end came from the hub: then no attempt contradicts it.
        decided = None if deciding[0] is None else deciding in (attempt, (0, 0))
        found.append(_span(row, cores[row[3]], decided))
    return found


def _sums(database: sqlite3.Connection) -> list[SpanRecord]:
    cores = _Cores()
    return [_span(row, cores[row[3]], None if row[15] is None else bool(row[15])) for row in database.execute(_SUMS)]


def _span(row: tuple[Any, ...], cores: tuple[int, ...], decided: bool | None) -> SpanRecord:
    pilot, binding, node, _cores, began, ended, busy, overhead, idle, reserved = row[:10]
    account, condition, attempts, task, failed = row[10:15]
    return SpanRecord(
        pilot,
        binding,
        node,
        cores,
        began,
        ended,
        busy,
        overhead,
        idle,
        reserved,
        _ACCOUNTS[account],
        condition,
        attempts,
        task,
        bool(failed),
        decided,
    )


class _Cores(dict[str, tuple[int, ...]]):
    """Sets of cores by how they are written; there are few."""

    def __missing__(self, text: str) -> tuple[int, ...]:
        found = self[text] = tuple(int(core) for core in text.split(",") if core)
        return found


def _lives(rows: Iterable[tuple[Any, ...]]) -> list[LifeRecord]:
    return [
        LifeRecord(pilot, binding, job, began, at, bool(final), cores, faults, fault_s, _open.decode(blob))
        for pilot, binding, job, began, at, final, cores, faults, fault_s, blob in rows
    ]


def _gates(rows: Iterable[tuple[Any, ...]]) -> list[GateRecord]:
    found = []
    for number, _key, blob, state, answer, told, opened, _deadline, generation, reopened in rows:
        ask, record = _ask.decode(blob), json.loads(told or "{}")
        why = changes.why([str(each) for each in record.get("changed", ())]) if generation > 1 else ""
        found += _earlier(number, ask, record.get("earlier", ()))
        found.append(
            GateRecord(number, ask, CheckpointState(state), answer, record, opened, generation, reopened, changed=why)
        )
    return found


def _earlier(number: int, ask: Ask, history: Iterable[dict[str, Any]]) -> list[GateRecord]:
    """Return the versions of a question that were asked before the present one."""
    return [
        GateRecord(
            number,
            msgspec.structs.replace(ask, question=facts.get("question", ask.question)),
            CheckpointState[facts["state"]],
            canonical(facts["answer"]) if "answer" in facts else "",
            facts,
            facts.get("opened_at") or 0.0,
            facts["generation"],
            facts.get("reopened") or 0,
            ended=facts["ended_at"],
        )
        for facts in history
    ]
