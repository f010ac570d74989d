"""The response surface over the whole plane, and the choice that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.analysis import Summary
from pilot_hitl.cli.demo_study.plan import Region, Scale, regions
from pilot_hitl.cli.demo_study.surrogate import Array, Prediction, Training

CELLS = 8
"""The surrogate is asked at ``CELLS`` x ``CELLS`` places of each region."""
CHOICES = 3
"""How many regions a person chooses from."""


@dataclass(frozen=True)
class Plane:
    """What the surrogate expects all over the plane: row 0 has the smallest feed, column 0 the smallest kill."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Standing:
    """A region after the survey.

    Attributes:
        summary: what its simulations showed.
        predicted, deviation: the surrogate's strength and standard deviation, means over the region.
    """

    summary: Summary
    predicted: float
    deviation: float

    @property
    def region(self) -> Region:
        """The region."""
        return self.summary.region

    @property
    def promise(self) -> float:
        """What regions are ranked by: the mean of what was observed and what is predicted."""
        return (self.summary.strength + self.predicted) / 2


@dataclass(frozen=True)
class Survey:
    """What is known before the decision.

    Attributes:
        standings: all regions, as :func:`~pilot_hitl.cli.demo_study.plan.regions` orders them.
        training: what the surrogate had learned from.
        plane: what it expects.
        candidates: the three most promising regions, the best first.
        probabilities: of each being chosen, by :func:`predict`.
    """

    standings: list[Standing]
    training: Training
    plane: Plane
    candidates: list[Standing]
    probabilities: list[float]


def places(scale: Scale) -> NDArray[np.float64]:
    """Return where the surrogate is asked: region by region, as :func:`rank` takes the prediction."""
    return np.concatenate([region.grid(CELLS) for region in regions(scale)])


def rank(summaries: list[Summary], training: Training, prediction: Prediction) -> Survey:
    """Return the survey, given what the surrogate expects at :func:`places`."""
    means = prediction.mean.reshape(len(summaries), CELLS, CELLS)
    deviations = prediction.deviation.reshape(len(summaries), CELLS, CELLS)
    standings = [
        Standing(summary, float(mean.mean()), float(deviation.mean()))
        for summary, mean, deviation in zip(summaries, means, deviations, strict=True)
    ]
    ordered = sorted(standings, key=lambda item: (-item.promise, item.region.name))[:CHOICES]
    plane = Plane(_plane(means), _plane(deviations))
    return Survey(standings, training, plane, ordered, predict([item.promise for item in ordered]))


def predict(promises: list[float]) -> list[float]:
    """Return the probability of each candidate's being chosen: the shares of the fourth powers of their promise.

    A reviewer is shown what it is made of, so a region that promises half as much again is taken to be chosen five
    times as often. Without any promise all are equal. The sum is 1, never above.
    """
    powers = [value**4 for value in promises]
    total = sum(powers)
    if total <= 0:
        powers, total = [1.0] * len(promises), float(len(promises))
    shares = [int(1e6 * value / total) / 1e6 for value in powers]
    shares[0] = round(shares[0] + 1.0 - sum(shares), 6)
    return shares


def _plane(regions_first: Array) -> Array:
    """From ``(regions, cells, cells)`` to one map."""
    side = round(len(regions_first) ** 0.5)
    blocks = regions_first.reshape(side, side, CELLS, CELLS)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3).reshape(side * CELLS, side * CELLS))
