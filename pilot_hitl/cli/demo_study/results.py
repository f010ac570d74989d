"""All numbers of a study as one hash, to see that two runs found the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from pilot_hitl.cli.demo_study.ranking import Standing, Survey
from pilot_hitl.cli.demo_study.refinement import Finding

DIGITS = 9
"""Significant digits in the canonical form of what was simulated."""
PREDICTED = 6
"""Decimals of what was predicted: solving a linear system loses some digits."""


def results_hash(survey: Survey, finding: Finding) -> str:
    """Return the SHA-256 of all numbers of the study in canonical form: sorted keys, rounded values."""
    peak = asdict(finding.peak)
    known = peak.pop("training")
    numbers = {
        "survey": {item.region.name: _standing(item) for item in survey.standings},
        "plane": [[_predicted(value) for value in row] for row in survey.plane.mean.tolist()],
        "doubt": [[_predicted(value) for value in row] for row in survey.plane.deviation.tolist()],
        "candidates": [item.region.name for item in survey.candidates],
        "learned": known["rows"],
        "peak": {name: _predicted(value) if isinstance(value, float) else value for name, value in peak.items()},
        "measured": [finding.measured, finding.spread, finding.wavelength, finding.steadiness, finding.patterns],
        "agrees": finding.agrees,
        "strength": [_predicted(finding.strength), _predicted(finding.deviation)],
    }
    text = json.dumps(_rounded(numbers), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _standing(item: Standing) -> list[object]:
    summary = item.summary
    simulated = [summary.patterns, summary.contrast, summary.steadiness, summary.wavelength, summary.strength]
    return [*simulated, _predicted(item.predicted), _predicted(item.deviation)]


def _predicted(value: float) -> str:
    # No minus before a zero.
    return f"{round(value, PREDICTED) + 0.0:.{PREDICTED}f}"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
