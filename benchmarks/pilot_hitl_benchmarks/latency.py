"""One call at a time, beside a bare ZeroMQ round trip over the same kind of socket."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Self

import zmq

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import nothing, session_with
from pilot_hitl_benchmarks.processes import cpu_between, cpu_seconds
from pilot_hitl_benchmarks.reports import LOW, Report, Sizes, Target, measure_pairs

TASKS = 300
PATIENCE_MS = 20_000


def run(sizes: Sizes) -> list[Report]:
    """Measure medians of so many round trips each."""
    tasks = sizes.tasks_or(TASKS)
    every: list[float] = []
    with session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, home):
        _ours(session, min(tasks, 50), [])
        with Echo() as echo:
            echo.round_trips(min(tasks, 50))
            before = cpu_seconds(home)
            pairs = measure_pairs(
                sizes.pairs, lambda: _ours(session, tasks, every), lambda: median(echo.round_trips(tasks)) * 1e3
            )
            cpu = cpu_between(before, cpu_seconds(home), tasks * len(pairs))
            del cpu["client"]  # It is the limit's client as well.
    report = Report(
        "latency",
        "ms",
        "bare ZeroMQ DEALER and ROUTER over ipc with CURVE, two processes",
        {"tasks": tasks, "pairs": len(pairs), "cores": sizes.cores},
        pairs,
        cpu_us=cpu,
        more={"p99_ms": quantiles(every, n=100)[98] * 1e3 if len(every) > 1 else every[0] * 1e3},
    )
    report.targets = [Target("one call at a time, median", "ms", LOW, 1.2, 0.5, report.ours)]
    return [report]


def _ours(session: ph.Session, tasks: int, every: list[float]) -> float:
    took = []
    for number in range(tasks):
        began = time.perf_counter()
        session.call(nothing, number).result(PATIENCE_MS / 1000)
        took.append(time.perf_counter() - began)
    every.extend(took)
    return median(took) * 1e3


class Echo:
    """A process that sends every message back, and a socket to it."""

    def __init__(self) -> None:
        """Start at ``with``; the socket has no file, so no path can be too long."""
        self._endpoint = f"ipc://@pilot-hitl-bench-{secrets.token_hex(8)}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def __enter__(self) -> Self:
        public, secret = zmq.curve_keypair()
        mine, own_secret = zmq.curve_keypair()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bare.py")), "echo", self._endpoint, secret.decode()]
        )
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, public)
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, mine)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, own_secret)
        self._socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(self._endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
        self._process.kill()
        self._process.wait()

    def round_trips(self, count: int) -> list[float]:
        """Return the seconds of so many round trips."""
        took = []
        for _ in range(count):
            began = time.perf_counter()
            self._socket.send(b"x" * 100)
            self._socket.recv()
            took.append(time.perf_counter() - began)
        return took
