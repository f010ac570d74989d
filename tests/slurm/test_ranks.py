"""Tasks of several ranks on nodes that are hosts of their own: every launcher there is, and ends of all kinds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.requires("slurm", "netns", "openmpi")
LIMIT = 60
NODES = 3
SOURCE = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int rank, size, sum;
  char host[256];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  gethostname(host, sizeof host);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  printf("%d %d %d %s %s %s %s %s\n", rank, size, sum, host, getenv("PILOT_HITL_RANK"), getenv("LOCAL_RANK"),
         getenv("NODE_RANK"), getenv("OMP_NUM_THREADS"));
  fflush(stdout);
  if (argc > 1) {
    FILE *f = fopen(argv[1], "a"); fputs("up\n", f); fclose(f);
    if (argc > 2 && atoi(argv[2]) == rank) { sleep(1); exit(7); }
    sleep(100);
  }
  MPI_Finalize();
  return 0;
}
"""


class Site:
    """A session on the cluster with one pilot of three nodes, for all tests of this file."""

    def __init__(self, cluster: Cluster, session: ph.Session, folder: Path) -> None:
        self.cluster = cluster
        self.session = session
        self.folder = folder
        self._files = 0

    def program(self, kind: str) -> str:
        path = self.folder / kind
        if not path.exists():
            source = self.folder / "hello.c"
            source.write_text(SOURCE)
            compiler = shutil.which(f"mpicc.{kind}") or "mpicc"
            subprocess.run([compiler, "-o", path, source], check=True, timeout=60)
        return str(path)

    def fresh(self) -> Path:
        self._files += 1
        return self.folder / f"file{self._files}"

    def submit(self, executable: str, *arguments: str, ranks: int = 6, **more: Any) -> ph.TaskFuture[ph.Completed]:
        fields: dict[str, Any] = {"ranks": ranks, "ranks_per_node": 2, "timeout": LIMIT, "name": "gang", **more}
        return self.session.submit(ph.TaskDescription(executable=executable, arguments=list(arguments), **fields))

    def ranks(self) -> list[psutil.Process]:
        """Whatever runs of a task, on all nodes: they share this machine's processes."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
            except (psutil.Error, OSError):
                continue
            if "PILOT_HITL_ATTEMPT" in variables and variables.get("PILOT_HITL_HOME") == os.environ["PILOT_HITL_HOME"]:
                found.append(process)
        return found


def until(condition: Callable[[], object], patience: float = 40.0) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(slurm_nodes: Cluster) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="phr"))
    before = dict(os.environ)
    os.environ.update(slurm_nodes.environment)
    os.environ.update(PILOT_HITL_HOME=str(folder / "home"), XDG_RUNTIME_DIR=str(folder))
    try:
        with ph.Session("ranks", on_exit="stop") as session:
            session.submit_pilot(ph.PilotDescription(resource="slurm", nodes=NODES, runtime=10))
            yield Site(slurm_nodes, session, folder)
    finally:
        os.environ.clear()
        os.environ.update(before)
        slurm_nodes.cancel_all()
        slurm_nodes.wait_idle()
        shutil.rmtree(folder, ignore_errors=True)


def check_hello(stdout: str, ranks: int = 6) -> None:
    """One program of all ranks, two a node in order of nodes, each of which knows who it is."""
    words = sorted((line.split() for line in stdout.splitlines()), key=lambda line: int(line[0]))
    total = str(ranks * (ranks - 1) // 2)
    hosts = [line[3] for line in words]
    assert len(set(hosts)) == ranks // 2
    assert hosts == sorted(hosts)
    for rank, line in enumerate(words):
        assert line == [str(rank), str(ranks), total, hosts[rank], str(rank), str(rank % 2), str(rank // 2), "1"]


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
        assert "rank 4 on n" in str(caught.value)
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
    shells = [each for each in site.ranks() if "PILOT_HITL_RANK" in each.environ() and each.name() == "sh"]
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


def test_a_lost_node_ends_the_ranks_on_the_others(site: Site) -> None:
    """The last test of this file: its pilot is a node short afterwards."""
    up = site.fresh()
    task = site.submit(site.program("openmpi"), str(up), launcher="srun")
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    victim = "n3"
    site.cluster.crash(victim)
    try:
        until(lambda: not site.ranks(), 60)
        # It was nobody's fault, so it is to run again, and waits for three nodes.
        assert not task.done()
        small = site.submit(site.program("openmpi"), ranks=4)
        check_hello(small.result(timeout=LIMIT).stdout, 4)
        task.cancel()
        with pytest.raises(ph.TaskCanceled):
            task.result(timeout=LIMIT)
    finally:
        site.cluster.start_slurmd(victim)
