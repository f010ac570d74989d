"""A session's file that lost something is said, and never opened as what it was before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pilot_hitl.errors import SessionError
from pilot_hitl.hub.store import Store


def killed(path: Path) -> Path:
    """A session's file as a hub leaves it that was killed: most of it in the log."""
    other = path.parent / "copy"
    for start in range(2):
        store = Store(path, "here")
        store.put("meta", "key", start)
        store.commit()
        if start:
            shutil.copytree(path.parent, other)
        store._database.close()
    return other / path.name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return killed(tmp_path / "name" / "session.sqlite")


def test_what_is_whole_is_opened(file: Path) -> None:
    store = Store(file, "here")
    assert (store.meta("key"), store.epoch) == (1, 3)
    store.close()


@pytest.mark.parametrize("what", ["no log", "empty log", "damaged log", "emptied", "gone"])
def test_what_lost_something_is_refused(file: Path, what: str) -> None:
    log = file.with_name("session.sqlite-wal")
    if what == "no log":
        log.unlink()
    elif what == "empty log":
        os.truncate(log, 0)
    elif what == "damaged log":
        text = bytearray(log.read_bytes())
        text[100] ^= 1
        log.write_bytes(text)
    else:
        log.unlink()
        file.unlink()
        if what == "emptied":
            file.touch()
    with pytest.raises(SessionError, match=r"session\.sqlite .*fresh=True"):
        Store(file, "here")
    with pytest.raises(SessionError, match=r"session\.sqlite .*fresh=True"):
        Store(file, "here")  # and not the second time either


def test_a_damaged_file_names_itself_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "name" / "session.sqlite"
    Store(path, "here").close()
    path.write_bytes(b"\0" * 8192)
    with pytest.raises(SessionError, match=r"session\.sqlite .*session rm name"):
        Store(path, "here")
