"""What the office of an agent makes of Slurm's words."""

from __future__ import annotations

from datetime import datetime

import pytest

from pilot_hitl_agent.cluster.office import end_in

MOMENT = "2026-11-25T20:55:57"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"77 {MOMENT}\n", True),
        (f"75 2026-11-25T20:50:00\n76 N/A\n77 {MOMENT}\n", True),
        ("77 N/A\n", False),
        ("77 Unknown\n", False),
        ("", False),
        ("slurm_load_jobs error: Unable to contact slurm controller\n", False),
    ],
)
def test_the_end_of_a_job_among_those_of_its_array(text: str, found: bool) -> None:
    expected = datetime.fromisoformat(MOMENT).timestamp() if found else None
    assert end_in(text, "77") == expected
