"""Tasks of several ranks, through a session."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study

SOURCE = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int rank, size, sum;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  printf("rank %d of %d sum %d\n", rank, size, sum);
  fflush(stdout);
  if (argc > 1) { FILE *f = fopen(argv[1], "a"); fputs("up\n", f); fclose(f); sleep(60); }
  MPI_Finalize();
  return 0;
}
"""


@pytest.fixture
def program(study: Study) -> str:
    """An Open MPI program where every node of the pilot sees it."""
    source = study.folder / "hello.c"
    source.write_text(SOURCE)
    compiler = shutil.which("mpicc.openmpi") or "mpicc"
    subprocess.run([compiler, "-o", study.folder / "hello", source], check=True, timeout=60)
    return str(study.folder / "hello")


@pytest.mark.requires("openmpi")
def test_an_mpi_program(study: Study, program: str) -> None:
    with study.session() as session:
        done = session.submit(ph.TaskDescription(executable=program, ranks=2, timeout=60)).result()
        assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 sum 1", "rank 1 of 2 sum 1"]


@pytest.mark.requires("openmpi")
def test_a_canceled_mpi_program_gives_its_cores_back(study: Study, program: str) -> None:
    with study.session() as session:
        up = study.folder / "up"
        task = session.submit(ph.TaskDescription(executable=program, arguments=[str(up)], ranks=2, timeout=90))
        limit = time.monotonic() + 60
        while len(study.lines("up")) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        task.cancel()
        with pytest.raises(ph.TaskCanceled):
            task.result(timeout=30)
        # Both of its cores: this one needs them.
        assert session.submit(ph.TaskDescription(executable="/bin/true", ranks=2)).result(timeout=30).exit_code == 0


@pytest.mark.one_node("local ranks are counted on each node")
def test_ranks_without_mpi_are_started_directly(study: Study) -> None:
    with study.session() as session:
        command = "echo $PILOT_HITL_RANK/$PILOT_HITL_RANKS $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $OMP_NUM_THREADS"
        task = ph.TaskDescription(executable="/bin/sh", arguments=["-c", command], ranks=2)
        lines = sorted(session.submit(task).result().stdout.splitlines())
        assert [line.split()[:3] for line in lines] == [["0/2", "0/2", "0"], ["1/2", "1/2", "1"]]
        assert len({line.split()[3] for line in lines}) == 1


def test_a_launcher_that_is_not_there_is_one_clear_error(study: Study) -> None:
    with study.session() as session:
        nowhere = {"PATH": str(study.folder)}
        task = ph.TaskDescription(executable="/bin/true", ranks=2, launcher="flux", environment=nowhere, retries=3)
        with pytest.raises(ph.TaskFailed, match=r"flux is not in the task's PATH .*launcher=\"fork\""):
            session.submit(task).result(timeout=30)
