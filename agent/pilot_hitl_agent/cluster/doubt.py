"""Which ends of processes are the job's end: the batch system signals tasks and us at once; theirs may be seen first.

``scancel``, a requeue, a preemption and the wall time send SIGTERM to every process of the job. A task that dies of it
has not failed, its pilot ended. So what looks like that is told a moment later, unless our own signal comes meanwhile.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate
from pilot_hitl.wire.node import Change, Changes, FromNode, ToNode
from pilot_hitl_agent.nodes import LiveNode

DOUBT = 1.0
"""Seconds; on an idle machine all processes get the signal within 0.04."""
_SIGTERM = frozenset({-int(signal.SIGTERM), 128 + int(signal.SIGTERM)})


class DoubtfulNode:
    """A node of a job of a batch system: as its daemon, but for ends that may be the job's."""

    def __init__(self, node: LiveNode) -> None:
        """Pass everything on to and from ``node``."""
        self._node = node
        self._kept: list[FromNode] = []
        self._until = 0.0

    @property
    def broken(self) -> str:
        """Why nothing can run there any more; empty while it can."""
        return self._node.broken

    def handle(self, messages: list[ToNode]) -> None:
        """Act upon messages of the agent."""
        self._node.handle(messages)

    def fileno(self) -> int:
        """Descriptor to poll for reading."""
        return self._node.fileno()

    def on_readable(self) -> None:
        """Act upon a readable descriptor."""
        self._node.on_readable()

    def next_deadline(self) -> float | None:
        """When :meth:`on_timer` is due, as ``time.monotonic()``."""
        due = self._node.next_deadline()
        if not self._kept:
            return due
        return self._until if due is None else min(due, self._until)

    def on_timer(self) -> None:
        """Act upon the time."""
        self._node.on_timer()

    def processes(self) -> list[dict[str, Any]]:
        """Every process of the node."""
        return self._node.processes()

    def pin(self, *, pinned: bool) -> None:
        """Bind tasks to cores, or do not."""
        self._node.pin(pinned=pinned)

    def publish(
        self, attempt: tuple[int, int, int], own: str, template: ExecutableTemplate, body: ExecutableBody
    ) -> bool:
        """Make the outside effects of a committed attempt real; return whether there are any."""
        return self._node.publish(attempt, own, template, body)

    def drain(self) -> list[FromNode]:
        """Return what happened since the last call, in order; from an end in doubt on, a moment later."""
        said = self._node.drain()
        if self._kept:
            self._kept += said
            if time.monotonic() < self._until:
                return []
            said, self._kept = self._kept, []
        elif any(isinstance(message, Changes) and any(map(is_doubtful, message.changes)) for message in said):
            self._kept, self._until = said, time.monotonic() + DOUBT
            return []
        return said

    def clear(self, grace: float, reason: str) -> bool:
        """End everything on the node and go on empty; return whether that was possible."""
        self._kept.clear()
        return self._node.clear(grace, reason)

    def close(self, grace: float = 0.0) -> list[FromNode]:
        """End everything on the node and return what happened last; what is in doubt was the job's end."""
        kept = [_ended_with_the_job(message) for message in self._kept]
        self._kept = []
        return [*kept, *self._node.close(grace)]


def is_doubtful(change: Change) -> bool:
    """Whether an attempt ended as processes do when the batch system ends their job."""
    failure = change.failure
    if failure is None:
        return False
    return failure.cause is Cause.WORKER_DIED or (failure.cause is Cause.EXIT and failure.exit_code in _SIGTERM)


def _ended_with_the_job(message: FromNode) -> FromNode:
    if not isinstance(message, Changes):
        return message
    changes = []
    for change in message.changes:
        if is_doubtful(change):
            host = change.failure.host if change.failure is not None else ""
            failure = Failure(Cause.PILOT_ENDED, "the batch system ended the job", host)
            change = msgspec.structs.replace(change, failure=failure)  # noqa: PLW2901 - the same one, seen rightly
        changes.append(change)
    return Changes(message.node, changes)
