"""Which simulations the study makes: a survey over the whole parameter plane, then more and more of one region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SizeName = Literal["small", "normal"]

FEED = (0.014, 0.058)
KILL = (0.048, 0.066)
"""The part of the plane in which patterns are known to live (Pearson 1993), with empty margins around them."""


class Scale(NamedTuple):
    """How much is computed.

    Attributes:
        regions: the plane is cut into ``regions`` x ``regions``; the survey has two simulations in each.
        refined: the chosen region is simulated again on ``refined`` x ``refined`` points.
        infill: simulations where the surrogate, retrained on these, sees the most promise.
        checks: simulations that test what it then predicts.
        cells: each is a square of ``cells`` x ``cells``.
        steps: time steps before the last look.
        window: time steps between the last two looks.
    """

    regions: int
    refined: int
    infill: int
    checks: int
    cells: int
    steps: int
    window: int


SCALES: dict[SizeName, Scale] = {
    "small": Scale(regions=2, refined=3, infill=2, checks=2, cells=36, steps=1500, window=150),
    "normal": Scale(regions=3, refined=4, infill=6, checks=4, cells=44, steps=2800, window=250),
}
WARM_UP = Scale(regions=2, refined=1, infill=1, checks=1, cells=16, steps=40, window=20)
"""Computes next to nothing, with all the parts of a study."""


@dataclass(frozen=True)
class Point:
    """One simulation: its parameters and the seed of its initial state."""

    feed: float
    kill: float
    seed: int

    def arguments(self, scale: Scale, out: str) -> list[str]:
        """Return the command line of the simulation's executable."""
        numbers = {"feed": self.feed, "kill": self.kill, "seed": self.seed}
        numbers |= {"cells": scale.cells, "steps": scale.steps, "window": scale.window}
        return [*(f"--{name}={value!r}" for name, value in numbers.items()), f"--out={out}"]


@dataclass(frozen=True)
class Region:
    """A rectangle of the plane, named as on a chess board: the letter counts ``kill``, the number ``feed``."""

    name: str
    row: int
    column: int
    feed: tuple[float, float]
    kill: tuple[float, float]

    def place(self, feed: float, kill: float) -> tuple[float, float]:
        """Return feed and kill at these shares of its sides, 0 to 1."""
        return (
            self.feed[0] + feed * (self.feed[1] - self.feed[0]),
            self.kill[0] + kill * (self.kill[1] - self.kill[0]),
        )

    def grid(self, side: int) -> NDArray[np.float64]:
        """Return ``side`` x ``side`` places all over it, the centres of equal cells, as rows of feed and kill."""
        line = [(index + 0.5) / side for index in range(side)]
        return np.array([self.place(feed, kill) for feed in line for kill in line], dtype=np.float64)


def regions(scale: Scale) -> list[Region]:
    """Return all regions, row by row from the smallest feed."""
    feeds = np.linspace(*FEED, scale.regions + 1).tolist()
    kills = np.linspace(*KILL, scale.regions + 1).tolist()
    return [
        Region(
            name=f"{chr(ord('A') + column)}{row + 1}",
            row=row,
            column=column,
            feed=(feeds[row], feeds[row + 1]),
            kill=(kills[column], kills[column + 1]),
        )
        for row in range(scale.regions)
        for column in range(scale.regions)
    ]


def survey_points(region: Region, seed: int) -> list[Point]:
    """Return the survey's simulations in one region: two on a diagonal, which over the plane is a staggered grid."""
    return _points(region, [(0.25, 0.25), (0.75, 0.75)], seed, stage=1)


def refined_points(region: Region, scale: Scale, seed: int) -> list[Point]:
    """Return the simulations of the finer grid in one region."""
    # Cell centres, so that no point lies on a border and belongs to two regions.
    line = [(index + 0.5) / scale.refined for index in range(scale.refined)]
    return _points(region, [(feed, kill) for feed in line for kill in line], seed, stage=2)


def infill_seeds(region: Region, scale: Scale, seed: int) -> list[int]:
    """Return the seeds of the simulations whose places the surrogate chooses."""
    return [_seed(seed, 3, region, index) for index in range(scale.infill)]


def check_seeds(region: Region, scale: Scale, seed: int) -> list[int]:
    """Return the seeds of the simulations that test the prediction."""
    return [_seed(seed, 4, region, index) for index in range(scale.checks)]


def _points(region: Region, shares: list[tuple[float, float]], seed: int, stage: int) -> list[Point]:
    return [Point(*region.place(*share), _seed(seed, stage, region, index)) for index, share in enumerate(shares)]


def _seed(seed: int, stage: int, region: Region, index: int) -> int:
    """A seed of its own for each simulation, the same in whatever order they run."""
    return int(np.random.SeedSequence([seed, stage, region.row, region.column, index]).generate_state(1)[0])
