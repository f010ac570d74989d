"""``pilot-hitl demo`` as a user runs it: a real study, real processes, one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pilot_hitl.model.states import State
from tests.behaviour.studies import further
from tests.behaviour.warmtool import commands

TOOL = [sys.executable, "-c", "from pilot_hitl.cli.main import main; main()"]
COMMAND = [*TOOL, "demo", "--size", "small"]
REPORTED = {
    "tasks_done": int,
    "tasks_failed": int,
    "speculative_committed": int,
    "speculative_discarded": int,
    "makespan_s": float,
    "blocking_makespan_s": float,
    "answer": str,
    "predicted": str,
    "results_sha256": str,
    "blocking_results_sha256": str,
    "utilisation": float,
    "useful_utilisation": float,
    "answer_to_continuation_ms": float,
    "ledger": dict,
    "ledger_error_core_s": float,
    "folder": str,
}


def _environment(temporary: Path) -> dict[str, str]:
    # A temporary folder of the test's own: what a demo leaves behind is then seen.
    known = {name: value for name, value in os.environ.items() if not name.startswith("PILOT_HITL")}
    return {**known, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": ""}


def _demo(temporary: Path, *options: str) -> dict[str, Any]:
    arguments = [*COMMAND, "--unattended", "--cores", "2", "--json", *options]
    ended = subprocess.run(
        arguments, capture_output=True, text=True, timeout=110, check=False, env=_environment(temporary)
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _processes_of(folder: Path) -> list[str]:
    """Command lines and working directories of processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join([*(process.info["cmdline"] or []), str(process.info["cwd"] or "")])
        if str(folder) in text and process.pid != os.getpid():
            found.append(text)
    return found


def _nothing_runs_of(folder: Path) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not _processes_of(folder):
            break
        time.sleep(0.05)
    return not _processes_of(folder)


def _nothing_of(folder: Path) -> bool:
    return _nothing_runs_of(folder) and not list(folder.iterdir())


def _report(found: dict[str, Any], session: str, temporary: Path) -> dict[str, Any]:
    command = [*TOOL, "--home", found["home"], "report", session, "--json"]
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True, env=_environment(temporary)
    ).stdout
    report: dict[str, Any] = json.loads(said)
    return report


def _ended_after(folder: str, moment: float) -> int:
    """How many tasks, of those that count, were left to do."""
    query = "SELECT count(*) FROM outcome WHERE state = ? AND ended > ?"
    with contextlib.closing(sqlite3.connect(Path(folder, "session.sqlite"))) as session:
        return int(session.execute(query, (State.DONE, moment)).fetchone()[0])


@pytest.mark.long
def test_a_right_guess_is_earlier_than_blocking_with_the_same_numbers(tmp_path: Path) -> None:
    found = _demo(tmp_path, "--reviewer-delay", "4")
    assert {name: type(found[name]) for name in REPORTED} == REPORTED
    assert found["answer"] == found["predicted"]
    assert found["results_sha256"] == found["blocking_results_sha256"]
    assert found["tasks_failed"] == found["blocking_tasks_failed"] == 0
    assert found["tasks_done"] == found["blocking_tasks_done"]
    assert found["speculative_committed"] > 0
    assert found["answer_to_continuation_ms"] == 0.0
    assert (found["blocking_speculative_committed"], found["blocking_speculative_discarded_ran"]) == (0, 0)
    assert found["blocking_answer_to_continuation_ms"] > 0.0
    assert min(found["asked_to_answer_s"], found["blocking_asked_to_answer_s"]) >= 4
    left, saved = {}, {}
    for prefix, session in (("", "demo"), ("blocking_", "demo-blocking")):
        ledger = found[f"{prefix}ledger"]
        assert sum(seconds for row, seconds in ledger.items() if row != "total") == pytest.approx(
            ledger["total"], 0.005
        )
        assert ledger["services"] > 1.0
        assert found[f"{prefix}ledger_error_core_s"] <= 0.005 * ledger["total"]
        report = _report(found, session, tmp_path)
        assert report["ledger"] == pytest.approx(ledger, abs=1e-5)
        assert "<html" in Path(found[f"{prefix}report"]).read_text()
        [gate] = report["gates"]
        assert gate["answer"] == f'"{found["answer"]}"'
        left[prefix], saved[prefix] = _ended_after(found[f"{prefix}folder"], gate["closed"]), gate["saved_s"]
    # By this it is earlier. The seconds of two runs, one after the other, also tell what else this machine did.
    assert 0 <= left[""] < left["blocking_"] <= found["tasks_done"]
    assert saved[""] > saved["blocking_"] == 0.0
    assert found["ledger"]["speculative_committed"] > 1.0
    assert found["blocking_ledger"]["speculative_committed"] == 0.0
    assert Path(found["folder"], "session.sqlite").is_file()
    assert found["kept"]
    assert _nothing_runs_of(tmp_path)


