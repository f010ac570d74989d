"""The surrogate: what it learns, how sure it is, and that the order of simulations does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_hitl.cli.demo_study import plan, surrogate
from pilot_hitl.cli.demo_study.analysis import Measures
from pilot_hitl.cli.demo_study.surrogate import Array, Training
from tests.unit.cli.demo_study.samples import measures

PLANE = plan.Region("all", 0, 0, plan.FEED, plan.KILL)


def _truth(places: Array) -> Array:
    feed = (places[:, 0] - plan.FEED[0]) / (plan.FEED[1] - plan.FEED[0])
    kill = (places[:, 1] - plan.KILL[0]) / (plan.KILL[1] - plan.KILL[0])
    wave: Array = 0.1 + 0.05 * np.sin(4 * feed) * np.cos(3 * kill)
    return wave


def _observed(side: int, noise: float = 0.0) -> list[Measures]:
    places = PLANE.grid(side)
    strengths = _truth(places) + np.random.default_rng(1).normal(0.0, noise, len(places))
    return [
        measures(feed, kill, strength)
        for (feed, kill), strength in zip(places.tolist(), strengths.tolist(), strict=True)
    ]


def test_a_smooth_surface_is_predicted_between_its_observations() -> None:
    places = PLANE.grid(13)
    found = surrogate.train(Training.of(_observed(6))).predict(places)
    truth = _truth(places)
    assert np.sqrt(((found.mean - truth) ** 2).mean()) < 0.05 * truth.std()
    assert np.abs(found.mean - truth).max() < 0.3 * truth.std()


def test_its_uncertainty_is_that_of_its_errors() -> None:
    places = PLANE.grid(13)
    found = surrogate.train(Training.of(_observed(8, noise=0.005))).predict(places)
    errors = (found.mean - _truth(places)) / found.deviation
    assert 0.4 < float(np.sqrt((errors**2).mean())) < 1.6
    assert found.noise == pytest.approx(0.005, rel=0.6)


def test_it_is_surer_where_it_has_seen_something() -> None:
    seen = [item for item in _observed(8) if item.feed < sum(plan.FEED) / 2]
    found = surrogate.train(Training.of(seen)).predict(np.array([[0.02, 0.057], [0.056, 0.057]]))
    assert found.deviation[0] < 0.2 * found.deviation[1]


def test_more_observations_make_it_better() -> None:
    places, errors = PLANE.grid(13), []
    for side in (2, 4, 8):
        found = surrogate.train(Training.of(_observed(side))).predict(places)
        errors.append(float(np.sqrt(((found.mean - _truth(places)) ** 2).mean())))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_no_strength_below_zero_is_predicted() -> None:
    seen = [measures(item.feed, item.kill, 0.2 if index == 30 else 0.0) for index, item in enumerate(_observed(8))]
    assert surrogate.train(Training.of(seen)).predict(PLANE.grid(20)).mean.min() == 0.0


@settings(max_examples=20)
@given(st.permutations(range(25)))
def test_the_order_of_observations_does_not_matter(order: list[int]) -> None:
    seen = _observed(5, noise=0.01)
    shuffled = [seen[index] for index in order]
    known, other = Training.of(seen), Training.of(shuffled[:7]) + Training.of(shuffled[7:])
    assert (other, other.version, len(other)) == (known, known.version, 25)
    places = PLANE.grid(4)
    found, again = surrogate.train(known).predict(places), surrogate.train(other).predict(places)
    assert (found.mean.tobytes(), found.deviation.tobytes()) == (again.mean.tobytes(), again.deviation.tobytes())


def test_a_version_names_the_observations() -> None:
    seen = _observed(3)
    assert Training.of(seen).version != Training.of(seen[1:]).version
    assert Training.of(seen).version != Training.of([*seen[1:], measures(seen[0].feed, seen[0].kill, 0.3)]).version


def test_equal_observations_are_learned_too() -> None:
    found = surrogate.train(Training.of([measures(0.03, 0.06, 0.1)] * 3)).predict(np.array([[0.03, 0.06]]))
    assert found.mean[0] == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [[], [measures(0.03, 0.06, float("nan"))]])
def test_what_is_nothing_to_learn_from_is_refused(wrong: list[Measures]) -> None:
    with pytest.raises(ValueError, match="observation"):
        surrogate.train(Training.of(wrong))
