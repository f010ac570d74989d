"""Running a script again."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, further, wait_for

STUDY = """
def work(x):
    with open(FOLDER + "/log", "a") as file:
        file.write(f"{x}\\n")
    if os.environ.get("SLOW"):
        time.sleep(0.05)
    return x * FACTOR

with ph.Session("study", fresh="--fresh" in sys.argv) as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    calls = [session.call(work, x) for x in (1, 1, 1, 2)]
    mapped = session.map(work, range(10, 20))
    task = session.submit(ph.TaskDescription(
        executable="/bin/sh", arguments=["-c", f"echo shell >> {FOLDER}/log; echo text"]))
    after = session.call(work, calls[3])
    print([call.result() for call in calls], mapped.results(), task.result().stdout.strip(), after.result())
"""


def _study(factor: int) -> str:
    return STUDY.replace("FACTOR", str(factor))


def test_what_is_done_is_not_done_again(study: Study) -> None:
    first = study.run(_study(2))
    assert first == "[2, 2, 2, 4] [20, 22, 24, 26, 28, 30, 32, 34, 36, 38] text 8\n"
    lines = study.lines("log")
    assert len(lines) == 16
    assert study.run(_study(2)) == first
    assert study.lines("log") == lines
    # A changed function is another one; the executable is the same.
    assert study.run(_study(3)).startswith("[3, 3, 3, 6] [30,")
    assert len(study.lines("log")) == 16 + 15
    assert study.run(_study(2), "--fresh") == first
    assert len(study.lines("log")) == 31 + 16


def test_one_more_equal_call_runs_once(study: Study) -> None:
    log = str(study.folder / "log")
    for count in (3, 5, 2):
        with study.session() as session:
            for call in [session.call(append, log, "same") for _ in range(count)]:
                call.result()
    assert len(study.lines("log")) == 5


def test_what_failed_runs_again_and_only_that(study: Study) -> None:
    log = str(study.folder / "log")
    for good in (False, True):
        (study.folder / "good").touch() if good else None
        with study.session() as session:
            calls = [session.call(_if_good, log, str(study.folder / "good"), x) for x in range(4)]
            errors = [call.exception() for call in calls]
            assert [error is None for error in errors] == [True, good, True, good]
    assert sorted(study.lines("log")) == ["0", "1", "1", "2", "3", "3"]


def _if_good(log: str, path: str, x: int) -> int:
    append(log, x)
    if x % 2 and not os.path.exists(path):
        raise ValueError(x)
    return x


def test_explicit_keys(study: Study) -> None:
    log = str(study.folder / "log")
    for word in ("one", "two"):
        with study.session() as session:
            session.options(key="mine").call(append, log, word).result()
            session.submit(
                ph.TaskDescription(executable="/bin/sh", arguments=["-c", f"echo {word} >> {log}"], key="theirs")
            ).result()
    assert study.lines("log") == ["one", "one"]


def test_one_script_at_a_time(study: Study) -> None:
    other = study.start(
        """
        with ph.Session("study") as session:
            print("open", flush=True)
            time.sleep(60)
        """
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(ph.SessionBusy, match=str(other.pid)):
        ph.Session("study")
    with ph.Session("study", namespace="second") as second:
        study.pilot(second, cores=1)
        assert second.call(max, 1, 2).result() == 2
    with ph.Session("study", role="observer") as observer:
        assert observer.query("session")["session"] == "study"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with study.session() as session:
        assert session.call(max, 3, 2).result() == 3


INTERRUPT = pytest.param(
    signal.SIGINT, marks=pytest.mark.only_local("an interrupt leaves a batch system's jobs running, see on_interrupt")
)


@pytest.mark.parametrize("how", [INTERRUPT, *further(0, [signal.SIGTERM, signal.SIGKILL])])
def test_interrupted_in_the_middle(study: Study, how: signal.Signals) -> None:
    script = """
    def work(x):
        with open(FOLDER + "/log", "a") as file:
            file.write(f"{x}\\n")
        time.sleep(0.1)
        with open(FOLDER + "/ended", "a") as file:
            file.write(f"{x}\\n")
        return x

    with ph.Session("study") as session:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
        mapped = session.map(work, range(30))
        session.flush()
        for call in mapped:
            print(call.result(), flush=True)
    """
    process = study.start(script)
    wait_for(lambda: len(study.lines("ended")) >= 6, "six ended")
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert how is not signal.SIGINT or "KeyboardInterrupt" in err
    assert not study.wait_left()
    returned = out.splitlines()
    before = study.lines("log")
    assert len(before) < 30
    assert study.run(script).splitlines() == [str(x) for x in range(30)]
    again = study.lines("log")[len(before) :]
    assert not set(again) & set(returned), "a result that was returned is not computed again"
    assert set(before) | set(again) == {str(x) for x in range(30)}


def test_an_exception_in_the_script(study: Study) -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        _raises(study)
    assert time.monotonic() - began < 60
    assert not study.wait_left()


def _raises(study: Study) -> None:
    with study.session() as session:
        session.call(time.sleep, 600)
        raise ZeroDivisionError


def test_what_is_left_pending_says_so(study: Study) -> None:
    with study.session(cores=0) as session:
        call: ph.TaskFuture[int] = session.call(max, 1, 2)
    with pytest.raises(ph.SessionClosed):
        call.result()
    with study.session() as session:
        assert session.call(max, 1, 2).result() == 2


def test_detached_work_goes_on(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(on_exit="detach") as session:
        for index in range(4):
            session.call(_slowly, log, index)
        session.flush()
    wait_for(lambda: len(study.lines("log")) == 4, "it is done without the script")
    with study.session(cores=0) as session:
        assert [session.call(_slowly, log, index).result(20) for index in range(4)] == [0, 1, 2, 3]
        assert len(study.lines("log")) == 4
        for pilot in session.query("pilots"):
            study.tool("pilot", "cancel", "--session", "study", str(pilot["pilot"]))
    study.tool("hub", "stop", code=None)


def _slowly(log: str, index: int) -> int:
    time.sleep(0.2)
    append(log, index)
    return index


def test_drain_waits(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(on_exit="drain") as session:
        for index in range(6):
            session.call(_slowly, log, index)
    assert len(study.lines("log")) == 6


def test_pilot_cancel_and_lists_from_another_terminal(study: Study) -> None:
    with study.session() as session:
        running = session.call(time.sleep, 60)
        wait_for(lambda: session.query("session")["states"].get("RUNNING"), "it runs")
        assert "study" in study.tool("session", "list")
        assert running.task in study.tool("task", "list", "--session", "study")
        kinds = {"hub", "agent", "spawner", "worker"}
        wait_for(lambda: {process["kind"] for process in study.processes()} >= kinds, "all are listed")
        study.tool("task", "cancel", "--session", "study", running.task)
        with pytest.raises(ph.TaskCanceled):
            running.result(20)


def fails(x: int) -> int:
    raise ValueError(f"not {x}")


def test_a_task_is_counted_once_however_often_its_script_was_run(study: Study) -> None:
    """Done, failed, held and canceled ones, and a service that is none; open, and closed."""
    wanted = {"HELD": 1, "DONE": 4, "FAILED": 1}
    for _run in range(3):
        with study.session(cores=2) as session:
            service = session.start_service(ph.ServiceDescription(name="echo", handler=Echo))
            assert service.request(1).result(30) == 1
            good: list[ph.TaskFuture[int]] = [session.call(max, each, 2) for each in range(4)]
            bad = session.call(fails, 1)
            guess: ph.TaskFuture[int] = session.checkpoint("gate", choices=["a"]).branch("a").call(max, 7, 8)
            ph.wait([*good, bad], 30)
            wait_for(lambda guess=guess: "counts once" in guess.explain(), "it is held")
            service.stop()
            facts = session.query("session")
            assert (facts["tasks"], facts["states"]) == (6, wanted)
        (row,) = json.loads(study.tool("session", "list", "--json"))
        assert row["tasks"] == 6
        if row["state"] == "closed":
            assert row["recorded"] == wanted
            assert len(json.loads(study.tool("task", "list", "--state", "HELD", "--json"))) >= 1


class Echo:
    def __call__(self, x: int) -> int:
        return x
