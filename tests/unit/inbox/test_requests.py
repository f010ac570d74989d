from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.errors import UnknownCheckpoint
from pilot_hitl.inbox import requests
from pilot_hitl.inbox.requests import Request
from pilot_hitl.wire.places import SessionPlaces


def _request(session: str, number: int, name: str = "accept-mesh", default: str = "") -> Request:
    return requests.from_texts(
        session=session,
        number=number,
        name=name,
        question="Is the mesh good enough?",
        choices=['"accept"', '"refine"'],
        form='{"enum":["accept","refine"]}',
        show='[{"kind":"text","text":"hi"}]',
        default=default,
        opened_at=12.5,
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


def test_find_by_id_and_by_a_name_that_is_unique() -> None:
    found = [_request("a", 1), _request("b", 1, "other"), _request("b", 2)]
    assert requests.find_request(found, "a/1").id == "a/1"
    assert requests.find_request(found, "other").id == "b/1"
    assert requests.find_request(found, "b/accept-mesh").id == "b/2"
    with pytest.raises(UnknownCheckpoint, match="several open requests: a/1, b/2"):
        requests.find_request(found, "accept-mesh")
    with pytest.raises(UnknownCheckpoint, match="inbox list"):
        requests.find_request(found, "a/7")


@pytest.mark.parametrize(
    ("text", "parsed"), [("s/1", ("s", 1)), ("s", None), ("s/x", None), ("/1", None), ("s/²", None)]
)
def test_parse_id(text: str, parsed: tuple[str, int] | None) -> None:
    assert requests.parse_id(text) == parsed
