from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pilot_hitl.inbox import files, spool
from pilot_hitl.inbox.spool import SpooledAnswer
from pilot_hitl.wire.places import SessionPlaces


@pytest.fixture
def places(tmp_path: Path) -> SessionPlaces:
    return SessionPlaces(tmp_path, "mesh")


def _names(places: SessionPlaces, folder: str) -> list[str]:
    path = places.spool / folder
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def test_an_answer_is_given_taken_and_done(places: SessionPlaces) -> None:
    before = time.time() - 2
    given = SpooledAnswer(checkpoint=3, generation=1, value='"accept"', comment="looks good", by="ana")
    path = spool.write_answer(places, given)
    assert path.parent == places.spool / "new"
    assert (_names(places, "tmp"), _names(places, "new")) == ([], [f"{given.answer_id}.json"])
    written = json.loads(path.read_text())
    assert (written["schema"], written["version"], written["checkpoint"]) == ("pilot-hitl/answer", 2, 3)
    assert (written["value"], written["channel"]) == ('"accept"', "spool")
    (taken,) = spool.take(places)
    assert taken.answer == given
    assert taken.uid == os.getuid()
    assert taken.who == spool.user_name(os.getuid())
    assert before < taken.at < time.time() + 2
    assert spool.take(places) == [taken]  # until it is done: the hub may die before its commit
    spool.done(places, taken)
    spool.done(places, taken)
    assert (spool.take(places), _names(places, "done")) == ([], [path.name])


def test_no_spool_is_no_answer(places: SessionPlaces) -> None:
    assert spool.take(places) == []
    assert spool.waiting(places) == []


def test_answers_come_in_the_order_of_the_file_server_clock(places: SessionPlaces) -> None:
    for name, when in (("late", 300), ("early", 100), ("middle", 200)):
        path = spool.write_answer(places, SpooledAnswer(answer_id=name, checkpoint=1, generation=1, value="1"))
        os.utime(path, (when, when))
    assert [(item.answer.answer_id, item.at) for item in spool.take(places)] == [
        ("early", 100),
        ("middle", 200),
        ("late", 300),
    ]
    assert [item.answer.answer_id for item in spool.waiting(places)] == ["early", "middle", "late"]


def test_another_user_cannot_set_back_the_clock(places: SessionPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spool.write_answer(places, SpooledAnswer(checkpoint=1, generation=1, value="1"))
    os.utime(path, (100, 100))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert spool.take(places)[0].at > time.time() - 60


def test_the_same_answer_id_is_given_once(places: SessionPlaces) -> None:
    given = SpooledAnswer(checkpoint=1, generation=1, value="1")
    spool.write_answer(places, given)
    with pytest.raises(FileExistsError):
        spool.write_answer(places, given)
    spool.done(places, spool.take(places)[0])
    with pytest.raises(FileExistsError):
        spool.write_answer(places, given)


@pytest.mark.parametrize("answer_id", ["", "../x", "a/b", "a" * 65, "a\0b"])
def test_an_id_cannot_lead_elsewhere(places: SessionPlaces, answer_id: str) -> None:
    with pytest.raises(ValueError, match="cannot be an answer id"):
        spool.write_answer(places, SpooledAnswer(answer_id=answer_id, checkpoint=1, generation=1, value="1"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"checkpoint": "x", "value": "1"}',
        b'{"schema": "other", "answer_id": "x", "checkpoint": 1, "generation": 1, "value": "1"}',
        b'{"version": 9, "answer_id": "x", "checkpoint": 1, "generation": 1, "value": "1"}',
        b'{"answer_id": "x", "checkpoint": 1, "value": "1"}',
        b'{"answer_id": "someone-else", "checkpoint": 1, "generation": 1, "value": "1"}',
    ],
)
def test_what_is_not_an_answer_is_set_aside(places: SessionPlaces, content: bytes) -> None:
    good = SpooledAnswer(checkpoint=1, generation=1, value="1")
    spool.write_answer(places, good)
    (places.spool / "new" / "x.json").write_bytes(content)
    assert [item.answer for item in spool.take(places)] == [good]
    assert [name.split(".")[0] for name in _names(places, "bad")] == ["x"]
    assert _names(places, "new") == [f"{good.answer_id}.json"]


def test_links_pipes_folders_and_giants_are_set_aside(places: SessionPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spool.write_answer(places, SpooledAnswer(answer_id="good", checkpoint=1, generation=1, value="1"))
    new = places.spool / "new"
    (new / "link.json").symlink_to(path)
    (new / "folder.json").mkdir()
    os.mkfifo(new / "pipe.json")
    other = places.spool / "other"
    other.write_bytes(b'{"answer_id": "second", "checkpoint": 1, "generation": 1, "value": "1"}')
    (new / "second.json").hardlink_to(other)
    monkeypatch.setattr(files, "FILE_LIMIT", 1000)
    (new / "big.json").write_bytes(b" " * 1001)
    assert [item.answer.answer_id for item in spool.take(places)] == ["good"]
    assert [name.split(".")[0] for name in _names(places, "bad")] == ["big", "folder", "link", "pipe", "second"]


def test_a_failed_write_leaves_nothing(places: SessionPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.write_answer(places, SpooledAnswer(checkpoint=1, generation=1, value="1"))
    assert (_names(places, "tmp"), _names(places, "new")) == ([], [])


def test_a_uid_without_a_name() -> None:
    assert spool.user_name(3_999_999_999) == "uid:3999999999"


def test_names_of_any_length_and_kind_are_set_aside(places: SessionPlaces, caplog: pytest.LogCaptureFixture) -> None:
    new = places.spool / "new"
    new.mkdir(parents=True)
    for name in (b"a" * 255, "é".encode() * 127, b"\x1b[31m\r\nred", b"\xff\xfe" * 100):
        (new / os.fsdecode(name)).write_bytes(b"{")
    assert spool.take(places) == []
    assert _names(places, "new") == []
    assert len(_names(places, "bad")) == 4
    assert "\x1b" not in caplog.text
    assert caplog.text.count("is not an answer") == 4


def test_what_cannot_be_set_aside_is_told_once(places: SessionPlaces, caplog: pytest.LogCaptureFixture) -> None:
    new = places.spool / "new"
    new.mkdir(parents=True)
    (new / "x.json").write_bytes(b"{")
    (places.spool / "bad").write_bytes(b"in the way")
    for _ in range(3):
        assert spool.take(places) == []
    assert caplog.text.count("cannot be moved") == 1


def test_how_often_a_file_was_being_read_outlives_its_readers(places: SessionPlaces) -> None:
    answers = [SpooledAnswer(answer_id=each, checkpoint=1, generation=1, value="1") for each in "ab"]
    first, second = (spool.write_answer(places, each) for each in answers)
    assert [spool.begin_reading(places, path) for path in (first, second, first)] == [1, 1, 2]
    spool.end_reading(places, second)
    assert spool.begin_reading(places, second) == 1
    spool.end_reading(places, second)
    (places.spool / "reading.json").write_text("{")
    assert spool.begin_reading(places, first) == 1
    spool.end_reading(places, first)
    assert not (places.spool / "reading.json").exists()
