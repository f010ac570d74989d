"""Branches in all their forms, with a real hub and real pilots."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for


def noted(log: str, name: str) -> str:
    append(log, name)
    return name


def slept(log: str, name: str, seconds: float) -> str:
    append(log, name)
    time.sleep(seconds)
    return name


def tasks_of(session: ph.Session) -> int:
    count: int = session.query("session")["tasks"]
    return count


def test_a_block_declares(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        with gate.branch("a", probability=0.9):
            one = session.call(noted, log, "one")
            many = session.map(noted, [log, log], [one, "three"])
            with pytest.raises(ph.Undecided):
                one.result()
            inner = session.checkpoint("inner", choices=["x", "y"], show=[one])
            with inner.branch("x"):
                deep = session.call(noted, log, "deep")
            time.sleep(0.1)
            session.flush()
            assert tasks_of(session) == 0
        with pytest.raises(ZeroDivisionError), gate.branch("b"):
            session.call(noted, log, str(1 / 0))
        wait_for(lambda: sorted(study.lines("log")) == ["deep", "one", "one", "three"], "the branch runs ahead")
        assert tasks_of(session) == 4
        assert inner.state.name == "PENDING"
        assert inner.explain() == "checkpoint 'inner' (study/2) opens when checkpoint 'gate' is answered"
        assert "waits for somebody to answer: pilot-hitl inbox answer study/1 VALUE (one of: a, b)" in gate.explain()
        gate.respond("a")
        assert (one.result(20), many.results(20)) == ("one", ["one", "three"])
        wait_for(lambda: inner.state.name == "OPEN", "it opens with the commit")
        assert not deep.done()
        inner.respond("y")
        with pytest.raises(ph.Discarded, match=r"assumes .x. for checkpoint 'inner', which was answered .y."):
            deep.result(20)
        assert 'which was answered "y" by' in inner.explain()


def test_a_block_that_raises_leaves_nothing(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        futures: list[ph.TaskFuture[str]] = []
        with suppress(ValueError), gate.branch("a"):
            futures.append(session.call(noted, log, "never"))
            futures.extend(session.map(noted, [log] * 50, map(str, range(50))))
            raise ValueError("no")
        for future in futures:
            with pytest.raises(ph.TaskCanceled, match="never submitted"):
                future.result(5)
        gate.respond("a")
        assert session.call(noted, log, "after").result(20) == "after"
        assert tasks_of(session) == 1
        assert study.lines("log") == ["after"]


def test_a_right_guess(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])

        @gate.on("a", probability=0.8)
        def body(branch: ph.Branch) -> list[str]:
            first = branch.call(noted, log, "first").result()
            names = session.map(noted, [log] * 3, [f"{first} {number}" for number in range(3)]).results()
            exe = branch.submit(ph.TaskDescription(executable="echo", arguments=names)).result()
            append(log, "body done")
            return exe.stdout.split()

        wait_for(lambda: "body done" in study.lines("log"), "the body ran ahead of the answer")
        assert not body.done()
        assert not gate.done()
        before = len(study.lines("log"))
        gate.respond("a")
        assert body.result(20) == ["first", "0", "first", "1", "first", "2"]
        assert len(study.lines("log")) == before == 5
        assert gate.select({"a": body}).result(5) == body.result()


def test_a_wrong_guess(study: Study) -> None:
    log = str(study.folder / "log")
    told: list[str] = []
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])

        @gate.on("a")
        def body(branch: ph.Branch) -> str:
            append(log, branch.call(noted, log, "first").result())
            try:
                return branch.call(slept, log, "long", 60).result()
            except ph.BranchDiscarded as error:
                told.append(str(error))
                raise

        wait_for(lambda: "long" in study.lines("log"), "it is in the middle")
        began = time.monotonic()
        gate.respond("b")
        with pytest.raises(ph.Discarded, match='answered "b"'):
            body.result(20)
        body.thread.join(20)
        assert not body.thread.is_alive()
        assert time.monotonic() - began < 30
        assert len(told) == 1
        never: list[int] = []
        with pytest.raises(ph.Discarded):
            gate.on("a")(lambda _branch: never.append(1)).result(5)
        assert never == []


def test_bodies_chain_through_gates(study: Study) -> None:
    """Each body asks the next question; nothing below an undecided one opens, and a wrong answer ends all below."""
    log = str(study.folder / "log")
    gates: dict[int, ph.Checkpoint] = {}
    bodies: dict[int, ph.Body[Any]] = {}

    def level(scope: Any, depth: int) -> None:
        gate = gates[depth] = scope.checkpoint(f"gate {depth}", choices=["go", "stop"], predict={"go": 0.9})

        def body(branch: ph.Branch) -> str:
            value = branch.call(noted, log, f"level {depth}").result()
            if depth < 3:
                level(branch, depth + 1)
            return value

        bodies[depth] = gate.on()(body)

    with study.session() as session:
        level(session, 1)
        wait_for(lambda: len(study.lines("log")) == 3, "all levels run ahead")
        assert study.lines("log") == ["level 1", "level 2", "level 3"]
        assert [gates[depth].state.name for depth in (1, 2, 3)] == ["OPEN", "PENDING", "PENDING"]
        assert [each["name"] for each in study.inbox()] == ["gate 1"]
        gates[1].respond("go")
        assert bodies[1].result(20) == "level 1"
        wait_for(lambda: gates[2].state.name == "OPEN", "the next one opens")
        gates[2].respond("stop")
        for depth in (2, 3):
            with pytest.raises(ph.Discarded):
                bodies[depth].result(20)
        wait_for(lambda: gates[3].state.name == "WITHDRAWN", "what was asked below is taken back")
        with pytest.raises(ph.CheckpointWithdrawn):
            gates[3].result(5)


def test_a_body_waits_for_cores(study: Study) -> None:
    with study.session(cores=1) as session:
        busy = session.call(time.sleep, 3.0)
        gate = session.checkpoint("gate", choices=["a", "b"])
        body = gate.on("a")(lambda branch: branch.call(str, 7))
        time.sleep(1.0)
        assert not body._started
        busy.result(20)
        wait_for(lambda: body._started, "cores are free")
        gate.respond("a")
        assert body.result(20) == "7"


def test_a_body_does_not_run_ahead_under_the_policy_of_another_script(study: Study) -> None:
    with study.session(policy="block"), study.session(cores=0, namespace="second") as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        body = gate.on("a")(lambda branch: branch.call(str, 7))
        session.call(str, 1).result(20)
        time.sleep(3.0)
        assert not body._started
        gate.respond("a")
        assert body.result(20) == "7"


RERUN = """
def done(name):
    with open(FOLDER + "/log", "a") as file:
        file.write(name + "\\n")
    return name

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    gate = session.checkpoint("gate", choices=["a", "b"])

    @gate.on("a", probability=0.9)
    def yes(branch):
        with open(FOLDER + "/bodies", "a") as file:
            file.write("yes\\n")
        return branch.call(done, branch.call(done, "a").result() + " again").result()

    @gate.on("b", probability=0.1)
    def no(branch):
        with open(FOLDER + "/bodies", "a") as file:
            file.write("no\\n")
        return branch.call(done, "b").result()

    with gate.branch("b"):
        session.map(done, ["b1", "b2"])
    if "ask" in sys.argv:
        while len(open(FOLDER + "/log").readlines() if os.path.exists(FOLDER + "/log") else []) < 5:
            time.sleep(0.02)
        session.flush()
        sys.exit(0)
    print(gate.result(20), yes.result(20), len(session.query("tasks")))
