"""Nodes, agents, hubs, controllers and networks that break under load: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.states import PilotState
from tests.slurm.cluster import Cluster
from tests.slurm.daemons import until
from tests.slurm.load import LEASE, OUTSIDE, Load, load

pytestmark = [pytest.mark.requires("slurm", "netns"), pytest.mark.long, pytest.mark.timeout(240)]
FENCED = LEASE + 5.0
"""Seconds after which nothing may run on a node that was cut off."""


@pytest.fixture
def loss(slurm_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    with load(slurm_nodes, monkeypatch) as made:
        yield made


def other(made: Load) -> str:
    """A node that is neither the agent's nor the one on which the batch script runs."""
    taken = {made.agent().host, "n1"}
    return next(name for name in reversed(made.cluster.names) if name not in taken)


def test_a_node_whose_slurmd_is_killed_is_lost(loss: Load) -> None:
    pilot = loss.begin()
    victim = other(loss)
    loss.cluster.kill_slurmd(victim)
    loss.stream(22)
    loss.finish(60)
    assert pilot.state is PilotState.ACTIVE


def test_a_slurmd_that_is_started_again_is_not_noticed(loss: Load) -> None:
    pilot = loss.begin()
    victim = other(loss)
    loss.cluster.kill_slurmd(victim)
    loss.stream(3)
    loss.cluster.start_slurmd(victim)
    ended = loss.finish(60)
    assert ended == {Cause.NONE: OUTSIDE}
    assert pilot.state is PilotState.ACTIVE


@pytest.mark.parametrize("seconds", [1.0, 9.0, 30.0], ids=["within the lease", "beyond it", "beyond SlurmdTimeout"])
def test_a_node_is_cut_off_and_healed(loss: Load, seconds: float) -> None:
    pilot = loss.begin()
    victim = other(loss)
    loss.cluster.cut(victim)
    began = time.monotonic()
    loss.stream(min(seconds, FENCED))
    if seconds > LEASE:
        assert not loss.marked(victim), "it ended everything by itself"
        loss.stream(max(0.0, seconds - (time.monotonic() - began)))
    loss.cluster.heal(victim)
    loss.stream(3)
    ended = loss.finish(60)
    assert seconds > LEASE or ended == {Cause.NONE: OUTSIDE}
    assert pilot.state is PilotState.ACTIVE


def test_the_node_of_the_agent_crashes(loss: Load) -> None:
    pilot = loss.begin()
    first = loss.agent()
    loss.cluster.crash(first.host)
    loss.stream_until(lambda: loss.agent().term > first.term, "another agent", 6 * LEASE)
    ended = loss.finish(60)
    assert pilot.state is PilotState.ACTIVE
    assert set(ended) <= {Cause.NONE, Cause.PILOT_ENDED}


def test_the_node_of_the_agent_is_cut_off_and_healed(loss: Load) -> None:
    pilot = loss.begin()
    first = loss.agent()
    loss.cluster.cut(first.host)
    loss.stream(FENCED + 1)
    assert not loss.marked(first.host), "it ended everything by itself"
    loss.stream_until(lambda: loss.agent().term > first.term, "another agent", 6 * LEASE)
    loss.cluster.heal(first.host)
    loss.stream(3)
    loss.finish(60)
    assert pilot.state is PilotState.ACTIVE


def test_the_agent_is_killed(loss: Load) -> None:
    pilot = loss.begin()
    first = loss.agent()
    loss.cluster.run_in(first.host, ["kill", "-KILL", str(first.pid)])
    loss.stream_until(lambda: loss.agent().term > first.term, "another agent", 6 * LEASE)
    loss.finish(60)
    assert pilot.state is PilotState.ACTIVE


