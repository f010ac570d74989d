"""What is learned on the way: how long work of a kind takes, and how people answered so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

SAMPLES = 32
"""Run times of one kind that are looked at before its mean is left alone, so that hot paths pay for a few only."""
WEIGHT = 0.25
"""Of the latest run time in the moving mean."""


class Runtimes:
    """Mean run time by kind of work, in seconds."""

    def __init__(self) -> None:
        """Know nothing."""
        self._mean: dict[int, float] = {}
        self._seen: Counter[int] = Counter()

    def expected(self, kind: int) -> float:
        """Return the mean, 0 while none was seen."""
        return self._mean.get(kind, 0.0)

    def wants(self, kind: int) -> bool:
        """Return whether another sample would be looked at."""
        return self._seen[kind] < SAMPLES

    def learn(self, kind: int, seconds: float) -> bool:
        """Take a run time in; return whether the mean moved so much that decisions may change."""
        self._seen[kind] += 1
        before = self._mean.get(kind)
        mean = seconds if before is None else before + WEIGHT * (seconds - before)
        self._mean[kind] = mean
        return before is None or not 0.5 * before <= mean <= 2.0 * before


class Answers:
    """Counts of earlier answers, by name of the gate: what a new question of that name will probably be answered.

    Additive smoothing (Laplace): each choice counts once more than it was given, so nothing is impossible.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self._counts: dict[str, Counter[str]] = {}

    def note(self, gate: str, answer: str) -> None:
        """Count an answer (canonical JSON)."""
        self._counts.setdefault(gate, Counter())[answer] += 1

    def total(self, gate: str) -> int:
        """Return how many answers were given."""
        return sum(self._counts.get(gate, Counter[str]()).values())

    def given(self, gate: str) -> Iterable[tuple[str, int]]:
        """Return ``(answer, how often)``."""
        return self._counts.get(gate, Counter[str]()).items()

    def probability(self, gate: str, matching: int, allowed: int, choices: int) -> float:
        """Return how likely one of ``allowed`` answers out of ``choices`` is, when ``matching`` were given before."""
        return (matching + allowed) / (self.total(gate) + max(choices, allowed + 1))
