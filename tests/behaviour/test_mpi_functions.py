"""MPI functions as a script sees them: ``session.options(ranks=…).call(f, x)``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for

if TYPE_CHECKING:
    from mpi4py import MPI

pytestmark = pytest.mark.requires("openmpi", "mpi4py")


def total(comm: MPI.Intracomm, x: float) -> float:
    found: float = comm.allreduce(x * (comm.rank + 1))
    return found


def deep(x: int) -> tuple[int, int]:
    comm = ph.current_comm()
    return x, len(comm.allgather(os.getpid()))


def pids(comm: MPI.Intracomm) -> list[int]:
    return comm.allgather(os.getpid())


def refuse(comm: MPI.Intracomm) -> None:
    if comm.rank == 1:
        raise LookupError("no such value")
    comm.barrier()


def die(comm: MPI.Intracomm, log: str) -> int:
    append(log, comm.rank)
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()
    return comm.size


def stay(comm: MPI.Intracomm, log: str) -> None:
    Path(f"{log}.{comm.rank}").write_text(str(os.getpid()))
    time.sleep(120)


def size_of(comm: MPI.Intracomm, data: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, np.ndarray]:
    return float(comm.allreduce(float(data.sum()))), data * 2


def test_values_arguments_and_dependencies(study: Study) -> None:
    with study.session() as session:
        mpi = session.options(ranks=2)
        assert mpi.call(total, 2.0).result() == 6.0
        assert mpi.call(total, mpi.call(total, 1.0)).result() == 9.0
        assert mpi.map(total, [1.0, 2.0, 3.0]).results() == [3.0, 6.0, 9.0]
        assert mpi.call(deep, 4).result() == (4, 2)
        large = np.arange(100_000.0)
        found, doubled = mpi.call(size_of, large).result()
        assert found == 2 * large.sum()
        assert (doubled == 2 * large).all()
        assert session.call(pow, 2, 3).result() == 8


def test_one_rank_has_no_communicator() -> None:
    with pytest.raises(ph.PilotHitlError, match="ranks"):
        ph.current_comm()


@pytest.mark.long
@pytest.mark.one_node("the tracebacks of the ranks of one node are told together")
def test_errors_name_rank_and_host(study: Study) -> None:
    with study.session() as session:
        mpi = session.options(ranks=2)
        before = mpi.call(pids).result()
        with pytest.raises(LookupError, match="no such value") as caught:
            mpi.call(refuse).result(30)
        assert "--- rank 1 on " in str(caught.value.__cause__)
        assert "--- rank 0 on " in str(caught.value.__cause__)
        with pytest.raises(ph.WorkerDied, match="rank 1 of 2 was killed by signal 9"):
            mpi.call(die, str(study.folder / "log")).result(30)
        with pytest.raises(ph.WorkerDied):
            session.options(ranks=2, retries=1).call(die, str(study.folder / "again")).result(30)
        # A lost worker may be another call's fault, so the first one costs no retry.
        assert len(study.lines("again")) == 6
        assert not set(before) & set(mpi.call(pids).result())


def test_cancel_and_timeout_end_all_ranks(study: Study) -> None:
    log = study.folder / "stay"
    with study.session() as session:
        task = session.options(ranks=2, grace=0.2).call(stay, str(log))
        wait_for(lambda: Path(f"{log}.0").exists() and Path(f"{log}.1").exists(), "both ranks run")
        assert task.cancel()
        with pytest.raises(ph.TaskCanceled):
            task.result(30)
        with pytest.raises(ph.TaskTimeout):
            session.options(ranks=2, timeout=2.0, grace=0.1).call(stay, str(study.folder / "late")).result(30)
        assert session.options(ranks=2).call(total, 1.0).result(30) == 3.0


def test_the_next_run_finds_results_of_as_many_ranks_only(study: Study) -> None:
    script = """
        def ask(comm, log):
            if comm.rank == 0:
                with open(log, "a") as file:
                    file.write(f"{comm.size}\\n")
            return comm.size

        with ph.Session("again") as session:
            session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=3, runtime=10))
            for ranks in map(int, sys.argv[1:]):
                print(session.options(ranks=ranks).call(ask, FOLDER + "/log").result())
    """
    assert study.run(script, "2").split() == ["2"]
    assert study.run(script, "2", "3").split() == ["2", "3"]
    assert study.lines("log") == ["2", "3"]
