"""The function tasks of the demo: measures, prediction, fit, hash."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.cli.demo_study import analysis, plan, simulate
from pilot_hitl.cli.demo_study.analysis import Finding, Fit, Measures, Summary, Survey
from pilot_hitl.cli.demo_study.plan import Region, Scale

REGION = Region("B2", 1, 1, feed=(0.02, 0.04), kill=(0.05, 0.06))
TINY = Scale(regions=2, per_region=2, refined=3, checks=1, cells=16, steps=60, window=20)


@dataclass(frozen=True)
class Done:
    sandbox: str


def _stripes(size: int, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    wave = 0.2 + 0.1 * np.cos(2 * np.pi * np.arange(size) / length)
    return np.tile(wave, (size, 1))


def _summary(name: str, strength: float) -> Summary:
    region = replace(REGION, name=name)
    return Summary(region, 1.0, strength, 1.0, 10.0, strength, np.zeros((8, 8), dtype=np.float32))


def _measures(feed: float, kill: float, strength: float, contrast: float = 0.1) -> Measures:
    return Measures(feed, kill, contrast, 1.0, 10.0, strength)


def _grid(surface: dict[tuple[int, int], float], side: int) -> list[Measures]:
    points = plan.refined_points(REGION, TINY._replace(refined=side), 1)
    return [_measures(point.feed, point.kill, surface[divmod(index, side)]) for index, point in enumerate(points)]


def test_wavelength_of_stripes_is_their_distance() -> None:
    assert analysis.wavelength(_stripes(64, 8)) == pytest.approx(8.0)
    assert analysis.wavelength(np.full((8, 8), 0.3)) == 0.0


def test_a_pattern_at_rest_is_steady_and_one_that_moved_half_a_wave_is_not() -> None:
    stripes = _stripes(64, 8)
    at_rest = analysis.measure(0.03, 0.06, stripes, stripes)
    assert at_rest.contrast == pytest.approx(0.1 / 2**0.5)
    assert at_rest.steadiness == pytest.approx(1.0)
    assert at_rest.strength == pytest.approx(at_rest.contrast)
    assert analysis.measure(0.03, 0.06, np.roll(stripes, 4, axis=1), stripes).steadiness == 0.0
    assert analysis.measure(0.03, 0.06, np.roll(stripes, 2, axis=1), stripes).steadiness == pytest.approx(0, abs=1e-9)


def test_without_contrast_there_is_no_pattern() -> None:
    flat = np.full((8, 8), 0.3)
    found = analysis.measure(0.03, 0.06, flat, flat + 1e-6 * _stripes(8, 4))
    assert (found.strength, found.steadiness, found.wavelength) == (0.0, 0.0, 0.0)
    assert analysis.measure(0.03, 0.06, flat, _stripes(8, 4)).strength == 0.0


def test_the_executable_writes_what_the_summary_reads(tmp_path: Path) -> None:
    done = []
    points = plan.survey_points(REGION, TINY, 1)
    for index, point in enumerate(points):
        folder = tmp_path / str(index)
        folder.mkdir()
        simulate.main(point.arguments(TINY, str(folder / analysis.RESULT_NAME)))
        assert [path.name for path in folder.iterdir()] == [analysis.RESULT_NAME]
        done.append(Done(str(folder)))
    measures, field = analysis.load(done[2])
    assert (measures.feed, measures.kill) == (points[2].feed, points[2].kill)
    before, after = simulate.trajectory(points[2].feed, points[2].kill, points[2].seed, 16, 60, 20)
    assert measures == analysis.measure(points[2].feed, points[2].kill, before, after)
    assert field.tobytes() == after.tobytes()
    summary = analysis.summarise(REGION, list(done))
    assert summary.strength == pytest.approx(sum(analysis.load(item)[0].strength for item in done) / 4)
    assert summary.thumbnail.shape == (16, 16)


@pytest.mark.parametrize("wrong", [["--cells=2"], ["--window=99"], ["--feed=much"], []])
def test_the_executable_refuses_what_it_cannot_run(wrong: list[str], tmp_path: Path) -> None:
    given_: list[str] = [*TINY_POINT, f"--out={tmp_path / 'x.npz'}", *wrong] if wrong else ["--feed=0.03"]
    with pytest.raises(SystemExit) as caught:
        simulate.main(given_)
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []


TINY_POINT = ["--feed=0.03", "--kill=0.06", "--cells=16", "--steps=60", "--window=20"]


def test_the_three_strongest_regions_are_the_candidates() -> None:
    summaries = [_summary(name, value) for name, value in (("A1", 0.1), ("B1", 0.4), ("A2", 0.1), ("B2", 0.2))]
    survey = analysis.rank(summaries)
    assert [item.region.name for item in survey.candidates] == ["B1", "B2", "A1"]
    assert [item.region.name for item in survey.summaries] == ["A1", "B1", "A2", "B2"]


def test_twice_as_strong_is_four_times_as_likely() -> None:
    assert analysis.predict([0.2, 0.1]) == pytest.approx([0.8, 0.2])
    assert analysis.predict([0.0, 0.0, 0.0]) == pytest.approx([1 / 3] * 3, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_probabilities_never_sum_above_one(strengths: list[float]) -> None:
    found = analysis.predict(sorted(strengths, reverse=True))
    assert sum(found) <= 1.0 + 1e-9
    assert sum(found) == pytest.approx(1.0)
    assert all(value >= 0 for value in found)
    assert found[0] == max(found)


def test_a_quadratic_surface_is_found_exactly() -> None:
    side = 5
    # The highest place is the grid's own centre, (2, 2).
    surface = {(i, j): 0.5 - 0.02 * (i - 2) ** 2 - 0.01 * (j - 2) ** 2 for i in range(side) for j in range(side)}
    found = analysis.fit_measures(REGION, _grid(surface, side))
    assert found.feed == pytest.approx(0.03)
    assert found.kill == pytest.approx(0.055)
    assert found.strength == pytest.approx(0.5)
    assert found.residual == pytest.approx(0.0, abs=1e-12)
    assert (found.simulations, found.patterns) == (25, 25)


def test_noise_of_known_size_is_found_as_residual() -> None:
    side = 15
    random = np.random.default_rng(1)
    surface = {(i, j): 0.3 + float(random.normal(0, 0.02)) for i in range(side) for j in range(side)}
    found = analysis.fit_measures(REGION, _grid(surface, side))
    assert found.residual == pytest.approx(0.02, rel=0.15)
    assert 0 < found.error < found.residual
    assert abs(found.strength - 0.3) < 5 * found.error


def test_the_highest_place_is_among_the_runs_that_have_a_pattern() -> None:
    side = 5
    surface = {(i, j): 0.1 + 0.05 * i for i in range(side) for j in range(side)}
    measures = _grid(surface, side)
    # Half of the region, the one towards which the surface rises, is empty.
    measures = [
        replace(item, strength=0.0, contrast=0.0) if index >= 15 else item for index, item in enumerate(measures)
    ]
    found = analysis.fit_measures(REGION, measures)
    assert found.patterns == 15
    # The last row of patterns is at 0.5 of the region, the first empty one at 0.7; 0.15 before it are kept clear.
    # The map of places has steps of 1/40, so the runs' half spacing on the other side ends at 0.575.
    assert found.feed <= 0.02 + 0.02 * 0.575 + 1e-9
    assert found.strength == pytest.approx(0.1 + 0.05 * 2.375)


def test_too_few_patterns_are_not_fitted() -> None:
    surface = {(i, j): 0.1 * (i + j) for i in range(3) for j in range(3)}
    measures = [replace(item, contrast=0.0) if index < 6 else item for index, item in enumerate(_grid(surface, 3))]
    found = analysis.fit_measures(REGION, measures)
    assert found.patterns == 3
    assert found.strength == pytest.approx(0.4)
    assert (found.feed, found.kill) == (measures[8].feed, measures[8].kill)


def _finding(strength: float) -> Finding:
    fitted = Fit("B2", 9, 9, 0.03, 0.055, strength, 0.001, 0.002)
    return analysis.conclude(fitted, [(_measures(0.03, 0.055, 0.1), np.zeros((4, 4), dtype=np.float32))] * 2)


def test_fresh_simulations_bear_the_fit_out_or_not() -> None:
    assert _finding(0.101).agrees
    assert not _finding(0.2).agrees


def test_the_hash_is_of_the_numbers_alone() -> None:
    survey = Survey([_summary("A1", 0.1)], [_summary("A1", 0.1)], [1.0])
    other_picture = Survey(
        [replace(_summary("A1", 0.1), thumbnail=np.ones((8, 8), dtype=np.float32))], *survey_rest(survey)
    )
    known = analysis.results_hash(survey, _finding(0.101))
    assert analysis.results_hash(other_picture, _finding(0.101)) == known
    assert analysis.results_hash(survey, _finding(0.101 + 1e-13)) == known
    assert analysis.results_hash(survey, _finding(0.10101)) != known
    assert len(known) == 64


def survey_rest(survey: Survey) -> tuple[list[Summary], list[float]]:
    return survey.candidates, survey.probabilities
