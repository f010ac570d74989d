"""From nothing to the first result, and what the runtime costs while nothing happens."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import nothing, session_with, temporary_home
from pilot_hitl_benchmarks.processes import KINDS, cpu_seconds, pss_mb
from pilot_hitl_benchmarks.reports import LOW, Report, Sizes, Target, measure_pairs

IDLE = 5.0
"""Seconds over which an idle runtime is watched."""
PATIENCE = 60.0

OURS = """
import time
began = time.monotonic()
import json, sys
import pilot_hitl as ph
from operator import neg
with ph.Session("bench", home=sys.argv[1]) as session:
    session.submit_pilot(ph.PilotDescription(resource="local", cores=int(sys.argv[2])))
    session.call(neg, 1).result(60)
    print(json.dumps([began, time.monotonic()]), flush=True)
"""
POOL = """
import time
began = time.monotonic()
import json, sys
from concurrent.futures import ProcessPoolExecutor
from operator import neg
with ProcessPoolExecutor(int(sys.argv[2])) as pool:
    pool.submit(neg, 1).result(60)
    print(json.dumps([began, time.monotonic()]), flush=True)
"""


def run(sizes: Sizes, idle: float = IDLE) -> list[Report]:
    """Measure fresh processes with fresh homes. ``sizes.tasks`` is not used: one call is enough."""
    inside: list[float] = []
    pairs = measure_pairs(sizes.pairs, lambda: _cold(OURS, sizes.cores, inside), lambda: _cold(POOL, sizes.cores, []))
    report = Report(
        "startup",
        "s",
        "a fresh process with ProcessPoolExecutor, to its first result",
        {"tasks": 1, "pairs": len(pairs), "cores": sizes.cores},
        pairs,
    )
    memory, cpu = _idle(sizes, idle)
    report.more = {
        "without_interpreter_s": median(inside),
        "idle_pss_mb": round(sum(memory.values()), 1),
        "idle_cpu_percent": round(cpu, 3),
        "idle_seconds": idle,
        **{f"idle_pss_mb_{kind}": round(memory[kind], 1) for kind in KINDS[1:]},
    }
    report.targets = [
        Target("cold start to the first result", "s", LOW, 1.2, 0.7, report.ours),
        Target("idle memory, all our processes", "MB (PSS)", LOW, 150, 100, report.more["idle_pss_mb"]),
        Target("idle CPU, all our processes", "% of a core", LOW, 1.0, 0.2, report.more["idle_cpu_percent"]),
    ]
    return [report]


def _cold(script: str, cores: int, inside: list[float]) -> float:
    """Return the seconds from before a process is started until its first result."""
    with temporary_home() as home:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, str(home), str(cores)], stdout=subprocess.PIPE, check=True, timeout=PATIENCE
        )
        began, ended = json.loads(done.stdout)
    inside.append(ended - began)
    return float(ended - started)


def _idle(sizes: Sizes, seconds: float) -> tuple[dict[str, float], float]:
    """Return PSS by kind and percent of a core, of a runtime that has worked and now waits."""
    with session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, home):
        for future in session.map(nothing, range(200)):
            future.result(PATIENCE)
        session.submit(ph.TaskDescription(executable="/bin/true")).result(PATIENCE)
        time.sleep(min(1.0, seconds))
        before = _runtime_cpu(home)
        began = time.monotonic()
        time.sleep(seconds)
        used = _runtime_cpu(home) - before
        return pss_mb(home), 100 * used / (time.monotonic() - began)


def _runtime_cpu(home: Path) -> float:
    used = cpu_seconds(home)
    return sum(seconds for kind, seconds in used.items() if kind != "client")
