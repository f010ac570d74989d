"""Which call ends with the worker that ran it."""

from __future__ import annotations

import pytest

from pilot_hitl_agent.node.calls import NOBODY, who_ends

ACTS = 7
"""A task that acts outside; 1 to 3 do not."""


@pytest.mark.parametrize(
    ("begun", "sent", "aimed", "ends"),
    [
        ((2, 1), [2, 3], 0, 2),
        ((0, 1), [2, 3], 0, 0),
        ((0, 2), [2, 3], 0, 0),
        ((2, 1), [2, 3], 2, 2),
        # The signal was for one that had ended by then, or for nobody.
        ((2, 1), [2, 3], 1, 0),
        ((2, 1), [2, 3], NOBODY, 0),
        ((1, 0), [2, 3], 0, 0),
    ],
)
def test_a_call_ends_with_its_worker_unless_the_worker_was_killed_for_another(
    begun: tuple[int, int], sent: list[int], aimed: int, ends: int
) -> None:
    assert who_ends(begun, sent, aimed, 0) == ends
    assert who_ends(begun, sent, aimed, ACTS) == ends, "of an earlier call that acts outside"


@pytest.mark.parametrize("aimed", [0, 1, ACTS, NOBODY])
@pytest.mark.parametrize("begun", [(ACTS, 1), (0, ACTS)])
def test_what_has_begun_to_act_outside_ends_whatever_its_worker_was_killed_for(
    begun: tuple[int, int], aimed: int
) -> None:
    assert who_ends(begun, [ACTS], aimed, ACTS) == ACTS


@pytest.mark.parametrize("aimed", [0, 1, NOBODY])
def test_what_acts_outside_and_has_not_begun_is_free_to_begin(aimed: int) -> None:
    assert who_ends((0, 1), [ACTS], aimed, ACTS) == 0
    assert who_ends((1, 2), [1, ACTS], 2, ACTS) == 0
