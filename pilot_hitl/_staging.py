"""What a ``with`` block of a branch declares: kept back until the block ends, or dropped when it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pilot_hitl import errors
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.wire.messages import Message, Outcome

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._outbox import Job
    from pilot_hitl.bodies import Body
    from pilot_hitl.gates import Checkpoint
    from pilot_hitl.model.conditions import Term

Run = tuple[int, int]


class Staging:
    """Messages and tasks in order of declaration. Changed under the outbox's lock only.

    Attributes:
        outer: what the block around this one declares.
        closed: whether the block has ended. Code that was begun in it and goes on, such as an asyncio task, belongs to
            the block around it then.
        items: what will be sent.
        tasks, size: how many tasks and bytes of bodies are in it.
        runs: ``(first, count)`` of the tasks' ids.
        checkpoints: those that are asked in it.
        conditions: those that speak of them.
        starts: called once all this was sent.
        bodies: those that are started then.
    """

    def __init__(self, outer: Staging | None) -> None:
        """Start empty."""
        self.outer = outer
        self.closed = False
        self.items: list[Message | Job] = []
        self.tasks = 0
        self.size = 0
        self.runs: list[Run] = []
        self.checkpoints: dict[int, Checkpoint] = {}
        self.conditions: list[frozenset[Term]] = []
        self.starts: list[Callable[[], None]] = []
        self.bodies: list[Body[Any]] = []

    def add(self, job: Job, size: int) -> None:
        """Keep tasks."""
        self.items.append(job)
        self.tasks += len(job[2])
        self.size += size
        first, count = job[1], len(job[2])
        if self.runs and sum(self.runs[-1]) == first:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + count)
        else:
            self.runs.append((first, count))

    def holds(self, task: int) -> bool:
        """Return whether a task was declared in this block."""
        return any(first <= task < first + count for first, count in self.runs)

    def asks(self, checkpoint: int) -> bool:
        """Return whether the checkpoint with this handle is asked in this block, or in one around it."""
        return checkpoint in self.checkpoints or (self.outer is not None and self.outer.asks(checkpoint))

    def knows(self, task: int) -> bool:
        """Return whether a task was declared in this block, or in one around it."""
        return self.holds(task) or (self.outer is not None and self.outer.knows(task))

    def merge(self, inner: Staging) -> None:
        """Take over what an inner block declared."""
        self.items += inner.items
        self.tasks += inner.tasks
        self.size += inner.size
        self.runs += inner.runs
        self.checkpoints |= inner.checkpoints
        self.conditions += inner.conditions
        self.starts += inner.starts
        self.bodies += inner.bodies


def innermost(staging: Staging | None) -> Staging | None:
    """Return the innermost block, from this one outwards, that has not ended."""
    while staging is not None and staging.closed:
        staging = staging.outer
    return staging


class Declarations:
    """The blocks of one client that are open. Safe to use from several threads."""

    def __init__(self, client: Client) -> None:
        """Start without any."""
        self._client = client
        self._open: list[Staging] = []
        self._lock = threading.Lock()

    def begin(self, outer: Staging | None) -> Staging:
        """Open a block."""
        staging = Staging(outer)
        self._open.append(staging)
        return staging

    def commit(self, staging: Staging) -> None:
        """Close a block that ended well: send what it declared, or let the block around it do that.

        Raises:
            SessionClosed, HubUnreachable: the session ended.
        """
        self._open.remove(staging)
        try:
            with self._lock:
                sent = self._client.close_block(staging)
        except errors.PilotHitlError:
            self._end(staging, "the session ended before it was sent")
            raise
        for start in staging.starts if sent else ():
            start()

    def defer(self, staging: Staging | None, body: Body[Any], start: Callable[[], None]) -> None:
        """Start a body when the block that declares it ends, now when it is in none."""
        with self._lock:
            found = innermost(staging)
            if found is not None:
                found.starts.append(start)
                found.bodies.append(body)
                return
        start()

    def drop(self, staging: Staging, error: BaseException) -> None:
        """Close a block that raised: nothing of it is sent, and its futures end as canceled."""
        self._open.remove(staging)
        with self._lock:
            self._client.close_block(staging, drop=True)
        self._end(staging, f"it was never submitted: the with block that declares it was left by {error!r}")

    def _end(self, staging: Staging, why: str) -> None:
        client = self._client
        for terms in staging.conditions:
            client.conditions.forget(terms)
        for checkpoint in staging.checkpoints.values():
            client.unask(checkpoint, errors.CheckpointWithdrawn(f"checkpoint {checkpoint.name!r}: {why}"))
        for body in staging.bodies:
            body.abandon(errors.TaskCanceled(why))
        failure = Failure(Cause.CANCELED, why)
        client.take_outcomes(
            [
                Outcome(task, State.CANCELED, failure=failure)
                for first, count in staging.runs
                for task in range(first, first + count)
            ]
        )

    def staged(self, task: int) -> bool:
        """Return whether a task is declared in a block that is open."""
        return any(staging.holds(task) for staging in self._open)

    def asking(self, terms: frozenset[Term], staging: Staging | None) -> Staging | None:
        """Return where a condition is to be kept: in this block, when a checkpoint it speaks of is asked there.

        Raises:
            Undecided: the checkpoint is asked in another block.
        """
        found = None
        if self._open:
            for handle in {term.checkpoint for term in terms}:
                owner = next((each for each in self._open if handle in each.checkpoints), None)
                if owner is None:
                    continue
                if staging is None or not staging.asks(handle):
                    name = owner.checkpoints[handle].name
                    raise errors.Undecided(f"checkpoint {name!r} is asked in a with block that has not ended yet")
                found = staging
        return found

    def check(self, tasks: Iterable[int], staging: Staging | None) -> None:
        """Check that no task is declared in a block other than this one and those around it.

        Raises:
            Undecided: one is.
        """
        if not self._open:
            return
        for task in tasks:
            if self.staged(task) and (staging is None or not staging.knows(task)):
                raise errors.Undecided(f"{task_name(task)} is declared in a with block that has not ended yet")
