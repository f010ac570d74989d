"""What became of the tasks of a study."""

from __future__ import annotations

from typing import Any, NamedTuple

import pilot_hitl as ph
from pilot_hitl.cli.demo_study.study import Outcome


class Account(NamedTuple):
    """Counts of tasks.

    Attributes:
        done: whose results count.
        failed: that failed for good, in whatever branch.
        committed: that began before the answer and count.
        discarded: of the branches that were not chosen, whether they had begun or not.
        begun: those of the discarded that had begun.
    """

    done: int
    failed: int
    committed: int
    discarded: int
    begun: int


def account(session: ph.Session, outcome: Outcome) -> Account:
    """Count the tasks of a study that is at its end; waits for those that have not ended.

    Raises:
        SessionError: the hub cannot say when they began.
    """
    done = failed = discarded = 0
    for task in outcome.tasks:
        error = task.exception()
        if error is None:
            done += 1
        elif isinstance(error, ph.Discarded):
            discarded += 1
        else:
            failed += 1
    others = [task for name, tasks in outcome.early.items() if name != outcome.chosen for task in tasks]
    return Account(
        done=done,
        failed=failed,
        committed=_begun(session, outcome.early.get(outcome.chosen, []), outcome.answer.at),
        discarded=discarded,
        begun=_begun(session, others, outcome.answer.at),
    )


def _begun(session: ph.Session, tasks: list[ph.TaskFuture[Any]], until: float) -> int:
    """How many of the tasks a pilot had begun at this moment."""
    facts = [session.query("task", task=task.task) for task in tasks]
    return sum(1 for fact in facts if fact.get("pilot") and 0.0 < (fact.get("began") or 0.0) < until)
