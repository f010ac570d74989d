"""Tasks a second through all processes when nothing runs, on 64 pretended nodes."""

from __future__ import annotations

import time
from statistics import median

import pilot_hitl as ph
from pilot_hitl_benchmarks import core
from pilot_hitl_benchmarks.places import nothing, session_with
from pilot_hitl_benchmarks.processes import cpu_between, cpu_seconds, forget_peak, peak_mb
from pilot_hitl_benchmarks.reports import HIGH, LOW, Report, Sizes, Target, measure_pairs

TASKS = 50_000
NODES = 64
CORES = 64
"""Of each pretended node."""
ALONE = 50_000
PATIENCE = 600.0


def run(sizes: Sizes) -> list[Report]:
    """Measure; the limit is the scheduling core alone, with mixed work on as many nodes."""
    tasks = sizes.tasks_or(TASKS)
    pilot = ph.PilotDescription(resource="local", noop=True, simulated_nodes=NODES, cores=NODES * CORES)
    alone = min(tasks, ALONE)
    cpu: list[dict[str, float]] = []
    with session_with(pilot) as (session, home):
        _ours(session, min(tasks, 1000))
        forget_peak()

        def ours() -> float:
            before = cpu_seconds(home)
            rate = _ours(session, tasks)
            cpu.append(cpu_between(before, cpu_seconds(home), tasks))
            return rate

        def limit() -> float:
            return float(core.rate(NODES, queued=2 * alone, completions=alone)["per_second"])

        pairs = measure_pairs(sizes.pairs, ours, limit)
        peak = peak_mb()
    report = Report(
        "noop",
        "tasks/s",
        f"the scheduling core alone, mixed work on {NODES} nodes",
        {"tasks": tasks, "pairs": len(pairs), "nodes": NODES, "cores": NODES * CORES},
        pairs,
        cpu_us={kind: median(one[kind] for one in cpu) for kind in cpu[0]},
        more={"client_peak_mb": round(peak, 1)},
    )
    report.targets = [
        Target("through all processes", "tasks/s", HIGH, 15_000, 30_000, report.ours),
        Target("memory of the client, peak", "MB", LOW, 1_000, 500, peak),
    ]
    return [report]


def _ours(session: ph.Session, tasks: int) -> float:
    began = time.perf_counter()
    for future in session.map(nothing, range(tasks)):
        future.result(PATIENCE)
    return tasks / (time.perf_counter() - began)
