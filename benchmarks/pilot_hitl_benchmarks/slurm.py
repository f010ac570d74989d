"""Pilots on the Slurm that is here, beside what a user would do with Slurm or MPI alone, in the same run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pilot_hitl as ph
from pilot_hitl_benchmarks.crowd import Crowd
from pilot_hitl_benchmarks.places import nothing, temporary_home
from pilot_hitl_benchmarks.processes import cpu_between, cpu_seconds
from pilot_hitl_benchmarks.reports import HIGH, LOW, Report, Sizes, Target, measure_pairs
from pilot_hitl_benchmarks.slurmpeers import Allocation, NoSlurm, array_rate, idle_nodes, sbatch_rate

TASKS = 2000
PROGRAM = "/bin/true"
PATIENCE = 120.0
LEASE = 10.0
MINUTES = 15
PAIRS = 3
"""At most: some of what Slurm alone does takes long."""
SRUNS = (1, 2, 4, 8, 16)
RANKS = 2
CALLS = 200
MEMBERS = (1, 16, 256)
NOOPS = 20_000


def run(sizes: Sizes) -> list[Report]:
    """Measure on all nodes that are idle now, at most four.

    Raises:
        NoSlurm: there is no Slurm here, or no node is idle; the message says what to do.
    """
    nodes, cores = idle_nodes()
    nodes = min(nodes, 4)
    pairs = min(sizes.pairs, PAIRS)
    return [
        _ready(nodes, pairs),
        _launch(nodes, cores, sizes.tasks_or(TASKS), pairs),
        *_function(pairs),
        _many_members(pairs, sizes.tasks_or(NOOPS)),
    ]


@contextmanager
def pilot_on(nodes: int, **more: Any) -> Iterator[tuple[ph.Session, Path, float]]:
    """Yield a session with a pilot on so many whole nodes, its home, and the seconds until all daemons were ready."""
    description = ph.PilotDescription(
        resource="slurm", nodes=nodes, exclusive=True, runtime=MINUTES, lease=LEASE, **more
    )
    with temporary_home() as home, ph.Session("bench", home=home) as session:
        began = time.perf_counter()
        pilot = session.submit_pilot(description)
        pilot.wait_ready(PATIENCE)
        took = time.perf_counter() - began
        if len(pilot.nodes) != nodes:
            raise NoSlurm(f"{len(pilot.nodes)} of {nodes} nodes came within {PATIENCE:g} s; see sinfo")
        yield session, home, took


def _ready(nodes: int, count: int) -> Report:
    def ours() -> float:
        with pilot_on(nodes) as (_session, _home, took):
            return took

    def limit() -> float:
        began = time.perf_counter()
        command = ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", "--exclusive", "--quiet", PROGRAM]
        subprocess.run(command, check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        return time.perf_counter() - began

    pairs = measure_pairs(count, ours, limit)
    report = Report(
        "slurm-ready",
        "s",
        f"one srun of {PROGRAM} on as many nodes, from its call to its end",
        {"tasks": nodes, "pairs": len(pairs), "nodes": nodes},
        pairs,
    )
    report.targets = [Target("submit to all node daemons ready", "s", LOW, 10.0, 3.0, report.ours)]
    return report


def _launch(nodes: int, cores: int, tasks: int, count: int) -> Report:
    by_width: dict[int, list[float]] = {width: [] for width in SRUNS}
    arrays, singles = [], []
    cpu: list[dict[str, float]] = []

    def ours() -> float:
        with pilot_on(nodes) as (session, home, _took):
            _stream(session, min(tasks, 20 * cores))
            before = cpu_seconds(home)
            rate = _stream(session, tasks)
            cpu.append(cpu_between(before, cpu_seconds(home), tasks))
            return rate

    def limit() -> float:
        with Allocation(nodes) as allocation:
            for width in SRUNS:
                by_width[width].append(allocation.srun_rate(width, PROGRAM))
        arrays.append(array_rate(PROGRAM))
        singles.append(sbatch_rate(PROGRAM))
        return max(rates[-1] for rates in by_width.values())

    pairs = measure_pairs(count, ours, limit)
    report = Report(
        "slurm-launch",
        "tasks/s",
        "the best of 1, 2, 4, 8 and 16 parallel srun in an allocation of as many nodes",
        {"tasks": tasks, "pairs": len(pairs), "nodes": nodes, "cores": cores * nodes},
        pairs,
        cpu_us={kind: median(one[kind] for one in cpu) for kind in cpu[0]},
        more={"array_per_second": median(arrays), "sbatch_per_second": median(singles)},
        facts={"srun_per_second": {str(width): median(rates) for width, rates in by_width.items()}},
    )
    report.targets = [
        Target("of the best parallel srun", "times", HIGH, 12, 20, report.ratio),
        Target("of a job array", "times", HIGH, 25, 50, report.ours / median(arrays)),
        Target("of single sbatch", "times", HIGH, 10, 40, report.ours / median(singles)),
    ]
    return report


def _stream(session: ph.Session, tasks: int) -> float:
    description = ph.TaskDescription(executable=PROGRAM)
    began = time.perf_counter()
    for future in session.submit([description] * tasks):
        future.result(PATIENCE)
    return tasks / (time.perf_counter() - began)


# --- MPI functions ----------------------------------------------------------------------------------------------------


def total(comm: Any, value: int) -> int:
    """Return the sum of ``value`` over all ranks."""
    return int(comm.allreduce(value))


SCRIPT = "from mpi4py import MPI; MPI.COMM_WORLD.allreduce(3)"


def _function(count: int) -> list[Report]:
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise NoSlurm("there is no mpirun to compare MPI functions with: install Open MPI, or load its module")
    with pilot_on(1) as (session, _home, _took):
        calls = session.options(ranks=RANKS)
        if calls.call(total, value=3).result(PATIENCE) != 3 * RANKS:
            raise NoSlurm("an MPI function of two ranks does not count to two: see `pilot-hitl doctor`")

        def ours() -> float:
            took = []
            for _ in range(CALLS):
                began = time.perf_counter()
                calls.call(total, value=3).result(PATIENCE)
                took.append(time.perf_counter() - began)
            return median(took) * 1e3

        def limit() -> float:
            command = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", str(RANKS), sys.executable, "-c", SCRIPT]
            took = []
            for _ in range(3):
                began = time.perf_counter()
                subprocess.run(command, check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
                took.append(time.perf_counter() - began)
            return median(took) * 1e3

        pairs = measure_pairs(count, ours, limit)
    report = Report(
        "slurm-mpi-function",
        "ms",
        f"a bare mpirun of {RANKS} ranks of the same function",
        {"tasks": CALLS, "pairs": len(pairs), "ranks": RANKS},
        pairs,
    )
    report.targets = [Target("faster than a bare mpirun", "times", HIGH, 20, 100, 1 / report.ratio)]
    return [report]


# --- many nodes on one agent ------------------------------------------------------------------------------------------


def _many_members(count: int, tasks: int) -> Report:
    rates: dict[int, list[float]] = {members: [] for members in MEMBERS}
    agent: dict[int, list[float]] = {members: [] for members in MEMBERS}
    gathered: list[float] = []

    def stream(members: int) -> float:
        with pilot_on(1, noop=True) as (session, home, _took), Crowd(home, "bench", members - 1) as crowd:
            if members == MEMBERS[-1]:
                gathered.append(crowd.gathered)
            _calls(session, min(tasks, 2000))
            before = cpu_seconds(home)
            rate = _calls(session, tasks)
            rates[members].append(rate)
            agent[members].append(cpu_between(before, cpu_seconds(home), tasks)["agent"])
            return rate

    def limit() -> float:
        stream(MEMBERS[0])
        return stream(MEMBERS[1])

    pairs = measure_pairs(count, lambda: stream(MEMBERS[-1]), limit)
    per_task = {members: median(used) for members, used in agent.items()}
    report = Report(
        "slurm-members",
        "tasks/s",
        f"the same with {MEMBERS[1]} nodes",
        {"tasks": tasks, "pairs": len(pairs), "nodes": MEMBERS[-1]},
        pairs,
        more={"gathered_s": median(gathered)},
        facts={
            "tasks_per_second": {str(members): median(found) for members, found in rates.items()},
            "agent_us_per_task": {str(members): round(used, 1) for members, used in per_task.items()},
        },
    )
    report.targets = [
        Target(f"agent's CPU a task on {MEMBERS[-1]} nodes to {MEMBERS[1]}", "times", LOW, 2.0, 1.3,
               per_task[MEMBERS[-1]] / per_task[MEMBERS[1]]),
        Target(f"{MEMBERS[-1]} node daemons gathered", "s", LOW, 20.0, 5.0, median(gathered)),
    ]  # fmt: skip
    return report


def _calls(session: ph.Session, tasks: int) -> float:
    began = time.perf_counter()
    for future in session.map(nothing, range(tasks)):
        future.result(PATIENCE)
    return tasks / (time.perf_counter() - began)
