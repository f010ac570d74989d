"""Which simulations the study makes: a survey over the whole parameter plane, then a finer grid in one region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

SizeName = Literal["small", "normal"]

FEED = (0.014, 0.058)
KILL = (0.048, 0.066)
"""The part of the plane in which patterns are known to live (Pearson 1993), with empty margins around them."""


class Scale(NamedTuple):
    """How much is computed.

    Attributes:
        regions: the plane is cut into ``regions`` x ``regions``.
        per_region: the survey has ``per_region`` x ``per_region`` simulations in each.
        refined: the chosen region is simulated again on ``refined`` x ``refined`` points.
        checks: simulations that test the fit's prediction.
        cells: each is a square of ``cells`` x ``cells``.
        steps: time steps before the last look.
        window: time steps between the last two looks.
    """

    regions: int
    per_region: int
    refined: int
    checks: int
    cells: int
    steps: int
    window: int


SCALES: dict[SizeName, Scale] = {
    "small": Scale(regions=3, per_region=2, refined=4, checks=2, cells=40, steps=3000, window=200),
    "normal": Scale(regions=4, per_region=2, refined=5, checks=3, cells=64, steps=4500, window=300),
}


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


def survey_points(region: Region, scale: Scale, seed: int) -> list[Point]:
    """Return the survey's simulations in one region."""
    return _grid(region, scale.per_region, seed, stage=1)


def refined_points(region: Region, scale: Scale, seed: int) -> list[Point]:
    """Return the simulations of the finer grid in one region."""
    return _grid(region, scale.refined, seed, stage=2)


def check_seeds(region: Region, scale: Scale, seed: int) -> list[int]:
    """Return the seeds of the simulations that test the fit."""
    return [_seed(seed, 3, region, index) for index in range(scale.checks)]


def _grid(region: Region, side: int, seed: int, stage: int) -> list[Point]:
    # Cell centres, so that no point lies on a border and belongs to two regions.
    share = (np.arange(side) + 0.5) / side
    feeds = (region.feed[0] + share * (region.feed[1] - region.feed[0])).tolist()
    kills = (region.kill[0] + share * (region.kill[1] - region.kill[0])).tolist()
    places = [(feed, kill) for feed in feeds for kill in kills]
    return [Point(feed, kill, _seed(seed, stage, region, index)) for index, (feed, kill) in enumerate(places)]


def _seed(seed: int, stage: int, region: Region, index: int) -> int:
    """A seed of its own for each simulation, the same in whatever order they run."""
    return int(np.random.SeedSequence([seed, stage, region.row, region.column, index]).generate_state(1)[0])
