"""``kill -9`` of every kind of process, in the middle of the work.

Short by default; ``PILOT_HITL_CHAOS=long`` runs 20,000 calls and 500 executables against each kill, and more kills.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest
import zmq

import pilot_hitl as ph
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_HUB
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import HUB_SOCKET, runtime_folder
from pilot_hitl.wire.sockets import Doorkeeper, router
from tests.behaviour.studies import Study, further, wait_for

LONG = os.environ.get("PILOT_HITL_CHAOS") == "long"
# Not more: a hub that is lost six times within a minute, or a pilot four times, is given up.
CALLS, TASKS, KILLS = (20_000, 500, 3) if LONG else (2_000, 40, 2)
TIMEOUT = 110.0

SCRIPT = """
CALLS, TASKS, LASTING = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def work(x):
    time.sleep(0.002)
    with open(f"{FOLDER}/calls", "a") as file:
        file.write(f"{x}\\n")
    return x * 3

def returned(kind, x):
    with open(f"{FOLDER}/returned-{kind}", "a") as file:
        file.write(f"{x}\\n")

with ph.Session("chaos") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    half = CALLS // 2
    calls = [session.call(work, x) for x in range(half)]
    mapped = session.map(work, range(half, CALLS))
    # Those that are to be killed last until they are; their next attempts do not.
    last = f"case ,{LASTING}, in *,$0,*) mkdir {FOLDER}/last-$0 2>/dev/null && sleep 6005;; esac"
    line = f"echo $0 >> {FOLDER}/tasks; {last}; sleep 0.1; echo $0"
    tasks = session.submit([
        ph.TaskDescription(executable="/bin/sh", arguments=["-c", line, str(x)], retries=4) for x in range(TASKS)])
    for x in range(CALLS):
        value = (calls[x] if x < half else mapped[x - half]).result()
        assert value == x * 3, (x, value)
        returned("calls", x)
        if x % 50 == 0 and x // 50 < TASKS:
            assert tasks[x // 50].result().stdout == f"{x // 50}\\n"
            returned("tasks", x // 50)
    for x, task in enumerate(tasks):
        assert task.result().stdout == f"{x}\\n"
        returned("tasks", x)
print("right")
"""


class Victims:
    """The processes of a study that is running, by kind."""

    def __init__(self, study: Study, script: subprocess.Popen[str]) -> None:
        self.study = study
        self.script = script

    def pids(self, kind: str, task: str = "") -> list[int]:
        if kind == "client":
            return [self.script.pid]
        if kind == "task":
            found = [process for process in self.study.processes() if process["kind"] == kind]
            return [process["pid"] for process in found if _last_word(process["pid"]) == task]
        found = [process for process in self.study.processes() if kind in ("all", process["kind"])]
        return [process["pid"] for process in found] + ([self.script.pid] if kind == "all" else [])

    def kill(self, kind: str, task: str = "") -> int:
        """Kill one of a kind, or all, or this task; return how many were there to kill."""
        pids = self.pids(kind, task)
        if kind not in ("all", "client"):
            pids = random.sample(pids, min(1, len(pids)))
        killed = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed


def _last_word(pid: int) -> str:
    """Return the last argument of a process; nothing of one that is gone."""
    with contextlib.suppress(psutil.Error):
        return (psutil.Process(pid).cmdline() or [""])[-1]
    return ""


def _run_to_the_end(study: Study, script: subprocess.Popen[str]) -> int:
    """Run it again until it ends well; return how often."""
    for run in range(6):
        out, err = script.communicate(timeout=TIMEOUT)
        if script.returncode == 0:
            assert out.endswith("right\n")
            return run
        assert "AssertionError" not in err, err
        assert script.returncode < 0 or "PilotHitlError" in err or "pilot_hitl.errors" in err, err
        script = study.start(SCRIPT, str(CALLS), str(TASKS), "")
    raise AssertionError("it did not end well in six runs")


def _progress(study: Study) -> int:
    """Count what ran; calls and tasks take about the same time, and the tasks come last."""
    return len(study.lines("calls")) + len(study.lines("tasks")) * CALLS // TASKS


@pytest.mark.parametrize("kind", further(5, ["client", "hub", "agent", "worker", "task", "spawner", "all"]))
def test_kill(study: Study, kind: str) -> None:
    steps = range(1, KILLS + 1)
    # A short task would be over by the time that it is found.
    lasting = [str(TASKS * step // (KILLS + 2)) for step in steps] if kind == "task" else [""] * KILLS
    script = study.start(SCRIPT, str(CALLS), str(TASKS), ",".join(lasting))
    victims = Victims(study, script)
    killed, kept = 0, {"calls": Counter[str](), "tasks": Counter[str]()}
    for step, task in zip(steps, lasting, strict=True):
        goal = 0 if task else 2 * CALLS * step // (KILLS + 2)
        wait_for(lambda goal=goal: _progress(study) >= goal or script.poll() is not None, "progress", TIMEOUT)
        if task:
            # Killed before it has noted that it lasts, it would last once more, and for good.
            lasts = study.folder / f"last-{task}"
            wait_for(lambda lasts=lasts: lasts.exists() or script.poll() is not None, "it lasts", TIMEOUT)
        if script.poll() is not None:
            break
        # Now and then there is none to kill, and a task has yet to begin.
        while not (hit := victims.kill(kind, task)) and script.poll() is None:
            time.sleep(0.005)
        killed += hit
        if kind in ("client", "all"):
            break
    for what, counts in kept.items():
        # What result() had returned by now must not run again.
        done = set(study.lines(f"returned-{what}"))
        counts.update(line for line in study.lines(what) if line in done)
    runs = _run_to_the_end(study, script)
    assert killed, "there was something to kill"
    assert kind in ("client", "all") or runs == 0, "the script goes on by itself"
    assert set(study.lines("calls")) == {str(x) for x in range(CALLS)}
    assert set(study.lines("tasks")) == {str(x) for x in range(TASKS)}
    for what, counts in kept.items():
        after = Counter(study.lines(what))
        assert {x: after[x] for x in counts} == counts, f"{what} that had returned ran again"


def test_a_killed_script_leaves_nothing(study: Study) -> None:
    script = study.start(SCRIPT, str(CALLS), str(TASKS), "")
    wait_for(lambda: _progress(study) > 100, "progress")
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    assert not study.wait_left()


def test_a_task_that_dies_with_its_agent_runs_again(study: Study) -> None:
    with study.session() as session:
        task = session.submit(
            ph.TaskDescription(
                executable="/bin/sh",
                arguments=["-c", f"echo x >> {study.folder}/ran; test -e {study.folder}/go || sleep 6003"],
            )
        )
        wait_for(lambda: study.lines("ran"), "it runs")
        (study.folder / "go").touch()
        agent = next(process["pid"] for process in study.processes() if process["kind"] == "agent")
        os.kill(agent, signal.SIGKILL)
        assert task.result(40).exit_code == 0
        assert len(study.lines("ran")) == 2
        wait_for(lambda: not [stray for stray in study.strays() if "6003" in stray], "the old one is gone")


def test_frozen_processes_are_waited_for(study: Study) -> None:
    with study.session() as session:
        assert session.call(max, 1, 2).result() == 2
        frozen = [process for process in study.processes() if process["kind"] in ("hub", "agent")]
        for process in frozen:
            os.kill(process["pid"], signal.SIGSTOP)
        mapped = session.map(abs, range(-1000, 0))
        time.sleep(1)
        assert not mapped.done()
        for process in frozen:
            os.kill(process["pid"], signal.SIGCONT)
        assert mapped.results(40) == list(range(1000, 0, -1))


def _waits(folder: str) -> str:
    """Be a client of the hub for as long as it takes."""
    session = ph.current_session()
    while not os.path.exists(f"{folder}/go"):
        session.call(abs, -1).result()
    return "done"


@pytest.mark.long
def test_no_task_is_the_parent_of_the_next_hub(study: Study) -> None:
    """It would end with that task, and everybody would lose it again."""
    with study.session(cores=3) as session:
        tasks = [session.call(_waits, str(study.folder)) for _ in range(2)]
        for _ in range(4):
            assert session.call(max, 1, 2).result(60) == 2
            (hub,) = (process["pid"] for process in study.processes() if process["kind"] == "hub")
            assert psutil.Process(hub).parent() == psutil.Process(), "who is outside has started it"
            psutil.Process(hub).kill()
        (study.folder / "go").touch()
        assert [task.result(60) for task in tasks] == ["done"] * 2


def test_nothing_is_left_of_a_hub_that_was_killed_with_everything(study: Study) -> None:
    script = study.start(SCRIPT, str(CALLS), str(TASKS), "")
    wait_for(lambda: _progress(study) > 100, "progress")
    hub = next(process["pid"] for process in study.processes() if process["kind"] == "hub")
    for pid in (script.pid, hub):
        psutil.Process(pid).kill()
    script.wait()
    # The agent waits for a hub for a while, and whoever opens the session again ends it.
    with study.session("chaos", cores=1) as session:
        assert session.call(max, 5, 6).result(40) == 6
    assert not study.wait_left()


def _take_the_greeting_along(study: Study) -> None:
    """Be a hub that listens, and ends before it acts upon the greeting of an agent."""
    keys, context = keyring(study.home), zmq.Context()
    keeper, listening = Doorkeeper(context, keys), router(context, keys)
    listening.bind(f"ipc://{runtime_folder(study.home) / HUB_SOCKET}")
    end = time.monotonic() + 30
    while not listening.poll(20):
        keeper.answer()
        assert time.monotonic() < end, "an agent greets"
    assert isinstance(TO_HUB.decode(listening.recv_multipart()[1])[0], m.AgentHello)
    listening.close(linger=0)
    keeper.socket.close(linger=0)
    context.term()


def test_an_agent_greets_the_hub_after_one_that_took_its_greeting_along(study: Study) -> None:
    with study.session(on_exit="detach") as session:
        assert session.call(max, 1, 2).result() == 2
        before = {process["kind"]: process["pid"] for process in study.processes()}
    psutil.Process(before["hub"]).kill()
    _take_the_greeting_along(study)
    with study.session(cores=0) as session:
        assert session.call(max, 3, 4).result(40) == 4
        assert {process["kind"]: process["pid"] for process in study.processes()}["agent"] == before["agent"]


HELD = """exec 9>{folder}/lock
flock -n 9 || echo overlaps >> {folder}/overlaps
echo x >> {folder}/ran
test -e {folder}/go || sleep 6014"""


@pytest.mark.parametrize("kind", further(1, ["root", "agent", "everything"]))
def test_no_attempt_begins_while_one_of_a_dead_pilot_runs(study: Study, kind: str) -> None:
    """Whoever could end it at once cannot: the agent of a killed root is stopped, or killed as well as its hub."""
    with study.session(cores=1) as session:
        task = session.submit(
            ph.TaskDescription(executable="/bin/sh", arguments=["-c", HELD.format(folder=study.folder)])
        )
        wait_for(lambda: study.lines("ran"), "it runs")
        study.pilot(session, cores=1)
        wait_for(lambda: [each["state"] for each in session.query("pilots")] == ["ACTIVE"] * 2, "another one is idle")
        agents = [psutil.Process(each["pid"]) for each in study.processes() if each["kind"] == "agent"]
        (agent,) = (each for each in agents if each.environ()["PILOT_HITL_MARK"].endswith("/1"))
        root = agent.parent()
        assert root is not None
        agent.suspend()
        (study.folder / "go").touch()
        if kind == "everything":
            hub = psutil.Process(next(each["pid"] for each in study.processes() if each["kind"] == "hub"))
            hub.suspend()
            for process in (root, agent, hub):
                process.kill()
        else:
            (root if kind == "root" else agent).kill()
        assert task.result(60).exit_code == 0
        assert len(study.lines("ran")) == 2
        assert not study.lines("overlaps")
        wait_for(lambda: not [stray for stray in study.strays() if "6014" in stray], "the old one is gone")


def test_a_pilot_that_is_asked_for_again_for_want_of_a_word_is_the_same_one(study: Study) -> None:
    with study.session(cores=1) as session:
        assert session.call(max, 1, 2).result(40) == 2
        client = session._client
        (pilot,) = client.pilots
        for kill in (False, True):
            if kill:
                (hub,) = (process["pid"] for process in study.processes() if process["kind"] == "hub")
                psutil.Process(hub).kill()
            client.tell(m.SubmitPilot(pilot.token, pilot.description, dict(os.environ), os.getcwd()))
            session.flush()
            assert [each["pilot"] for each in session.query("pilots")] == [1]
        assert session.call(max, 3, 4).result(40) == 4
