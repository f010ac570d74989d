"""Sessions, pilots, tasks, hub, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_hitl.cli import _tool
from pilot_hitl.cli.tasks import runs_of
from pilot_hitl.model.ids import make_id
from pilot_hitl.model.states import PilotState
from pilot_hitl.wire import messages as wire
from tests.unit.cli.conftest import Cli
from tests.unit.cli.fakes import FakeHub, publish

MAIN = [sys.executable, "-c", "from pilot_hitl.cli.main import main; main()"]


def _session(home: Path, name: str) -> None:
    (home / "sessions" / name).mkdir(parents=True)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_sessions_without_a_hub_are_the_folders(cli: Cli, home: Path) -> None:
    assert json.loads(cli("session", "list", "--json").stdout) == []
    publish(home)
    cli("inbox", "answer", "mesh/1", "accept")
    _session(home, "alpha")
    rows = json.loads(cli("session", "list", "--json").stdout)
    assert [(row["name"], row["open_requests"], row["queued_answers"]) for row in rows] == [
        ("alpha", 0, 0),
        ("mesh", 1, 1),
    ]
    assert json.loads(cli("session", "show", "mesh", "--json").stdout)["folder"] == str(home / "sessions" / "mesh")
    assert "mesh" in cli("session", "show", "mesh").stdout


def test_a_damaged_session_does_not_hide_the_others(cli: Cli, home: Path) -> None:
    _session(home, "alpha")
    _session(home, "broken")
    (home / "sessions" / "broken" / "session.sqlite").write_bytes(b"not a database" * 100)
    rows = json.loads(cli("session", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["alpha", "broken"]


def test_the_hub_adds_what_it_knows(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["sessions"] = [{"name": "alpha", "state": "open", "tasks": 3}, {"session": "beta"}]
    hub.replies["session"] = {"tasks": 3, "state": "open"}
    rows = json.loads(cli("session", "list", "--json").stdout)
    assert [(row["name"], row.get("tasks")) for row in rows] == [("alpha", 3), ("beta", None)]
    assert json.loads(cli("session", "show", "alpha", "--json").stdout)["tasks"] == 3


def test_removing_needs_a_yes(cli: Cli, home: Path) -> None:
    _session(home, "alpha")
    assert "say --yes" in cli("session", "rm", "alpha").stderr
    assert (home / "sessions" / "alpha").is_dir()
    assert cli("session", "rm", "alpha", "--yes").stdout == "removed alpha\n"
    assert list((home / "sessions").iterdir()) == []


def test_a_session_that_a_hub_holds_is_not_removed(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["sessions"] = [{"name": "alpha"}]
    assert "pilot-hitl hub stop" in cli("session", "rm", "alpha", "--yes").stderr
    hub.replies["sessions"] = [{"session": "alpha", "state": "closed"}]
    assert cli("session", "rm", "alpha", "--yes").exit_code == 0


@pytest.mark.parametrize("name", ["../x", "..", "/etc", ""])
def test_a_name_cannot_lead_out_of_the_home(cli: Cli, home: Path, name: str) -> None:
    _session(home, "alpha")
    said = cli("session", "rm", "--yes", name)
    assert said.exit_code == 1
    assert (home / "sessions" / "alpha").is_dir()


def test_resume_opens_the_session_and_runs_a_script(home: Path, hub: FakeHub, tmp_path: Path) -> None:
    _session(home, "alpha")
    hub.replies["session"] = {"tasks": 3}
    script = tmp_path / "study.py"
    script.write_text("import os, sys\nprint(sys.argv[1:], os.environ['PILOT_HITL_SESSION'])\nsys.exit(75)")
    line = [*MAIN, "session", "resume", "alpha", str(script), "--fast", "1"]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "['--fast', '1'] alpha\n", "")


def test_resume_without_a_script(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["session"] = {"tasks": 3}
    said = cli("session", "resume", "alpha")
    assert said.exit_code == 0
    assert "session alpha is open" in said.stdout
    assert cli("session", "resume", "absent").exit_code == 1
    assert isinstance(hub.heard[0], wire.Hello)
    assert [hello.session for hello in hub.said(wire.Hello) if hello.role == "observer"] == ["alpha"]


def test_resume_runs_the_script_that_the_session_knows(home: Path, hub: FakeHub, tmp_path: Path) -> None:
    _session(home, "alpha")
    hub.replies["session"] = {"command": ["pwd"], "directory": str(tmp_path)}
    ended = subprocess.run(
        [*MAIN, "session", "resume", "alpha"], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == str(tmp_path)


# --- pilots -----------------------------------------------------------------------------------------------------------


def test_submit_a_pilot(cli: Cli, hub: FakeHub) -> None:
    def answer(message: wire.Message) -> list[wire.Message]:
        if isinstance(message, wire.SubmitPilot):
            return [wire.PilotUpdate(99, 1, PilotState.NEW), wire.PilotUpdate(message.token, 4, PilotState.PENDING)]
        return []

    hub.answerer = answer
    said = cli("pilot", "submit", "-s", "alpha", "--cores", "8", "-t", "30", "--json")
    assert json.loads(said.stdout) == {"session": "alpha", "pilot": 4, "state": "PENDING", "message": ""}
    (asked,) = hub.said(wire.SubmitPilot)
    assert (asked.description.resource, asked.description.cores, asked.description.runtime) == ("local", 8, 30)


def test_a_pilot_that_cannot_be_had(cli: Cli, hub: FakeHub) -> None:
    def refuse(message: wire.Message) -> list[wire.Message]:
        token = message.token if isinstance(message, wire.SubmitPilot) else 0
        return [wire.Refused("UnknownPlatform", "no platform 'moon'", token)] if token else []

    hub.answerer = refuse
    said = cli("pilot", "submit", "-s", "alpha", "-r", "moon")
    assert (said.exit_code, said.stderr) == (1, "pilot-hitl: no platform 'moon'\n")
    hub.answerer = lambda message: (
        [wire.PilotUpdate(message.token, 1, PilotState.FAILED, "sbatch: no such queue")]
        if isinstance(message, wire.SubmitPilot)
        else []
    )
    assert "sbatch: no such queue" in cli("pilot", "submit", "-s", "alpha").stderr


@pytest.mark.parametrize("wrong", [["--cores", "-1"], ["-t", "0"], ["-s", "a/b"], ["-r", ""]])
def test_a_pilot_that_cannot_be_meant(cli: Cli, wrong: list[str]) -> None:
    assert cli("pilot", "submit", "-s", "alpha", *wrong).exit_code == 2


def test_list_and_cancel_pilots(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["pilots"] = [{"session": "alpha", "pilot": 2, "name": "big", "state": "ACTIVE"}]
    assert json.loads(cli("pilot", "list", "--json").stdout) == hub.replies["pilots"]
    assert "ACTIVE" in cli("pilot", "list").stdout
    assert cli("pilot", "cancel", "big").exit_code == 0
    assert cli("pilot", "cancel", "2", "--reason", "enough").exit_code == 0
    assert hub.said(wire.CancelPilot)[1].reason == "enough"
    said = cli("pilot", "cancel", "7")
    assert said.exit_code == 2
    assert "has no pilot '7'; there are: 2" in said.stderr


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_list_tasks(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["tasks"] = [{"task": "task.1.000001", "state": "RUNNING", "strange": {"a": 1}}]
    assert json.loads(cli("task", "list", "--state", "running", "--json").stdout) == hub.replies["tasks"]
    assert "task.1.000001" in cli("task", "list", "--limit", "1").stdout
    asked = [json.loads(query.arguments) for query in hub.said(wire.Query)]
    assert asked == [{"session": "alpha", "state": "RUNNING", "limit": 100}, {"session": "alpha", "limit": 1}]
    assert cli("task", "list", "--state", "asleep").exit_code == 2


@pytest.mark.parametrize("what", ["show", "explain"])
def test_show_and_explain(cli: Cli, home: Path, hub: FakeHub, what: str) -> None:
    _session(home, "alpha")
    hub.replies["task" if what == "show" else what] = {"task": "task.1.000001", "waits_for": "2 cores"}
    assert "2 cores" in cli("task", what, "1.1").stdout
    assert json.loads(cli("task", what, "task.1.000001", "--json").stdout)["waits_for"] == "2 cores"


def test_cancel_tasks(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    said = json.loads(cli("task", "cancel", "1.1", "1.2", "1.2", "1.5", "--json").stdout)
    assert said["canceled"] == ["task.1.000001", "task.1.000002", "task.1.000005"]
    (asked,) = hub.said(wire.Cancel)
    assert asked.runs == [(make_id(1, 1), 2), (make_id(1, 5), 1)]


def test_nothing_is_canceled_when_a_task_is_unknown(cli: Cli, home: Path, hub: FakeHub) -> None:
    _session(home, "alpha")
    hub.replies["task"] = wire.Refused("SessionError", "there is no task.1.000009")
    assert cli("task", "cancel", "1.9").exit_code == 1
    assert hub.said(wire.Cancel) == []


def test_runs() -> None:
    assert runs_of([]) == []
    assert runs_of([1, 2, 3, 5, 7, 8]) == [(1, 3), (5, 1), (7, 2)]


def test_several_sessions_need_a_name(cli: Cli, home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.home == home
    assert "there is no session" in cli("task", "list").stderr
    _session(home, "alpha")
    _session(home, "beta")
    assert "alpha, beta" in cli("task", "list").stderr
    monkeypatch.setenv("PILOT_HITL_SESSION", "beta")
    assert cli("task", "list", "--json").exit_code == 0


# --- hub --------------------------------------------------------------------------------------------------------------


def test_status_without_a_hub(cli: Cli, home: Path) -> None:
    said = json.loads(cli("hub", "status", "--json").stdout)
    assert said == {"running": False, "home": str(home), "processes": []}
    assert cli("hub", "status").stdout == f"no hub runs for {home}\n"
    assert cli("hub", "stop").stdout == "no hub runs\n"


def test_status_with_a_hub(cli: Cli, home: Path, hub: FakeHub) -> None:
    hub.replies["status"] = {"pid": 77, "epoch": 3, "processes": [{"kind": "hub", "pid": 77, "host": "here"}]}
    said = json.loads(cli("hub", "status", "--json").stdout)
    assert (said["running"], said["home"], said["pid"], said["epoch"]) == (True, str(home), 77, 3)
    assert said["processes"][0]["kind"] == "hub"
    assert "77" in cli("hub", "status").stdout
    assert "runs already (pid 77)" in cli("hub", "start").stdout


def test_a_hub_elsewhere_is_not_stopped_here(cli: Cli, hub: FakeHub) -> None:
    hub.replies["status"] = {"pid": os.getpid(), "host": "another-login-node"}
    said = cli("hub", "stop")
    assert said.exit_code == 1
    assert "another-login-node" in said.stderr


def test_a_hub_is_stopped(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('ready', flush=True)\ntime.sleep(20)"
    )
    (home / "hub").mkdir(mode=0o700)
    lock = home / "hub" / "hub.lock"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock.write_text(json.dumps({"pid": process.pid}))
        monkeypatch.setattr(_tool, "TIMEOUT", 0.2)
        assert "does not listen within 0.2 s" in cli("hub", "stop").stderr
        said = cli("hub", "stop", "--force", "--json")
        assert json.loads(said.stdout) == {"stopped": True}
        assert process.wait(10) != 0


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_passes_everything_to_the_script(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['PILOT_HITL_SESSION'], os.environ['PILOT_HITL_HOME'])\n"
        "sys.exit(3)"
    )
    line = [*MAIN, "run", "--session", "mesh", str(script), "--json", "-x", "--session", "y"]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 3
    assert ended.stdout == f"['--json', '-x', '--session', 'y'] mesh {home}\n"


def test_run_without_a_script(cli: Cli) -> None:
    assert cli("run").exit_code == 2
    said = cli("run", "absent.py")
    assert said.exit_code == 1
    assert "there is no script 'absent.py'" in said.stderr
