"""What the scheduling core wants done. Within one answer the order is to be kept."""

from __future__ import annotations

from typing import Literal

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Slot

EndMode = Literal["kill", "requeue", "suspend", "resume"]


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """One attempt, or its share of a gang, on concrete slots of one node (one slot a rank)."""

    task: int
    chain: int
    rank: tuple[int, int]
    slots: tuple[Slot, ...]


class Instruction(msgspec.Struct, frozen=True):
    """Root of all instructions."""


class Retract(Instruction, frozen=True):
    """Ask held-ahead attempts back; each is answered once by RETRACTED, STARTED or FINISHED."""

    node: int
    tasks: list[int]


class End(Instruction, frozen=True):
    """End, suspend or resume attempts on a node. What it ends must come back as FINISHED with ``reason``."""

    node: int
    tasks: list[int]
    mode: EndMode
    grace: float
    reason: Failure


class Start(Instruction, frozen=True):
    """Start attempts on slots."""

    node: int
    placed: list[Placed]


class Unchain(Instruction, frozen=True):
    """Let nothing follow these running attempts on their slots. May name an attempt that Start named just before."""

    node: int
    tasks: list[int]


class Ahead(Instruction, frozen=True):
    """Hold attempts ahead at a node, in this order; each starts on the slots that one of the same chain frees."""

    node: int
    chain: int
    rank: tuple[int, int]
    tasks: list[int]


class Over(Instruction, frozen=True):
    """These attempts ended everywhere: report what their nodes said."""

    tasks: list[int]


class Return(Instruction, frozen=True):
    """These attempts are over without an outcome of their own, and the core has forgotten them.

    ``failure.cause`` CANCELED and DISCARDED are final; every other cause asks for another attempt.
    """

    tasks: list[tuple[int, int]]
    """``(first, count)`` runs."""
    failure: Failure


class Restored(Instruction, frozen=True):
    """These tasks have all the cores back that they lent."""

    tasks: list[int]


class Note(Instruction, frozen=True):
    """A decision worth keeping, with its reason."""

    what: str
    task: int
    reason: str