"""


def test_a_rerun_with_the_answer_given(study: Study) -> None:
    study.run(RERUN, "ask")
    first = sorted(study.lines("log"))
    assert first == ["a", "a again", "b", "b1", "b2"]
    assert sorted(study.lines("bodies")) == ["no", "yes"]
    (request,) = study.inbox()
    study.tool("inbox", "answer", request["id"], "a")
    tasks = 5
    assert study.run(RERUN) == f"a a again {tasks + 2}\n", "of the branch that is not wanted nothing is submitted"
    assert sorted(study.lines("log")) == first, "what was computed is there"
    assert sorted(study.lines("bodies")) == ["no", "yes", "yes"]


LEAVES = """
def done(name):
    with open(FOLDER + "/log", "a") as file:
        file.write(name + "\\n")
    return name

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1))
    first = session.call(done, "first")
    gate = session.checkpoint("gate", question="Go on?", choices=["a", "b"], show=[first], wait="exit")
    later = gate.branch("a").call(done, "later")
    print("answer", gate.result(), later.result(), flush=True)
"""


def test_a_script_that_ends_until_somebody_answered(study: Study) -> None:
    process = study.start(LEAVES)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, (out, err)
    assert out == ""
    assert "Traceback" not in err
    assert "pilot-hitl inbox answer study/1 VALUE" in err
    assert "pilot-hitl session resume study" in err
    assert not study.wait_left(), "all processes are gone"
    assert [(each["name"], each["state"]) for each in study.inbox()] == [("gate", "OPEN")]
    again = study.start(LEAVES)
    assert again.wait(60) == 75, "it can be asked as often as one likes"
    assert not study.wait_left()
    assert "queued" in study.tool("inbox", "answer", "study/1", "a")
    assert not study.left(), "the answer needs no process"
    told = study.tool("session", "resume", "study")
    assert told.endswith("answer a later\n")
    assert study.lines("log").count("first") == 1
    assert study.lines("log").count("later") == 1


def test_a_question_that_changed_is_asked_again(study: Study) -> None:
    def ask(session: ph.Session, question: str, **more: Any) -> ph.Checkpoint:
        gate = session.checkpoint("gate", question=question, choices=["a", "b"], **more)
        gate.branch("a")  # waits for what the hub knows of it
        return gate

    with study.session(cores=0) as session:
        ask(session, "old?").respond("a")
    with study.session(cores=0) as session:
        assert ask(session, "old?").result(5) == "a"
    with study.session(cores=0) as session:
        assert ask(session, "new?", on_change="keep").result(5) == "a"
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", question="new?", choices=["a", "b"], on_change="error")
        for hears in (gate.wait_number, lambda: gate.branch("a")):  # the branch comes after the refusal
            with pytest.raises(ph.CheckpointError, match="another question"):
                hears()
    with study.session(cores=0) as session:
        gate = ask(session, "new?")
        assert not gate.done()
        gate.respond("b")
    with study.session(cores=0) as session:
        gate = ask(session, "new?")
        assert gate.result(5) == "b"
        assert ask(session, "new?") is gate
        with pytest.raises(ph.CheckpointExists):
            ask(session, "newer?")
        assert not ask(session, "new?", iteration=1).done()


def asks(number: int) -> tuple[int, object]:
    return number, ph.checkpoint("same", question=f"{number}?", choices=["yes", "no"]).result()


def test_two_tasks_of_a_map_ask_the_same(study: Study) -> None:
    with study.session() as session:
        futures = session.map(asks, [1, 1])
        wait_for(lambda: len(study.inbox()) == 2, "two questions")
        for request, value in zip(study.inbox(), ("yes", "no"), strict=True):
            study.tool("inbox", "answer", request["id"], value)
        assert sorted(str(each.result(20)[1]) for each in futures) == ["no", "yes"]


def spawns(log: str) -> list[str]:
    inside = ph.current_session()
    return inside.map(noted, [log] * 2, ["x", "y"]).results()


def test_work_of_a_task_is_reused_with_it(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        ahead = gate.branch("a").options(cores=1).call(spawns, log)
        wait_for(lambda: session.query("session")["states"].get("HELD", 0) == 3, "it sees what its tasks computed")
        gate.respond("a")
        assert ahead.result(20) == ["x", "y"]
        assert sorted(study.lines("log")) == ["x", "y"]


def fails_once(log: str) -> str:
    name = ph.current_session().call(noted, log, "child").result()
    with open(log) as file:  # as a user would
        tried = "parent" in file.read()
    append(log, "parent")
    if not tried:
        raise ValueError("the first time")
    return name


def test_another_try_of_a_task_finds_what_the_first_did(study: Study) -> None:
    with study.session() as session:
        assert session.options(retries=1).call(fails_once, str(study.folder / "log")).result(20) == "child"
        assert study.lines("log") == ["child", "parent", "parent"]


def test_a_body_outlives_the_hub(study: Study) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        body = gate.on("a")(lambda branch: branch.call(slept, str(study.folder / "log"), "long", 2.0).result())
        wait_for(lambda: study.lines("log"), "it waits for its task")
        for process in study.processes():
            if process["kind"] == "hub":
                psutil.Process(process["pid"]).kill()
        wait_for(lambda: not body.running(), "it saw the held value")
        assert not body.done()
        gate.respond("a")
        assert body.result(20) == "long"
        assert study.lines("log") == ["long"]


def test_a_discarded_task_takes_its_work_with_it(study: Study) -> None:
    with study.session(cores=2) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        lost = gate.branch("a").call(_spawn_and_ask)
        wait_for(lambda: tasks_of(session) == 2, "it has submitted one")
        gate.respond("b")
        with pytest.raises(ph.Discarded):
            lost.result(20)
        wait_for(lambda: session.query("session")["states"] == {"DISCARDED": 2}, "both are discarded")
        assert study.inbox() == []


def _spawn_and_ask() -> object:
    ph.current_session().call(time.sleep, 60)
    return ph.checkpoint("inner", choices=["x"]).result()


def test_an_answer_of_a_type(study: Study) -> None:
    from dataclasses import dataclass

    @dataclass
    class Limits:
        low: float
        steps: int = 3

    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", form=Limits, predict=Limits(0.5))
        gate.wait_number()
        assert "low" in study.tool("inbox", "answer", gate.id, '{"steps": 2}', code=None)
        assert "integer" in study.tool("inbox", "answer", gate.id, '{"low": 1, "steps": "x"}', code=None)
        assert not gate.done()
        study.tool("inbox", "answer", gate.id, '{"low": 0.5, "steps": 4}')
        assert gate.result(20) == Limits(0.5, 4)
        assert gate.answer().value == {"low": 0.5, "steps": 4}


def test_deadlines_move(study: Study) -> None:
    with study.session(cores=0) as session:
        gate = session.checkpoint("gate", choices=["a", "b"], deadline=1.0, default="b")
        gate.wait_number()
        gate.extend("1h")
        time.sleep(1.2)
        assert not gate.done()
        assert "until" in study.tool("inbox", "extend", gate.id, "2h")
        assert "no deadline" in study.tool("inbox", "extend", gate.id, "none")
        gate.extend(0.3)
        assert gate.result(20) == "b"
        assert gate.answer().channel == "system"
        with pytest.raises(ph.AnswerRefused):
            gate.extend("1h")
        assert "expired" in study.tool("inbox", "extend", gate.id, "1h", code=None)


ASKS = """
with ph.Session("study") as session:
    session.checkpoint("gate", choices=["a", "b"], deadline=3600, default="b")
