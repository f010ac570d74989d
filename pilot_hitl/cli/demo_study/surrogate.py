"""The surrogate: a Gaussian process that predicts a pattern's strength from the two parameters.

Matérn kernel (nu = 3/2) with a length scale for each parameter, a constant mean and independent noise; length scales
and noise are those of a fixed grid under which the observations are likeliest. numpy only.

Everything is a function of the *set* of observations: they are sorted before anything is computed, so it does not
matter in which order simulations came back.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.plan import FEED, KILL

Array: TypeAlias = NDArray[np.float64]

LENGTHS = (0.08, 0.12, 0.18, 0.27, 0.4, 0.6)
"""Length scales that are tried, as shares of the plane's sides."""
NOISES = (1e-3, 3e-3, 1e-2, 4e-2, 0.16, 0.5)
"""Variances of the noise that are tried, as shares of the signal's variance."""
FLOOR = 1e-12
"""Smallest variance of the signal, so that equal observations are no division by zero."""


class Observation(Protocol):
    """What one simulation showed at its parameters."""

    @property
    def feed(self) -> float:
        """Feed rate."""
        ...

    @property
    def kill(self) -> float:
        """Removal rate."""
        ...

    @property
    def strength(self) -> float:
        """What is predicted."""
        ...


@dataclass(frozen=True)
class Training:
    """A set of observations, each ``(feed, kill, strength)``, sorted.

    Equal sets are equal objects with equal :attr:`version`, in whatever order they were gathered.
    """

    rows: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> Training:
        """Return the training set of these observations."""
        return cls(tuple(sorted((item.feed, item.kill, item.strength) for item in observations)))

    def __add__(self, other: Training) -> Training:
        """Return both together."""
        return Training(tuple(sorted(self.rows + other.rows)))

    def __len__(self) -> int:
        """Return the number of observations."""
        return len(self.rows)

    @property
    def version(self) -> str:
        """A name for what a surrogate learns from it: equal if and only if the observations are."""
        return hashlib.sha256(np.array(self.rows, dtype=np.float64).tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Prediction:
    """What is expected at each place that was asked for.

    Attributes:
        mean, deviation: of the strength there; a mean is never below zero.
        noise: standard deviation of one more simulation around the strength.
    """

    mean: Array
    deviation: Array
    noise: float


@dataclass(frozen=True)
class Model:
    """A trained surrogate.

    Attributes:
        places: of the observations, as shares of the plane's sides.
        lengths: of the kernel, for feed and kill.
        signal: variance of the strength around its mean.
        noise: variance of an observation at one place.
        mean: of the strength, far from all observations.
        factor, weights: Cholesky factor of the observations' correlation, and what it makes of their strengths.
    """

    places: Array
    lengths: tuple[float, float]
    signal: float
    noise: float
    mean: float
    factor: Array
    weights: Array

    def predict(self, places: Array) -> Prediction:
        """Return what it expects at ``places``, ``(n, 2)`` of feed and kill: of the strength itself, without noise."""
        across = _matern(_shares(places), self.places, self.lengths)
        mean = self.mean + across @ self.weights
        # Of a triangular matrix; numpy has no solver for those, and this one is small.
        explained = np.linalg.solve(self.factor, across.T)
        variance = self.signal * np.maximum(0.0, 1.0 - (explained**2).sum(axis=0))
        return Prediction(np.maximum(mean, 0.0), np.sqrt(variance), self.noise**0.5)


def train(training: Training) -> Model:
    """Return the surrogate that the observations make likeliest.

    Raises:
        ValueError: there is no observation, or one that is no number.
    """
    rows = np.array(training.rows, dtype=np.float64).reshape(-1, 3)
    if not len(rows):
        raise ValueError("a surrogate needs at least one observation")
    if not np.isfinite(rows).all():
        raise ValueError("an observation is no finite number")
    places, strengths = _shares(rows[:, :2]), rows[:, 2]
    mean = float(strengths.mean())
    best: tuple[float, Model] | None = None
    for first, second in itertools.product(LENGTHS, LENGTHS):
        correlation = _matern(places, places, (first, second))
        for noise in NOISES:
            likelihood, model = _fit(places, strengths - mean, correlation, (first, second), noise, mean)
            if best is None or likelihood > best[0]:
                best = likelihood, model
    assert best is not None
    return best[1]


def _fit(
    places: Array, around: Array, correlation: Array, lengths: tuple[float, float], noise: float, mean: float
) -> tuple[float, Model]:
    """Return one candidate with its logarithmic likelihood, up to a constant; the best signal has a closed form."""
    count = len(around)
    factor = np.linalg.cholesky(correlation + noise * np.eye(count)).astype(np.float64)
    whitened = np.linalg.solve(factor, around)
    signal = max(FLOOR, float(whitened @ whitened) / count)
    weights = np.linalg.solve(factor.T, whitened)
    likelihood = -0.5 * count * float(np.log(signal)) - float(np.log(np.diag(factor)).sum())
    return likelihood, Model(places, lengths, signal, noise * signal, mean, factor, weights)


def _shares(places: Array) -> Array:
    low, high = np.array([FEED[0], KILL[0]]), np.array([FEED[1], KILL[1]])
    shares: Array = (places - low) / (high - low)
    return shares


def _matern(first: Array, second: Array, lengths: tuple[float, float]) -> Array:
    apart = (first[:, None, :] - second[None, :, :]) / np.array(lengths)
    distance = np.sqrt(3.0 * (apart**2).sum(axis=2))
    correlation: Array = (1.0 + distance) * np.exp(-distance)
    return correlation
