from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.errors import AnswerRefused, UnknownCheckpoint
from pilot_hitl.inbox import requests
from pilot_hitl.inbox.requests import Known, Request
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire.messages import Ask
from pilot_hitl.wire.places import SessionPlaces


def _request(session: str, number: int, name: str = "accept-mesh", default: str = "", generation: int = 1) -> Request:
    ask = Ask(
        handle=1,
        key=b"k" * 16,
        name=name,
        iteration=0,
        question="Is the mesh good enough?",
        choices=['"accept"', '"refine"'],
        form='{"enum":["accept","refine"]}',
        show='[{"kind":"text","text":"hi"}]',
        default=default,
    )
    record: dict[str, Json] = {"changed": ["its question"], "earlier": [{"generation": 1}]} if generation > 1 else {}
    return requests.from_ask(
        session,
        number,
        ask,
        state=CheckpointState.OPEN,
        opened=12.5,
        deadline=0.0,
        generation=generation,
        record=record,
    )


def test_what_is_published_is_read(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    asked = _request("mesh", 3, default='"refine"')
    path = requests.publish(places, asked)
    assert path == places.folder / "requests" / "3.json"
    assert requests.read_requests(tmp_path) == [asked]
    written = json.loads(path.read_text())
    assert written["schema"] == "pilot-hitl/request"
    assert (written["version"], written["id"], written["choices"]) == (1, "mesh/3", ["accept", "refine"])
    assert (written["default"], written["deadline_at"], written["state"]) == ("refine", None, "OPEN")
    assert [entry.name for entry in places.requests.iterdir()] == ["3.json"]
    assert path.stat().st_mode & 0o077 == 0


def test_no_default_is_not_a_default_of_null(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    requests.publish(places, _request("mesh", 1))
    requests.publish(places, _request("mesh", 2, default="null"))
    none, null = requests.published(places)
    assert none.default is msgspec.UNSET
    assert null.default is None
    assert "default" not in requests.as_json(none)


def test_all_sessions_are_read_in_order(tmp_path: Path) -> None:
    for session, number in (("b", 10), ("b", 9), ("a", 1)):
        requests.publish(SessionPlaces(tmp_path, session), _request(session, number))
    assert [item.id for item in requests.read_requests(tmp_path)] == ["a/1", "b/9", "b/10"]


def test_an_unpublished_request_is_gone_and_may_be_unpublished_again(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    requests.publish(places, _request("mesh", 1))
    requests.unpublish(places, 1)
    requests.unpublish(places, 1)
    assert requests.published(places) == []


def test_no_home_is_no_request(tmp_path: Path) -> None:
    assert requests.read_requests(tmp_path / "absent") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema":"pilot-hitl/request"}',
        b'{"schema":"other","version":1,"id":"mesh/2","session":"mesh","name":"x"}',
        b'{"schema":"pilot-hitl/request","version":2,"id":"mesh/2","session":"mesh","name":"x"}',
        b'{"schema":"pilot-hitl/request","version":1,"id":"other/2","session":"other","name":"x"}',
        b"[" * 100_000,
    ],
)
def test_a_broken_file_is_skipped_with_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    requests.publish(places, _request("mesh", 1))
    (places.requests / "2.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [item.id for item in requests.read_requests(tmp_path)] == ["mesh/1"]
    assert "2.json is not a request and was skipped" in caplog.text


def test_unknown_fields_of_a_later_release_are_passed_over(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    path = requests.publish(places, _request("mesh", 1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "quorum": 2}))
    assert [item.id for item in requests.published(places)] == ["mesh/1"]


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    path = requests.publish(places, _request("mesh", 1))
    (places.requests / "2.json").symlink_to(path)
    os.mkfifo(places.requests / "3.json")
    assert [item.id for item in requests.published(places)] == ["mesh/1"]


KNOWN = [
    Known("a", 1, 1, "mesh"),
    Known("b", 1, 3, "other"),
    Known("b", 2, 1, "mesh"),
    Known("b", 3, 1, "closed", open=False),
    Known("c", 1, 1, "closed", open=False),
    Known("c", 2, 1, "twice", open=False),
    Known("c", 3, 2, "twice"),
    Known("c", 4, 2, "odd@2"),
]


@pytest.mark.parametrize(
    ("wanted", "id_", "said"),
    [
        ("a/1", "a/1", 0),
        ("a/1@1", "a/1", 1),
        ("b/1@2", "b/1@3", 2),
        ("other", "b/1@3", 0),
        ("other@3", "b/1@3", 3),
        ("b/mesh", "b/2", 0),
        ("b/mesh@1", "b/2", 1),
        ("b/closed", "b/3", 0),
        ("twice", "c/3@2", 0),
        ("odd@2", "c/4@2", 0),
        ("odd@2@1", "c/4@2", 1),
    ],
)
def test_a_question_is_found_by_its_id_or_name_and_the_version_that_is_named(wanted: str, id_: str, said: int) -> None:
    found, generation = requests.find(KNOWN, wanted)
    assert (found.id, generation) == (id_, said)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("mesh", "several requests: a/1, b/2"), ("closed", "several"), ("a/7", "inbox list"), ("a/1@0", "inbox list")],
)
def test_what_is_not_one_question_is_not_guessed_at(wanted: str, message: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=message):
        requests.find(KNOWN, wanted)


def test_an_answer_names_its_version_once_there_were_several() -> None:
    assert requests.generation_meant(KNOWN[0], 0) == 1
    assert requests.generation_meant(KNOWN[1], 2) == 2
    with pytest.raises(AnswerRefused, match=r"asked 3 times.*b/1@3 for the present one") as refused:
        requests.generation_meant(KNOWN[1], 0)
    assert refused.value.code == "asked-again"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("s/1", ("s", 1, 0)),
        ("s/12@3", ("s", 12, 3)),
        ("s/1@0", None),
        ("s/1@", None),
        ("s/@1", None),
        ("s", None),
        ("s/x", None),
        ("/1", None),
        ("s/²", None),
        ("s/1@²", None),
    ],
)
def test_parse_id(text: str, parsed: tuple[str, int, int] | None) -> None:
    assert requests.parse_id(text) == parsed
    if parsed is not None and parsed[2] != 1:
        assert requests.request_id(*parsed) == text


def test_a_later_version_says_so_in_its_file(tmp_path: Path) -> None:
    places = SessionPlaces(tmp_path, "mesh")
    requests.publish(places, _request("mesh", 3, generation=2))
    (found,) = requests.published(places)
    assert (found.id, found.number, found.generation) == ("mesh/3@2", 3, 2)
    assert (found.changed, found.earlier) == (["its question"], [{"generation": 1}])
