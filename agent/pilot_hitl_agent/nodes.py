"""What the agent needs of a node, wherever its daemon runs."""

from __future__ import annotations

from typing import Any, Protocol

from pilot_hitl.wire.node import FromNode, ToNode


class Node(Protocol):
    """One node: takes messages, says what happened. :class:`~pilot_hitl_agent.noop.NoopNode` is the smallest one."""

    def handle(self, messages: list[ToNode]) -> None:
        """Act upon messages of the agent."""

    def drain(self) -> list[FromNode]:
        """Return what happened since the last call."""


class LiveNode(Node, Protocol):
    """A node with processes: it has descriptors to poll, timers, and an end."""

    def fds(self) -> list[int]:
        """Descriptors to poll for reading."""

    def on_readable(self, fd: int) -> None:
        """Act upon a readable descriptor."""

    def next_deadline(self) -> float | None:
        """When :meth:`on_timer` is due, in seconds since 1970."""

    def on_timer(self, now: float) -> None:
        """Act upon the time."""

    def processes(self) -> list[dict[str, Any]]:
        """Every process of the node, with ``kind`` and ``pid``."""

    def close(self, grace: float) -> None:
        """End everything on the node."""
