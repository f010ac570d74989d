"""How long requests take, as the paper on RADICAL-Pilot's services splits it: communication, service, inference."""

from __future__ import annotations

import math

STEPS = 4
"""Buckets an octave, so a percentile is right within a fifth."""
SIZE = 30 * STEPS
SHORTEST = 1e-6


class Histogram:
    """Durations in seconds, in buckets that grow geometrically."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        """Start empty."""
        self._buckets = [0] * SIZE
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Take ``times`` equal durations in."""
        self.count += times
        self.total += seconds * times
        at = int(STEPS * math.log2(seconds / SHORTEST)) if seconds > SHORTEST else 0
        self._buckets[min(at, SIZE - 1)] += times

    def percentile(self, share: float) -> float:
        """Return the duration in seconds below which this share of all lies; 0 when there is none."""
        rank, seen = share * self.count, 0
        for at, times in enumerate(self._buckets):
            seen += times
            if times and seen >= rank:
                return SHORTEST * math.exp2((at + 0.5) / STEPS)
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return count, and mean, median and 99th percentile in milliseconds."""
        mean = self.total / self.count if self.count else 0.0
        values = {"mean_ms": mean, "p50_ms": self.percentile(0.5), "p99_ms": self.percentile(0.99)}
        return {"count": self.count, **{name: round(value * 1e3, 4) for name, value in values.items()}}


class Metrics:
    """What one replica measured, in seconds.

    Attributes:
        communication: both ways together, of requests that came straight; ``relayed`` of those that hub and agent
            passed on.
        service: what requests waited here.
        inference: what calls of the handler took.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.communication = Histogram()
        self.relayed = Histogram()
        self.service = Histogram()
        self.inference = Histogram()
        self.batches: dict[int, int] = {}
        self.refused = 0
        self.failed = 0
        self.late = 0

    def view(self) -> dict[str, object]:
        """Return everything as JSON-able data."""
        return {
            "requests": self.inference.count,
            "communication": self.communication.summary(),
            "relayed": self.relayed.summary(),
            "service": self.service.summary(),
            "inference": self.inference.summary(),
            "batch_sizes": {str(size): times for size, times in sorted(self.batches.copy().items())},
            "refused": self.refused,
            "failed": self.failed,
            "late": self.late,
        }
