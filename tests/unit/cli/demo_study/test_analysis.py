"""What a simulation measures, and the summary of a region."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import analysis, plan, simulate
from tests.unit.cli.demo_study.samples import REGION, TINY


@dataclass(frozen=True)
class Done:
    sandbox: str


def _stripes(size: int, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    wave = 0.2 + 0.1 * np.cos(2 * np.pi * np.arange(size) / length)
    return np.tile(wave, (size, 1))


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
    points = plan.refined_points(REGION, TINY, 1)[:4]
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
    assert summary.measures == [analysis.load(item)[0] for item in done]
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
