"""The function tasks of the continuation: from a region's finer grid to the strongest pattern in it.

Three times a surrogate is retrained on what simulations returned: on the finer grid, on the simulations that it asked
for itself, and on those that tested it. Nothing here keeps anything between two calls, so a result does not depend on
where, when or on whose speculation it was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.analysis import Finished, Measures, load, mean, measure
from pilot_hitl.cli.demo_study.plan import Region, Scale
from pilot_hitl.cli.demo_study.service import consult
from pilot_hitl.cli.demo_study.simulate import trajectory
from pilot_hitl.cli.demo_study.surrogate import Array, Prediction, Training

GRID = 31
"""The surrogate is asked at ``GRID`` x ``GRID`` places of the region."""
APART = 0.2
"""The places that the surrogate proposes are this far apart at least, as a share of the region's sides."""

Ask: TypeAlias = Callable[[Training, Array], Prediction]
"""Ask a surrogate that has learned from the observations what it expects at these places."""


@dataclass(frozen=True)
class Proposal:
    """What the finer grid showed, and where the surrogate would look next.

    Attributes:
        training: the survey and the finer grid.
        refined: the finer grid.
        places: of the next simulations, the most promising first.
    """

    training: Training
    refined: list[Measures]
    places: list[tuple[float, float]]


@dataclass(frozen=True)
class Peak:
    """The strongest place of a region, as the surrogate sees it.

    Attributes:
        region: its name.
        training: what the surrogate had learned from.
        simulations, patterns: how many there are of this region, and how many of them make a pattern.
        feed, kill: the place.
        strength, deviation: what is expected there.
        noise: standard deviation of one simulation around that.
    """

    region: str
    training: Training
    simulations: int
    patterns: int
    feed: float
    kill: float
    strength: float
    deviation: float
    noise: float


@dataclass(frozen=True)
class Finding:
    """The end of the study: the surrogate's peak, and the fresh simulations that tested it.

    Attributes:
        peak: as it was tested.
        measured, spread: mean and standard deviation of the strengths of the fresh simulations.
        patterns: the share of them that has a pattern; ``wavelength`` and ``steadiness`` are means over those.
        agrees: all have one, and the mean lies within three standard errors (of surrogate, noise and mean together).
        strength, deviation: what the surrogate says of the place once it has learned from them too.
        thumbnail: the strongest of them.
    """

    peak: Peak
    measured: float
    spread: float
    wavelength: float
    steadiness: float
    patterns: float
    agrees: bool
    strength: float
    deviation: float
    thumbnail: NDArray[np.float32]


def propose(region: Region, known: Training, simulations: list[Finished], count: int, ask: Ask = consult) -> Proposal:
    """Return what the finer grid showed and the ``count`` places where the surrogate sees most promise.

    That is where mean and standard deviation together are highest: where patterns are strong, or little is known.
    """
    refined = [load(done)[0] for done in simulations]
    training = known + Training.of(refined)
    grid = region.grid(GRID)
    expected = ask(training, grid)
    shares = region.grid(GRID) - np.array([region.feed[0], region.kill[0]])
    shares /= np.array([region.feed[1] - region.feed[0], region.kill[1] - region.kill[0]])
    free = np.ones(len(grid), dtype=bool)
    places: list[tuple[float, float]] = []
    for _ in range(count):
        index = int(np.argmax(np.where(free, expected.mean + expected.deviation, -1.0)))
        places.append((float(grid[index, 0]), float(grid[index, 1])))
        free &= np.hypot(*(shares - shares[index]).T) >= APART
    return Proposal(training, refined, places)


def probe(proposal: Proposal, index: int, seed: int, scale: Scale) -> Measures:
    """Simulate one of the proposed places."""
    feed, kill = proposal.places[index]
    return _simulate(feed, kill, seed, scale)[0]


def locate(region: Region, proposal: Proposal, probes: list[Measures], ask: Ask = consult) -> Peak:
    """Return where the retrained surrogate is surest of a strong pattern.

    That is where the mean less the standard deviation is highest: near the border to the empty soup, where it depends
    on the initial state what comes, the surrogate is unsure.
    """
    training = proposal.training + Training.of(probes)
    grid = region.grid(GRID)
    expected = ask(training, grid)
    top = int(np.argmax(expected.mean - expected.deviation))
    measures = [*proposal.refined, *probes]
    return Peak(
        region=region.name,
        training=training,
        simulations=len(measures),
        patterns=sum(item.alive for item in measures),
        feed=float(grid[top, 0]),
        kill=float(grid[top, 1]),
        strength=float(expected.mean[top]),
        deviation=float(expected.deviation[top]),
        noise=expected.noise,
    )


def check(peak: Peak, seed: int, scale: Scale) -> tuple[Measures, NDArray[np.float32]]:
    """Simulate the peak with a fresh initial state; return what it measures and looks like."""
    measured, field = _simulate(peak.feed, peak.kill, seed, scale)
    return measured, field.astype(np.float32)


def conclude(peak: Peak, checks: list[tuple[Measures, NDArray[np.float32]]], ask: Ask = consult) -> Finding:
    """Return whether the fresh simulations bear the surrogate out, and what it says after them."""
    measures = [item for item, _ in checks]
    strengths = [item.strength for item in measures]
    alive = [item for item in measures if item.alive]
    measured, spread = mean(strengths), float(np.std(strengths))
    allowed = 3.0 * (peak.deviation**2 + peak.noise**2 + spread**2 / len(strengths)) ** 0.5
    after = ask(peak.training + Training.of(measures), np.array([[peak.feed, peak.kill]]))
    return Finding(
        peak=peak,
        measured=measured,
        spread=spread,
        wavelength=mean([item.wavelength for item in alive]),
        steadiness=mean([item.steadiness for item in alive]),
        patterns=len(alive) / len(checks),
        agrees=len(alive) == len(checks) and abs(measured - peak.strength) <= allowed,
        strength=float(after.mean[0]),
        deviation=float(after.deviation[0]),
        thumbnail=max(checks, key=lambda item: item[0].strength)[1],
    )


def _simulate(feed: float, kill: float, seed: int, scale: Scale) -> tuple[Measures, Array]:
    before, after = trajectory(feed, kill, seed, scale.cells, scale.steps, scale.window)
    return measure(feed, kill, before, after), after
