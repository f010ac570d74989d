"""Heat maps of text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pilot_hitl.cli.demo_study import analysis, pictures, plan
from pilot_hitl.cli.demo_study.analysis import Summary


def test_a_picture_is_half_as_high_as_wide_and_shades_by_value() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32), (32, 1))
    lines = pictures.picture(ramp, width=16).split("\n")
    assert len(lines) == 8
    assert {len(line) for line in lines} == {16}
    levels = [pictures.SHADES.index(shade) for shade in lines[0]]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, len(pictures.SHADES) - 1)


def test_an_empty_field_is_blank() -> None:
    assert pictures.picture(np.zeros((8, 8), dtype=np.float32), width=8).strip() == ""


def test_a_field_smaller_than_the_picture_is_shown_as_it_is() -> None:
    assert pictures.picture(np.eye(4, dtype=np.float32), width=32).split("\n")[0] == "@   "


def test_the_surface_has_large_feed_on_top_and_brackets_candidates() -> None:
    scale = plan.SCALES["small"]
    thumbnail = np.zeros((4, 4), dtype=np.float32)
    summaries = [
        Summary(region, 1.0, 0.1, 1.0, 10.0, 0.1 * (index + 1), thumbnail)
        for index, region in enumerate(plan.regions(scale))
    ]
    text = pictures.surface(analysis.rank(summaries))
    assert text.index("A3") < text.index("A1")
    assert all(f"[{name}]" in text for name in ("A3", "B3", "C3"))
    assert "[A1]" not in text
    blank = pictures.surface(analysis.rank([replace(item, strength=0.0) for item in summaries]))
    assert "@" not in blank


def test_pictures_stand_in_columns() -> None:
    text = pictures.side_by_side({"one": "ab\ncd\nef", "three": "x"}, gap=2)
    assert text.split("\n") == ["one  three", "ab   x", "cd", "ef"]
