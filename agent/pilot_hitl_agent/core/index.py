"""Nodes by what is open on them, so that finding one does not take longer when there are more."""

from __future__ import annotations

from collections.abc import Iterator

from pilot_hitl.model.resources import GPU_SHARES
from pilot_hitl_agent.core.node import Node
from pilot_hitl_agent.core.shapes import Form

Signature = tuple[int, int, int]
"""Whole free GPUs, largest free share in 16ths, bits of free memory: what rules a node out without a look at it."""
PLAIN: Signature = (0, 0, 0)


class NodeIndex:
    """Nodes by number of open cores and signature.

    Attributes:
        loans: nodes where preemptible work may take cores that needed work may not.
        started: nodes with open cores and a GPU of which a share is taken and a share is left.
        looks: nodes looked at so far (tests bound it, since they time nothing).
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Signature, dict[int, Node]]] = {}
        self._counts = 0
        self.loans: dict[int, Node] = {}
        self.started: dict[int, Node] = {}
        self.looks = 0

    def move(self, node: Node) -> None:
        """Put a node where it belongs now."""
        count = node.open.bit_count()
        rest, started = signature(node) if node.gpus or node.inventory.memory else (PLAIN, False)
        if node.place != (count, rest):
            self.remove(node)
            node.place = (count, rest)
            self._buckets.setdefault(count, {}).setdefault(rest, {})[node.id] = node
            self._counts |= 1 << count
        if started and count:
            self.started[node.id] = node
        elif self.started:
            self.started.pop(node.id, None)
        if node.loan & ~node.open:
            self.loans[node.id] = node
        elif self.loans:
            self.loans.pop(node.id, None)

    def remove(self, node: Node) -> None:
        """Forget a node."""
        self.loans.pop(node.id, None)
        self.started.pop(node.id, None)
        if node.place is None:
            return
        count, rest = node.place
        node.place = None
        bucket = self._buckets[count]
        del bucket[rest][node.id]
        if not bucket[rest]:
            del bucket[rest]
        if not bucket:
            del self._buckets[count]
            self._counts &= ~(1 << count)

    def candidates(self, cores: int, form: Form) -> Iterator[Node]:
        """Yield nodes with at least so many open cores, the fullest first. Do not change the index meanwhile."""
        counts = self._counts >> cores << cores
        while counts:
            count = (counts & -counts).bit_length() - 1
            counts &= counts - 1
            for rest, nodes in self._buckets[count].items():
                if form.simple or _possible(rest, form):
                    for node in nodes.values():
                        self.looks += 1
                        yield node

    def emptiest(self, cores: int) -> Iterator[Node]:
        """Yield nodes with at least so many open cores, the emptiest first."""
        counts = self._counts >> cores << cores
        while counts:
            count = counts.bit_length() - 1
            counts &= ~(1 << count)
            for nodes in self._buckets[count].values():
                for node in nodes.values():
                    self.looks += 1
                    yield node


def signature(node: Node) -> tuple[Signature, bool]:
    """Return the signature of a node, and whether a share of one of its GPUs is taken and a share is left."""
    whole = largest = 0
    started = False
    for share in node.gpus.values():
        if share >= GPU_SHARES:
            whole += 1
        elif share:
            started = True
        largest = max(largest, share)
    return (whole, largest * 16 // GPU_SHARES, node.memory.bit_length()), started


def _possible(rest: Signature, form: Form) -> bool:
    whole, largest, memory = rest
    return (
        whole >= form.devices
        and (not form.share or largest >= form.share * 16 // GPU_SHARES)
        and (not form.memory or not memory or memory >= form.memory.bit_length())
    )
