"""Where every core-second went: the rows sum up, and agree with what the tasks' own records say."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from pilot_hitl.report import ROWS, Report, page, summarise
from tests.behaviour.studies import Study, wait_for

PROMISE = 0.005
"""Share of the total by which the sum of the rows may be wrong."""


def spin(seconds: float, _index: int = 0) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def rest(seconds: float, _index: int = 0) -> float:
    time.sleep(seconds)
    return seconds


def begins(path: str, seconds: float) -> None:
    with Path(path).open("a") as file:
        file.write("began\n")
    time.sleep(seconds)


def until_it_is_there(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.05)


def tiny(number: int) -> int:
    return number


def fail(_number: int) -> None:
    raise ValueError("it does not work")


def records(study: Study, name: str) -> list[dict[str, Any]]:
    """Every task that an attempt decided, with that attempt."""
    listed = json.loads(study.tool("task", "list", "--session", name, "--limit", "100000", "--json"))
    return [task for task in listed if task.get("epoch") and task.get("ended")]


def holds(report: Report) -> None:
    """The promise: the rows are all of the cores' time, and no timestamp contradicts another."""
    rows = {row: report.ledger[row] for row in ROWS}
    total = sum(pilot.cores * (pilot.ended - pilot.began) for pilot in report.pilots)
    assert report.ledger["total"] == pytest.approx(total, rel=PROMISE)
    assert sum(rows.values()) == pytest.approx(total, rel=PROMISE)
    assert report.ledger_error <= PROMISE
    assert all(seconds >= 0.0 for seconds in rows.values())
    assert (report.faults, report.fault_s) == (0, 0.0)


def busy_by(tasks: list[dict[str, Any]], *states: str) -> float:
    return float(
        sum((it["ended"] - it["began"]) * len(it["cores"].split(",")) for it in tasks if it["state"] in states)
    )


def test_a_study_with_every_kind_of_work(study: Study) -> None:
    with study.session("all", cores=2) as session:
        ph.wait(session.map(tiny, range(2000)))
        ph.wait(session.map(rest, [0.15] * 4, range(4)))
        gate = session.checkpoint("gate", question="?", choices=["yes", "no"], reserve=ph.Resources(cores=1))
        yes, no = gate.branch("yes", probability=0.7), gate.branch("no", probability=0.3)
        kept = yes.map(rest, [0.1] * 4, range(4))
        runs = study.folder / "runs"
        dropped = no.map(begins, [str(runs)] * 2, [5.0] * 2)
        filling = session.options(backfill=True).map(rest, [0.1] * 2, range(2))
        ph.wait(filling, timeout=0.1)
        time.sleep(0.8)
        wait_for(runs.exists, "one runs that is dropped then")
        time.sleep(0.5)
        study.tool("inbox", "answer", "all/1", "yes")
        assert gate.result() == "yes"
        ph.wait([*kept, *filling])
        failed = session.call(fail, 1)
        assert isinstance(failed.exception(), ValueError | ph.PilotHitlError)
        done = session.submit(ph.TaskDescription(executable="/bin/sleep", arguments=["0.2"]))
        done.result()
        with pytest.raises(ph.Discarded):
            dropped[0].result()
        during = records(study, "all")
        folder = session.folder
    study.tool("hub", "stop")
    tasks = records(study, "all")
    # The hub and the file say the same.
    assert [(it["task"], it["began"], it["ended"]) for it in tasks if it["state"] != "DISCARDED"] == [
        (it["task"], it["began"], it["ended"]) for it in during if it["state"] != "DISCARDED"
    ]
    report = summarise(folder)
    holds(report)
    committed = sum((t["ended"] - t["began"]) for t in tasks if t["state"] == "DONE" and t["condition"])
    assert report.ledger["speculative_committed"] == pytest.approx(committed, abs=0.02)
    assert 0.19 < report.ledger["backfill"] < 0.5
    assert report.ledger["speculative_discarded"] > 0.3
    # A deciding attempt that failed is a result like any other.
    useful = sum(report.ledger[row] for row in ("needed", "speculative_committed", "backfill"))
    assert useful == pytest.approx(busy_by(tasks, "DONE", "FAILED"), abs=0.02)
    (gate_report,) = report.gates
    assert (gate_report.state, gate_report.answer, gate_report.channel) == ("ANSWERED", '"yes"', "cli")
    assert 0.8 <= gate_report.took_s < 30
    assert gate_report.speculative_committed_core_s == pytest.approx(report.ledger["speculative_committed"], abs=0.01)
    assert gate_report.speculative_discarded_core_s == pytest.approx(report.ledger["speculative_discarded"], abs=0.01)
    assert 0.0 < gate_report.saved_s <= gate_report.took_s
    assert [(person.answers, person.total_s) for person in report.people] == [(1, gate_report.took_s)]


