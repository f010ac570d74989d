"""The store: what was committed is there again, what was not is not, and one owner at a time."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.errors import SessionBusy, SessionError
from pilot_hitl.hub.schema import VERSION
from pilot_hitl.hub.store import LEASE, OutcomeRow, Store, encode_failure, read_summary
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State


def row(task: int, state: State = State.DONE, payload: bytes = b"x") -> OutcomeRow:
    return OutcomeRow(task, int(state), 1, 0, 1.0, 2.0, 1, 0, "0,1", 0, None, payload)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s" / "session.sqlite"


def test_committed_rows_survive_and_uncommitted_ones_do_not(path: Path) -> None:
    store = Store(path, "here")
    store.put_outcome(row(1))
    store.commit()
    store.put_outcome(row(2))
    other = sqlite3.connect(path)
    assert other.execute("SELECT task FROM outcome").fetchall() == [(1,)]
    other.close()


def test_an_outcome_is_found_before_and_after_its_commit(path: Path) -> None:
    store = Store(path, "here")
    store.put_outcome(row(7, payload=b"value"))
    assert store.outcome(7) == row(7, payload=b"value")
    store.commit()
    assert store.outcome(7) == row(7, payload=b"value")
    assert store.outcome(8) is None
    store.close()


def test_what_is_still_to_be_put_in_place_is_found_again(path: Path) -> None:
    store = Store(path, "here")
    for task, state, folder in (
        (1, State.HELD, "/own/1"),
        (2, State.HELD, ""),
        (3, State.HELD_FAILED, "/own/3"),
        (4, State.DONE, ""),
    ):
        store.put_outcome(msgspec.structs.replace(row(task, state), unpublished=folder))
    store.commit()
    assert store.unpublished() == [1]
    found = store.outcome(1)
    assert found is not None
    assert found.unpublished == "/own/1"
    store.close()


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_a_file_of_another_format_is_left_alone(path: Path, version: int) -> None:
    Store(path, "here").close()
    other = sqlite3.connect(path)
    other.execute("UPDATE meta SET value=? WHERE key='version'", (version,))
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(SessionError, match=f"format {version}"):
        Store(path, "here")
    assert path.read_bytes() == before


def test_a_failed_commit_keeps_its_rows_for_the_next(path: Path) -> None:
    store = Store(path, "here")
    locker = sqlite3.connect(path, isolation_level=None)
    store._database.execute("PRAGMA busy_timeout=1")
    locker.execute("BEGIN IMMEDIATE")
    store.put_outcome(row(1))
    with pytest.raises(sqlite3.OperationalError):
        store.commit()
    assert store.dirty
    locker.execute("ROLLBACK")
    store.commit()
    assert locker.execute("SELECT count(*) FROM outcome").fetchone() == (1,)
    locker.close()
    store.close()


def test_failures_and_effective_states_travel(path: Path) -> None:
    store = Store(path, "here")
    failure = Failure(Cause.EXIT, "it failed", "n1", 3, "tail")
    written = OutcomeRow(1, int(State.HELD), 2, 1, 1.0, 2.0, 1, 0, "", 1, encode_failure(failure), b"p")
    store.put_outcome(written)
    store.commit()
    read = store.outcome(1)
    assert read is not None
    outcome = read.outcome(State.DONE)
    assert (outcome.state, outcome.failure, outcome.host) == (State.DONE, failure, "n1")
    assert (outcome.epoch, outcome.run, outcome.payload, outcome.reused) == (2, 1, b"p", True)
    assert read.outcome().state is State.HELD
    store.close()


def test_each_owner_gets_a_higher_epoch(path: Path) -> None:
    epochs = []
    for _ in range(3):
        store = Store(path, "here")
        epochs.append(store.epoch)
        store.close()
    assert epochs == [1, 2, 3]


def test_a_live_owner_elsewhere_is_respected_until_its_lease_runs_out(path: Path) -> None:
    store = Store(path, "elsewhere")
    store.commit()
    store._database.close()
    with pytest.raises(SessionBusy, match="elsewhere"):
        Store(path, "here")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("UPDATE meta SET value=? WHERE key='renewed'", (time.time() - LEASE - 1,))
    database.close()
    assert Store(path, "here").epoch == 2


def test_the_same_host_takes_over_at_once(path: Path) -> None:
    Store(path, "here")._database.close()
    assert Store(path, "here").epoch == 2


def test_a_closed_session_is_free(path: Path) -> None:
    Store(path, "elsewhere").close()
    assert Store(path, "here").epoch == 2


def test_a_damaged_file_is_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database at all, whatever it says" * 100)
    with pytest.raises(SessionError, match=r"session\.sqlite"):
        Store(path, "here")
    with pytest.raises(SessionError, match=r"session\.sqlite"):
        read_summary(path)


def test_the_audit_cannot_be_changed(path: Path) -> None:
    store = Store(path, "here")
    store.put("audit", b"{}", b"hash")
    store.commit()
    for statement in ("UPDATE audit SET content=x'00'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            store._database.execute(statement)
    store.close()


def test_a_summary_needs_no_ownership(path: Path) -> None:
    store = Store(path, "here")
    store.put("bulk", 1 << 32, 5, 1, 0, 0.0, b"", b"", b"")
    store.put_outcome(row(1 << 32))
    store.put_outcome(row((1 << 32) + 1, State.HELD))
    store.commit()
    facts = read_summary(path)
    assert (facts["tasks"], facts["recorded"], facts["session"]) == (5, {"DONE": 1, "HELD": 1}, "s")
    store.close()
