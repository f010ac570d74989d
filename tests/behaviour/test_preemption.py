"""Giving way: what happens to speculative work whose cores are needed, with real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

import pilot_hitl as ph
from pilot_hitl.model.descriptions import OnPreempt
from tests.behaviour.studies import Study, append, wait_for


def _identity(value: object) -> object:
    return value


def _running(path: Path) -> psutil.Process | None:
    """The process whose number a task wrote down, None when it is gone."""
    try:
        process = psutil.Process(int(path.read_text()))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, psutil.Error):
        return None


def _program(text: str, on_preempt: OnPreempt = "kill", grace: float = 5.0) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/bash", arguments=["-c", text], on_preempt=on_preempt, grace=grace)


def test_kill_ends_the_whole_tree(study: Study) -> None:
    pids = [study.folder / name for name in ("shell", "child", "daemon")]
    tree = (
        f"echo $$ > {pids[0]}; sleep 7001 & echo $! > {pids[1]};"
        f"setsid sh -c 'echo $$ > {pids[2]}; exec sleep 7002' & wait"
    )
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").submit(_program(tree, grace=0.5))
        wait_for(lambda: all(_running(pid) for pid in pids), "the tree is there")
        assert session.call(_identity, 1).result(20) == 1
        gate.respond("b")
        with pytest.raises(ph.Discarded):
            guess.result(20)
        wait_for(lambda: not any("sleep 700" in stray for stray in study.strays()), "nothing of any try is left")
    assert not any(_running(pid) for pid in pids)


def test_a_task_that_ignores_sigterm_is_killed_after_its_grace(study: Study) -> None:
    pid = study.folder / "pid"
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        gate.branch("a").submit(_program(f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.1; done", grace=0.3))
        stubborn = wait_for(lambda: _running(pid), "it runs")
        assert session.call(_identity, 1).result(20) == 1
        assert not stubborn.is_running() or stubborn.status() == psutil.STATUS_ZOMBIE
        gate.respond("b")


def test_suspend_stops_and_goes_on_where_it_was(study: Study) -> None:
    pid, go = study.folder / "pid", study.folder / "go"
    program = f"echo $$ >> {study.folder}/starts; echo $$ > {pid}; while [ ! -e {go} ]; do sleep 0.05; done; echo end"
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").submit(_program(program, on_preempt="suspend"))
        process = wait_for(lambda: _running(pid), "it runs")
        needed = session.call(_stops, process.pid)
        assert needed.result(20) == psutil.STATUS_STOPPED
        wait_for(lambda: process.status() != psutil.STATUS_STOPPED, "it goes on")
        go.touch()
        gate.respond("a")
        assert guess.result(20).stdout == "end\n"
        assert study.lines("starts") == [str(process.pid)], "one start only"


def _stops(pid: int) -> str:
    end = time.monotonic() + 10
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED and time.monotonic() < end:
        time.sleep(0.01)
    return str(psutil.Process(pid).status())


def test_requeue_lets_a_program_save_itself_and_run_again(study: Study) -> None:
    state = study.folder / "state"
    program = (
        f"trap 'echo saved > {state}; exit 1' TERM; echo start >> {study.folder}/starts;"
        f"if [ -e {state} ]; then cat {state}; exit 0; fi; while :; do sleep 0.05; done"
    )
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").submit(_program(program, on_preempt="requeue", grace=5.0))
        wait_for(lambda: study.lines("starts") == ["start"], "it runs")
        assert session.call(_identity, 1).result(20) == 1
        gate.respond("a")
        assert guess.result(20).stdout == "saved\n"
        assert study.lines("starts") == ["start", "start"]


def test_finish_is_waited_for(study: Study) -> None:
    go = study.folder / "go"
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").submit(
            _program(f"touch {study.folder}/begun; while [ ! -e {go} ]; do sleep 0.05; done", on_preempt="finish")
        )
        wait_for((study.folder / "begun").exists, "it runs")
        needed = session.call(_identity, 1)
        assert wait_for(lambda: "cores are not free" in needed.explain() or None, "it waits")
        assert not needed.done()
        go.touch()
        assert needed.result(20) == 1
        gate.respond("a")
        assert guess.result(20).exit_code == 0


def test_reserved_cores_are_lent_to_lower_tiers_only(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=2) as session:
        gate = session.checkpoint("gate", choices=["a", "b"], reserve=ph.Resources(cores=2), linger=60.0)
        gate.wait_number()
        session.options(backfill=True).call(append, log, "backfill").result(20)
        needed = session.call(append, log, "needed")
        assert wait_for(lambda: "reserved for checkpoint 'gate' (" in needed.explain() or None, "it waits")
        guess = gate.branch("a").call(append, log, "guess")
        wait_for(lambda: "guess" in study.lines("log"), "the guess borrows a core")
        assert study.lines("log") == ["backfill", "guess"]
        gate.release()
        needed.result(20)
        gate.respond("a")
        guess.result(20)
        assert sorted(study.lines("log")) == ["backfill", "guess", "needed"]


def test_the_continuation_takes_what_was_reserved_for_it(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"], reserve=ph.Resources(cores=1), linger=60.0)
        gate.wait_number()
        other = session.call(append, log, "other")
        filler = session.options(backfill=True, grace=0.2).call(_for_ever, str(study.folder / "filler"))
        wait_for((study.folder / "filler").exists, "backfill borrows the core")
        go_on = gate.branch("a").call(append, log, "go on")
        gate.respond("a")
        go_on.result(20)
        assert study.lines("log")[:1] == ["go on"]
        other.result(20)
        filler.cancel()


def _for_ever(path: str) -> None:
    Path(path).touch()
    while True:
        time.sleep(0.1)


def test_a_preemption_is_on_record_with_its_reason(study: Study) -> None:
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").call(_for_ever, str(study.folder / "begun"))
        wait_for((study.folder / "begun").exists, "it runs")
        needed = session.call(_identity, 1)
        needed.result(20)
        facts = wait_for(lambda: session.query("task", task=guess.task).get("events"), "the preemption is known")
        assert facts[0]["what"] == "preempted"
        assert needed.task in facts[0]["reason"]
        gate.respond("b")


def test_a_discarded_call_leaves_no_process(study: Study) -> None:
    pid = study.folder / "pid"
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").options(grace=0.3).call(_with_child, str(pid))
        child = wait_for(lambda: _running(pid), "its child runs")
        gate.respond("b")
        with pytest.raises(ph.Discarded):
            guess.result(20)
        wait_for(lambda: _running(pid) is None, f"child {child.pid} is gone")


def _with_child(path: str) -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    Path(path).write_text(str(child))
    while True:
        time.sleep(1)


def test_work_that_is_submitted_after_the_answer_takes_what_was_reserved(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=2, policy="block") as session:
        gate = session.checkpoint("gate", choices=["a", "b"], reserve=ph.Resources(cores=2), linger=3600.0)
        parked = gate.branch("a").call(append, log, "parked")
        gate.wait_number()
        gate.respond("a")
        parked.result(20)
        gate.branch("a").call(append, log, "late").result(20)
        session.call(append, log, "plain").result(20)
        assert study.lines("log") == ["parked", "late", "plain"]


def test_a_spare_worker_takes_over_from_a_discarded_one(study: Study) -> None:
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        guess = gate.branch("a").options(grace=0.3).call(_for_ever, str(study.folder / "begun"))
        wait_for((study.folder / "begun").exists, "it runs")

        def idle() -> list[int]:
            return [each["pid"] for each in study.processes() if each["kind"] == "worker" and not each["task"]]

        (spare,) = wait_for(idle, "a worker waits beside it")
        gate.respond("b")
        assert session.call(os.getpid).result(20) == spare
        with pytest.raises(ph.Discarded):
            guess.result(20)
        assert session.call(os.getpid).result(20) == spare, "and stays"
        assert len(idle()) == 1, "needed work has no spare beside it"
