"""Several processes start a hub at a time: one of them serves, and the others end a moment later."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

import pilot_hitl as ph
from pilot_hitl import _hubprocess
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub


@pytest.mark.parametrize("code", [0, 7])
def test_the_end_of_another_hub_is_no_loss(hub: FakeHub, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that we started ends after the one that serves has let us in."""
    candidate = subprocess.Popen(["sh", "-c", f"read end; exit {code}"], stdin=subprocess.PIPE)
    find, found = _hubprocess.find, [candidate.pid]
    monkeypatch.setattr(
        _hubprocess,
        "find",
        lambda home: _hubprocess.HubProcess(found.pop(), True, _hubprocess._endpoint(home)) if found else find(home),
    )
    with ph.Session("study", home=hub.home) as session:
        link = session._client._link
        assert isinstance(link._process, _hubprocess.HubProcess)
        assert link._process.pid == candidate.pid
        assert session.call(abs, -4).result(20) == 4
        candidate.communicate(b"\n")
        end = time.monotonic() + 20
        while link._process.pid != os.getpid() and time.monotonic() < end:
            time.sleep(0.001)
        assert link._process.pid == os.getpid(), "it watches the one that serves"
        assert not link._lost
        assert session.call(abs, -5).result(20) == 5
    assert len(hub.of(m.Hello)) == 1


def test_a_greeting_that_an_ending_hub_took_along_is_said_again(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home) as session:
        assert session.call(abs, -4).result(20) == 4
        hub.deaf = 2
        hub.tell(m.Reconnect())
        assert session.call(abs, -5).result(20) == 5
        assert not hub.deaf
        greetings = hub.of(m.Hello)
        assert len(greetings) == 4
        assert {each.incarnation for each in greetings[1:]} == {greetings[1].incarnation}
