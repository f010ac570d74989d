"""How questions end: races, deadlines that move, answers in the spool, and everything killed in between."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from pilot_hitl.inbox.spool import SpooledAnswer, write_answer
from pilot_hitl.wire.places import SessionPlaces
from tests.behaviour.studies import Study, append, wait_for

RACERS = 50


def audit_of(study: Study, gate: ph.Checkpoint) -> list[dict[str, Any]]:
    """The audit entries of a gate."""
    found: list[dict[str, Any]] = json.loads(study.tool("inbox", "audit", gate.id, "--json"))
    return found


def test_fifty_answers_race_a_deadline(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=list(range(RACERS)), deadline=1.0, default=0)
        gate.wait_number()
        opened = time.time()
        start = threading.Barrier(RACERS)
        told: dict[int, str] = {}

        def answer(value: int) -> None:
            start.wait(20)
            # Around the deadline, on both sides of it.
            time.sleep(max(0.0, opened + 0.95 + value * 0.002 - time.time()))
            try:
                gate.respond(value)
                told[value] = "accepted"
            except ph.AnswerRefused as error:
                told[value] = error.code

        threads = [threading.Thread(target=answer, args=(value,)) for value in range(RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        record = gate.answer(20)
        accepted = [value for value, code in told.items() if code == "accepted"]
        assert len(told) == RACERS
        assert accepted == ([] if record.channel == "system" else [record.value])
        assert set(told.values()) <= {"accepted", "already-answered", "expired"}
        kinds = Counter(entry["kind"] for entry in audit_of(study, gate))
        assert kinds["answer"] + kinds["expired"] == 1
        assert kinds["refused"] == RACERS - len(accepted)


def test_an_answer_in_the_spool_counts_while_a_hub_holds_the_session(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        number = gate.wait_number()
        write_answer(SessionPlaces(study.home, session.name), SpooledAnswer(checkpoint=number, generation=1, value="b"))
        assert gate.result(10) == "b"
        assert gate.answer().channel == "spool"
        late = SpooledAnswer(checkpoint=number, generation=1, value="a")
        write_answer(SessionPlaces(study.home, session.name), late)
        wait_for(lambda: [e for e in audit_of(study, gate) if e["kind"] == "refused"], "the second one is on record")
        assert gate.result() == "b"


OUTLIVES = """
def done(name):
    with open(FOLDER + "/log", "a") as file:
        file.write(name + "\\n")
    return name

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    gate = session.checkpoint("gate", choices=["a", "b"], reserve=ph.Resources(cores=1))
    guess = gate.branch("a", probability=0.9).call(done, "a")
    other = gate.branch("b", probability=0.1).call(done, "b")
    gate.wait_number()
    print(gate.id, flush=True)
    print(gate.result(), gate.select({"a": guess, "b": other}).result(), flush=True)
"""


def test_a_gate_outlives_script_hub_and_pilot(study: Study) -> None:
    script = study.start(OUTLIVES)
    assert script.stdout is not None
    gate = script.stdout.readline().strip()
    wait_for(lambda: set(study.lines("log")) == {"a", "b"}, "both branches ran")
    wait_for(lambda: json.loads(study.tool("session", "show", "study", "--json"))["states"].get("HELD") == 2, "held")
    # Everything at once, as when the machine is switched off; the script first, which would start another hub.
    victims = [script.pid, *(process["pid"] for process in study.processes() if process["pid"] != script.pid)]
    for pid in victims:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    script.communicate()
    wait_for(lambda: not study.strays(), "nothing runs")
    assert [each["id"] for each in study.inbox()] == [gate]
    assert "queued" in study.tool("inbox", "answer", gate, "b")
    assert study.run(OUTLIVES).splitlines()[1:] == ["b b"]
    # What ran speculatively is not run again.
    assert Counter(study.lines("log")) == {"a": 1, "b": 1}


def test_a_policy_decides_what_runs_while_a_person_thinks(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1, policy="block") as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a", probability=0.9).call(append, log, "guess")
        assert session.call(append, log, "needed").result(20) is None
        assert "policy block: it waits until checkpoint 'gate' (" in guess.explain()
        assert study.lines("log") == ["needed"]
        gate.respond("a")
        guess.result(20)
        assert study.lines("log") == ["needed", "guess"]


def test_the_likelier_branch_goes_first_and_says_why(study: Study) -> None:
    log = str(study.folder / "log")
    flag = study.folder / "go"
    with study.session(cores=1) as session:
        session.call(_wait_for_file, str(flag))
        gate = session.checkpoint("gate", choices=["a", "b"])
        unlikely = [gate.branch("b", probability=0.2).call(append, log, f"b{n}") for n in range(3)]
        likely = [gate.branch("a", probability=0.8).call(append, log, f"a{n}") for n in range(3)]
        wait_for(lambda: "probability 0.2 (said by the script)" in unlikely[2].explain(), "its score is known")
        assert "counts only if checkpoint 'gate' (" in unlikely[2].explain()
        assert 'is answered "b"' in unlikely[2].explain()
        facts = session.query("task", task=likely[2].task)
        assert facts["score"] == pytest.approx(0.8)
        flag.touch()
        wait_for(lambda: len(study.lines("log")) == 6, "everything ran")
        assert study.lines("log")[:3] == ["a0", "a1", "a2"]
        gate.respond("a")


def _wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


def test_earlier_answers_tell_which_branch_is_likely(study: Study) -> None:
    with study.session(cores=0) as session:
        for number in range(4):
            gate = session.checkpoint("mesh", choices=["good", "bad"], iteration=number)
            gate.respond("good")
            gate.result(20)
        gate = session.checkpoint("mesh", choices=["good", "bad"], iteration=4)
        task = gate.branch("good").call(append, "", "")
        facts = wait_for(lambda: session.query("task", task=task.task), "the task is known")
        assert facts["score"] == pytest.approx(5 / 6)
        assert "4 of 4 earlier answers" in facts["score_reason"]
        gate.withdraw()


def test_a_prediction_is_shown_only_where_the_checkpoint_says_so(study: Study) -> None:
    picture = study.folder / "curve.png"
    picture.write_bytes(b"not really a picture")
    with study.session(cores=0) as session:
        more: dict[str, Any] = {"choices": ["a", "b"], "predict": {"a": 0.9}}
        hidden = session.checkpoint("hidden", **more)
        shown = session.checkpoint("shown", show_prediction=True, show=[picture], **more)
        shown.wait_number()
        seen = {
            name: json.loads(study.tool("inbox", "show", gate.id, "--json"))
            for name, gate in (("hidden", hidden), ("shown", shown))
        }
        assert "predicted" not in seen["hidden"]
        assert seen["shown"]["predicted"] == [["a", 0.9]]
        words = study.tool("inbox", "show", shown.id).split()
        assert any(
            word.startswith(str(session.folder)) and Path(word).read_bytes() == picture.read_bytes() for word in words
        ), words
        facts = {gate.name: audit_of(study, gate)[0]["facts"] for gate in (hidden, shown)}
        assert [facts[name]["prediction_shown"] for name in ("hidden", "shown")] == [False, True]
        for gate in (hidden, shown):
            gate.withdraw()