def test_busy_rows_are_what_the_kernel_charged(study: Study) -> None:
    with study.session("spun", cores=2) as session:
        ph.wait(session.map(tiny, range(2)))
        before = workers_cpu(study)
        ph.wait(session.map(spin, [0.5] * 4, range(4)))
        used = workers_cpu(study) - before
        folder = session.folder
    report = summarise(folder)
    holds(report)
    # A busy loop uses the core that it has, unless somebody else is on it as well: then it uses less than it holds.
    assert report.ledger["needed"] >= used - 0.1
    assert report.ledger["needed"] >= 2.0


def workers_cpu(study: Study) -> float:
    pids = [int(process["pid"]) for process in study.processes() if process["kind"] == "worker"]
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def test_preempted_work_is_lost_and_a_reservation_that_nobody_borrows_is_a_row(study: Study) -> None:
    with study.session("lost", cores=1) as session:
        filler = session.options(backfill=True).call(begins, str(study.folder / "began"), 1.0)
        wait_for(lambda: study.lines("began"), "it runs")
        time.sleep(0.3)
        session.call(rest, 0.2).result()  # takes the core
        filler.result()
        gate = session.checkpoint("hold", question="?", choices=["a"], reserve=ph.Resources(cores=1), linger=0.1)
        time.sleep(1.0)
        study.tool("inbox", "answer", "lost/1", "a")
        gate.result()
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert report.ledger["lost"] >= 0.25
    assert 0.99 < report.ledger["backfill"] < 1.5
    assert report.ledger["reserved_idle"] >= 0.45
    assert report.gates[0].reserved_idle_core_s >= 0.45


def test_attempts_that_are_tried_again_are_lost(study: Study) -> None:
    mark = study.folder / "once"

    def second_time(path: str) -> str:
        time.sleep(0.2)
        if not os.path.exists(path):
            Path(path).touch()
            raise ValueError("the first time")
        return "done"

    with study.session("again", cores=1) as session:
        assert session.options(retries=1).call(second_time, str(mark)).result() == "done"
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert 0.19 < report.ledger["lost"] < 1.0
    assert 0.19 < report.ledger["needed"] < 1.0


def test_what_runs_when_the_session_ends_is_lost(study: Study) -> None:
    with study.session("cut", cores=2) as session:
        ph.wait(session.map(tiny, range(2)))
        session.call(begins, str(study.folder / "began"), 60.0)
        wait_for(lambda: study.lines("began"), "it runs")
        time.sleep(0.5)
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert report.ledger["lost"] >= 0.4


def test_a_session_that_runs_is_accounted_for_up_to_now(study: Study) -> None:
    go = study.folder / "go"
    with study.session("live", cores=2) as session:
        long = session.call(until_it_is_there, str(go))

        def worked() -> Report | None:
            report = summarise(session.folder)
            return report if report.ledger["needed"] > 1.0 else None

        report = wait_for(worked, "the task has run for a second", 60.0)
        assert report.live
        assert report.ended == pytest.approx(time.time(), abs=2.0)
        assert sum(report.ledger[row] for row in ROWS) == pytest.approx(report.ledger["total"], rel=PROMISE)
        said = json.loads(study.tool("report", "live", "--json"))
        assert set(said["ledger"]) == {*ROWS, "total"}
        go.touch()
        long.result()


def test_the_agent_is_killed_and_nothing_is_hidden(study: Study) -> None:
    with study.session("killed", cores=2) as session:
        ph.wait(session.map(tiny, range(10)))
        (agent,) = [process["pid"] for process in study.processes() if process["kind"] == "agent"]
        task = session.call(rest, 4.0)
        time.sleep(2.5)
        os.kill(agent, signal.SIGKILL)
        task.result()
        folder = session.folder
    report = summarise(folder)
    assert [pilot.lives for pilot in report.pilots] == [2]
    assert sum(report.ledger[row] for row in ROWS) == pytest.approx(report.ledger["total"], rel=PROMISE)
    # Its last two seconds at most are a guess, and said to be one.
    assert 0.0 < report.uncertain_core_s <= 2.0 * 2 + 0.1
    assert report.ledger_error_core_s >= report.uncertain_core_s
    assert report.ledger["lost"] > 1.0
    assert report.agents_lost == 1
    assert 1.0 < report.agents_lost_core_s <= report.ledger["lost"]
    assert "an agent was lost: " in study.tool("report", "killed")
    assert report.ledger["needed"] == pytest.approx(4.0, abs=0.5)


