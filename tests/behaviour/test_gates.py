"""Decisions of people, with work that runs before them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for


def stamped(log: str, name: str, seconds: float) -> tuple[str, float, float]:
    began = time.time()
    append(log, name)
    time.sleep(seconds)
    return name, began, time.time()


def _identity(x: int) -> int:
    return x


def test_the_likely_branch_runs_before_the_answer(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        gate = session.checkpoint("good", choices=["accept", "refine"])
        accept, refine = gate.branch("accept", probability=0.8), gate.branch("refine", probability=0.2)
        yes = accept.call(stamped, log, "yes", 0.2)
        more = accept.call(len, yes)
        no = refine.call(stamped, log, "no", 60)
        last = refine.submit(ph.TaskDescription(executable="sleep", arguments=["6004"], grace=0.3))
        chosen = gate.select({"accept": more, "refine": refine.call(len, no)})
        wait_for(lambda: set(study.lines("log")) == {"yes", "no"}, "both branches run")
        wait_for(lambda: session.query("session")["states"].get("HELD"), "something is held")
        assert not yes.done()
        with pytest.raises(TimeoutError):
            yes.result(0.1)
        study.tool("inbox", "answer", gate.id, "accept", "--comment", "fine")
        assert chosen.result(20) == 3
        record = gate.answer(20)
        assert (record.value, record.comment, record.channel) == ("accept", "fine", "cli")
        assert yes.result(20)[2] < record.at, "it had ended before the answer"
        assert study.lines("log").count("yes") == 1
        for loser in (no, last):
            with pytest.raises(ph.Discarded):
                loser.result(20)
        wait_for(lambda: not [stray for stray in study.strays() if "6004" in stray], "the loser is gone")
        with pytest.raises(ph.Discarded):
            refine.call(_identity, 1).result(20)
        assert accept.call(_identity, 5).result(20) == 5


def test_nothing_of_the_loser_is_seen(study: Study) -> None:
    real = {name: study.folder / f"real-{name}" for name in ("yes", "no")}
    ready = {name: study.folder / f"ready-{name}" for name in real}
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["yes", "no"])
        tasks = {
            name: gate.branch(name).submit(
                ph.TaskDescription(
                    executable="/bin/sh",
                    arguments=["-c", f"mkdir -p deep; echo {name} > deep/out; echo {name}; touch {ready[name]}"],
                    sandbox=str(real[name]),
                    output_staging=[f"deep/out > {study.folder}/staged-{name}"],
                )
            )
            for name in real
        }
        wait_for(lambda: all(path.exists() for path in ready.values()), "both ran")
        assert not any(path.exists() for path in real.values())
        gate.respond("yes")
        assert tasks["yes"].result(20).stdout == "yes\n"
        assert (real["yes"] / "deep" / "out").read_text() == "yes\n"
        assert (study.folder / "staged-yes").read_text() == "yes\n"
        with pytest.raises(ph.Discarded):
            tasks["no"].result(20)
    assert not real["no"].exists()
    assert not (study.folder / "staged-no").exists()


def test_needed_work_goes_first(study: Study) -> None:
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        slow = gate.branch("a").submit(ph.TaskDescription(executable="sleep", arguments=["6005"], grace=0.2))
        wait_for(lambda: [stray for stray in study.strays() if "6005" in stray], "speculation runs")
        assert session.call(_identity, 3).result(20) == 3
        gate.respond("b")
        with pytest.raises(ph.Discarded):
            slow.result(20)


def test_answers_that_are_not_taken(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", form={"type": "integer", "minimum": 3})
        gate.wait_number()
        assert "minimum" in study.tool("inbox", "answer", gate.id, "2", code=None)
        assert "integer" in study.tool("inbox", "answer", gate.id, '"text"', code=None)
        with pytest.raises(ph.AnswerRefused) as caught:
            gate.respond(1)
        assert caught.value.code == "invalid"
        assert not gate.done()
        study.tool("inbox", "answer", gate.id, "7")
        assert gate.result(20) == 7
        assert "already-answered" in study.tool("inbox", "answer", gate.id, "8", code=None)
        with pytest.raises(ph.AnswerRefused) as late:
            gate.respond(9)
        assert late.value.code == "already-answered"
        assert gate.result() == 7
        audit = study.tool("inbox", "audit", gate.id, "--json", code=None)
        assert "already-answered" in audit


def test_the_deadline_takes_the_default(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=["a", "b"], deadline=0.3, default="b")
        none = session.checkpoint("none", choices=["a", "b"], deadline=0.3)
        assert gate.result(20) == "b"
        assert gate.answer().channel == "system"
        with pytest.raises(ph.CheckpointExpired):
            none.result(20)
        for each in (gate, none):
            with pytest.raises(ph.AnswerRefused) as caught:
                each.respond("a")
            assert caught.value.code in ("expired", "already-answered")
        assert gate.result() == "b"


def test_a_race_has_one_winner(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=list(range(20)))
        gate.wait_number()
        told: list[object] = []

        def answer(value: int) -> None:
            try:
                gate.respond(value)
                told.append(value)
            except ph.AnswerRefused as error:
                told.append(error.code)

        threads = [threading.Thread(target=answer, args=(value,)) for value in range(12)]
        tools = [
            subprocess.Popen(
                [sys.executable, "-m", "pilot_hitl", "inbox", "answer", gate.id, str(value), "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for value in (12, 13, 14)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outputs = [tool.communicate(timeout=30)[0] for tool in tools]
        winner = gate.result(20)
        accepted = [value for value in told if value != "already-answered"]
        accepted += [12 + index for index, tool in enumerate(tools) if tool.returncode == 0]
        assert accepted == [winner], (told, outputs)
        assert len(told) == 12


GATE = """
def done(name):
    with open(FOLDER + "/log", "a") as file:
        file.write(name + "\\n")
    return name

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    gate = session.checkpoint("gate", choices=["a", "b"])
    a, b = gate.branch("a"), gate.branch("b")
    first, second = a.call(done, "a"), b.map(done, ["b1", "b2"])

    if "ask" in sys.argv:
        gate.wait_number()
        print(gate.id, flush=True)
        while len(open(FOLDER + "/log").readlines() if os.path.exists(FOLDER + "/log") else []) < 3:
            time.sleep(0.02)
        sys.exit(0)
    print(gate.result(20), first.result(20))
    for each in second:
        try:
            each.result(20)
            raise SystemExit("it was not discarded")
        except ph.Discarded:
            pass
