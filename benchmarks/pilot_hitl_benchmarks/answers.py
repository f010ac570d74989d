"""From an accepted answer to the first instruction of what it made needed, while every core speculates on another one.

Promise P1: at most 20 ms to the agent's knowing and 50 ms more until the continuation runs, at the 99th percentile; the
grace comes on top for tasks that ignore SIGTERM. Beside it: killing a process and forking another one, with nothing
around it.
"""

from __future__ import annotations

import os
import signal
import time
from statistics import median, quantiles

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import session_with
from pilot_hitl_benchmarks.reports import LOW, Report, Sizes, Target

ANSWERS = 200
STUBBORN = 50
"""Answers against tasks that ignore SIGTERM: each takes its grace."""
GRACE = 0.2
"""Seconds that those get."""
BOUND = 70.0
PATIENCE = 60.0
LOOK = 0.005


def run(sizes: Sizes) -> list[Report]:
    """Measure tasks that obey SIGTERM, then tasks that ignore it; ``sizes.tasks`` is the number of answers."""
    answers = sizes.tasks_or(ANSWERS)
    stubborn = max(1, min(answers, STUBBORN))
    with session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, _home):
        bench = Bench(session, sizes.cores)
        bench.once(obey=True)
        return [
            _report("answers", "tasks that obey SIGTERM", bench, answers, obey=True),
            _report("answers-stubborn", f"tasks that ignore it, grace {GRACE:g} s", bench, stubborn, obey=False),
        ]


def _report(name: str, what: str, bench: Bench, answers: int, *, obey: bool) -> Report:
    pairs = [(bench.once(obey=obey), kill_and_fork() + (0.0 if obey else GRACE * 1e3)) for _ in range(answers)]
    ours = [mine for mine, _ in pairs]
    p99 = quantiles(ours, n=100)[98] if len(ours) > 1 else ours[0]
    sizes = {"tasks": answers, "cores": bench.cores}
    report = Report(name, "ms", f"kill a process and fork another, nothing around it; {what}", sizes, pairs)
    bound = BOUND if obey else BOUND + GRACE * 1e3
    report.targets = [Target("answer to first instruction, p99", "ms", LOW, bound, bound / 2, p99)]
    report.more = {"p50_ms": median(ours), "p99_ms": p99, "max_ms": max(ours)}
    return report


class Bench:
    """Asks, lets every core speculate on the wrong answer, and gives the other one."""

    def __init__(self, session: ph.Session, cores: int) -> None:
        """Use a session with a pilot of so many cores."""
        self.cores = cores
        self._session = session
        self._numbers = 0

    def once(self, *, obey: bool) -> float:
        """Return the milliseconds from one answer to the first instruction of its continuation."""
        self._numbers += 1
        gate = self._session.checkpoint("go", choices=["stop", "go"], iteration=self._numbers, linger=0.0)
        wrong = gate.branch("stop", probability=0.9).options(grace=5.0 if obey else GRACE)
        guesses = [wrong.call(burn if obey else burn_on, self._numbers) for _ in range(self.cores)]
        right = gate.branch("go", probability=0.1).call(moment, self._numbers)
        self._wait_until_running(guesses)
        gate.respond("go")
        return (right.result(PATIENCE) - gate.answer(PATIENCE).at) * 1e3

    def _wait_until_running(self, tasks: list[ph.TaskFuture[None]]) -> None:
        limit = time.monotonic() + PATIENCE
        for task in tasks:
            while self._session.query("task", task=task.task)["state"] != "RUNNING":
                if time.monotonic() > limit:
                    raise TimeoutError(f"{task.task} did not start: {task.explain()}")
                time.sleep(LOOK)


def burn(number: int) -> None:
    """Compute until somebody ends it."""
    while number >= 0:
        sum(range(1000))


def burn_on(number: int) -> None:
    """Compute until somebody kills it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    burn(number)


def moment(number: int) -> float:
    """Return when it ran."""
    now = time.time()
    del number
    return now


def kill_and_fork() -> float:
    """Return the milliseconds from a SIGTERM to the first instruction of the process that takes its place."""
    victim = os.fork()
    if not victim:
        signal.pause()
        os._exit(0)
    began = time.perf_counter()
    os.kill(victim, signal.SIGTERM)
    os.waitpid(victim, 0)
    reading, writing = os.pipe()
    successor = os.fork()
    if not successor:
        os.write(writing, b"!")
        os._exit(0)
    os.read(reading, 1)
    took = time.perf_counter() - began
    os.waitpid(successor, 0)
    os.close(reading)
    os.close(writing)
    return took * 1e3
