"""Who answers the demo's gate, without a gate."""

from __future__ import annotations

import pytest

from pilot_hitl.cli.demo_study import plan, reviewers
from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.cli.demo_study.study import fenced, table, thumbnails
from pilot_hitl.errors import DescriptionError
from tests.unit.cli.demo_study.samples import survey as made


@pytest.fixture
def survey() -> Survey:
    # The regions are A1, B1, C1, A2, …
    return made(plan.SCALES["normal"], 0.1, 0.3, 0.2, 0.0)


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
    told = [text for value in survey.probabilities for text in (f"{value:.4f}", f" {value:.0%}")]
    assert not any(text in shown for text in told)


def test_a_picture_keeps_its_spaces_as_markdown() -> None:
    assert fenced(" a\n  b") == "```\n a\n  b\n```"
