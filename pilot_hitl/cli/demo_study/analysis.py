"""The function tasks: what a pattern measures, which regions are promising, the final fit.

All of it is a pure function of its arguments (and of the files that these name), so a result does not depend on where,
when or on whose speculation it was computed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.model import Field
from pilot_hitl.cli.demo_study.plan import Region, Scale
from pilot_hitl.cli.demo_study.simulate import trajectory

RESULT_NAME = "result.npz"
"""What a simulation writes into its sandbox."""
PATTERN_CONTRAST = 0.01
"""Below this standard deviation of ``v`` there is no pattern: the soup is empty or uniform."""
COEFFICIENTS = 6
"""Of a quadratic surface over a plane."""
DIGITS = 9
"""Significant digits in the canonical form of results."""


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


@dataclass(frozen=True)
class Summary:
    """A region of the survey; means over its simulations. ``patterns`` is the share of them that has one."""

    region: Region
    patterns: float
    contrast: float
    steadiness: float
    wavelength: float
    strength: float
    thumbnail: NDArray[np.float32]


@dataclass(frozen=True)
class Survey:
    """The response surface over the whole plane, and the choice that follows from it.

    Attributes:
        summaries: all regions, as :func:`~pilot_hitl.cli.demo_study.plan.regions` orders them.
        candidates: the three regions of largest strength, the largest first.
        probabilities: of each being chosen, by :func:`predict`.
    """

    summaries: list[Summary]
    candidates: list[Summary]
    probabilities: list[float]


@dataclass(frozen=True)
class Fit:
    """A quadratic surface of the strength over one region, and its highest place inside.

    Attributes:
        region: its name.
        simulations, patterns: how many there are, and how many of them were fitted.
        feed, kill: the highest place.
        strength, error: of the surface there: value and standard error.
        residual: standard deviation of the simulations around the surface.
    """

    region: str
    simulations: int
    patterns: int
    feed: float
    kill: float
    strength: float
    error: float
    residual: float


@dataclass(frozen=True)
class Finding:
    """The end of the study: the fit's prediction, and the fresh simulations that tested it.

    ``measured`` and ``spread`` are mean and standard deviation of the strengths; ``wavelength`` and ``steadiness`` are
    means over the share of them, ``patterns``, that has one. ``agrees`` says whether all have one and the mean lies
    within three standard errors (of fit, residual and mean together).
    """

    fit: Fit
    measured: float
    spread: float
    wavelength: float
    steadiness: float
    patterns: float
    agrees: bool
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
    alive = [item for item in measures if item.contrast >= PATTERN_CONTRAST]
    return Summary(
        region=region,
        patterns=len(alive) / len(measures),
        contrast=_mean([item.contrast for item in measures]),
        steadiness=_mean([item.steadiness for item in alive]),
        wavelength=_mean([item.wavelength for item in alive]),
        strength=_mean([item.strength for item in measures]),
        thumbnail=loaded[shown][1].astype(np.float32),
    )


def rank(summaries: list[Summary]) -> Survey:
    """Return the response surface with its three best regions and what a reviewer will probably choose."""
    ordered = sorted(summaries, key=lambda item: (-item.strength, item.region.name))[:3]
    return Survey(summaries, ordered, predict([item.strength for item in ordered]))


def predict(strengths: list[float]) -> list[float]:
    """Return the probability of each candidate's being chosen: the shares of their squared strengths.

    A reviewer is shown the strengths, so a region that is twice as strong is taken to be chosen four times as often.
    Without any strength all are equal. The sum is 1, never above.
    """
    squares = [value * value for value in strengths]
    total = sum(squares)
    if total <= 0:
        squares, total = [1.0] * len(strengths), float(len(strengths))
    shares = [int(1e6 * value / total) / 1e6 for value in squares]
    shares[0] = round(shares[0] + 1.0 - sum(shares), 6)
    return shares


def fit(region: Region, simulations: list[Finished]) -> Fit:
    """Return the quadratic surface of a region's finer grid.

    Runs without a pattern are left out: strength drops to zero there in one step, which no polynomial follows. When
    too few remain for a fit, the strongest run stands for the surface, with the spread of the runs as error.
    """
    return fit_measures(region, [load(done)[0] for done in simulations])


def fit_measures(region: Region, measures: list[Measures]) -> Fit:
    """Do the work of :func:`fit`."""
    alive = [item for item in measures if item.contrast >= PATTERN_CONTRAST]
    if len(alive) <= COEFFICIENTS:
        best = max(alive or measures, key=lambda item: item.strength)
        spread = float(np.std([item.strength for item in alive or measures]))
        return Fit(region.name, len(measures), len(alive), best.feed, best.kill, best.strength, spread, residual=spread)
    feed, kill = _places(alive, region)
    strength = np.array([item.strength for item in alive])
    design = _quadratic(feed, kill)
    solved, _, _, _ = np.linalg.lstsq(design, strength, rcond=None)
    residual = float(np.sqrt(((strength - design @ solved) ** 2).sum() / (len(alive) - COEFFICIENTS)))
    x, y = _trusted(region, measures)
    surface = _quadratic(x, y)
    top = int(np.argmax(surface @ solved))
    leverage = float(surface[top] @ np.linalg.pinv(design.T @ design) @ surface[top])
    return Fit(
        region=region.name,
        simulations=len(measures),
        patterns=len(alive),
        feed=_unscaled(float(x[top]), region.feed),
        kill=_unscaled(float(y[top]), region.kill),
        strength=float(surface[top] @ solved),
        error=residual * max(leverage, 0.0) ** 0.5,
        residual=residual,
    )


def check(fitted: Fit, seed: int, scale: Scale) -> tuple[Measures, NDArray[np.float32]]:
    """Simulate the fit's highest place with a fresh initial state; return what it measures and looks like."""
    before, after = trajectory(fitted.feed, fitted.kill, seed, scale.cells, scale.steps, scale.window)
    return measure(fitted.feed, fitted.kill, before, after), after.astype(np.float32)


