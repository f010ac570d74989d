"""Who answers the demo's gate, without a gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import analysis, plan, reviewers
from pilot_hitl.cli.demo_study.analysis import Summary, Survey
from pilot_hitl.cli.demo_study.study import fenced, table, thumbnails
from pilot_hitl.errors import DescriptionError


@pytest.fixture
def survey() -> Survey:
    region = plan.regions(plan.SCALES["small"])[0]
    thumbnail = np.full((8, 8), 0.3, dtype=np.float32)
    return analysis.rank(
        [
            Summary(replace(region, name=name), 1.0, 0.1, 1.0, 10.0, strength, thumbnail)
            for name, strength in (("A1", 0.1), ("B1", 0.3), ("C1", 0.2), ("A2", 0.0))
        ]
    )


@pytest.mark.parametrize(
    ("wanted", "meant"), [("predicted", "B1"), ("", "B1"), ("other", "C1"), ("A1", "A1"), ("c1", "C1")]
)
def test_an_answer_is_a_choice_or_its_place_in_line(wanted: str, meant: str, survey: Survey) -> None:
    assert reviewers.answer_named(wanted, survey) == meant


def test_what_is_no_choice_is_refused_with_the_choices(survey: Survey) -> None:
    with pytest.raises(DescriptionError, match="B1, C1, A1"):
        reviewers.answer_named("A2", survey)


def test_the_reviewer_is_not_shown_the_prediction(survey: Survey) -> None:
    shown = f"{table(survey)}{thumbnails(survey)}"
    assert [row["region"] for row in table(survey)] == ["B1", "C1", "A1"]
    assert not any(f"{value:.2f}"[1:] in shown for value in survey.probabilities)


def test_a_picture_keeps_its_spaces_as_markdown() -> None:
    assert fenced(" a\n  b") == "```\n a\n  b\n```"
