"""Several processes start a hub at a time: one of them serves, and the others end a moment later."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pilot_hitl as ph
from pilot_hitl import _hubprocess
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.places import MARK_VARIABLE, home_hash, runtime_folder
from pilot_hitl_agent.node import spawner
from tests.unit.client.fakehub import FakeHub


@pytest.mark.parametrize("code", [0, 7])
def test_the_end_of_another_hub_is_no_loss(hub: FakeHub, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that we started ends after the one that serves has let us in."""
    candidate = subprocess.Popen(["sh", "-c", f"read end; exit {code}"], stdin=subprocess.PIPE)
    find, found = _hubprocess.find, [candidate.pid]
    endpoint = f"ipc://{runtime_folder(hub.home)}/hub.sock"
    monkeypatch.setattr(
        _hubprocess,
        "find",
        lambda home: _hubprocess.HubProcess(found.pop(), True, endpoint) if found else find(home),
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
        end = time.monotonic() + 20
        while len(hub.of(m.Hello)) < 4 and time.monotonic() < end:
            time.sleep(0.001)
        assert session.call(abs, -5).result(20) == 5
        greetings = hub.of(m.Hello)
        assert len(greetings) == 4
        assert {each.incarnation for each in greetings[1:]} == {greetings[1].incarnation}


def test_a_hub_that_is_seen_to_end_after_the_next_one_asked_who_we_are_is_one_loss(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection leads to whoever listens there by now, before anybody has looked at the process of before."""
    dying = subprocess.Popen(["sleep", "6013"])
    find, found = _hubprocess.find, [dying.pid]
    endpoint = f"ipc://{runtime_folder(hub.home)}/hub.sock"
    monkeypatch.setattr(
        _hubprocess, "find", lambda home: _hubprocess.HubProcess(found.pop(), True, endpoint) if found else find(home)
    )
    with ph.Session("study", home=hub.home) as session:
        assert session.call(abs, -4).result(20) == 4
        link = session._client._link
        assert link.welcome is not None
        link.welcome = msgspec.structs.replace(link.welcome, hub_pid=dying.pid)
        receive, reached, go = link._receive, threading.Event(), threading.Event()

        def late(messages: list[Any]) -> None:
            reached.set()
            go.wait(20)
            receive(messages)

        link._receive = late
        hub.tell(m.Acknowledged(0))
        assert reached.wait(20)
        hub.tell(m.Reconnect())
        dying.kill()
        os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
        dying.returncode = -9  # the link takes it
        link._receive = receive
        go.set()
        assert session.call(abs, -5).result(20) == 5
        assert len(link._lost) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_process_of_a_pilot_leaves_it_to_others_to_start_a_hub(
    home: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started would end with its task; of another home, it is a client like any other."""
    monkeypatch.setenv(MARK_VARIABLE, f"{home_hash(home) if inside else 'another'}/study/1")
    monkeypatch.setattr(_hubprocess, "start", lambda home: _hubprocess.HubProcess(os.getppid(), True, str(home)))
    hubs: list[FakeHub] = []
    looks = _hubprocess.find

    def find(home: Path) -> _hubprocess.HubProcess | None:
        found = looks(home)
        if found is None and not hubs:
            hubs.append(FakeHub(home))
        return found

    monkeypatch.setattr(_hubprocess, "find", find)
    process = _hubprocess.find_or_start(home)
    assert isinstance(process, _hubprocess.HubProcess)
    assert process.pid == (os.getpid() if inside else os.getppid())
    process.close()
    hubs[0].stop()


def test_the_environment_of_a_hub_is_no_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MARK_VARIABLE, spawner.TOKEN_VARIABLE):
        monkeypatch.setenv(name, "x")
    assert not {MARK_VARIABLE, spawner.TOKEN_VARIABLE} & _hubprocess._environment().keys()
