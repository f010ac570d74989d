"""What the agent needs of a node, wherever its daemon runs."""

from __future__ import annotations

from typing import Any, Protocol

from pilot_hitl.model.templates import Template
from pilot_hitl.wire.node import FromNode, ToNode
from pilot_hitl_agent.node.acted import Acted


class Node(Protocol):
    """One node: takes messages, says what happened. :class:`~pilot_hitl_agent.noop.NoopNode` is the smallest one."""

    def handle(self, messages: list[ToNode]) -> None:
        """Act upon messages of the agent."""

    def drain(self) -> list[FromNode]:
        """Return what happened since the last call."""


class LiveNode(Node, Protocol):
    """A node with processes: it has a descriptor to poll, timers, and an end.

    Attributes:
        broken: why nothing can run there any more; empty while it can.
        ran: tasks that ran there when the agent before this one died.
        acted: attempts that act outside, have begun there, and did not end as far as the hub is known to know.
    """

    broken: str
    ran: list[int]
    acted: Acted

    def fileno(self) -> int:
        """Descriptor to poll for reading."""

    def on_readable(self) -> None:
        """Act upon a readable descriptor."""

    def next_deadline(self) -> float | None:
        """When :meth:`on_timer` is due, as ``time.monotonic()``."""

    def on_timer(self) -> None:
        """Act upon the time."""

    def processes(self) -> list[dict[str, Any]]:
        """Every process of the node, with ``kind`` and ``pid``."""

    def settle(self) -> None:
        """Wait until nothing runs here of an agent before this one; bounded."""

    def pin(self, *, pinned: bool) -> None:
        """Bind tasks to cores, or do not."""

    def clear(self, grace: float, reason: str) -> bool:
        """End everything on the node and go on empty; return whether that was possible."""

    def close(self, grace: float = 0.0) -> list[FromNode]:
        """End everything on the node and return what happened last."""

    def publish(self, attempt: tuple[int, int, int], own: str, template: Template, asked: str) -> None:
        """Put in place what a committed attempt left in its folder ``own``; a ``NodePublished`` says how that went."""
