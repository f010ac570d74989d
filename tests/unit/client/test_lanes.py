"""Which way a client goes to a replica."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pilot_hitl._lanes import Kind, Way, way_to
from pilot_hitl.model.services import ReplicaState
from pilot_hitl.wire.current import Here, current_place
from pilot_hitl.wire.servicing import ReplicaView

TCP = "tcp://10.0.0.2:4000"
OUTSIDE = Here("login")
INSIDE = Here("n1", "study", 3)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[ReplicaView]:
    """A replica on n2, of pilot 3, whose socket exists."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.sock"))
        yield ReplicaView(
            1, 17, ReplicaState.READY, f"ipc://{tmp_path / 's.sock'}", host="n2", pilot=3, tcp=TCP, link=5
        )


def kind(replica: ReplicaView, here: Here) -> Kind | None:
    way = way_to(replica, here, "study")
    return way.kind if way is not None else None


def test_the_way_follows_from_where_both_are(replica: ReplicaView) -> None:
    assert kind(replica, Here("n2")) is Kind.HOST
    assert kind(replica, Here("n2", "other", 9)) is Kind.HOST, "whoever asks: the socket is here"
    assert kind(replica, INSIDE) is Kind.NODE
    assert kind(replica, OUTSIDE) is Kind.RELAY
    assert kind(replica, Here("n1", "study", 4)) is Kind.RELAY, "another pilot's task"
    assert kind(replica, Here("n1", "other", 3)) is Kind.RELAY, "another session's task"


def test_what_offers_no_way_is_left_out(replica: ReplicaView) -> None:
    change = msgspec.structs.replace
    assert kind(change(replica, endpoint=""), Here("n2")) is None, "not ready"
    assert kind(change(replica, link=0), OUTSIDE) is None, "the agent is away"
    assert kind(change(replica, link=0), INSIDE) is Kind.NODE
    assert kind(change(replica, tcp=""), INSIDE) is Kind.RELAY


def test_a_host_of_the_same_name_without_the_socket_is_another_one(replica: ReplicaView) -> None:
    Path(replica.endpoint.removeprefix("ipc://")).unlink()
    assert kind(replica, Here("n2")) is Kind.RELAY
    assert kind(replica, Here("n2", "study", 3)) is Kind.NODE


def test_another_connection_to_the_agent_is_another_way(replica: ReplicaView) -> None:
    again = msgspec.structs.replace(replica, link=6)
    first, second = way_to(replica, OUTSIDE, "study"), way_to(again, OUTSIDE, "study")
    assert first != second, "what was under way by the first one is lost"
    assert way_to(again, INSIDE, "study") == Way(TCP, Kind.NODE)


def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_HITL_SESSION", "study")
    monkeypatch.setenv("PILOT_HITL_PILOT", "3")
    assert current_place() == Here(socket.gethostname(), "study", 3)
    monkeypatch.delenv("PILOT_HITL_PILOT")
    assert current_place() == Here(socket.gethostname()), "a name of a session alone is no pilot"
