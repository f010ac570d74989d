"""One gate: what speculation gains over waiting for the person, beside an oracle that knows the answer.

A question is put; its likely answer comes true with probability 0.8, and the branch of each answer just fills the cores
for a time. The person takes as long as the branch, or twice as long. *Block* is the same core with the same needed
work, the branch submitted after the answer; the *oracle* submits the right branch with the question, as needed work,
and waits for the answer only to be allowed to show the result.

Theory, in branch lengths, for a person who takes ``w``: block takes ``w + 1``, the oracle ``max(w, 1)``, a right guess
the same, and a wrong one ``w + 1`` less what the other branch had got done after the likely one, ``min(1, w - 1)``. So
with probability 0.8 the mean is 0.6 of blocking for ``w`` = 1, and 0.667 for ``w`` = 2, where both branches are done.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import session_with
from pilot_hitl_benchmarks.reports import HIGH, LOW, Report, Sizes, Target

BRANCH = 0.8
"""Seconds that a branch takes on all cores."""
CHUNKS = 4
"""Tasks of a branch on each core."""
RIGHT = 0.8
"""Probability of the likely answer."""
SEEDS = 30
WAITS = (1, 2)
"""How long the person takes, in lengths of a branch."""
NEED = {1: (0.65, 0.70), 2: (0.71, 0.70)}
"""By wait: at most this share of blocking, and at least this closed gap."""
PATIENCE = 120.0


class Case(NamedTuple):
    """One gate: its number, how long the person takes, and what they say."""

    number: int
    wait: float
    answer: str


def run(sizes: Sizes) -> list[Report]:
    """Measure each wait with so many seeds; ``sizes.tasks`` is the length of a branch in milliseconds."""
    length = sizes.tasks / 1000 if sizes.tasks else BRANCH
    seeds = sizes.seeds or SEEDS
    with session_with(ph.PilotDescription(resource="local", cores=sizes.cores)) as (session, _home):
        session.map(busy, [0.001] * 50 * sizes.cores).results(PATIENCE)
        bench = Bench(session, sizes.cores, length)
        return [bench.measure(wait, seeds) for wait in WAITS]


def theory(wait: float, right: float) -> float:
    """Return the mean time of speculation in branch lengths, when a share ``right`` of the guesses is right."""
    wrong = wait + 1 - min(1.0, max(0.0, wait - 1))
    return right * max(wait, 1) + (1 - right) * wrong


def busy(seconds: float) -> float:
    """Compute for so long; return how long it was."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        sum(range(500))
    return time.perf_counter() - began


class Bench:
    """Puts questions, each in three ways."""

    def __init__(self, session: ph.Session, cores: int, length: float) -> None:
        """Use a session with a pilot of so many cores."""
        self._session = session
        self._cores = cores
        self._length = length
        self._numbers = 0

    def measure(self, wait: int, seeds: int) -> Report:
        """Return the comparison for a wait of so many branch lengths."""
        ours: list[float] = []
        block: list[float] = []
        oracle: list[float] = []
        for seed in range(seeds):
            answer = "accept" if random.Random(seed).random() < RIGHT else "refine"
            ways: list[tuple[list[float], Callable[[Case], float]]] = [
                (ours, self.speculate),
                (block, self.block),
                (oracle, self.oracle),
            ]
            # The order turns with the seed, so that a drift of the machine favours nobody.
            for found, way in ways[seed % 3 :] + ways[: seed % 3]:
                self._numbers += 1
                found.append(way(Case(self._numbers, wait * self._length, answer)))
        share = mean(ours) / mean(block)
        closed = (mean(block) - mean(ours)) / (mean(block) - mean(oracle))
        name = "hitl" if wait == 1 else f"hitl-wait-{wait}"
        sizes = {"tasks": CHUNKS * self._cores, "seeds": seeds, "cores": self._cores}
        report = Report(
            name, "s", "block: the branch submitted after the answer", sizes, list(zip(ours, block, strict=True))
        )
        need, gap = NEED[wait]
        best = theory(wait, RIGHT)
        report.targets = [
            Target("mean makespan, share of blocking", "", LOW, need, best / (wait + 1), share),
            Target("closed gap (block - ours) / (block - oracle)", "", HIGH, gap, wait + 1 - best, closed),
        ]
        right = sum(1 for seed in range(seeds) if random.Random(seed).random() < RIGHT) / seeds
        report.more = {
            "mean_s": mean(ours),
            "block_mean_s": mean(block),
            "oracle_mean_s": mean(oracle),
            "share_of_blocking": share,
            "closed_gap": closed,
            "guessed_right": right,
            "theory_for_these_seeds": theory(wait, right) / (wait + 1),
        }
        return report

    def speculate(self, case: Case) -> float:
        """Submit both branches with the question."""
        began = time.perf_counter()
        gate = self._ask(case)
        branches = {
            "accept": gate.branch("accept", probability=RIGHT).map(busy, self._work(case)),
            "refine": gate.branch("refine", probability=1 - RIGHT).map(busy, self._work(case)),
        }
        gate.select(branches).results(PATIENCE)
        return time.perf_counter() - began

    def block(self, case: Case) -> float:
        """Submit the branch after the answer."""
        began = time.perf_counter()
        gate = self._ask(case)
        gate.result(PATIENCE)
        self._session.map(busy, self._work(case)).results(PATIENCE)
        return time.perf_counter() - began

    def oracle(self, case: Case) -> float:
        """Submit the right branch with the question."""
        began = time.perf_counter()
        gate = self._ask(case, reserve=False)
        results = self._session.map(busy, self._work(case))
        gate.result(PATIENCE)
        results.results(PATIENCE)
        return time.perf_counter() - began

    def _ask(self, case: Case, *, reserve: bool = True) -> ph.Checkpoint:
        gate = self._session.checkpoint(
            "good-enough",
            question="Is it good enough?",
            choices=["accept", "refine"],
            iteration=case.number,
            reserve=ph.Resources(cores=self._cores) if reserve else None,
            linger=0.0,
        )
        threading.Timer(case.wait, gate.respond, (case.answer,)).start()
        return gate

    def _work(self, case: Case) -> list[float]:
        # Durations differ in the last digits, so that no run takes over results of another.
        return [self._length / CHUNKS + 1e-9 * case.number] * (CHUNKS * self._cores)
