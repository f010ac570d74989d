"""When a successor is submitted."""

from __future__ import annotations

import pytest

from pilot_hitl.hub import renewal


@pytest.mark.parametrize(
    ("minutes", "waited", "lead"),
    [
        (600, 0, 3600),  # a tenth
        (10, 0, 120),  # two minutes
        (2, 0, 30),  # a quarter of what is short
        (600, 7200, 9000),  # the queue was two hours long
        (60, 86400, 3240),  # a day in the queue for an hour: at once, nearly
    ],
)
def test_so_early_that_it_starts_in_time(minutes: float, waited: float, lead: float) -> None:
    begin = 1000.0
    end = begin + minutes * 60
    assert renewal.due(begin, end, waited) == pytest.approx(end - lead)