def conclude(fitted: Fit, checks: list[tuple[Measures, NDArray[np.float32]]]) -> Finding:
    """Return whether the fresh simulations bear the fit out."""
    strengths = [item.strength for item, _ in checks]
    alive = [item for item, _ in checks if item.contrast >= PATTERN_CONTRAST]
    measured, spread = _mean(strengths), float(np.std(strengths))
    allowed = 3.0 * (fitted.error**2 + fitted.residual**2 + spread**2 / len(strengths)) ** 0.5
    return Finding(
        fit=fitted,
        measured=measured,
        spread=spread,
        wavelength=_mean([item.wavelength for item in alive]),
        steadiness=_mean([item.steadiness for item in alive]),
        patterns=len(alive) / len(checks),
        agrees=len(alive) == len(checks) and abs(measured - fitted.strength) <= allowed,
        thumbnail=max(checks, key=lambda item: item[0].strength)[1],
    )


def results_hash(survey: Survey, finding: Finding) -> str:
    """Return the SHA-256 of all numbers of the study in canonical form: sorted keys, nine significant digits."""
    surface = {
        item.region.name: [item.patterns, item.contrast, item.steadiness, item.wavelength, item.strength]
        for item in survey.summaries
    }
    numbers = {
        "survey": surface,
        "candidates": [item.region.name for item in survey.candidates],
        "fit": asdict(finding.fit),
        "measured": finding.measured,
        "spread": finding.spread,
        "wavelength": finding.wavelength,
        "steadiness": finding.steadiness,
        "patterns": finding.patterns,
        "agrees": finding.agrees,
    }
    text = json.dumps(_rounded(numbers), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _places(measures: list[Measures], region: Region) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map feed and kill to -1 … 1 within the region, which keeps the squares of a fit in proportion."""
    feed, kill = np.array([item.feed for item in measures]), np.array([item.kill for item in measures])
    return (
        2.0 * (feed - region.feed[0]) / (region.feed[1] - region.feed[0]) - 1.0,
        2.0 * (kill - region.kill[0]) / (region.kill[1] - region.kill[0]) - 1.0,
    )


def _unscaled(value: float, bounds: tuple[float, float]) -> float:
    return bounds[0] + (value + 1.0) / 2.0 * (bounds[1] - bounds[0])


def _quadratic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


def _trusted(region: Region, measures: list[Measures]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the places (mapped as in :func:`_places`) at which the surface is believed.

    Those among the runs that have a pattern, at three quarters of a grid spacing from every run without one: a parabola
    says nothing outside of its runs, and near the border to the empty soup it depends on the seed what comes. Where
    patterns are so rare that no such place is left, the places of the runs with a pattern.
    """
    alive = [item for item in measures if item.contrast >= PATTERN_CONTRAST]
    empty = [item for item in measures if item.contrast < PATTERN_CONTRAST]
    spacing = 2.0 / len(measures) ** 0.5
    line = np.linspace(-1, 1, 41)
    x, y = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
    good = _apart(x, y, *_places(alive, region)) <= spacing / 2**0.5 + 1e-9
    if empty:
        good &= _apart(x, y, *_places(empty, region)) >= 0.75 * spacing
    return (x[good], y[good]) if good.any() else _places(alive, region)


def _apart(
    x: NDArray[np.float64], y: NDArray[np.float64], run_x: NDArray[np.float64], run_y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far each place is from the nearest run."""
    apart: NDArray[np.float64] = np.hypot(x[:, None] - run_x[None, :], y[:, None] - run_y[None, :]).min(axis=1)
    return apart
