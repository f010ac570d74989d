"""Heat maps of text."""

from __future__ import annotations

import numpy as np

from pilot_hitl.cli.demo_study import pictures, plan
from tests.unit.cli.demo_study.samples import survey


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
    scale = plan.SCALES["normal"]
    found = survey(scale, *[0.01 * index for index in range(9)])
    text = pictures.surface(found)
    assert text.index("A3") < text.index("A1")
    assert all(f"[{item.region.name}]" in text for item in found.candidates)
    assert text.count("[") == 3
    assert "@" in text
    assert "@" not in pictures.surface(survey(scale, 0.0))


def test_pictures_stand_in_columns() -> None:
    text = pictures.side_by_side({"one": "ab\ncd\nef", "three": "x"}, gap=2)
    assert text.split("\n") == ["one  three", "ab   x", "cd", "ef"]