"""


def test_a_deadline_moves_without_anybody_there(study: Study) -> None:
    study.run(ASKS)
    assert not study.wait_left()
    before = study.inbox()[0]["deadline_at"]
    study.tool("inbox", "extend", "study/1", "3h")
    assert not study.wait_left()
    assert study.inbox()[0]["deadline_at"] > before + 3600


def test_waiting_tasks_lend_their_core(study: Study) -> None:
    """One core, a task that waits for a person: speculative work runs on it meanwhile, and gives it back."""
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        asking = session.call(_asks_and_goes_on, log)
        request = wait_for(study.inbox, "it has asked")[0]
        other = session.checkpoint("other", choices=["a", "b"])
        ahead = other.branch("a").call(noted, log, "ahead")
        long = other.branch("a").submit(ph.TaskDescription(executable="sleep", arguments=["6011"], grace=0.2))
        wait_for(lambda: "ahead" in study.lines("log"), "it runs on the core of the task that waits")
        wait_for(lambda: [each for each in study.strays() if "6011" in each], "and the next one")
        study.tool("inbox", "answer", request["id"], "yes")
        assert asking.result(20) == "yes"
        assert study.lines("log") == ["ahead", "went on"]
        other.respond("b")
        for lost in (ahead, long):
            with pytest.raises(ph.Discarded):
                lost.result(20)


def _asks_and_goes_on(log: str) -> object:
    answer = ph.checkpoint("inside", choices=["yes", "no"]).result()
    append(log, "went on")
    return answer


def test_a_task_that_waits_otherwise_lends_too(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        waiting = session.call(_waits_for_a_line, log)
        wait_for(lambda: "waits" in study.lines("log"), "it waits")
        gate = session.checkpoint("gate", choices=["a", "b"])
        gate.branch("a").call(noted, log, "ahead")
        wait_for(lambda: "ahead" in study.lines("log"), "it runs on the core of the task that waits")
        append(log, "go")
        assert waiting.result(20) == ["waits", "ahead", "go"]


def _waits_for_a_line(log: str) -> list[str]:
    append(log, "waits")
    with ph.lend_resources():
        while True:
            with open(log) as file:  # as a user would
                lines = file.read().splitlines()
            if "go" in lines:
                return lines
            time.sleep(0.05)


def test_threads_outside_notice_nothing(study: Study) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        found: list[int] = []
        with gate.branch("a"):
            thread = threading.Thread(target=lambda: found.append(session.call(abs, -3).result(20)))
            thread.start()
            thread.join(30)
        assert found == [3]
