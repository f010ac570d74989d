"""The clock by which hubs and agents wait: it reads like the wall clock, and does not jump with it.

The wall clock is set by people, by time servers, and when a machine wakes up. A deadline that a person gave follows it,
both ways: that is what ``time.time()`` is for. Whatever else waits (a lease, a peer's silence, a commit that is due, a
pilot's wall time) lasts as long as it was meant to, and uses :func:`steady`.
"""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady() -> float:
    """Return the seconds since 1970 that would be now, had nobody set the clock since this process began."""
    return time.monotonic() + _OFFSET


def on_steady(moment: float) -> float:
    """Return when it will be, on this clock, that the wall clock as it goes now shows a moment."""
    return moment - time.time() + steady()
