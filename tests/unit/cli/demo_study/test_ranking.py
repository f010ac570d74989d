"""The response surface and the choice that follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.cli.demo_study import plan, ranking
from pilot_hitl.cli.demo_study.surrogate import Prediction, Training
from tests.unit.cli.demo_study.samples import TINY, summary, survey


def test_what_was_observed_and_what_is_predicted_count_alike() -> None:
    summaries = [
        summary(region, strength) for region, strength in zip(plan.regions(TINY), (0.1, 0.4, 0.1, 0.2), strict=True)
    ]
    each = ranking.CELLS**2
    mean = np.repeat([0.1, 0.1, 0.3, 0.2], each)
    found = ranking.rank(summaries, Training.of([]), Prediction(mean, mean / 10, 0.0))
    assert [round(item.promise, 6) for item in found.standings] == [0.1, 0.25, 0.2, 0.2]
    # Among equals the name decides.
    assert [item.region.name for item in found.candidates] == ["B1", "A2", "B2"]
    assert [item.deviation for item in found.standings] == pytest.approx([0.01, 0.01, 0.03, 0.02])


def test_the_plane_has_feed_upwards_and_kill_to_the_right() -> None:
    places = ranking.places(TINY)
    prediction = Prediction(places[:, 0].copy(), places[:, 1].copy(), 0.0)
    plane = ranking.rank([summary(region, 0.1) for region in plan.regions(TINY)], Training.of([]), prediction).plane
    side = TINY.regions * ranking.CELLS
    assert plane.mean.shape == (side, side)
    assert (np.diff(plane.mean, axis=0) > 0).all()
    assert (np.diff(plane.deviation, axis=1) > 0).all()
    assert np.allclose(plane.mean, plane.mean[:, :1])


def test_the_surrogate_carries_strength_to_its_neighbours() -> None:
    found = survey(plan.SCALES["normal"], 0.0, 0.0, 0.0, 0.0, 0.2, 0.0)
    predicted = {item.region.name: item.predicted for item in found.standings}
    assert max(predicted, key=lambda name: predicted[name]) == "B2"
    assert predicted["B2"] > 0.05


def test_half_as_much_again_is_five_times_as_likely() -> None:
    found = ranking.predict([0.15, 0.1])
    assert found[0] / found[1] == pytest.approx(1.5**4, rel=1e-4)
    assert ranking.predict([0.0, 0.0, 0.0]) == pytest.approx([1 / 3] * 3, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_probabilities_never_sum_above_one(promises: list[float]) -> None:
    found = ranking.predict(sorted(promises, reverse=True))
    assert sum(found) <= 1.0 + 1e-9
    assert sum(found) == pytest.approx(1.0)
    assert all(value >= 0 for value in found)
    assert found[0] == max(found)
