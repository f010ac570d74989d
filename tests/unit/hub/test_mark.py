"""A session's file that lost something is said, and never opened as what it was before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_hitl.errors import SessionError
from pilot_hitl.hub.store import Store
from tests.behaviour.studies import further

NAMES = ("session.sqlite", "session.sqlite-wal", "session.sqlite-shm", "session.mark")
FILE, LOG, _, MARK = NAMES
AGES = ("new", "in the log", "moved", "log begun anew", "reopened", "closed")
"""Moments of one session's life, in this order; each holds the facts of those before it."""


def put(store: Store, age: int, size: int = 0) -> None:
    store.put("meta", f"fact {age}", age)
    if size:
        store.put("template", age, os.urandom(size))
    store.commit()


@pytest.fixture(scope="module")
def ages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of one session as it was at each age, as a kill would leave it; see AGES."""
    top = tmp_path_factory.mktemp("ages")
    folder = top / "live" / "name"
    found: list[Path] = []

    def keep() -> None:
        found.append(top / str(len(found)) / "name")
        shutil.copytree(folder, found[-1])

    store = Store(folder / FILE, "here")
    put(store, 0)
    keep()
    put(store, 1, 100_000)
    keep()
    store._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    put(store, 2, 50_000)
    store._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    keep()
    put(store, 3)  # The log begins anew with it.
    put(store, 3)
    keep()
    store._database.close()
    store = Store(folder / FILE, "here")
    put(store, 4)
    put(store, 4, 5000)
    keep()
    put(store, 5)
    store.close()
    keep()
    return found


def facts(store: Store) -> set[int]:
    return {age for age in range(len(AGES)) if store.meta(f"fact {age}") == age}


def copied(age: Path, tmp_path: Path) -> Path:
    shutil.copytree(age, tmp_path / "name")
    return tmp_path / "name"


def opened(folder: Path) -> Store | str:
    """The session, or what is said."""
    try:
        return Store(folder / FILE, "here")
    except SessionError as error:
        return str(error)


def opens_whole_or_says_so(folder: Path, age: int) -> bool:
    """Open it: with all that was acknowledged at an age, or with one clear error, as often as one likes."""
    store = opened(folder)
    if isinstance(store, str):
        assert str(folder / FILE) in store
        assert "fresh=True" in store
        assert isinstance(opened(folder), str)
        return False
    assert facts(store) == set(range(age + 1))
    assert store.rows("PRAGMA integrity_check").__next__()[0] == "ok"
    store.close()
    return True


@pytest.mark.parametrize("age", range(len(AGES)), ids=AGES)
def test_what_is_whole_is_opened(ages: list[Path], tmp_path: Path, age: int) -> None:
    assert opens_whole_or_says_so(copied(ages[age], tmp_path), age)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def short_of_a_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def only_its_head(path: Path) -> None:
    os.truncate(path, min(path.stat().st_size, 40))


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: tuple[Callable[[Path], object], ...] = (
    Path.unlink, emptied, halved, short_of_a_byte, only_its_head, zeroed,
)  # fmt: skip


@pytest.mark.parametrize("damage", further(3, DAMAGES))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("age", range(len(AGES)), ids=AGES)
def test_a_damaged_file_costs_nothing_or_is_refused(
    ages: list[Path], tmp_path: Path, age: int, name: str, damage: Callable[[Path], object]
) -> None:
    folder = copied(ages[age], tmp_path)
    if not (folder / name).exists():
        return
    damage(folder / name)
    whole = opens_whole_or_says_so(folder, age)
    if name in NAMES[2:]:
        assert whole, "what can be made again is"
    elif damage in (Path.unlink, emptied, zeroed) and (name == FILE or AGES[age] in ("in the log", "log begun anew")):
        assert not whole or damage is zeroed


@pytest.mark.parametrize("other", further(3, range(len(AGES)), ids=AGES))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("age", range(len(AGES)), ids=AGES)
def test_a_file_of_another_age_costs_nothing_or_is_refused(
    ages: list[Path], tmp_path: Path, age: int, name: str, other: int
) -> None:
    folder = copied(ages[age], tmp_path)
    if (ages[other] / name).exists():
        shutil.copy(ages[other] / name, folder / name)
    else:
        (folder / name).unlink(missing_ok=True)
    store = opened(folder)
    if isinstance(store, str):
        assert "fresh=True" in store
        assert age != other
        return
    # Newer than it was is no loss: file and log may both hold all of it.
    assert facts(store) >= set(range(age + 1))
    assert store.rows("PRAGMA integrity_check").__next__()[0] == "ok"
    store.close()


@settings(max_examples=60)
@given(data=st.data())
def test_a_log_that_was_cut_or_changed_anywhere(
    ages: list[Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    age = data.draw(st.sampled_from([0, 1, 2, 3, 4]))
    folder = copied(ages[age], tmp_path_factory.mktemp("log"))
    log = bytearray((folder / LOG).read_bytes())
    if data.draw(st.booleans()):
        del log[data.draw(st.integers(0, len(log) - 1)) :]
    else:
        log[data.draw(st.integers(0, len(log) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / LOG).write_bytes(log)
    opens_whole_or_says_so(folder, age)
    shutil.rmtree(folder)


@pytest.mark.parametrize("beside", ["blobs", "pilots"])
def test_a_session_whose_files_are_all_gone_is_not_a_new_one(tmp_path: Path, beside: str) -> None:
    folder = tmp_path / "name"
    (folder / "spool").mkdir(parents=True)
    Store(folder / FILE, "here").close()  # an answer that was there first is no session
    (folder / beside).mkdir()
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(SessionError, match=r"session\.sqlite is empty or gone.*fresh=True"):
        Store(folder / FILE, "here")


@pytest.mark.parametrize("pages", [0, 1, 3, 10])
def test_a_hub_that_was_killed_while_it_moved_the_log_into_the_file_loses_nothing(
    ages: list[Path], tmp_path: Path, pages: int
) -> None:
    """Pages go into the file in their order: the first, with header and size, long before the last."""
    folder = copied(ages[1], tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved / "name")
    store = Store(moved / "name" / FILE, "here")
    store._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    done = (moved / "name" / FILE).read_bytes()
    shutil.copy(moved / "name" / LOG, folder / LOG)
    shutil.copy(moved / "name" / MARK, folder / MARK)
    store._database.close()
    before = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(done[: 4096 * pages] + before[4096 * pages :])
    assert opens_whole_or_says_so(folder, 1)


def test_a_damaged_file_names_itself_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "name" / FILE
    Store(path, "here").close()
    path.write_bytes(b"\0" * 8192)
    with pytest.raises(SessionError, match=r"session\.sqlite .*session rm name"):
        Store(path, "here")
