"""Sessions in processes of a pilot, where the hub is on another host: real sockets over TCP, no second hub."""

from __future__ import annotations

from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl import _hubprocess, _link
from pilot_hitl.cli import _start, _tool
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.places import MARK_VARIABLE, HubAddress, private_folder, publish_hub_address
from tests.unit.client.fakehub import FakeHub


def _say(home: Path, tcp: str, host: str = "login1.elsewhere") -> None:
    private_folder(private_folder(home) / "hub")
    publish_hub_address(home, HubAddress(host=host, ipc="ipc:///nowhere", tcp=tcp))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is a process of a pilot."""
    monkeypatch.setenv(MARK_VARIABLE, "abc/study/1/0")


def _double(x: int) -> int:
    return 2 * x


@pytest.mark.usefixtures("inside")
def test_a_session_over_tcp(hub: FakeHub) -> None:
    _say(hub.home, hub.listen())
    with ph.Session("study", home=hub.home) as session:
        assert session.call(_double, 4).result(20) == 8
        assert isinstance(session._client._link._process, _hubprocess.RemoteHub)


@pytest.mark.usefixtures("inside")
def test_the_hub_is_followed_to_where_it_listens(hub: FakeHub) -> None:
    # At first it listens for its own host only, then on a port where nobody is, then where it is.
    _say(hub.home, "")
    hub.do(lambda: None)
    endpoint = hub.listen()
    moves = iter(["tcp://127.0.0.1:9", endpoint])
    before = _hubprocess.RemoteHub.moved

    def moved(self: _hubprocess.RemoteHub) -> bool:
        if self.endpoint != endpoint and self.host:
            _say(hub.home, next(moves))
        return before(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hubprocess.RemoteHub, "moved", moved)
        with ph.Session("study", home=hub.home) as session:
            assert session.call(_double, 4).result(20) == 8
    assert len(hub.of(m.Hello)) == 1


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("tcp", "where"), [("tcp://127.0.0.1:9", "at tcp://127.0.0.1:9"), ("", "on any address")])
def test_a_hub_that_is_not_reached_is_an_error_in_time(
    home: Path, monkeypatch: pytest.MonkeyPatch, tcp: str, where: str
) -> None:
    monkeypatch.setattr(_link, "REMOTE_PATIENCE", 1.0)
    _say(home, tcp)
    with pytest.raises(ph.HubUnreachable, match=rf"runs on login1\.elsewhere and was not reached from \S+ {where}"):
        ph.Session("study", home=home)
    assert not _hubprocess.log_path(home).exists(), "no hub was started here"


@pytest.mark.usefixtures("inside")
def test_the_command_line_starts_no_hub_either(home: Path) -> None:
    _say(home, "")
    assert not _start.ensure_hub(home)
    with pytest.raises(ph.HubUnreachable, match="does not listen for this one yet"), _tool.connect(home):
        pass
    assert not _hubprocess.log_path(home).exists()


def test_outside_of_a_pilot_an_old_address_is_no_reason_to_wait(home: Path) -> None:
    _say(home, "tcp://127.0.0.1:9")
    assert _hubprocess.elsewhere(home) is None
