"""The hash: of the numbers, of all of them, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import plan
from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.cli.demo_study.refinement import Finding, Peak
from pilot_hitl.cli.demo_study.results import results_hash
from pilot_hitl.cli.demo_study.surrogate import Training
from tests.unit.cli.demo_study.samples import measures, survey

FINDING = Finding(
    Peak("A1", Training.of([measures(0.03, 0.06, 0.1)]), 9, 9, 0.03, 0.055, 0.1, 0.001, 0.002),
    0.101, 0.01, 9.0, 1.0, 1.0, True, 0.1, 0.001, np.zeros((4, 4), dtype=np.float32),
)  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Survey:
    return survey(plan.SCALES["normal"], 0.1, 0.2, 0.0)


def test_pictures_and_rounding_errors_do_not_count(found: Survey) -> None:
    known = results_hash(found, FINDING)
    assert len(known) == 64
    plane = replace(found.plane, mean=found.plane.mean + 1e-10)
    assert results_hash(replace(found, plane=plane), FINDING) == known
    assert results_hash(found, replace(FINDING, thumbnail=np.ones((4, 4), dtype=np.float32))) == known
    assert results_hash(found, replace(FINDING, measured=0.101 + 1e-13)) == known


@pytest.mark.parametrize(
    "other",
    [
        replace(FINDING, measured=0.1010001),
        replace(FINDING, agrees=False),
        replace(FINDING, strength=0.10001),
        replace(FINDING, peak=replace(FINDING.peak, feed=0.03001)),
        replace(FINDING, peak=replace(FINDING.peak, region="A2")),
        replace(FINDING, peak=replace(FINDING.peak, training=Training.of([measures(0.03, 0.06, 0.1000001)]))),
    ],
)
def test_every_number_of_the_finding_counts(found: Survey, other: Finding) -> None:
    assert results_hash(found, other) != results_hash(found, FINDING)


def test_survey_and_predictions_count(found: Survey) -> None:
    plane = replace(found.plane, deviation=found.plane.deviation + 1e-5)
    others = [
        survey(plan.SCALES["normal"], 0.1, 0.2000001, 0.0),
        replace(found, plane=plane),
        replace(found, candidates=found.candidates[::-1]),
    ]
    assert len({results_hash(each, FINDING) for each in (found, *others)}) == 4
