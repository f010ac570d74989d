"""One SQLite file a session: one owner, one writing connection, grouped commits.

Rows gather in memory and are written by :meth:`Store.commit` in one transaction. What was not committed may be lost
with the machine, so nobody is told of it before.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.errors import SessionBusy, SessionError
from pilot_hitl.hub.counts import ENDS, ended, read_counts
from pilot_hitl.hub.filesystem import is_local
from pilot_hitl.hub.keyindex import KEY_BYTES
from pilot_hitl.hub.mark import Mark
from pilot_hitl.hub.schema import INSERTS, TABLES, VERSION
from pilot_hitl.hub.tasklist import Part, recorded_in
from pilot_hitl.model.failures import Failure
from pilot_hitl.model.states import State, Truth
from pilot_hitl.study.ended import Ended, Range
from pilot_hitl.wire.messages import Outcome
from pilot_hitl.wire.modes import own_folder

WRITE_ERRORS = (sqlite3.Error, OSError)
"""What a commit can raise."""
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
        self._keys = (0, b"")
        """First task and keys of the bulk that was looked at last."""
        self.dirty = False
        own_folder(path.parent)
        self._mark = Mark(path)
        self._commits = 0
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._database.execute(f"PRAGMA journal_mode={'WAL' if is_local(path) else 'TRUNCATE'}")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(TABLES)
            self.epoch = self._own()
        except sqlite3.DatabaseError as error:
            raise SessionError(cannot_open(path, error)) from error
        self._mark.write(self._commits)

    def _own(self) -> int:
        """Raise the epoch under the database lock."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._commits = int(self._database.execute("PRAGMA user_version").fetchone()[0])
            self._check_owner()
            self._mark.check(self._commits)
            self._number()
            epoch = int(self.meta("epoch") or 0) + 1
            facts = {"version": VERSION, "epoch": epoch, "owner_host": self._host, "owner_pid": os.getpid()}
            facts["left"] = self.meta("renewed") or 0.0
            self._database.executemany(INSERTS["meta"], [*facts.items(), ("renewed", time.time())])
            self._database.execute("COMMIT")
            self._commits += 1
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        return epoch

    def _number(self) -> None:
        """Give the transaction that has just begun its number; see :mod:`~pilot_hitl.hub.mark`."""
        self._database.execute(f"PRAGMA user_version={self._commits + 1}")

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

    def put_ended(self, ended: Ended) -> None:
        """Add runs of ended tasks to the next commit, which are new or longer; each takes the place of those in it."""
        for found in ended.changed.values():
            self.put("joined", found.first, found.end)
            self.put("ended", found.first, found.count, *(found.states.get(state, 0) for state in ENDS))
        ended.changed.clear()

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
            self._number()
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
        self._commits += 1
        self._mark.write(self._commits)
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
            self._mark.close()

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
        query = (
            "SELECT task FROM outcome INDEXED BY outcome_other "
            "WHERE state<>10 AND state=? AND unpublished<>'' ORDER BY task"
        )
        return [task for (task,) in self._database.execute(query, (State.HELD,))]

    def outcomes(self, first: int, count: int) -> list[OutcomeRow]:
        """Return the committed outcomes of a run of tasks, by task."""
        query = "SELECT * FROM outcome WHERE task>=? AND task<? ORDER BY task"
        rows = self._database.execute(query, (first, first + count))
        return [OutcomeRow(*row) for row in rows]

    def ended(self) -> list[Range]:
        """Return the runs of tasks that were noted by :meth:`put_ended`, by id."""
        return ended(self._database)

    def bulk_of(self, task: int) -> tuple[int, int, int, bytes] | None:
        """Return ``(first, count, condition, spec)`` of the bulk that a task belongs to, committed only."""
        query = "SELECT first, count, condition, spec FROM bulk WHERE first<=? ORDER BY first DESC LIMIT 1"
        for first, count, condition, spec in self._database.execute(query, (task,)):
            if task < first + count:
                return first, count, condition, spec
        return None

    def states(self, first: int, count: int) -> list[tuple[int, int]]:
        """Return ``(task, recorded state)`` of a run of tasks."""
        return self._database.execute(
            "SELECT task, state FROM outcome WHERE task>=? AND task<?", (first, first + count)
        ).fetchall()

    def recorded_in(self, state: State, part: Part, skip: int, limit: int) -> Iterator[int]:
        """Yield tasks of a part that are recorded in a state, in order, without the first ``skip``."""
        return recorded_in(self._database, state, part, skip, limit)

    def bodies(self, first: int) -> bytes | None:
        """Return the bodies of the bulk that starts with this task, committed only."""
        row = self._database.execute("SELECT bodies FROM bulk WHERE first=?", (first,)).fetchone()
        return row[0] if row else None

    def incarnations(self) -> list[int]:
        """Return the incarnations that submitted tasks, written or not."""
        found = {row[0] >> 32 for row in self._rows["bulk"]}
        at = 0
        while (
            lowest := self._database.execute("SELECT min(first) FROM bulk WHERE first>=?", (at,)).fetchone()[0]
        ) is not None:
            found.add(lowest >> 32)
            at = (lowest >> 32) + 1 << 32
        return sorted(found)

    def keyed(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield ``(first task, keys)`` of bulks that begin between two ids, but no task that took its value over."""
        reused = "SELECT task FROM outcome WHERE task>=? AND task<? AND reused=1"
        again = first >> 32 != self._lowest()
        committed = self._database.execute(
            "SELECT first, keys FROM bulk WHERE first>=? AND first<=? ORDER BY first", (first, last)
        )
        pending = [(row[0], row[6]) for row in self._rows["bulk"] if first <= row[0] <= last]
        for start, keys in chain(committed, sorted(pending)):
            if not keys:
                continue
            count = len(keys) // KEY_BYTES
            taken = {t for (t,) in self._database.execute(reused, (start, start + count))} if again else ()
            if not taken:
                yield start, keys
            elif len(taken) < count:
                left = (at for at in range(count) if start + at not in taken)
                yield from ((start + at, keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]) for at in left)

    def _lowest(self) -> int:
        """Return the incarnation that was there first: it took nothing over."""
        found = self._database.execute("SELECT min(first) FROM bulk").fetchone()[0]
        return -1 if found is None else int(found) >> 32

    def key_at(self, task: int) -> bytes:
        """Return the resume key of a task, empty when it has none."""
        first, keys = self._keys
        at = KEY_BYTES * (task - first)
        if not 0 <= at < len(keys):
            first, keys = self._keys = self._keys_around(task)
            at = KEY_BYTES * (task - first)
        return keys[at : at + KEY_BYTES] if at >= 0 else b""

    def _keys_around(self, task: int) -> tuple[int, bytes]:
        for row in self._rows["bulk"]:
            if row[0] <= task < row[0] + row[1]:
                return row[0], bytes(row[6])
        query = "SELECT first, keys FROM bulk WHERE first<=? ORDER BY first DESC LIMIT 1"
        found = self._database.execute(query, (task,)).fetchone()
        return (found[0], bytes(found[1])) if found else (task, b"")

    def events_of(self, task: int) -> list[dict[str, Any]]:
        """Return the decisions and mishaps that were noted of a task, oldest first; committed ones only."""
        query = "SELECT at, entry FROM event WHERE json_extract(entry, '$.task')=? ORDER BY sequence"
        return [{"at": at, **json.loads(entry)} for at, entry in self._database.execute(query, (task,))]

    def rows(self, query: str, values: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a read-only query over what is committed."""
        yield from self._database.execute(query, tuple(values))


def why_unwritten(path: Path, error: Exception) -> str:
    """Return in words why a session's file cannot be written."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return f"the disk of {path.parent} is full: free some space, and everything goes on by itself"
    return f"{path} cannot be written ({error}): once it can, everything goes on by itself"


def cannot_open(path: Path, error: Exception) -> str:
    """Return in words why a session's file cannot be used, and what to do."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return f"{path} cannot be opened as a session: {error}: is the disk full? Free some space and try again"
    return (
        f"{path} cannot be opened as a session: {error}. If it is damaged, put back a copy of the whole folder; to "
        f"begin again without it, run pilot-hitl session rm {path.parent.name}, or open the session with fresh=True"
    )


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
