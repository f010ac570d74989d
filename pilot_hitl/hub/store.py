"""One SQLite file a session: one owner, one writing connection, grouped commits.

Rows gather in memory and are written by :meth:`Store.commit` in one transaction. What was not committed may be lost
with the machine, so nobody is told of it before.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.errors import SessionBusy, SessionError
from pilot_hitl.hub.counts import read_counts
from pilot_hitl.hub.filesystem import is_local
from pilot_hitl.hub.schema import INSERTS, TABLES, VERSION
from pilot_hitl.model.failures import Failure
from pilot_hitl.model.states import State, Truth
from pilot_hitl.wire.messages import Outcome

LEASE = 60.0
"""Seconds after which an owner on another host that does not renew its lease is taken for dead."""
_failures = msgspec.msgpack.Decoder(Failure)
_encode = msgspec.msgpack.Encoder().encode


class OutcomeRow(msgspec.Struct, frozen=True):
    """A row of the table ``outcome``.

    ``failure`` is encoded, empty for none. ``unpublished`` is the folder whose content is still to be put in place,
    once the task counts; empty when there is none.
    """

    task: int
    state: int
    epoch: int
    run: int
    began: float
    ended: float
    pilot: int
    node: int
    cores: str
    reused: int
    failure: bytes | None
    payload: bytes
    unpublished: str = ""

    def outcome(self, state: State | None = None) -> Outcome:
        """Return it as a message, with its effective state where that differs."""
        failure = _failures.decode(self.failure) if self.failure else None
        return Outcome(
            self.task,
            State(self.state) if state is None else state,
            self.epoch,
            self.run,
            self.payload,
            failure,
            failure.host if failure else "",
            self.began,
            self.ended,
            bool(self.reused),
        )


class Store:
    """The durable half of a session.

    Attributes:
        epoch: of this ownership; higher than any before.
    """

    def __init__(self, path: Path, host: str) -> None:
        """Open (or make) the file and take ownership.

        Raises:
            SessionBusy: an owner on another host renews its lease.
            SessionError: the file is not a session, is damaged, or is of a newer version.
        """
        self.path = path
        self._host = host
        self._rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
        self._fresh: dict[int, OutcomeRow] = {}
        self.dirty = False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._database.execute(f"PRAGMA journal_mode={'WAL' if is_local(path) else 'TRUNCATE'}")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(TABLES)
            self.epoch = self._own()
        except sqlite3.DatabaseError as error:
            raise SessionError(f"{path} cannot be opened as a session: {error}") from error

    def _own(self) -> int:
        """Raise the epoch under the database lock."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._check_owner()
            epoch = int(self.meta("epoch") or 0) + 1
            facts = {"version": VERSION, "epoch": epoch, "owner_host": self._host, "owner_pid": os.getpid()}
            facts["left"] = self.meta("renewed") or 0.0
            self._database.executemany(INSERTS["meta"], [*facts.items(), ("renewed", time.time())])
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        return epoch

    def _check_owner(self) -> None:
        version = self.meta("version")
        if version is not None and version != VERSION:
            raise SessionError(
                f"{self.path} was written by another pilot-hitl (format {version}, this one has {VERSION}): open it "
                f"with that one, or remove it with 'pilot-hitl session rm {self.path.parent.name}'"
            )
        host, age = self.meta("owner_host"), time.time() - (self.meta("renewed") or 0.0)
        if host not in (None, "", self._host) and age < LEASE:
            raise SessionBusy(
                f"session {self.path.parent.name!r} is owned by a hub on {host} (seen {age:.0f} s ago): "
                f"stop it there with 'pilot-hitl hub stop', or wait {LEASE:.0f} s"
            )

    def renew(self) -> None:
        """Renew the lease with the next commit."""
        self.put("meta", "renewed", time.time())

    def meta(self, key: str) -> Any:
        """Return a fact, None when it was never set."""
        row = self._database.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(self, table: str, *row: Any) -> None:
        """Add a row to the next commit."""
        self._rows[table].append(row)
        self.dirty = True

    def put_outcome(self, row: OutcomeRow) -> None:
        """Add an outcome to the next commit; :meth:`outcome` finds it at once."""
        self._fresh[row.task] = row
        self.dirty = True

    def commit(self) -> int:
        """Write everything; on return it survives loss of power. Returns how many rows that were.

        Raises:
            sqlite3.Error: nothing of it was written (disk full, say); it is kept for the next try.
        """
        if not self.dirty:
            return 0
        written = len(self._fresh)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for table, rows in self._rows.items():
                if rows:
                    written += len(rows)
                    self._database.executemany(INSERTS[table], rows)
            if self._fresh:
                self._database.executemany(INSERTS["outcome"], map(msgspec.structs.astuple, self._fresh.values()))
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        for rows in self._rows.values():
            rows.clear()
        self._fresh.clear()
        self.dirty = False
        return written

    def close(self) -> None:
        """Give ownership up and close the file. Uncommitted rows are written first."""
        self.put("meta", "owner_host", "")
        try:
            self.commit()
        finally:
            self._database.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def outcome(self, task: int) -> OutcomeRow | None:
        """Return what is recorded of a task, committed or not; None when nothing is."""
        fresh = self._fresh.get(task)
        if fresh is not None:
            return fresh
        row = self._database.execute("SELECT * FROM outcome WHERE task=?", (task,)).fetchone()
        return OutcomeRow(*row) if row else None

    def unpublished(self) -> list[int]:
        """Return the tasks that left what is still to be put in place, once they count; committed ones only."""
        query = "SELECT task FROM outcome WHERE unpublished NOT IN ('', 0) AND state IN (?,?) ORDER BY task"
        return [task for (task,) in self._database.execute(query, (State.HELD, State.DONE))]

    def outcomes(self, first: int, count: int) -> list[OutcomeRow]:
        """Return the committed outcomes of a run of tasks, by task."""
        query = "SELECT * FROM outcome WHERE task>=? AND task<? ORDER BY task"
        rows = self._database.execute(query, (first, first + count))
        return [OutcomeRow(*row) for row in rows]

    def states(self, first: int, count: int) -> list[tuple[int, int]]:
        """Return ``(task, recorded state)`` of a run of tasks."""
        return self._database.execute(
            "SELECT task, state FROM outcome WHERE task>=? AND task<?", (first, first + count)
        ).fetchall()

    def bodies(self, first: int) -> bytes | None:
        """Return the bodies of the bulk that starts with this task, committed only."""
        row = self._database.execute("SELECT bodies FROM bulk WHERE first=?", (first,)).fetchone()
        return row[0] if row else None

    def keys(self, first: int) -> bytes:
        """Return the resume keys of the bulk that starts with this task, committed or not; empty for none."""
        for row in self._rows["bulk"]:
            if row[0] == first:
                return bytes(row[6])
        found = self._database.execute("SELECT keys FROM bulk WHERE first=?", (first,)).fetchone()
        return bytes(found[0]) if found else b""

    def events_of(self, task: int) -> list[dict[str, Any]]:
        """Return the decisions and mishaps that were noted of a task, oldest first; committed ones only."""
        query = "SELECT at, entry FROM event WHERE json_extract(entry, '$.task')=? ORDER BY sequence"
        return [{"at": at, **json.loads(entry)} for at, entry in self._database.execute(query, (task,))]

    def rows(self, query: str, values: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a read-only query over what is committed."""
        yield from self._database.execute(query, tuple(values))


def encode_failure(failure: Failure | None) -> bytes | None:
    """Return a failure as it lies in the store."""
    return None if failure is None else _encode(failure)


def read_summary(path: Path) -> dict[str, Any]:
    """Return facts of a session's file without owning it: for looking while no hub runs.

    Raises:
        SessionError: it cannot be read.
    """
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)
        try:
            rows = database.execute("SELECT number, truth FROM condition")
            tasks, states = read_counts(database, {number: Truth(truth) for number, truth in rows})
            opened = database.execute("SELECT count(*) FROM checkpoint WHERE state<=1").fetchone()[0]
            epoch = database.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise SessionError(f"{path} cannot be read as a session: {error}") from error
    return {
        "session": path.parent.name,
        "tasks": tasks,
        "recorded": states,
        "open_checkpoints": opened,
        "epoch": epoch[0] if epoch else 0,
        "state": "closed",
    }
