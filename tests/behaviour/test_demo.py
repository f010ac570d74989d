"""``pilot-hitl demo`` as a user runs it: a real study, real processes, one JSON object."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

COMMAND = [sys.executable, "-c", "from pilot_hitl.cli.main import main; main()", "demo", "--size", "small"]
REPORTED = {
    "tasks_done": int,
    "tasks_failed": int,
    "speculative_committed": int,
    "speculative_discarded": int,
    "makespan_s": float,
    "answer": str,
    "predicted": str,
    "results_sha256": str,
    "answer_to_continuation_ms": float,
    "folder": str,
}


def _environment(temporary: Path) -> dict[str, str]:
    # A temporary folder of the test's own: what a demo leaves behind is then seen.
    known = {name: value for name, value in os.environ.items() if not name.startswith("PILOT_HITL")}
    return {**known, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": ""}


def _demo(temporary: Path, *options: str) -> dict[str, Any]:
    arguments = [*COMMAND, "--unattended", "--cores", "2", "--json", *options]
    ended = subprocess.run(
        arguments, capture_output=True, text=True, timeout=100, check=False, env=_environment(temporary)
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


def _nothing_of(folder: Path) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not _processes_of(folder):
            break
        time.sleep(0.05)
    return not _processes_of(folder) and not list(folder.iterdir())


def test_right_guess_and_another_delay_give_the_same_numbers(tmp_path: Path) -> None:
    early = _demo(tmp_path, "--reviewer-delay", "0")
    late = _demo(tmp_path, "--reviewer-delay", "4")
    assert {name: type(early[name]) for name in REPORTED} == REPORTED
    assert early["answer"] == early["predicted"] == late["answer"]
    assert early["results_sha256"] == late["results_sha256"]
    assert (late["tasks_failed"], late["tasks_done"]) == (0, early["tasks_done"])
    assert late["speculative_committed"] > 0
    assert late["asked_to_answer_s"] >= 4
    assert _nothing_of(tmp_path)


def test_a_wrong_guess_is_discarded_and_changes_no_number(tmp_path: Path) -> None:
    guessed = _demo(tmp_path, "--reviewer-delay", "3", "--answer", "other")
    waited = _demo(tmp_path, "--reviewer-delay", "0", "--answer", guessed["answer"], "--no-speculation")
    assert guessed["answer"] != guessed["predicted"]
    assert guessed["speculative_discarded"] > 0
    assert guessed["speculative_discarded_ran"] > 0
    assert (waited["speculative_discarded"], waited["speculative_committed"]) == (0, 0)
    assert waited["results_sha256"] == guessed["results_sha256"]
    assert waited["tasks_done"] == guessed["tasks_done"]
    assert _nothing_of(tmp_path)


def test_a_demo_in_a_home_of_ones_own_is_kept_and_resumed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = _demo(tmp_path, "--reviewer-delay", "0", "--home", str(home))
    assert Path(first["folder"]).is_dir()
    again = _demo(tmp_path, "--reviewer-delay", "0", "--home", str(home), "--resume")
    assert again["results_sha256"] == first["results_sha256"]
    # Everything was there, the answer too.
    assert again["makespan_s"] < first["makespan_s"]


def test_the_inbox_answers_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    inbox = [sys.executable, "-c", "from pilot_hitl.cli.main import main; main()", "--home", str(home), "inbox"]
    environment = _environment(tmp_path)
    with subprocess.Popen(
        [*COMMAND, "--json", "--home", str(home)],
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
            listed = subprocess.run(
                [*inbox, "list", "--json"], capture_output=True, text=True, timeout=30, check=True, env=environment
            )
            (request,) = json.loads(listed.stdout)
            chosen = request["choices"][2]
            subprocess.run([*inbox, "answer", request["id"], chosen], timeout=30, check=True, env=environment)
            said, _ = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert json.loads(said)["answer"] == chosen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--unattended", "--json"],
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
    for options, word in ((["--resume"], "--home"), (["--size", "huge"], "huge"), (["--seed", "-1"], "seed")):
        ended = subprocess.run(
            [*COMMAND, "--unattended", *options],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=_environment(tmp_path),
        )
        assert ended.returncode in (1, 2)
        assert word in ended.stderr
        assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
