"""What became of the tasks of a study."""

from __future__ import annotations

from typing import Any, NamedTuple

import pilot_hitl as ph
from pilot_hitl.cli.demo_study.study import Outcome


class Account(NamedTuple):
    """Counts of tasks, and when the continuation began.

    Attributes:
        done: whose results count.
        failed: that failed for good, in whatever branch.
        committed: that began before the answer and count.
        discarded: of the branches that were not chosen, whether they had begun or not.
        begun: those of the discarded that had begun.
        continuation_ms: from the accepted answer to the first instruction of a task of the chosen branch; 0 when one
            began before the answer.
    """

    done: int
    failed: int
    committed: int
    discarded: int
    begun: int
    continuation_ms: float


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
    answered = outcome.answer.at
    chosen = _beginnings(session, outcome.branches.get(outcome.chosen, []))
    others: list[float] = []
    if answered >= outcome.asked_at:  # else an earlier run was answered, and they were not even submitted
        others = _beginnings(
            session, [task for name, tasks in outcome.branches.items() if name != outcome.chosen for task in tasks]
        )
    return Account(
        done=done,
        failed=failed,
        committed=sum(began < answered for began in chosen),
        discarded=discarded,
        begun=sum(began < answered for began in others),
        continuation_ms=max(0.0, min(chosen, default=answered) - answered) * 1e3,
    )


def _beginnings(session: ph.Session, tasks: list[ph.TaskFuture[Any]]) -> list[float]:
    """When a pilot began each of the tasks that it began at all, seconds since 1970."""
    facts = [session.query("task", task=task.task) for task in tasks]
    return [float(fact["began"]) for fact in facts if fact.get("pilot") and fact.get("began")]
