"""A session with one pilot on nodes that are hosts of their own, shared by the tests of a file; MPI programs for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import pilot_hitl as ph
from tests.slurm.cluster import Cluster

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

    def ranks(self, name: str = "", variable: str = "PILOT_HITL_ATTEMPT") -> list[psutil.Process]:
        """Whatever runs of a task, on all nodes: they share this machine's processes."""
        found = []
        for process in psutil.process_iter():
            try:
                variables, called = process.environ(), process.name()
            except (psutil.Error, OSError):
                continue  # it has ended by now
            ours = variables.get("PILOT_HITL_HOME") == os.environ["PILOT_HITL_HOME"]
            if ours and variable in variables and called == (name or called):
                found.append(process)
        return found


def until(condition: Callable[[], object], patience: float = 40.0) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def study_on(cluster: Cluster, nodes: int) -> Iterator[tuple[ph.Session, Path]]:
    """A session with one pilot, and a folder that all nodes see; at the end the cluster is idle."""
    folder = Path(tempfile.mkdtemp(prefix="phr"))
    before = dict(os.environ)
    os.environ.update(cluster.environment)
    os.environ.update(PILOT_HITL_HOME=str(folder / "home"), XDG_RUNTIME_DIR=str(folder))
    try:
        with ph.Session("study", on_exit="stop") as session:
            session.submit_pilot(ph.PilotDescription(resource="slurm", nodes=nodes, runtime=10))
            yield session, folder
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.cancel_all()
        cluster.wait_idle()
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
