"""Parts of a study that other tests build on."""

from __future__ import annotations

import numpy as np

from pilot_hitl.cli.demo_study import plan, ranking
from pilot_hitl.cli.demo_study.analysis import Measures, Summary
from pilot_hitl.cli.demo_study.plan import Region, Scale
from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.cli.demo_study.surrogate import Array, Prediction, Training, train

REGION = Region("B2", 1, 1, feed=(0.02, 0.04), kill=(0.05, 0.06))
TINY = Scale(regions=2, refined=3, infill=2, checks=1, cells=16, steps=60, window=20)


def measures(feed: float, kill: float, strength: float, contrast: float = 0.1) -> Measures:
    return Measures(feed, kill, contrast, 1.0, 10.0, strength)


def hill(feed: float, kill: float, region: Region = REGION) -> float:
    """A strength that is highest, 0.2, in the middle of a region and smooth everywhere."""
    middle_feed, middle_kill = region.place(0.5, 0.5)
    width_feed, width_kill = region.feed[1] - region.feed[0], region.kill[1] - region.kill[0]
    return 0.2 * float(np.exp(-(((feed - middle_feed) / width_feed) ** 2) - ((kill - middle_kill) / width_kill) ** 2))


def summary(region: Region, strength: float) -> Summary:
    seen = [measures(point.feed, point.kill, strength) for point in plan.survey_points(region, 1)]
    return Summary(region, seen, 1.0, strength, 1.0, 10.0, strength, np.full((8, 8), strength, dtype=np.float32))


def ask(training: Training, places: Array) -> Prediction:
    """A surrogate without a service."""
    return train(training).predict(places)


def survey(scale: Scale, *strengths: float) -> Survey:
    """The survey in which the regions have these strengths, and the last of them all others."""
    regions = plan.regions(scale)
    padded = [*strengths, *[strengths[-1]] * (len(regions) - len(strengths))]
    summaries = [summary(region, strength) for region, strength in zip(regions, padded, strict=True)]
    training = Training.of(item for each in summaries for item in each.measures)
    return ranking.rank(summaries, training, ask(training, ranking.places(scale)))
