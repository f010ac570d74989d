"""An attempt that left its queue. Queued ones are only numbers in runs."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Slot

if TYPE_CHECKING:
    from pilot_hitl_agent.core.chains import Chain
    from pilot_hitl_agent.core.claims import Plan
    from pilot_hitl_agent.core.events import Bulk
    from pilot_hitl_agent.core.node import Node
    from pilot_hitl_agent.core.queues import Queue


class Phase(enum.IntEnum):
    """Where an attempt is."""

    PLANNED = 0
    """Slots are claimed for it; it waits until they are free."""
    HELD = 1
    """Held ahead at a node."""
    RUNNING = 2
    """Start was sent, or the node said so."""
    ENDING = 3
    """Told to end; its slots count as used until the node says FINISHED."""
    SUSPENDING = 4
    """Told to suspend; its cores count as used until the node says SUSPENDED."""
    SUSPENDED = 5
    """Holds memory and GPUs, no cores."""


class Part:
    """The share of an attempt on one node: slots, one a rank, and the cores they take (all, when exclusive)."""

    __slots__ = ("mask", "node", "slots")

    def __init__(self, node: Node, slots: tuple[Slot, ...], mask: int) -> None:
        self.node = node
        self.slots = slots
        self.mask = mask


NOWHERE: dict[int, Part] = {}
"""The parts of what has none; never changed. Most of the attempts that are held ahead at any time share it."""


class Attempt:
    """One attempt.

    Attributes:
        sequence: order of arrival.
        parts: by node; empty while it is held ahead or planned.
        link_node: node that it is held ahead at, or runs on as part of a chain.
        chain: the chain it was launched with.
        chainable: something of its chain may follow it on its slots.
        began: when its start was decided.
        fate: why it is being ended or asked back.
        broken: it had a part on a node that is gone, or a part of it failed.
        retracting: it was asked back and its node did not answer yet.
    """

    __slots__ = (
        "began", "broken", "bulk", "chain", "chainable", "fate", "lending",
        "link_node", "parts", "phase", "plan", "queue",
        "retracting", "sequence", "task",
    )  # fmt: skip

    def __init__(self, task: int, bulk: Bulk, sequence: int, queue: Queue) -> None:
        self.task = task
        self.bulk = bulk
        self.sequence = sequence
        self.queue = queue
        self.phase = Phase.PLANNED
        self.parts: dict[int, Part] = NOWHERE
        self.link_node: Node | None = None
        self.chain: Chain = queue.chain
        self.chainable = False
        self.began = 0.0
        self.fate: Failure | None = None
        self.lending = False
        self.retracting = False
        self.broken = False
        self.plan: Plan | None = None

    @property
    def evictable(self) -> bool:
        """Whether it may be told now to give way to a higher tier."""
        return self.phase is Phase.RUNNING and self.queue.preemptible and self.bulk.on_preempt != "finish"