@pytest.mark.long
def test_a_wrong_guess_is_discarded_and_changes_no_number(tmp_path: Path) -> None:
    found = _demo(tmp_path, "--reviewer-delay", "2", "--answer", "other", "--seed", "4")
    assert found["answer"] != found["predicted"]
    assert found["results_sha256"] == found["blocking_results_sha256"]
    assert found["tasks_done"] == found["blocking_tasks_done"]
    assert found["speculative_discarded"] >= found["speculative_discarded_ran"] > 0
    assert found["ledger"]["speculative_discarded"] > 0.5
    assert found["blocking_ledger"]["speculative_discarded"] == 0.0
    assert found["useful_utilisation"] < found["utilisation"]


@pytest.mark.long
def test_without_speculation_there_is_nothing_to_compare_and_nothing_need_stay(tmp_path: Path) -> None:
    found = _demo(tmp_path, "--reviewer-delay", "0", "--policy", "block", "--remove")
    assert (found["policy"], found["speculative_committed"], found["kept"]) == ("block", 0, False)
    assert not [name for name in found if name.startswith("blocking")]
    assert _nothing_of(tmp_path)


@pytest.mark.long
def test_a_demo_in_a_home_of_ones_own_is_resumed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = _demo(tmp_path, "--reviewer-delay", "0", "--no-compare", "--home", str(home))
    assert Path(first["folder"]).parent.parent == home
    again = _demo(tmp_path, "--reviewer-delay", "0", "--no-compare", "--home", str(home), "--resume")
    assert again["results_sha256"] == first["results_sha256"]
    # Everything was there, the answer too.
    assert again["makespan_s"] < first["makespan_s"]


def _kill_surrogate(home: Path) -> None:
    replicas = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "pilot_hitl_services" in (words := process.info["cmdline"] or []) and str(home) in " ".join(words)
    ]
    assert len(replicas) == 1
    replicas[0].kill()


def test_the_inbox_shows_table_and_plot_and_answers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    inbox = [*TOOL, "--home", str(home), "inbox"]
    environment = _environment(tmp_path)

    def asked(*words: str) -> Any:
        command = [*inbox, *words, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment)
        return json.loads(ended.stdout)

    with subprocess.Popen(
        [*COMMAND, "--json", "--no-compare", "--home", str(home)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as demo:
        try:
            assert demo.stderr is not None
            line = next(line for line in demo.stderr if "inbox answer" in line)
            assert str(home) in line
            (request,) = asked("list")
            chosen = request["choices"][2]
            table, plot, *pictures = asked("show", request["id"])["show"]
            assert [row[0] for row in table["rows"]] == request["choices"]
            assert {"observed", "predicted"} <= set(table["columns"])
            assert (plot["kind"], plot["media"], plot["name"]) == ("image", "image/png", "surface.png")
            assert [item["kind"] for item in pictures] == ["markdown", "markdown"]
            # A replica that is started anew has learned nothing; whoever asks it teaches it again.
            _kill_surrogate(home)
            subprocess.run([*inbox, "answer", request["id"], chosen], timeout=30, check=True, env=environment)
            said, _ = demo.communicate(timeout=60)
        finally:
            demo.kill()
    found = json.loads(said)
    assert (found["answer"], found["tasks_failed"]) == (chosen, 0)
    assert not [name for name in found if name.startswith("blocking")]


@pytest.mark.parametrize("number", further(1, [signal.SIGINT, signal.SIGTERM]))
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--unattended", "--no-compare", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(tmp_path),
    ) as demo:
        try:
            assert demo.stderr is not None
            assert any("survey" in line for line in demo.stderr)
            time.sleep(1.0)  # into the simulations
            demo.send_signal(number)
            said, _ = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert demo.returncode == 128 + number
    assert said == ""
    assert _nothing_of(tmp_path)


def test_what_cannot_be_meant_is_said(tmp_path: Path) -> None:
    for options, word in (
        (["--resume"], "--home"),
        (["--size", "huge"], "huge"),
        (["--seed", "-1"], "seed"),
        (["--policy", "hope"], "block"),
        (["--cores", "1"], "at least 2"),
        (["--nodes", "2"], "--resource slurm"),
    ):
        ended = commands().run(["demo", "--size", "small", "--unattended", *options], _environment(tmp_path), 30)
        assert ended.code in (1, 2)
        assert word in ended.err
        assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []
