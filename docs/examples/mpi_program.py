"""An MPI program as a task: its ranks come up together, on the nodes that the pilot has.

    python mpi_program.py               two ranks on this machine
    python mpi_program.py slurm 3       six ranks on three nodes of a Slurm cluster

The program is C when an MPI compiler is here, else Python with mpi4py. Which launcher starts it (srun with the plug-in
that its MPI understands, mpirun, mpiexec) is found out from the program and from what the nodes have.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pilot_hitl as ph

C_SOURCE = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
  long count = argc > 1 ? atol(argv[1]) : 1000000;
  int rank, size;
  char host[256];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  gethostname(host, sizeof host);
  double part = 0.0, pi = 0.0;
  for (long i = rank; i < count; i += size) {
    double x = (i + 0.5) / count;
    part += 4.0 / (1.0 + x * x);
  }
  MPI_Reduce(&part, &pi, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  printf("rank %d of %d on %s, %s thread(s)\n", rank, size, host, getenv("OMP_NUM_THREADS"));
  fflush(stdout);
  MPI_Barrier(MPI_COMM_WORLD);
  if (rank == 0) printf("pi is %.12f\n", pi / count);
  MPI_Finalize();
  return 0;
}
"""
PYTHON_SOURCE = """
import os, sys, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
count = int(sys.argv[1])
part = sum(4.0 / (1.0 + ((i + 0.5) / count) ** 2) for i in range(world.rank, count, world.size))
pi = world.reduce(part)
threads = os.environ["OMP_NUM_THREADS"]
print(f"rank {world.rank} of {world.size} on {socket.gethostname()}, {threads} thread(s)", flush=True)
world.Barrier()
if world.rank == 0:
    print(f"pi is {pi / count:.12f}")
"""


def build(folder: Path) -> list[str]:
    """Return the program's command, made in a folder that all nodes see."""
    compiler = shutil.which("mpicc")
    if compiler is None:
        script = folder / "pi.py"
        script.write_text(PYTHON_SOURCE)
        return [sys.executable, str(script)]
    source = folder / "pi.c"
    source.write_text(C_SOURCE)
    subprocess.run([compiler, "-O2", "-o", folder / "pi", source], check=True)
    return [str(folder / "pi")]


def main(resource: str = "local", nodes: str = "1") -> None:
    """Run it once, and once more with the number of points that it is given."""
    count = int(nodes)
    with ph.Session("mpi-program", fresh=True) as session:
        if resource == "local":
            session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        else:
            session.submit_pilot(ph.PilotDescription(resource=resource, nodes=count, runtime=10))
        program, *arguments = build(session.folder)
        done = [
            session.submit(
                ph.TaskDescription(
                    executable=program,
                    arguments=[*arguments, str(points)],
                    name=f"pi-{points}",
                    ranks=2 * count,
                    ranks_per_node=2,
                    timeout=60,
                )
            )
            for points in (1000, 1_000_000)
        ]
        for future in done:
            print(*sorted(future.result().stdout.splitlines(), reverse=True), sep="\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