def test_a_canceled_job_is_no_end_of_its_tasks(loss: Load) -> None:
    pilot = loss.begin()
    loss.cluster.cancel_all()
    loss.stream_until(lambda: pilot.state.final, "the pilot's end", 60)
    assert pilot.state is PilotState.CANCELED
    assert "canceled by somebody" in pilot.message
    until(lambda: not any(map(loss.marked, loss.cluster.names)), "nothing of it runs", 60)
    states = loss.states()
    assert not states["RUNNING"] + states["SCHEDULED"], "nothing is said to run where no pilot is"
    assert states["QUEUED"], "what had not ended waits for the next pilot"
    assert states["HELD"], "held results stay"
    loss.again()
    loss.pilot()
    loss.finish(90)


@pytest.mark.timeout(300)
def test_walltime_is_no_end_of_its_tasks(loss: Load) -> None:
    pilot = loss.begin(runtime=1)
    loss.stream(5)
    loss.pilot()  # it begins when that one ends
    loss.stream_until(lambda: pilot.state.final, "the pilot's end", 120)
    assert pilot.state is PilotState.DONE
    assert "wall" in pilot.message
    loss.finish(90)


@pytest.mark.timeout(300)
def test_the_controller_is_away_for_a_minute(loss: Load) -> None:
    pilot = loss.begin()
    loss.cluster.stop_slurmctld()
    try:
        loss.stream(5)
        late = loss.pilot(nodes=1)
        loss.stream(50)
        until(loss.call_before(20).done, "calls go on", 30)
        assert pilot.state is PilotState.ACTIVE
    finally:
        loss.cluster.start_slurmctld()
    until(lambda: late.state.final or late.state is PilotState.PENDING, "the late pilot is decided", 60, loss.why)
    if late.state.final:
        assert "ontact" in late.message or "controller" in late.message, late.message
    ended = loss.finish(60)
    assert ended == {Cause.NONE: OUTSIDE}


@pytest.mark.timeout(300)
def test_a_job_that_is_requeued_goes_on(loss: Load) -> None:
    pilot = loss.begin(requeue=True)
    job = loss.cluster.jobs()[0].split()[0]
    loss.cluster.run("scontrol", "requeue", job)
    loss.stream_until(lambda: pilot.state is PilotState.PENDING, "it waits again", 60)
    loss.stream_until(lambda: pilot.state is PilotState.ACTIVE, "it runs again", 120)
    loss.finish(60)
    assert loss.cluster.jobs()[0].split()[0] == job


def test_the_hub_is_killed(loss: Load) -> None:
    pilot = loss.begin()
    before = loss.hub_pid()
    os.kill(before, signal.SIGKILL)
    until(lambda: loss.hub_pid() not in (0, before), "another hub", 30)
    loss.stream(3)
    loss.finish(60)
    assert pilot.state is PilotState.ACTIVE


def test_what_ended_while_no_hub_was_there_does_not_run_again(loss: Load) -> None:
    pilot = loss.pilot(runtime=1)
    pilot.wait_ready(60)
    loss.submit_calls(8, 5.0)
    until(lambda: len(loss.ran()) >= 4, "calls run", 40, loss.why)
    loss.session.close(on_exit="detach")
    os.kill(loss.hub_pid(), signal.SIGKILL)
    journal = loss.places.pilot(1) / "journal"
    until(journal.exists, "the agent leaves what nobody acknowledged", 100)
    until(lambda: not loss.cluster.jobs(), "the job's end", 60)
    ran = loss.ran()
    loss.again()  # and no pilot
    assert loss.values(30) == ran
    assert loss.ran() == ran, "each ran once"
    assert not journal.exists()


def test_a_job_without_any_agent_is_ended(loss: Load) -> None:
    pilot = loss.begin()
    loss.cluster.crash("n1")  # where the batch script runs: nobody ends the job by ending now
    until(lambda: loss.cluster.states()["n1"].startswith("down"), "Slurm gives the node up", 60)
    others = loss.cluster.names[1:]
    until(lambda: not [process for node in others for process in loss.kill(node)], "nothing is left", 20)
    assert loss.cluster.jobs(), "Slurm would let it be until its wall time"
    until(lambda: pilot.state.final, "the hub ends it", 150, loss.why)
    assert pilot.state is PilotState.FAILED
    assert "no agent of the pilot lives any more" in pilot.message
    assert not loss.cluster.jobs()
