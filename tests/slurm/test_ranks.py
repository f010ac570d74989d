"""Tasks of several ranks on nodes that are hosts of their own: every launcher there is, and ends of all kinds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import pilot_hitl as ph
from tests.slurm.cluster import Cluster
from tests.slurm.site import LIMIT, NODES, Site, check_hello, study_on, until

pytestmark = pytest.mark.requires("slurm", "netns", "openmpi")


@pytest.fixture(scope="module")
def site(slurm_nodes: Cluster) -> Iterator[Site]:
    with study_on(slurm_nodes, NODES) as (session, folder):
        yield Site(slurm_nodes, session, folder)


@pytest.mark.parametrize("launcher", ["", "srun:pmix", "mpirun"])
def test_an_open_mpi_program_over_three_nodes(site: Site, launcher: str) -> None:
    check_hello(site.submit(site.program("openmpi"), launcher=launcher).result(timeout=LIMIT).stdout)


@pytest.mark.requires("mpich")
@pytest.mark.parametrize("launcher", ["", "mpiexec"])
def test_an_mpich_program_over_three_nodes(site: Site, launcher: str) -> None:
    # On networks like these, MPICH's UCX sometimes hangs in MPI_Finalize, whoever starts it: that is what a timeout and
    # another try are for.
    task = site.submit(site.program("mpich"), launcher=launcher, timeout=10, retries=4)
    check_hello(task.result(timeout=LIMIT).stdout)


@pytest.mark.requires("mpich")
def test_the_wrong_plug_in_is_named_before_any_rank_runs(site: Site) -> None:
    with pytest.raises(ph.TaskFailed, match=r"MPICH program and waits for PMI.*srun:pmix.*rank \d on n\d.*srun:pmi2"):
        site.submit(site.program("mpich"), launcher="srun:pmix").result(timeout=LIMIT)
    with pytest.raises(ph.TaskFailed, match=r"an Open MPI program and waits for PMIx.*srun:none"):
        site.submit(site.program("openmpi"), launcher="srun:none").result(timeout=LIMIT)


def test_open_mpi_s_own_complaint_is_named(site: Site) -> None:
    with pytest.raises(ph.TaskFailed, match=r"cannot use what launcher='srun:pmi2' gives it.*srun:pmix"):
        site.submit(site.program("openmpi"), launcher="srun:pmi2").result(timeout=LIMIT)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_rank_that_fails_ends_the_others_everywhere(site: Site, launcher: str) -> None:
    task = site.submit(site.program("openmpi"), str(site.fresh()), "4", launcher=launcher)
    with pytest.raises(ph.TaskFailed) as caught:
        task.result(timeout=LIMIT)
    assert caught.value.exit_code == 7
    if launcher == "srun":
        assert "rank 4 of " in str(caught.value)
        assert caught.value.host == "n3"
    until(lambda: not site.ranks(), 10)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_cancel_ends_all_ranks_on_all_nodes(site: Site, launcher: str) -> None:
    up = site.fresh()
    task = site.submit(site.program("openmpi"), str(up), launcher=launcher)
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    task.cancel()
    with pytest.raises(ph.TaskCanceled):
        task.result(timeout=LIMIT)
    until(lambda: not site.ranks(), 10)


def test_every_rank_has_its_grace(site: Site) -> None:
    """Srun answers SIGTERM with SIGKILL for all; so nobody tells srun."""
    up, saved = site.fresh(), site.fresh()
    command = f"trap 'sleep 0.5; echo $RANK >> {saved}; exit 0' TERM; echo up >> {up}; while :; do sleep 0.1; done"
    task = site.submit("/bin/sh", "-c", command, launcher="srun:none", grace=20.0)
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    task.cancel()
    with pytest.raises(ph.TaskCanceled):
        task.result(timeout=LIMIT)
    assert sorted(saved.read_text().split()) == list("012345")


def test_what_ignores_sigterm_is_killed_on_all_nodes(site: Site) -> None:
    up = site.fresh()
    command = f"trap '' TERM; echo up >> {up}; while :; do sleep 0.1; done"
    task = site.submit("/bin/sh", "-c", command, launcher="srun:none", grace=0.5)
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    task.cancel()
    with pytest.raises(ph.TaskCanceled):
        task.result(timeout=LIMIT)
    until(lambda: not site.ranks(), 10)


def test_suspending_stops_the_ranks_on_all_nodes(site: Site) -> None:
    up, go = site.fresh(), site.fresh()
    command = f"echo up >> {up}; while [ ! -e {go} ]; do sleep 0.1; done; echo $RANK"
    task = site.submit("/bin/sh", "-c", command, launcher="srun:none", on_preempt="suspend", backfill=True)
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    shells = site.ranks("sh", "PILOT_HITL_RANK")
    assert len(shells) == 6
    # More than the cores that are left: the gang has to give way.
    needed = [site.submit("/bin/sleep", "2", ranks=1, cores_per_rank=4) for _ in range(NODES)]
    until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in shells))
    for each in needed:
        each.result(timeout=LIMIT)
    until(lambda: all(each.status() != psutil.STATUS_STOPPED for each in shells))
    go.touch()
    assert sorted(task.result(timeout=LIMIT).stdout.split()) == list("012345")


def test_a_timeout_is_told_as_one(site: Site) -> None:
    up = site.fresh()
    with pytest.raises(ph.TaskTimeout, match="timeout of 3 s"):
        site.submit(site.program("openmpi"), str(up), timeout=3).result(timeout=LIMIT)
    until(lambda: not site.ranks(), 10)


def test_a_killed_launcher_leaves_no_rank(site: Site) -> None:
    up = site.fresh()
    task = site.submit(site.program("openmpi"), str(up), launcher="srun")
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    for process in site.ranks():
        with contextlib.suppress(psutil.Error):
            if process.name() == "srun":
                process.kill()
    with pytest.raises(ph.TaskFailed):
        task.result(timeout=LIMIT)
    until(lambda: not site.ranks(), 20)


def test_ranks_that_each_node_starts_know_the_whole(site: Site) -> None:
    place = site.fresh()
    command = f"echo $RANK $WORLD_SIZE $LOCAL_RANK $NODE_RANK $MASTER_ADDR $MASTER_PORT $(hostname) >> {place}"
    site.submit("/bin/sh", "-c", command).result(timeout=LIMIT)
    until(lambda: len(place.read_text().splitlines()) == 6)
    words = sorted(line.split() for line in place.read_text().splitlines())
    assert [line[:4] for line in words] == [[str(rank), "6", str(rank % 2), str(rank // 2)] for rank in range(6)]
    assert len({tuple(line[4:6]) for line in words}) == 1
    assert len({line[6] for line in words}) == 3


def test_ranks_see_the_devices_that_were_chosen_for_them(site: Site) -> None:
    command = "echo $RANK $CUDA_VISIBLE_DEVICES $(hostname)"
    task = site.submit("/bin/sh", "-c", command, launcher="srun:none", gpus_per_rank=1)
    words = sorted(line.split() for line in task.result(timeout=LIMIT).stdout.splitlines())
    assert len(words) == 6
    # Two a node, and two ranks there: each has one of its own.
    assert len({(line[1], line[2]) for line in words}) == 6
    assert {line[1] for line in words} == {"0", "1"}


def test_staging_for_several_nodes_is_done_once(site: Site) -> None:
    source, target = site.fresh(), site.fresh()
    source.write_text("in")
    task = ph.TaskDescription(
        executable="/bin/sh",
        arguments=["-c", "cat in.txt; [ $RANK = 0 ] || exit 0; sleep 0.3; cp in.txt out.txt"],
        ranks=6,
        ranks_per_node=2,
        timeout=LIMIT,
        input_staging=[{"source": str(source), "target": "in.txt", "action": "move"}],
        output_staging=[{"source": "out.txt", "target": str(target)}],
    )
    assert site.session.submit(task).result(timeout=LIMIT).stdout == "in" * 6
    assert target.read_text() == "in"


@pytest.mark.requires("torch")
def test_torch_distributed_meets_over_two_nodes(site: Site) -> None:
    example = Path(__file__).resolve().parents[2] / "docs" / "examples" / "torch_training.py"
    task = site.submit(sys.executable, str(example), "train", "1", "", ranks=2, ranks_per_node=1, timeout=90)
    assert task.result(timeout=100).stdout.startswith("epoch 1: 2 ranks, loss 0.")
