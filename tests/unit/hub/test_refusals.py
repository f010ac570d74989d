from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.hub.refusals import refused_tasks
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_CLIENT, TO_HUB, VERSION, Unreadable, encode

HUGE = (1 << 63) - 1
# Whatever MessagePack can say, most often near an end of what a field takes.
NUMBERS = st.sampled_from([0, 1, 7, (1 << 16) + 1, HUGE - 1, HUGE, HUGE + 1, (1 << 64) - 1, -1, -(1 << 63)])
SAID = st.one_of(NUMBERS, st.integers(-(1 << 63), (1 << 64) - 1), st.none(), st.booleans(), st.text(), st.floats())


def read(*fields: object) -> object:
    """What the hub makes of a Submit with these fields."""
    frame = bytes([VERSION]) + msgspec.msgpack.encode([[4, *fields]])
    (found,) = TO_HUB.decode_singly(frame)
    return found


@given(SAID, st.sampled_from([1, 2, 3]) | SAID)
def test_what_is_told_of_an_unreadable_submission_can_be_sent(first: object, count: object) -> None:
    unreadable = read(first, count, "no template")
    assert isinstance(unreadable, Unreadable)
    outcomes = refused_tasks(unreadable, "why")
    found = TO_CLIENT.decode(encode([m.Outcomes(outcomes)]))
    assert found == [m.Outcomes(outcomes)]
    assert all(0 <= outcome.task <= HUGE for outcome in outcomes)


@pytest.mark.parametrize(
    ("first", "count", "told"),
    [
        (5, 2, [5, 6]),
        (HUGE, 1, [HUGE]),
        (HUGE, 2, []),
        ((1 << 64) - 1, 2, []),
        (5, 0, []),
        (5, (1 << 16) + 1, []),
        (5, None, []),
        (-1, 1, []),
    ],
)
def test_every_task_that_can_be_named_is_told_of(first: object, count: object, told: list[int]) -> None:
    unreadable = read(first, count, "no template")
    assert isinstance(unreadable, Unreadable)
    assert [outcome.task for outcome in refused_tasks(unreadable, "why")] == told
