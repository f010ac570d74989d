"""How far a pilot has come on its way into a queue, pure: what follows from answers, and from silence.

Whoever was not answered knows nothing: there may be a job or none. So nothing is concluded until the queue itself has
answered, twice, some time apart: what was on its way to a controller that stood still is in the queue by then. Only
then it is submitted once more, as another *try*. A job knows its try, and ends at once when its pilot has a later one:
so there are never two, even if a job turns up after any time.
"""

from __future__ import annotations

import enum

FIRST_PAUSE, LAST_PAUSE, GROWTH = 2.0, 60.0, 2.0
"""Seconds until it is tried again, at first and at most; each is so many times the one before."""
SETTLE = 10.0
"""Seconds between two answers of the queue without the job, after which there is none."""


class Stage(enum.Enum):
    """How far a pilot has come."""

    ASKED = enum.auto()
    """It is to be submitted, and certainly was not."""
    SENT = enum.auto()
    """The batch system is being asked to take it."""
    LOST = enum.auto()
    """It may have been taken or not: nobody heard an answer, or the hub that would have heard it has died."""
    QUEUED = enum.auto()
    """There is a job whose id is known."""


class Submission:
    """One pilot's way into the queue.

    Attributes:
        stage: how far it has come.
        number: of the present try, from 1.
        at: ASKED: when to try, in seconds.
        queued: since when its job's id is known.
        unread: LOST: why the answer that came cannot be understood; empty when none came.
    """

    def __init__(self, now: float = 0.0, number: int = 1) -> None:
        """Start ASKED, due at once."""
        self.stage = Stage.ASKED
        self.number = number
        self.at = now
        self.queued = 0.0
        self.unread = ""
        self._pause = FIRST_PAUSE
        self._missed: float | None = None

    def delayed(self, now: float) -> None:
        """The batch system does not answer, and was not asked yet to take it: try again after a pause."""
        self.stage, self.at = Stage.ASKED, now + self._pause
        self._pause = min(LAST_PAUSE, self._pause * GROWTH)

    def sent(self) -> None:
        """The batch system is asked now."""
        self.stage = Stage.SENT

    def lost(self, unread: str = "") -> None:
        """No answer came, or none that can be understood: ``unread`` says why. Then another try would end the same."""
        self.stage, self._missed, self.unread = Stage.LOST, None, unread

    def known(self, now: float) -> None:
        """There is a job, and its id is known."""
        self.stage, self.queued = Stage.QUEUED, now
        self._pause = FIRST_PAUSE

    def absent(self, began: float) -> bool:
        """LOST: the queue answered without the job to a question of ``began``; return whether there is no job."""
        if self._missed is None:
            self._missed = began
        return began - self._missed >= SETTLE

    @property
    def settles(self) -> float | None:
        """LOST: from when on an answer without the job says that there is none; None before the first such answer."""
        return self._missed + SETTLE if self.stage is Stage.LOST and self._missed is not None else None

    def answered(self, now: float) -> None:
        """The batch system answers again after a silence: what was put off is due, and pauses begin short again."""
        self.at = min(self.at, now)
        self._pause = FIRST_PAUSE

    def again(self, now: float) -> None:
        """There is no job: submit it once more, after a pause that grows with each time."""
        self.number += 1
        self.delayed(now)

    def missing(self, began: float) -> bool:
        """QUEUED: an answer to a question of ``began`` does not hold the job; return whether that says anything."""
        return began > self.queued + 1.0
