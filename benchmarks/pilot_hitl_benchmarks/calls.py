"""Function calls a second, one future each and as a map, beside ``ProcessPoolExecutor``."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import nothing, session_with
from pilot_hitl_benchmarks.processes import cpu_between, cpu_seconds
from pilot_hitl_benchmarks.reports import HIGH, Report, Sizes, Target, measure_pairs

CALLS = 20_000
MAP = 200_000
CHUNK = 100
PATIENCE = 300.0


def run(sizes: Sizes) -> list[Report]:
    """Measure both ways of calling. ``sizes.tasks`` is the number of single calls; the map has ten times as many."""
    calls = sizes.tasks_or(CALLS)
    many = calls * 10 if sizes.tasks else MAP
    context = multiprocessing.get_context("forkserver")
    with (
        session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, home),
        ProcessPoolExecutor(sizes.cores, mp_context=context) as pool,
    ):
        _single(session, min(calls, 100 * sizes.cores))
        _pool_single(pool, 100 * sizes.cores)
        before = cpu_seconds(home)
        pairs = measure_pairs(sizes.pairs, lambda: _single(session, calls), lambda: _pool_single(pool, calls))
        single = Report(
            "calls",
            "calls/s",
            "ProcessPoolExecutor.submit, one future each",
            {"tasks": calls, "pairs": len(pairs), "cores": sizes.cores},
            pairs,
            cpu_us=_cpu(home, before, calls * len(pairs)),
        )
        single.targets = [Target("calls with a future each", "calls/s", HIGH, 6_000, 12_000, single.ours)]
        before = cpu_seconds(home)
        pairs = measure_pairs(sizes.pairs, lambda: _map(session, many), lambda: _pool_map(pool, many))
        bulk = Report(
            "map",
            "calls/s",
            f"ProcessPoolExecutor.map, chunksize {CHUNK}",
            {"tasks": many, "pairs": len(pairs), "cores": sizes.cores},
            pairs,
            cpu_us=_cpu(home, before, many * len(pairs)),
        )
        bulk.targets = [Target("calls of a map", "calls/s", HIGH, 50_000, 200_000, bulk.ours)]
    return [single, bulk]


def _cpu(home: Path, before: dict[str, float], tasks: int) -> dict[str, float]:
    # The limit runs in this process too: its part of the client is not ours, and is left out by leaving out both.
    used = cpu_between(before, cpu_seconds(home), tasks)
    del used["client"]
    return used


def _single(session: ph.Session, calls: int) -> float:
    began = time.perf_counter()
    for future in [session.call(nothing, number) for number in range(calls)]:
        future.result(PATIENCE)
    return calls / (time.perf_counter() - began)


def _map(session: ph.Session, calls: int) -> float:
    began = time.perf_counter()
    for future in session.map(nothing, range(calls)):
        future.result(PATIENCE)
    return calls / (time.perf_counter() - began)


def _pool_single(pool: ProcessPoolExecutor, calls: int) -> float:
    began = time.perf_counter()
    for future in [pool.submit(nothing, number) for number in range(calls)]:
        future.result(PATIENCE)
    return calls / (time.perf_counter() - began)


def _pool_map(pool: ProcessPoolExecutor, calls: int) -> float:
    began = time.perf_counter()
    for _ in pool.map(nothing, range(calls), chunksize=CHUNK):
        pass
    return calls / (time.perf_counter() - began)
