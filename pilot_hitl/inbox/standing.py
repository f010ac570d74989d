"""What waiting answers stand for: which of one person's answers counts, and what became of the others. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pilot_hitl.inbox.spool import Taken


class Standing(enum.StrEnum):
    """What an answer in the spool, or a withdrawal of one, comes to."""

    COUNTS = "counts"
    """It is the last word of its author: it is given, and may still come second to somebody else's."""
    REPLACED = "replaced"
    """Its author answered again."""
    WITHDRAWN = "withdrawn"
    """Its author took it back."""
    UNFIT = "unfit"
    """It could never count: invalid, late, not allowed, or to another generation of the question."""
    WITHDRAWS = "withdraws"
    """It is a withdrawal of what came before it."""
    IDLE = "idle"
    """It is a withdrawal of nothing."""


class Placed(NamedTuple):
    """An answer and its standing; ``by`` is what ended it: the later answer or the withdrawal."""

    taken: Taken
    standing: Standing
    by: Taken | None = None


def standings(waiting: Sequence[Taken], fits: Callable[[Taken], bool]) -> list[Placed]:
    """Return what each of these comes to, in order of time; all of them wait, so nobody has acted upon any.

    A person's later answer to one generation of one question replaces the earlier one, unless it does not fit: what
    could never count replaces nothing. The same holds for withdrawals.
    """
    last: dict[tuple[int, int, int], int] = {}
    placed: list[Placed] = []
    for taken in sorted(waiting, key=lambda each: (each.at, each.answer.answer_id)):
        answer = taken.answer
        whose = (taken.uid, answer.checkpoint, answer.generation)
        before = last.get(whose)
        if not fits(taken):
            placed.append(Placed(taken, Standing.UNFIT))
            continue
        if before is not None:
            ended = Standing.WITHDRAWN if answer.withdraws else Standing.REPLACED
            placed[before] = Placed(placed[before].taken, ended, taken)
        if answer.withdraws:
            last.pop(whose, None)
            placed.append(Placed(taken, Standing.IDLE if before is None else Standing.WITHDRAWS))
        else:
            last[whose] = len(placed)
            placed.append(Placed(taken, Standing.COUNTS))
    return placed
