from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot_hitl import errors
from pilot_hitl.cli import _tool
from pilot_hitl.wire import messages as wire
from tests.unit.cli.fakes import FakeHub


def test_no_hub_is_seen_without_a_lock_file(home: Path) -> None:
    assert not _tool.hub_runs(home)
    (home / "hub").mkdir(mode=0o700)
    _tool.lock_path(home).touch()
    assert not _tool.hub_runs(home)
    with pytest.raises(errors.HubUnreachable, match="no hub runs"), _tool.connect(home):
        pass


def test_a_hub_is_seen_by_its_lock(home: Path) -> None:
    with FakeHub(home).running():
        assert _tool.hub_runs(home)
    assert not _tool.hub_runs(home)


def test_queries_leave_out_what_is_none(home: Path, hub: FakeHub) -> None:
    hub.replies["x"] = {"y": [1, None]}
    with _tool.connect(home, "s") as tool:
        assert tool.query("x", a=1, b=None) == {"y": [1, None]}
        assert tool.query("x") == {"y": [1, None]}
    assert hub.said(wire.Query)[0].arguments == '{"a": 1}'
    assert len(hub.said(wire.Hello)) == 1


def test_good_bye_is_said(home: Path, hub: FakeHub) -> None:
    with _tool.connect(home) as tool:
        tool.query("x")
        tool.close()
    with _tool.connect(home) as tool:
        tool.query("x")  # by now the first good-bye was heard
    assert wire.Bye("detach") in hub.heard


def test_a_hub_that_does_not_answer_is_an_error_in_time(home: Path, hub: FakeHub) -> None:
    hub.silent = True
    with (
        pytest.raises(errors.HubUnreachable, match=r"did not answer 'status' within 0\.3 s.*hub\.log"),
        _tool.connect(home, timeout=0.3) as tool,
    ):
        tool.query("status")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UnknownSession", errors.UnknownSession),
        ("TaskFailed", errors.TaskFailed),
        ("Nonsense", errors.SessionError),
        ("annotations", errors.SessionError),
    ],
)
def test_refusals_become_the_errors_they_name(home: Path, hub: FakeHub, code: str, kind: type[Exception]) -> None:
    hub.replies["x"] = wire.Refused(code, "not this")
    with pytest.raises(kind, match="not this"), _tool.connect(home) as tool:
        tool.query("x")


def test_a_refused_hello_is_an_error(home: Path, hub: FakeHub) -> None:
    hub.answerer = lambda _message: [wire.Refused("SessionBusy", "owned elsewhere")]
    with pytest.raises(errors.SessionBusy, match="owned elsewhere"), _tool.connect(home, "s") as tool:
        tool.answer(1, 1, "1", "", "")


def test_a_hub_that_was_started_anew_is_said(home: Path, hub: FakeHub) -> None:
    hub.answerer = lambda _message: [wire.Reconnect()]
    with pytest.raises(errors.HubUnreachable, match="run this again"), _tool.connect(home) as tool:
        tool.answer(1, 1, "1", "", "")


def test_strange_keys_are_not_used(home: Path, hub: FakeHub) -> None:
    (home / "hub" / "keys.json").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"), _tool.connect(hub.home):
        pass


def test_started_is_that_of_this_process() -> None:
    ticks = _tool._started() / os.sysconf("SC_CLK_TCK")
    assert 0 < ticks < float(Path("/proc/uptime").read_text().split()[0]) + 1
