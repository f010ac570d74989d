"""The gate's picture: maps the right way up, candidates framed."""

from __future__ import annotations

import numpy as np

from pilot_hitl.cli.demo_study import canvas, plan, plot
from tests.unit.cli.demo_study.samples import survey
from tests.unit.cli.demo_study.test_canvas import decode


def test_the_picture_shows_where_the_surrogate_expects_strength() -> None:
    # Of nine regions the last, with the largest feed and kill, is the strongest.
    found = survey(plan.SCALES["normal"], *[0.01] * 8, 0.2)
    pixels = decode(plot.surface_png(found)).astype(int)
    light = pixels @ np.array([0.2126, 0.7152, 0.0722])
    inside = light[plot.TOP : plot.TOP + plot.SIDE, plot.LEFT : plot.LEFT + plot.SIDE]
    third = plot.SIDE // 3
    assert inside[:third, -third:].mean() > 1.5 * inside[-third:, :third].mean()
    assert plot.surface_png(found) == plot.surface_png(found)


def test_exactly_the_candidates_are_framed() -> None:
    found = survey(plan.SCALES["normal"], 0.1, 0.2, 0.15, 0.0)
    assert sorted(item.region.name for item in found.candidates) == ["A1", "B1", "C1"]
    marked = (decode(plot.surface_png(found)) == plot.MARK).all(axis=2)
    framed = marked[plot.TOP : plot.TOP + plot.SIDE, plot.LEFT : plot.LEFT + plot.SIDE]
    assert framed.sum() > 3 * 4 * (plot.SIDE // 3)
    # The lowest third of the map; a frame lies inside its region.
    assert not framed[: 2 * plot.SIDE // 3 - 1].any()


def test_titles_and_axes_can_be_written() -> None:
    written = "predicted strength uncertainty F k 0123456789."
    assert all(canvas.glyph(each) for each in written if each != " ")
