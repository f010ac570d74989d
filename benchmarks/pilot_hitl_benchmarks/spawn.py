"""Executables a second, with captured output, beside bare ``posix_spawn`` loops that capture in the same way."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import session_with
from pilot_hitl_benchmarks.processes import cpu_between, cpu_seconds
from pilot_hitl_benchmarks.reports import HIGH, Report, Sizes, Target, measure_pairs

TASKS = 1000
PROGRAM = "/bin/true"
PATIENCE = 120.0


def run(sizes: Sizes) -> list[Report]:
    """Measure; the limit is one loop a core."""
    tasks = sizes.tasks_or(TASKS)
    with session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, home):
        _ours(session, min(tasks, 20 * sizes.cores))
        with tempfile.TemporaryDirectory(prefix="pilot-hitl-bench-") as folder:
            before = cpu_seconds(home)
            pairs = measure_pairs(
                sizes.pairs, lambda: _ours(session, tasks), lambda: bare(tasks, sizes.cores, Path(folder))
            )
            cpu = cpu_between(before, cpu_seconds(home), tasks * len(pairs))
    report = Report(
        "spawn",
        "executables/s",
        f"{sizes.cores} processes, each a bare posix_spawn loop with setsid and both outputs to an append log",
        {"tasks": tasks, "pairs": len(pairs), "cores": sizes.cores},
        pairs,
        cpu_us=cpu,
    )
    report.targets = [Target("of the bare loops", "ratio", HIGH, 0.70, 0.85, report.ratio)]
    return [report]


def _ours(session: ph.Session, tasks: int) -> float:
    description = ph.TaskDescription(executable=PROGRAM)
    began = time.perf_counter()
    for future in session.submit([description] * tasks):
        future.result(PATIENCE)
    return tasks / (time.perf_counter() - began)


def bare(tasks: int, processes: int, folder: Path) -> float:
    """Return how many programs a second bare loops start and wait for; ``tasks`` over all loops together."""
    bare_script = str(Path(__file__).with_name("bare.py"))
    share = -(-tasks // processes)
    loops = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", bare_script, "loop", str(share), PROGRAM, str(folder / f"loop-{number}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(processes)
    ]
    try:
        for each in loops:
            _word(each)
        began = time.perf_counter()
        for each in loops:
            _say(each)
        for each in loops:
            _word(each)
        return share * processes / (time.perf_counter() - began)
    finally:
        for each in loops:
            each.kill()
            each.communicate()


def _word(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError("a bare loop ended early")


def _say(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.write(b"go\n")
        process.stdin.flush()
