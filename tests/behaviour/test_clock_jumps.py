"""The wall clock is set: a gate's deadline follows it, both ways; nothing else that hub and agent wait for does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl.cli._tool import connect

SITE = """
import os, sys, time
if {"pilot_hitl.hub", "pilot_hitl_agent"}.intersection(sys.orig_argv):
    real, here = time.time, os.path.join(os.path.dirname(__file__), "shift")
    def shifted():
        with open(here) as file:
            return real() + float(file.read() or 0)
    time.time = shifted
"""
"""The clock of hub and agent, which their interpreter loads at its start."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOT_HITL_HOME", str(tmp_path / "home"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "site"), known])))
    return tmp_path / "home"


def set_clock(home: Path, shift: float) -> None:
    """Let hub and agent see the wall clock so many seconds off."""
    partial = home.parent / "site" / "partial"
    partial.write_text(str(shift))
    partial.replace(home.parent / "site" / "shift")


class Echo:
    """A service."""

    def __call__(self, x: int) -> tuple[int, int]:
        return x, os.getpid()


def twice(x: int) -> int:
    return 2 * x


def works(session: ph.Session, service: ph.Service, home: Path) -> tuple[int, object]:
    """Results, commits, questions to the hub and requests go on; return who served and which pilots there are."""
    assert [each.result(60) for each in session.map(twice, range(20))] == [2 * x for x in range(20)]
    session.flush(60.0)
    value, pid = service.request(7).result(60)
    assert value == 7
    with connect(home, timeout=20.0) as tool:
        status = tool.query("status")
    assert isinstance(status, dict)
    sessions = status["sessions"]
    assert isinstance(sessions, list)
    facts = sessions[0]
    assert isinstance(facts, dict)
    pilots = facts["pilots"]
    assert isinstance(pilots, list)
    return pid, [(each["pilot"], each["state"]) for each in pilots if isinstance(each, dict)]


def test_only_the_deadline_of_a_gate_follows_the_wall_clock(home: Path) -> None:
    set_clock(home, 0.0)
    with ph.Session("jumps") as session:
        session.submit_pilot(ph.PilotDescription(cores=2, runtime=30))
        service = session.start_service(ph.ServiceDescription(name="echo", handler=Echo))
        before = works(session, service, home)
        soon = session.checkpoint("soon", question="Go on?", choices=["yes", "no"], deadline="1h", default="yes")
        soon.wait_number()
        set_clock(home, 7200.0)
        assert soon.result(60) == "yes", "its deadline is over, says the wall clock"
        assert works(session, service, home) == before
        later = session.checkpoint("later", question="Go on?", choices=["yes", "no"], deadline=2.0, default="yes")
        later.wait_number()
        set_clock(home, -7200.0)
        assert works(session, service, home) == before
        ended = time.monotonic() + 4.0
        while time.monotonic() < ended:
            assert works(session, service, home) == before
        assert not later.done(), "it waits as long as the wall clock does not come to it"
        later.respond("no")
        assert later.result(60) == "no"
        assert works(session, service, home) == before
