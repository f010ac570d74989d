"""What a simulation measures, and the summary of a region: function tasks, pure functions of the files they read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.model import Field
from pilot_hitl.cli.demo_study.plan import Region

RESULT_NAME = "result.npz"
"""What a simulation writes into its sandbox."""
PATTERN_CONTRAST = 0.01
"""Below this standard deviation of ``v`` there is no pattern: the soup is empty or uniform."""


class Finished(Protocol):
    """What a finished simulation leaves: its sandbox (a ``pilot_hitl.Completed``)."""

    @property
    def sandbox(self) -> str:
        """Its folder."""
        ...


@dataclass(frozen=True)
class Measures:
    """What one simulation shows.

    Attributes:
        feed, kill: its parameters.
        contrast: standard deviation of ``v`` over the square.
        steadiness: correlation of ``v`` with ``v`` a window earlier: 1 for a pattern at rest, 0 for one that moved on.
        wavelength: in cells; 0 without a pattern.
        strength: ``contrast * steadiness``, what the study looks for.
    """

    feed: float
    kill: float
    contrast: float
    steadiness: float
    wavelength: float
    strength: float

    @property
    def alive(self) -> bool:
        """Whether there is a pattern at all."""
        return self.contrast >= PATTERN_CONTRAST


@dataclass(frozen=True)
class Summary:
    """The simulations of one region; means over them. ``patterns`` is the share of them that has one."""

    region: Region
    measures: list[Measures]
    patterns: float
    contrast: float
    steadiness: float
    wavelength: float
    strength: float
    thumbnail: NDArray[np.float32]


def measure(feed: float, kill: float, before: Field, after: Field) -> Measures:
    """Return the measures of a simulation, given its last two looks."""
    contrast = float(after.std())
    if contrast < PATTERN_CONTRAST:
        return Measures(feed, kill, contrast, 0.0, 0.0, 0.0)
    spread = contrast * float(before.std())
    covariance = float(((before - before.mean()) * (after - after.mean())).mean())
    steadiness = max(0.0, min(1.0, covariance / spread)) if spread > 0 else 0.0
    return Measures(feed, kill, contrast, steadiness, wavelength(after), contrast * steadiness)


def wavelength(field: Field) -> float:
    """Return the mean wavelength of a pattern in cells, weighted by power; 0 for a uniform field."""
    power = np.abs(np.fft.fft2(field - field.mean())) ** 2
    waves = np.fft.fftfreq(field.shape[0])
    frequency = np.hypot(waves[:, None], waves[None, :])
    total = float((power * frequency).sum())
    return float(power.sum()) / total if total > 0 else 0.0


def load(done: Finished) -> tuple[Measures, Field]:
    """Return measures and final field of a finished simulation.

    Raises:
        OSError: it left no result.
    """
    with np.load(Path(done.sandbox) / RESULT_NAME) as stored:
        feed, kill = (float(value) for value in stored["parameters"])
        before, after = stored["before"], stored["after"]
    return measure(feed, kill, before, after), after


def summarise(region: Region, simulations: list[Finished]) -> Summary:
    """Return the summary of one region."""
    loaded = [load(done) for done in simulations]
    measures = [item for item, _ in loaded]
    shown = max(range(len(loaded)), key=lambda index: measures[index].strength)
    alive = [item for item in measures if item.alive]
    return Summary(
        region=region,
        measures=measures,
        patterns=len(alive) / len(measures),
        contrast=mean([item.contrast for item in measures]),
        steadiness=mean([item.steadiness for item in alive]),
        wavelength=mean([item.wavelength for item in alive]),
        strength=mean([item.strength for item in measures]),
        thumbnail=loaded[shown][1].astype(np.float32),
    )


def mean(values: list[float]) -> float:
    """Return the mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