def test_the_report_needs_no_hub(study: Study) -> None:
    with study.session("alone", cores=1) as session:
        session.call(tiny, 1).result()
    study.tool("hub", "stop")
    said = json.loads(study.tool("report", "alone", "--json"))
    assert said["tasks"] == 1
    assert "utilisation" in study.tool("report", "alone")
    file = study.folder / "report.html"
    study.tool("report", "alone", "--html", str(file))
    text = file.read_text()
    assert text.startswith("<!doctype html>")
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text


def test_what_people_wrote_is_text_in_the_page(study: Study) -> None:
    evil = '<script>alert("x")</script>\u202e'
    with study.session("evil", cores=0) as session:
        gate = session.checkpoint("gate", question=evil, choices=["yes"])
        study.tool("inbox", "answer", "evil/1", "yes", "--comment", "<b>bold</b>")
        gate.result()
        folder = session.folder
    text = page(summarise(folder))
    assert "<script" not in text
    assert "<b>" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text


def test_errors_name_the_remedy(study: Study) -> None:
    with study.session("known", cores=0):
        pass
    assert "there are: known" in study.tool("report", "unknown", code=1)
    assert "No pilot of it kept accounts" in study.tool("report", "known", code=None)


def test_cores_that_a_waiting_task_lends_belong_to_who_uses_them(study: Study) -> None:
    def waits() -> str:
        with ph.lend_resources():
            time.sleep(1.5)
        return "waited"

    with study.session("lent", cores=1) as session:
        session.call(tiny, 0).result()
        lender = session.call(waits)
        borrowed = session.options(backfill=True).call(rest, 0.5)
        assert lender.result() == "waited"
        assert borrowed.result() == 0.5
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert 1.4 < report.memory["lent"] < 2.5
    assert 0.49 < report.ledger["backfill"] < 1.0
    # Of the lender only what it did before and after, not the time in between.
    assert report.ledger["needed"] < 1.0


def test_a_stopped_attempt_uses_memory_and_no_cores(study: Study) -> None:
    program = ph.TaskDescription(executable="/bin/sleep", arguments=["1.2"], on_preempt="suspend", backfill=True)
    with study.session("stopped", cores=1) as session:
        session.call(tiny, 0).result()
        stopped = session.submit(program)
        time.sleep(0.6)
        session.call(rest, 0.8).result()
        stopped.result()
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert 0.7 < report.memory["suspended"] < 2.0
    assert 0.79 < report.ledger["needed"] < 1.5
    # It was stopped while its clock went on, so it was on its core for less than it lasted.
    assert 0.3 < report.ledger["backfill"] < 1.2
    assert report.ledger["lost"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.one_node("calls of two cores")
def test_wide_tasks_services_and_several_pilots(study: Study) -> None:
    with study.session("wide", cores=2) as session:
        study.pilot(session, cores=1)
        session.call(tiny, 0).result()
        service = session.start_service(ph.ServiceDescription(handler=tiny, name="tiny"))
        assert service.request(3).result() == 3
        wide = [session.options(cores=2).call(rest, 0.3) for _ in range(2)]
        many = session.map(rest, [0.1] * 6, range(6))
        service.stop()
        ph.wait([*wide, *many])
        ranks = session.submit(ph.TaskDescription(executable="/bin/sleep", arguments=["0.3"], ranks=2))
        ranks.result()
        tasks = records(study, "wide")
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert [pilot.cores for pilot in report.pilots] == [2, 1]
    assert report.cores == 3
    assert report.ledger["services"] > 0.1
    needed = busy_by([task for task in tasks if task["state"] == "DONE"], "DONE")
    assert report.ledger["needed"] == pytest.approx(needed, abs=0.1 + report.ledger["services"])
    assert report.ledger["needed"] >= 2 * 0.6 + 0.6 + 0.6 - 0.05


def test_a_hub_that_is_killed_loses_no_core_second(study: Study) -> None:
    with study.session("hub", cores=2) as session:
        ph.wait(session.map(rest, [0.1] * 10, range(10)))
        slow = session.map(rest, [0.5] * 12, range(12))
        time.sleep(2.2)
        (hub,) = [process["pid"] for process in study.processes() if process["kind"] == "hub"]
        os.kill(hub, signal.SIGKILL)
        ph.wait(slow)
        assert session.map(tiny, range(100)).results() == list(range(100))
        tasks = records(study, "hub")
        folder = session.folder
    report = summarise(folder)
    holds(report)
    assert [pilot.lives for pilot in report.pilots] == [1]
    assert report.uncertain_core_s == 0.0
    used = report.ledger["needed"] + report.ledger["lost"]
    assert used == pytest.approx(busy_by(tasks, "DONE"), abs=0.1 + report.ledger["lost"])
    assert report.ledger["needed"] >= 1.0 + 6.0 - 0.1
