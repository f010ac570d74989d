"""The clusters that other tests use: they come up, nodes can be broken and mended, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.daemons import ClusterError, of_cluster, until
from tests.slurm.fixtures import FIRST_PORT, PLACES, PORTS, cluster

MARK = "PILOT_HITL_MARK=test-of-the-cluster/1"


def marked(where: Cluster) -> list[str]:
    """Names of the nodes where processes of the sleeping job run."""
    return [node for node in where.names for _ in where.processes_on(node, "test-of-the-cluster")]


def sleep_everywhere(where: Cluster) -> str:
    line = f"srun --no-kill -N4 -n4 env {MARK} sleep 300"
    words = ("--parsable", "--no-kill", "--no-requeue", "--output=/dev/null", "-N4", f"--wrap={line}")
    job = where.run("sbatch", *words).strip()
    until(lambda: sorted(set(marked(where))) == where.names, "the job runs on all nodes")
    return job


@pytest.mark.requires("slurm")
def test_gpus_and_partitions_are_there(slurm: Cluster) -> None:
    shown = slurm.run(
        "srun", "-N2", "-n2", "--gpus-per-node=2", "--partition=short", "printenv", "CUDA_VISIBLE_DEVICES"
    )
    if os.geteuid() == 0:  # only root may make the device nodes without which Slurm sets no variable
        assert shown.split() == ["0,1", "0,1"]
    assert slurm.states().keys() == {"n1", "n2", "n3", "n4"}


@pytest.mark.requires("slurm")
def test_a_crashed_node_comes_back(slurm: Cluster) -> None:
    sleep_everywhere(slurm)
    slurm.crash("n2")
    until(lambda: set(marked(slurm)) == {"n1", "n3", "n4"}, "what ran on it is gone")
    slurm.start_slurmd("n2")
    slurm.cancel_all()
    slurm.wait_idle()
    assert not marked(slurm)


@pytest.mark.requires("slurm", "netns")
def test_nodes_are_hosts(slurm_nodes: Cluster) -> None:
    hosts = slurm_nodes.run("srun", "-N4", "-n4", "--label", "hostname").split()
    assert sorted(hosts[1::2]) == slurm_nodes.names
    connect = ["timeout", "2", "bash", "-c", f"</dev/tcp/n2/{slurm_nodes.shape.port + 12}"]
    assert slurm_nodes.run_in("n1", connect).returncode == 0
    slurm_nodes.cut("n2")
    try:
        assert slurm_nodes.run_in("n1", connect).returncode != 0
    finally:
        slurm_nodes.heal("n2")
    slurm_nodes.wait_idle()


@pytest.mark.requires("slurm", "netns")
def test_slurmd_dies_alone_and_a_crash_takes_everything(slurm_nodes: Cluster) -> None:
    sleep_everywhere(slurm_nodes)
    slurm_nodes.kill_slurmd("n2")
    assert "n2" in marked(slurm_nodes)
    slurm_nodes.start_slurmd("n2")
    slurm_nodes.crash("n3")
    assert set(marked(slurm_nodes)) == {"n1", "n2", "n4"}
    slurm_nodes.start_slurmd("n3")
    slurm_nodes.cancel_all()
    slurm_nodes.wait_idle()
    assert not marked(slurm_nodes)


@pytest.mark.requires("slurm")
def test_jobs_outlive_the_controller(slurm: Cluster) -> None:
    sleep_everywhere(slurm)
    slurm.stop_slurmctld()
    with pytest.raises(ClusterError):
        slurm.run("squeue", timeout=60)
    assert sorted(set(marked(slurm))) == slurm.names
    slurm.start_slurmctld()
    slurm.cancel_all()
    slurm.wait_idle()


@pytest.mark.requires("slurm", "slurmdbd")
def test_unknown_accounts_are_refused(slurm_accounts: Cluster) -> None:
    assert slurm_accounts.run("srun", "-A", slurm_accounts.account, "echo", "welcome") == "welcome\n"
    with pytest.raises(ClusterError, match="Invalid account"):
        slurm_accounts.run("srun", "-A", "nobody", "true")


@pytest.mark.requires("slurm")
def test_a_killed_run_leaves_nothing_for_the_next() -> None:
    # Not tmp_path: munged wants a folder that everybody may enter.
    base, port = Path(tempfile.gettempdir()) / f"phslurm-{os.getuid()}-killed", FIRST_PORT + PLACES * PORTS
    script = f"""
        import signal
        from pathlib import Path
        from tests.slurm.cluster import Cluster
        Cluster(Path({str(base)!r}), {port}, nodes=1).start()
        print("up", flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        run.send_signal(signal.SIGKILL)
    assert of_cluster(base)
    with Cluster(base, port, nodes=1) as again:
        assert again.states() == {"n1": "idle"}
    assert not of_cluster(base)
    assert not base.exists()


@pytest.mark.requires("slurm")
def test_two_clusters_side_by_side(slurm: Cluster) -> None:
    with cluster(nodes=1) as other:
        assert other.shape.port != slurm.shape.port
        assert other.run("srun", "printenv", "SLURM_CONF") == f"{other.conf}\n"
