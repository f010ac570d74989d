"""Nothing hangs: who waits for work that nobody will do is told, and what lost its pilot is done by the next one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, further, wait_for

WAIT = 60.0


def _ended_pilot(study: Study, session: ph.Session) -> ph.Pilot:
    """A pilot that is gone, for a reason of its own."""
    pilot = study.pilot(session)
    pilot.wait_ready(WAIT)
    pilot.cancel("enough for today")
    wait_for(lambda: pilot.state.final, "it ended", WAIT)
    return pilot


def _ways_to_wait(session: ph.Session, log: str) -> dict[str, Callable[[], object]]:
    one, mapped = session.call(append, log, "one"), session.map(append, [log] * 3, ["a", "b", "c"])

    async def gathered() -> None:
        await asyncio.gather(one, mapped[0])

    return {
        "result": lambda: one.result(WAIT),
        "exception": lambda: one.exception(WAIT),
        "await": lambda: asyncio.run(asyncio.wait_for(one, WAIT)),
        "gather": lambda: asyncio.run(gathered()),
        "wait": lambda: ph.wait([one, mapped], WAIT),
        "first": lambda: ph.wait([one], WAIT, ph.FIRST_COMPLETED),
        "as_completed": lambda: list(ph.as_completed([one, *mapped], WAIT)),
        "results": lambda: mapped.results(WAIT),
        "map.wait": lambda: mapped.wait(WAIT),
        "element": lambda: mapped[2].result(WAIT),
    }


def test_every_wait_tells_that_no_pilot_is_left_and_ends_nothing(study: Study) -> None:
    log = str(study.folder / "log")
    called: list[object] = []
    with study.session(cores=0) as session:
        _ended_pilot(study, session)
        ways = _ways_to_wait(session, log)
        for name, way in ways.items():
            with pytest.raises(ph.PilotFailed, match=r"no pilot is left: pilot 1 .*enough for today"):
                way()
            assert name
        one = session.call(append, log, "x")
        one.add_done_callback(called.append)
        with pytest.raises(ph.PilotFailed):
            one.result(WAIT)
        assert not one.done()
        assert not called
        assert "pilot 1" in one.explain()
        assert "enough for today" in one.explain()
        # The next pilot does all of it, and the same futures say so.
        study.pilot(session)
        assert one.result(WAIT) is None
        for way in ways.values():
            way()
        wait_for(lambda: called == [one], "called back once it is true")
    assert sorted(study.lines("log")) == ["a", "b", "c", "one", "x"]


def test_who_waits_already_is_told_when_the_last_pilot_dies(study: Study) -> None:
    told: list[BaseException] = []

    def wait(way: str) -> None:
        try:
            if way == "result":
                slow.result(WAIT)
            elif way == "map":
                many.results(WAIT)
            elif way == "wait":
                ph.wait([slow], WAIT)
            else:
                asyncio.run(asyncio.wait_for(slow, WAIT))
        except ph.PilotFailed as error:
            told.append(error)

    with study.session(cores=0) as session:
        pilot = study.pilot(session)
        slow, many = session.call(time.sleep, 600), session.map(time.sleep, [600, 600])
        threads = [threading.Thread(target=wait, args=(way,)) for way in ("result", "map", "wait", "await")]
        for thread in threads:
            thread.start()
        pilot.wait_ready(WAIT)
        pilot.cancel("no more")
        for thread in threads:
            thread.join(WAIT)
        assert len(told) == len(threads)
        assert len({id(error) for error in told}) == len(told), "an error object each: their tracebacks differ"
        assert not slow.done()


def test_what_was_canceled_without_a_pilot_never_runs(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=0) as session:
        _ended_pilot(study, session)
        unwanted, wanted = session.call(append, log, "unwanted"), session.call(append, log, "wanted")
        with pytest.raises(ph.PilotFailed):
            unwanted.result(WAIT)
        assert unwanted.cancel()
        with pytest.raises(ph.TaskCanceled):
            unwanted.result(WAIT)
        study.pilot(session)
        wanted.result(WAIT)
    assert study.lines("log") == ["wanted"]


def test_what_is_on_disk_needs_no_pilot(study: Study) -> None:
    log = str(study.folder / "log")
    for run in range(2):
        with study.session(cores=0) as session:
            if not run:
                study.pilot(session)
            else:
                _ended_pilot(study, session)
            assert session.call(append, log, "once").result(WAIT) is None
            assert session.map(append, [log] * 2, ["a", "b"]).results(WAIT) == [None, None]
            assert asyncio.run(asyncio.wait_for(session.call(append, log, "await"), WAIT if run else None)) is None
    assert sorted(study.lines("log")) == ["a", "await", "b", "once"]


def test_a_pilot_that_follows_at_once_is_waited_for(study: Study) -> None:
    with study.session(cores=0) as session:
        first = study.pilot(session)
        future = session.call(os.getpid)
        first.cancel()
        study.pilot(session)
        assert future.result(WAIT) > 0


def test_without_any_pilot_a_script_may_wait_for_one_that_another_thread_submits(study: Study) -> None:
    with study.session(cores=0) as session:
        future: ph.TaskFuture[int] = session.call(max, 1, 2)
        threading.Timer(1.0, lambda: study.pilot(session)).start()
        assert future.result(WAIT) == 2


def test_a_pilot_of_the_command_line_does_it_too(study: Study) -> None:
    with study.session(cores=0) as session:
        _ended_pilot(study, session)
        future: ph.TaskFuture[int] = session.call(max, 3, 4)
        with pytest.raises(ph.PilotFailed):
            future.result(WAIT)
        study.tool("pilot", "submit", "--session", "study", "--resource", study.backend, "--cores", "1")
        wait_for(lambda: not session._client.pilots_left.why, "it is heard of")
        assert future.result(WAIT) == 4


def test_a_person_can_be_waited_for_without_a_pilot(study: Study) -> None:
    with study.session(cores=0) as session:
        _ended_pilot(study, session)
        asked = session.checkpoint("mesh", choices=["accept", "reject"])
        five: ph.TaskFuture[int] = session.call(max, 5, 4)
        chosen = asked.select({"accept": five, "reject": session.call(os.getpid)})
        threading.Timer(1.0, lambda: asked.respond("accept")).start()
        assert asked.result(WAIT) == "accept"
        with pytest.raises(ph.PilotFailed):
            chosen.result(WAIT)
        shows = session.checkpoint("look", choices=["accept"], show=[session.call(max, 7, 8)])
        with pytest.raises(ph.PilotFailed):
            shows.result(WAIT)
        study.pilot(session)
        assert chosen.result(WAIT) == 5


def _root(study: Study) -> psutil.Process:
    """The process at the root of the only pilot: the parent of its agent."""
    agent = wait_for(
        lambda: next((each["pid"] for each in study.processes() if each["kind"] == "agent"), 0), "there is an agent"
    )
    root = psutil.Process(agent).parent()
    assert root is not None
    return root


SCRIPT = """
def work(x):
    time.sleep(0.05)
    return x * 3

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource="local", cores=2))
    for x in range(4000):
        assert session.call(work, x).result() == x * 3
        with open(f"{FOLDER}/log", "a") as file:
            file.write("x\\n")
        if os.path.exists(f"{FOLDER}/enough"):
            break
