"""MPI functions over several nodes of a real Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for
from tests.slurm.cluster import Cluster

if TYPE_CHECKING:
    from mpi4py import MPI

pytestmark = pytest.mark.requires("slurm", "netns", "openmpi", "mpi4py")


@pytest.fixture
def two(slurm_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Study, ph.Session]]:
    """A session with a pilot of two nodes, at whose end nothing may be left."""
    base = Path(tempfile.mkdtemp(prefix="phs"))
    study = Study(base, "slurm")
    for name, value in {**study.environment, "SLURM_CONF": str(slurm_nodes.conf)}.items():
        monkeypatch.setenv(name, value)
    try:
        with ph.Session("mpi") as session:
            study.opened.append(session)
            session.submit_pilot(ph.PilotDescription(resource="slurm", nodes=2, runtime=10))
            yield study, session
        left = study.finish()
        assert not left, "left behind:\n" + "\n".join(left)
    finally:
        study.finish()
        shutil.rmtree(base, ignore_errors=True)


def who(comm: MPI.Intracomm) -> list[tuple[int, str, int]]:
    return comm.allgather((comm.rank, socket.gethostname(), os.getpid()))


def total(comm: MPI.Intracomm, x: int) -> tuple[int, int]:
    return comm.rank, comm.allreduce(x)


def marks(comm: MPI.Intracomm) -> list[tuple[str, str, str]]:
    names = ("PILOT_HITL_MARK", "LOCAL_RANK", "MASTER_ADDR")
    return comm.allgather(tuple(os.environ[name] for name in names))


def fail(comm: MPI.Intracomm, which: int) -> None:
    if comm.rank == which:
        raise LookupError(f"nothing on {which}")
    comm.barrier()


def refuse(comm: MPI.Intracomm) -> NoReturn:
    raise LookupError(f"nothing on {comm.rank}")


def die(comm: MPI.Intracomm, which: int) -> None:
    comm.barrier()
    if comm.rank == which:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def stay(comm: MPI.Intracomm, log: str) -> None:
    append(log, comm.rank)
    time.sleep(120)


def test_calls_over_two_nodes(two: tuple[Study, ph.Session]) -> None:
    study, session = two
    mpi = session.options(ranks=4, ranks_per_node=2, timeout=60)
    first: list[Any] = mpi.call(who).result(60)
    assert [(rank, host) for rank, host, _ in first] == [(0, "n1"), (1, "n1"), (2, "n2"), (3, "n2")]
    # The value is that of rank 0, and all calls run in one group.
    assert [mpi.call(total, x).result(60) for x in range(50)] == [(0, 4 * x) for x in range(50)]
    assert mpi.call(who).result(60) == first
    facts = mpi.call(marks).result(60)
    assert [mark.rpartition("/")[2] for mark, _, _ in facts] == ["0", "0", "1", "1"]
    assert [local for _, local, _ in facts] == ["0", "1", "0", "1"]
    assert len({address for _, _, address in facts}) == 1

    with pytest.raises(LookupError, match="nothing on 3") as caught:
        mpi.call(fail, 3).result(60)
    assert "--- rank 3 on n2" in str(caught.value.__cause__)
    with pytest.raises(LookupError, match="nothing on"):
        mpi.call(refuse).result(60)
    second = mpi.call(who).result(60)
    assert not {pid for _, _, pid in second} & {pid for _, _, pid in first}

    task = session.options(ranks=4, ranks_per_node=2, grace=0.2).call(stay, str(study.folder / "log"))
    wait_for(lambda: len(study.lines("log")) == 4, "all ranks run")
    assert task.cancel()
    with pytest.raises(ph.TaskCanceled):
        task.result(30)
    assert len(mpi.call(who).result(60)) == 4


def test_a_rank_that_dies_on_any_node_is_named(two: tuple[Study, ph.Session]) -> None:
    _, session = two
    mpi = session.options(ranks=4, ranks_per_node=2, timeout=60)
    for rank, host in ((3, "n2"), (0, "n1")):
        with pytest.raises(ph.WorkerDied, match=rf"rank {rank} of 4 .*killed by signal 9") as died:
            mpi.call(die, rank).result(60)
        assert died.value.host == host
    assert len(mpi.call(who).result(60)) == 4
