"""What a pilot of four nodes survives under load: nothing is lost, nothing counts twice, nothing is left."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.behaviour.studies import Study, wait_for
from tests.slurm.cluster import Cluster
from tests.slurm.losses import LEASE, Loss

pytestmark = [pytest.mark.requires("slurm", "netns"), pytest.mark.long, pytest.mark.timeout(420)]
MINUTE = 60.0

Start = Callable[..., Loss]


@pytest.fixture
def start(slurm_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a study with its load; at the end all nodes are mended, and a minute later nothing of it may be alive."""
    base = Path(tempfile.mkdtemp(prefix="loss"))
    study = Study(base, "slurm", slurm_nodes)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name, value in study.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield lambda **how: Loss(study, slurm_nodes, **how)
        left = study.wait_left(MINUTE)
        assert not left, "left behind:\n" + "\n".join(left)
    finally:
        study.finish()
        slurm_nodes.mend()
        shutil.rmtree(base, ignore_errors=True)


def test_slurmd_is_killed(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(seconds=45)
    slurm_nodes.kill_slurmd(loss.follower())
    loss.end()
    loss.check()


def test_a_short_cut_is_not_noticed(start: Start, slurm_nodes: Cluster) -> None:
    loss = start()
    victim = loss.follower()
    slurm_nodes.cut(victim)
    time.sleep(LEASE / 2)
    slurm_nodes.heal(victim)
    loss.end()
    loss.check(again=False)
    assert not loss.lost()


def test_a_node_that_is_cut_off_ends_its_tasks_and_comes_back(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(seconds=45)
    victim = loss.follower()
    slurm_nodes.cut(victim)
    began = time.time()
    time.sleep(LEASE + 4)
    assert not loss.running(victim), "fenced by its own clock"
    healed = time.time()
    slurm_nodes.heal(victim)
    loss.end()
    loss.check()
    assert loss.lost() == {victim: 4}
    assert victim in loss.nodes_since(healed)
    assert loss.nodes_since(began) == set(slurm_nodes.names)


def test_a_node_that_is_cut_off_until_slurm_gives_it_up(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(seconds=60)
    victim = loss.follower()
    slurm_nodes.cut(victim)
    wait_for(lambda: slurm_nodes.states()[victim].startswith("down"), "Slurm gives it up", MINUTE)
    assert not loss.running(victim)
    slurm_nodes.heal(victim)
    loss.end()
    loss.check()
    assert loss.lost() == {victim: 4}


def test_a_node_stays_cut_off(start: Start, slurm_nodes: Cluster) -> None:
    loss = start()
    victim = loss.follower()
    slurm_nodes.cut(victim)
    loss.end()
    loss.check()
    assert not loss.running(victim)
    slurm_nodes.heal(victim)


@pytest.mark.parametrize("how", ["crash", "cut"])
def test_the_agents_node_is_lost(start: Start, slurm_nodes: Cluster, how: str) -> None:
    loss = start(seconds=45)
    victim = loss.agent
    getattr(slurm_nodes, how)(victim)
    began = time.time()
    wait_for(lambda: loss.agent != victim, "another agent", MINUTE)
    if how == "cut":
        time.sleep(LEASE)
        assert not loss.running(victim)
    loss.end()
    loss.check()
    # A new agent does not know what became of any call of the old one's, so those that may not run again are all lost.
    assert loss.lost()[victim] == 4
    assert loss.nodes_since(began + 2 * LEASE) <= set(slurm_nodes.names) - {victim}


def test_scancel(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(pilots=2)
    slurm_nodes.run("scancel", loss.job)
    loss.end()
    loss.check()
    (pilot,) = loss.lines("pilot")
    assert pilot.state == "CANCELED"
    assert "scancel" in pilot.message


def test_the_wall_time_is_reached(start: Start) -> None:
    loss = start(seconds=75, runtime=1, renew=True, patience=300)
    loss.end()
    loss.check()
    (pilot,) = loss.lines("pilot")
    assert pilot.state == "DONE"
    assert not loss.lost(), "they ended long before"


def test_slurmctld_is_away_for_a_minute(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(seconds=60)
    slurm_nodes.stop_slurmctld()
    time.sleep(MINUTE)
    slurm_nodes.start_slurmctld()
    loss.end()
    loss.check(again=False)
    assert not loss.lost()


def test_the_job_is_requeued(start: Start, slurm_nodes: Cluster) -> None:
    loss = start(requeue=True)
    slurm_nodes.run("scontrol", "requeue", loss.job)
    loss.end()
    loss.check()
    assert (loss.folder / "job").read_text().split() == [loss.job, "1"]
    (pilot,) = loss.lines("pilot")
    assert pilot.state == "ACTIVE"
