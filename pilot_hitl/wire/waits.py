"""What code inside a task says of itself while it waits long: it does not write, and others wait for the task."""

from __future__ import annotations

from pilot_hitl.wire.messages import Message, Number

MOST_RUNS = 2000
"""Runs of ids that are told at most."""
MOST_SAID, LONGEST = 5, 500
"""Sentences that are told at most, and characters of each."""


class Waits(Message, tag=18, frozen=True):
    """A running task waits, and has done so for a while; with nothing in it, it waits no more. Has no answer.

    Attributes:
        task: that waits.
        tasks: for which, as runs ``(first id, count)``.
        said: what it waits for besides, in sentences.
    """

    task: Number
    tasks: tuple[tuple[Number, Number], ...] = ()
    said: tuple[str, ...] = ()
