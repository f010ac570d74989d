"""What acts outside never runs a second time without a word: also when the hub that sent it is killed at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl.cli._tool import connect


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOT_HITL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def act(path: str, pause: float) -> int:
    """Do what cannot be undone."""
    with open(path, "a") as file:  # as a user would
        file.write("acted\n")
    time.sleep(pause)
    return os.getpid()


def processes(home: Path) -> tuple[int, int]:
    """The hub, and the root of its pilot."""
    with connect(home, timeout=20.0) as tool:
        status = tool.query("status")
    assert isinstance(status, dict)
    sessions, hub = status["sessions"], status["pid"]
    assert isinstance(sessions, list)
    assert isinstance(sessions[0], dict)
    pilots = sessions[0]["pilots"]
    assert isinstance(pilots, list)
    assert isinstance(pilots[0], dict)
    root = pilots[0]["pid"]
    assert isinstance(root, int)
    assert isinstance(hub, int)
    return hub, root


def when_it_acted(path: Path, *killed: int) -> None:
    """Kill processes as soon as something was done."""
    while not path.exists():
        time.sleep(0.001)
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_once_also_when_the_hub_is_killed_right_after_it_sent_it(home: Path, tmp_path: Path) -> None:
    with ph.Session("outside") as session:
        session.submit_pilot(ph.PilotDescription(cores=1)).wait_ready(60)
        hub, root = processes(home)
        done = tmp_path / "goes on"
        future = session.options(effects="outside").call(act, str(done), 1.0)
        when_it_acted(done, hub)
        assert future.result(60) > 0, "its agent had it all the time"
        assert done.read_text() == "acted\n"
        hub, root = processes(home)
        lost = tmp_path / "lost"
        future = session.options(effects="outside").call(act, str(lost), 600.0)
        when_it_acted(lost, hub, root)
        with pytest.raises(ph.TaskLost):
            future.result(60)
        assert session.call(abs, -3).result(60) == 3, "the pilot is there again"
        assert lost.read_text() == "acted\n"
