"""A distributed solver, called a thousand times: each call runs on several ranks that started once.

    python distributed_solver.py                 1000 calls on two ranks of this machine
    python distributed_solver.py 200 slurm 3     200 calls on six ranks over three nodes of a Slurm cluster

Each call solves a Poisson equation with a heat source somewhere else, by conjugate gradients: the rows of the grid are
dealt out to the ranks, which exchange the rows at their edges. It takes mpi4py: pip install 'pilot-hitl[mpi]'.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import pilot_hitl as ph

if TYPE_CHECKING:
    from mpi4py import MPI

Grid = npt.NDArray[np.float64]
SIZE = 24


def apply(comm: MPI.Intracomm, u: Grid) -> Grid:
    """Return minus the Laplacian of the rows of this rank; ``u`` has a row more on either side for the neighbours'."""
    above = comm.rank - 1
    below = comm.rank + 1 if comm.rank + 1 < comm.size else -1
    wishes = [comm.isend(u[1], above, tag=1)] if above >= 0 else []
    wishes += [comm.isend(u[-2], below, tag=2)] if below >= 0 else []
    u[0] = comm.recv(source=above, tag=2) if above >= 0 else 0.0
    u[-1] = comm.recv(source=below, tag=1) if below >= 0 else 0.0
    for wish in wishes:
        wish.wait()
    found = 4.0 * u[1:-1] - u[:-2] - u[2:]
    found[:, 1:] -= u[1:-1, :-1]
    found[:, :-1] -= u[1:-1, 1:]
    return found


def solve(comm: MPI.Intracomm, where: float) -> tuple[float, int, list[str]]:
    """Return the warmest place's temperature, the iterations, and who worked on it."""
    mine = np.array_split(np.arange(SIZE), comm.size)[comm.rank]
    rows = (mine[:, None] + 1) / (SIZE + 1)
    columns = (np.arange(SIZE)[None, :] + 1) / (SIZE + 1)
    residual = np.exp(-100 * ((rows - where) ** 2 + (columns - 0.5) ** 2))
    u = np.zeros_like(residual)
    direction = np.zeros((len(mine) + 2, SIZE))
    direction[1:-1] = residual
    rho = first = comm.allreduce(float(np.vdot(residual, residual)))
    iterations = 0
    while rho > 1e-8 * first:
        product = apply(comm, direction)
        alpha = rho / comm.allreduce(float(np.vdot(direction[1:-1], product)))
        u += alpha * direction[1:-1]
        residual -= alpha * product
        before, rho = rho, comm.allreduce(float(np.vdot(residual, residual)))
        direction[1:-1] = residual + rho / before * direction[1:-1]
        iterations += 1
    warmest = max(comm.allgather(float(u.max())))
    workers = comm.allgather(f"{socket.gethostname()}:{os.getpid()}")
    return warmest, iterations, workers


def main(calls: str = "1000", resource: str = "local", nodes: str = "1") -> None:
    """Solve for sources from one edge to the other."""
    count, ranks = int(calls), 2 * int(nodes)
    with ph.Session("distributed-solver", fresh=True) as session:
        if resource == "local":
            session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        else:
            session.submit_pilot(ph.PilotDescription(resource=resource, nodes=int(nodes), runtime=10))
        mpi = session.options(ranks=ranks, ranks_per_node=2, timeout=60)
        mpi.call(solve, 0.5).result()
        began = time.monotonic()
        found = mpi.map(solve, np.linspace(0.05, 0.95, count).tolist()).results()
        took = time.monotonic() - began
    warmest = max(found)[0]
    workers = sorted({worker for _, _, together in found for worker in together})
    steps = sum(iterations for _, iterations, _ in found)
    print(f"{count} solves on {ranks} ranks, {steps} iterations; the warmest place has {warmest:.3f}")
    print(f"{1000 * took / count:.1f} ms each, by {len(workers)} processes: {', '.join(workers)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
