"""Chains: which attempts may follow each other on the same slots without a round trip."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot_hitl_agent.core.attempt import Attempt
    from pilot_hitl_agent.core.node import Node


class Link:
    """One chain at one node.

    Attributes:
        running: attempts whose slots may be taken over.
        held: attempts held ahead, in the order sent; those asked back stay until the node's answer.
        leaving: how many of them are asked back.
    """

    __slots__ = ("chain", "held", "leaving", "node", "running")

    def __init__(self, chain: Chain, node: Node) -> None:
        self.chain = chain
        self.node = node
        self.running = 0
        self.held: dict[int, Attempt] = {}
        self.leaving = 0

    def room(self, credit: int) -> int:
        """Return how many more may be held ahead."""
        return self.running * credit - len(self.held) + self.leaving


class Chain:
    """A shape and, while it is undecided, a condition.

    Attributes:
        hungry: links that hold at most half of their credit, by node.
    """

    __slots__ = ("hungry", "id")

    def __init__(self, identifier: int) -> None:
        self.id = identifier
        # Taken from the front and added at the back: a plain dict would walk over all that was taken before.
        self.hungry: OrderedDict[int, Link] = OrderedDict()


class ChainTable:
    """All chains of one agent."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Chain] = {}

    def chain(self, form: int, condition: int) -> Chain:
        """Return the chain of a shape under an undecided condition (0: none). Ids count from 1."""
        found = self._known.get((form, condition))
        if found is None:
            found = self._known[form, condition] = Chain(len(self._known) + 1)
        return found