print("right")
"""


def _kill(pid: int) -> None:
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it is dead")


@pytest.mark.only_local
@pytest.mark.parametrize("order", further(1, ["hub first", "spawner first", "together"]))
def test_a_spawner_that_dies_after_a_hub_is_started_again(study: Study, order: str) -> None:
    script = study.start(SCRIPT)
    wait_for(lambda: study.lines("log"), "it works", WAIT)
    root = _root(study)
    hub = next(each["pid"] for each in study.processes() if each["kind"] == "hub")
    if order == "hub first":
        _kill(hub)
        before = len(study.lines("log"))
        wait_for(lambda: len(study.lines("log")) > before + 5, "it goes on with another hub", WAIT)
        _kill(root.pid)
    else:
        # A hub that is stopped cannot act on what happens meanwhile; a dead one is replaced at once.
        os.kill(hub, signal.SIGSTOP)
        _kill(root.pid)
        _kill(hub)
    before = len(study.lines("log"))
    wait_for(lambda: len(study.lines("log")) > before + 5 or script.poll() is not None, "it goes on", WAIT)
    (study.folder / "enough").touch()
    out, err = script.communicate(timeout=WAIT)
    assert out == "right\n", err
    wait_for(lambda: not root.is_running() or root.status() == "zombie", "the killed one is gone", WAIT)


def poison(log: str, which: str) -> None:
    """End what this runs below."""
    append(log, which)
    parent = psutil.Process().parent()
    assert parent is not None
    if which == "grandparent":
        parent = parent.parent()
        assert parent is not None
    os.kill(parent.pid, signal.SIGKILL)
    time.sleep(30)


def innocent(log: str, x: int) -> int:
    append(log, x)
    time.sleep(0.5)
    return x


@pytest.mark.only_local
@pytest.mark.parametrize("kind", further(1, ["call parent", "program", "wrapped program", "call grandparent"]))
def test_a_task_that_kills_what_runs_it_fails_alone(study: Study, kind: str) -> None:
    log, others = str(study.folder / "poison"), str(study.folder / "others")
    with study.session(cores=4) as session:
        before = session.map(innocent, [others] * 8, range(8))
        wait_for(lambda: study.lines("others"), "others run", WAIT)
        bad: ph.TaskFuture[Any]
        if kind.startswith("call"):
            bad = session.call(poison, log, kind.rpartition(" ")[2])
        else:
            path = study.folder / "poison.sh"
            path.write_text(f"#!/bin/sh\necho x >> {log}; kill -9 $PPID; sleep 30\n")
            path.chmod(0o755)
            wrap = ["true"] if kind.startswith("wrapped") else []
            bad = session.submit(ph.TaskDescription(executable=str(path), pre_exec=wrap))
        sleeping = session.submit([ph.TaskDescription(executable="/bin/sleep", arguments=["1"]) for _ in range(4)])
        after = session.map(innocent, [others] * 8, range(8, 16))
        with pytest.raises(ph.TaskFailed, match=r"running both times when the process that runs tasks died"):
            bad.result(WAIT)
        assert before.results(WAIT) + after.results(WAIT) == list(range(16))
        assert [each.result(WAIT).exit_code for each in sleeping] == [0] * 4
    assert len(study.lines("poison")) == 2


@pytest.mark.long
@pytest.mark.only_local
def test_several_of_them_are_told_apart(study: Study) -> None:
    log, others = str(study.folder / "poison"), str(study.folder / "others")
    with study.session(cores=4) as session:
        bad = [session.call(poison, log, "parent") for _ in range(3)]
        good = session.map(innocent, [others] * 12, range(12))
        for each in bad:
            with pytest.raises(ph.TaskFailed, match="both times"):
                each.result(WAIT)
        assert good.results(WAIT) == list(range(12))


@pytest.mark.only_local
def test_a_task_that_kills_what_runs_it_can_be_canceled(study: Study) -> None:
    log = str(study.folder / "poison")
    line = f"echo x >> {log}; sleep 3; kill -9 $PPID; sleep 30"
    with study.session() as session:
        bad = session.submit(ph.TaskDescription(executable="/bin/sh", arguments=["-c", line]))
        wait_for(lambda: study.lines("poison"), "it runs", WAIT)
        assert bad.cancel()
        with pytest.raises(ph.TaskCanceled):
            bad.result(WAIT)
        assert session.call(max, 1, 2).result(WAIT) == 2
    assert len(study.lines("poison")) == 1


def echo(x: object) -> object:
    return x


def test_what_waits_for_cores_that_services_hold_says_so(study: Study) -> None:
    with study.session(cores=1) as session:
        service = session.start_service(ph.ServiceDescription(name="echo", handler=echo))
        service.wait_ready(WAIT)
        waiting: list[ph.TaskFuture[Any]] = [
            session.call(max, 1, 2),
            session.submit(ph.TaskDescription(executable="/bin/true")),
            session.map(abs, range(4))[3],
        ]
        for each in waiting:
            wait_for(lambda each=each: "services hold" in each.explain(), "it says so")
        service.stop()
        assert waiting[0].result(WAIT) == 2
