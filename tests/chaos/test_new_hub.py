"""A hub that was killed left agents with work, and one of them is slow to reconnect to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for

WORK = """exec 9>{folder}/lock
flock -n 9 || echo overlaps >> {folder}/overlaps
echo x >> {folder}/ran
until test -e {folder}/go; do sleep 0.1; done"""


class Slow(NamedTuple):
    """A task that runs on the first of two pilots, whose agent is stopped; another hub serves meanwhile.

    Attributes:
        late: what the earlier hub was sent last, and may have dispatched for all that its script knows.
    """

    session: ph.Session
    late: ph.TaskFuture[int]
    task: ph.TaskFuture[ph.Completed]
    agent: psutil.Process


@contextmanager
def slow(study: Study) -> Iterator[Slow]:
    with study.session(cores=1) as session:
        description = ph.TaskDescription(executable="/bin/sh", arguments=["-c", WORK.format(folder=study.folder)])
        task = session.submit(description)
        wait_for(lambda: study.lines("ran"), "it runs")
        study.pilot(session, cores=1)
        wait_for(lambda: [each["state"] for each in session.query("pilots")] == ["ACTIVE"] * 2, "another one is idle")
        agents = [psutil.Process(each["pid"]) for each in study.processes() if each["kind"] == "agent"]
        (agent,) = (each for each in agents if each.environ()["PILOT_HITL_MARK"].endswith("/1"))
        (hub,) = (psutil.Process(each["pid"]) for each in study.processes() if each["kind"] == "hub")
        agent.suspend()
        try:
            hub.suspend()
            late: ph.TaskFuture[int] = session.call(max, 3, 4)
            outbox = session._client._outbox
            wait_for(lambda: outbox.empty and outbox.outstanding, "it is on its way")
            hub.kill()
            wait_for(lambda: session.query("status")["pid"] != hub.pid, "another hub serves")
            # What is new waits for nobody, and shows that the other agent is there.
            assert session.call(max, 1, 2).result(60) == 2
            yield Slow(session, late, task, agent)
        finally:
            agent.resume()


def test_what_runs_on_an_agent_that_is_slow_to_reconnect_runs_nowhere_else(study: Study) -> None:
    with slow(study) as here:
        said = here.task.explain()
        assert said.startswith("it waits to hear from pilot 1, which may be running it since before"), said
        assert here.late.explain() == said
        here.agent.resume()
        wait_for(lambda: "hear from pilot 1" not in here.task.explain(), "its agent has it")
        (study.folder / "go").touch()
        assert here.task.result(60).exit_code == 0
        assert here.late.result(60) == 4
    assert len(study.lines("ran")) == 1
    assert not study.lines("overlaps")


@pytest.mark.long
def test_what_runs_on_an_agent_that_does_not_reconnect_runs_elsewhere_after_a_while(study: Study) -> None:
    with slow(study) as here:
        wait_for(lambda: len(study.lines("ran")) == 2, "it runs again", 60.0)
        (pilot,) = (each for each in here.session.query("pilots") if each["pilot"] == 1)
        assert pilot["message"].startswith("the agent of pilot 1 did not reconnect within 20 s"), pilot
        here.agent.resume()
        (study.folder / "go").touch()
        assert here.task.result(60).exit_code == 0
    assert len(study.lines("ran")) == 2