"""


def test_an_answer_without_a_hub(study: Study) -> None:
    number = study.run(GATE, "ask").strip()
    before = sorted(study.lines("log"))
    assert before == ["a", "b1", "b2"]
    assert not study.wait_left()
    shown = study.inbox()
    assert [(each["name"], each["state"], each["choices"]) for each in shown] == [("gate", "OPEN", ["a", "b"])]
    # The second one replaces the first, which is kept for the record; no hub was started by either.
    for value in ("b", "a"):
        assert "queued" in study.tool("inbox", "answer", number, value)
    assert not study.left()
    assert study.run(GATE) == "a a\n"
    assert sorted(study.lines("log")) == before, "nothing ran again, and nothing of the other branch"


def test_only_the_true_branch_runs_on_a_new_home(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        gate.respond("a")
        assert gate.result(20) == "a"
    assert study.run(GATE) == "a a\n"
    assert study.lines("log") == ["a"]


def test_branches_that_exclude_each_other(study: Study) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        a, b = gate.branch("a").call(_identity, 1), gate.branch("b").call(_identity, 2)
        with pytest.raises(ph.ContradictoryCondition):
            session.call(max, a, b)
        after = session.call(_identity, b)
        gate.respond("a")
        assert a.result(20) == 1
        with pytest.raises(ph.Discarded):
            after.result(20)


def test_the_same_name_twice(study: Study) -> None:
    with study.session(cores=0) as session:
        session.checkpoint("gate", choices=["a"], iteration=0)
        gate = session.checkpoint("gate", choices=["a"], iteration=1)
        assert session.checkpoint("gate", choices=["a"], iteration=1) is gate
        with pytest.raises(ph.CheckpointExists):
            session.checkpoint("gate", choices=["a", "b"], iteration=1)


def test_a_task_asks(study: Study) -> None:
    with study.session() as session:
        task = session.call(_asks)
        found = wait_for(study.inbox, "the question is there")
        study.tool("inbox", "answer", found[0]["id"], "yes")
        assert task.result(20) == "yes"


def _asks() -> object:
    return ph.checkpoint("inside", choices=["yes", "no"]).result()


def test_killed_while_a_person_thinks(study: Study) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        held = gate.branch("a").call(stamped, str(study.folder / "log"), "a", 0.0)
        wait_for(lambda: session.query("session")["states"].get("HELD"), "it is held")
        for process in study.processes():
            if process["kind"] in ("hub", "agent"):
                psutil.Process(process["pid"]).kill()
        study.tool("inbox", "answer", gate.id, "a")
        assert gate.result(40) == "a"
        assert held.result(40)[0] == "a"
        assert study.lines("log") == ["a"]
        assert json.loads(study.tool("inbox", "list", "--json")) == []
        assert Path(session.folder).exists()
