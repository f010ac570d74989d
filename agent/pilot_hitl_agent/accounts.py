"""The agent's bookkeeper: tells the ledger what the agent decides and hears, and the hub what the ledger holds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping

from pilot_hitl.model.failures import UNFINISHED, Cause
from pilot_hitl.model.ledger import Account
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.messages import AgentLog, OpenSpan, Span, Spans
from pilot_hitl.wire.processes import began_at
from pilot_hitl_agent.core import instructions as do
from pilot_hitl_agent.core.core import SchedulingCore
from pilot_hitl_agent.jobs import Jobs
from pilot_hitl_agent.ledger import DOWN, Entry, Ledger, Ongoing, key_of

INTERVAL = 2.0
"""Seconds after which what happened is told; with more than :data:`MANY` cores it takes longer in proportion."""
MANY = 64
LONGEST = 30.0
_NEVER = float("inf")
_LOST = UNFINISHED | {Cause.CANCELED}


class Accounts:
    """Books what happens on the cores of a pilot."""

    def __init__(self, nodes: Mapping[int, NodeInventory], jobs: Jobs, core: SchedulingCore) -> None:
        """Begin with the start of this process; all is overhead until :meth:`ready`."""
        self._nodes = nodes
        self._jobs = jobs
        self._core = core
        self._cores = sum(len(node.cores) for node in nodes.values())
        self._job, self._began = began_at(os.getppid()), began_at(os.getpid())
        self._ledger = Ledger({index: len(node.cores) for index, node in nodes.items()}, self._began)
        self._decided: dict[int, float] = {}
        self._told = 0.0
        self._interval = min(LONGEST, INTERVAL * max(1.0, self._cores / MANY))

    # --- what happens -------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """The agent may be given work."""
        self._ledger.ready(time.time())

    def node_up(self, node: int, now: float) -> None:
        """A node came, or came back. Until it first came its cores were overhead; while it was away they were lost."""
        cores = len(self._nodes[node].cores)
        if self._ledger.node_up(node, cores, now):
            self._cores += cores
            self._interval = min(LONGEST, INTERVAL * max(1.0, self._cores / MANY))

    def node_down(self, node: int, now: float) -> None:
        """A node is lost, with what ran there; its cores are paid for all the same."""
        self._ledger.node_down(node, now)

    def decided(self, condition: int, truth: Truth) -> None:
        """What begins under a condition from now on is no speculation, when it is true."""
        if truth is Truth.TRUE:
            self._decided.setdefault(condition, time.time())
        else:
            self._decided.pop(condition, None)

    def placed(self, node: int, placed: Iterable[do.Placed], now: float) -> None:
        """Attempts got slots."""
        for each in placed:
            batch = self._jobs.batches.get(each.task)
            mask = 0
            if batch is not None and batch.exclusive:
                mask = (1 << len(self._nodes[node].cores)) - 1
            for slot in each.slots:
                mask |= slot.cores
            self._ledger.placed(node, mask, each.task, now)

    def hear(self, node: int, changes: list[wn.Change], now: float) -> None:
        """A node says what happened; call it before the scheduling core hears of it, and :meth:`settle` after."""
        self._ledger.hear(node, changes, self._jobs.batches, self._booked, now)

    def settle(self, node: int, now: float) -> None:
        """What ended on a node and was not followed has given its cores back."""
        self._ledger.settle(node, now)

    def looked(self, now: float) -> None:
        """The scheduling core took a step: take over which cores it keeps for whom."""
        for node, kept, lending in self._core.touched():
            self._ledger.reserve(node, kept, now)
            self._ledger.lending(node, lending, now)

    def gone(self, task: int) -> None:
        """A task is given back; if it still holds cores here, nobody will say when it ended."""
        for node in self._nodes:
            self._ledger.gone(node, task, time.time())

    def _booked(self, change: wn.Change) -> tuple[int, bool]:
        """Return account and condition of what an attempt used, and whether the hub must say if it was of use."""
        batch = self._jobs.batches.get(change.task)
        if batch is None:
            return key_of(Account.LOST), False
        decided = self._decided.get(batch.condition, _NEVER)
        speculative = batch.condition != 0 and change.began < decided
        account = Account.SPECULATIVE if speculative and batch.tier is not Tier.SERVICE else Account(batch.tier)
        key = key_of(account, batch.condition if speculative else 0)
        if change.failure is None or account is Account.SERVICE:
            return key, False
        if change.failure.cause in _LOST:
            return key_of(Account.LOST), False
        return key, change.failure.cause is not Cause.DISCARDED

    # --- telling ------------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """Return when :meth:`spans` should be called next, as ``time.monotonic()``; None while nothing happens."""
        return self._told + self._interval if self._ledger.fresh else None

    def spans(self, sequence: int, binding: int) -> Spans:
        """Return what the hub does not know yet."""
        return self._spans(sequence, binding, final=False)

    def close(self, sequence: int, binding: int) -> Spans:
        """End the accounts and return what the hub does not know yet."""
        self._ledger.end(time.time())
        return self._spans(sequence, binding, final=True)

    def closing(self) -> None:
        """The pilot ends: what is free is not idle any more."""
        self._ledger.closing(time.time())

    def faults(self) -> AgentLog | None:
        """Return the contradictions that were found since the last call, None when there were none."""
        found, self._ledger.described = self._ledger.described, []
        if not found:
            return None
        return AgentLog([json.dumps({"event": "ledger_fault", **fault._asdict()}) for fault in found])

    def _spans(self, sequence: int, binding: int, *, final: bool) -> Spans:
        self._told = time.monotonic()
        ledger = self._ledger
        entries = ledger.take()
        ongoing = [] if final else ledger.ongoing()
        return Spans(
            sequence,
            binding,
            self._job,
            self._began,
            time.time(),
            final,
            self._cores,
            self._joined(entries),
            self._open(ongoing),
            ledger.faults,
            ledger.fault_seconds,
        )

    def _joined(self, entries: list[Entry]) -> list[Span]:
        """Return entries as spans: cores of one node that did the same at the same time are one."""
        together: dict[tuple[object, ...], tuple[Entry, list[int]]] = {}
        for entry in entries:
            alike = (entry[0], *entry[2:])
            found = together.get(alike)
            if found is None:
                together[alike] = (entry, [entry.core])
            else:
                found[1].append(entry.core)
        return [
            Span(
                entry.node,
                [self._nodes[entry.node].cores[core] for core in cores],
                entry.began,
                entry.ended,
                entry.busy,
                entry.overhead,
                entry.idle,
                entry.reserved,
                entry.key & 7,
                entry.key >> 3,
                entry.attempts,
                *(entry.attempt if entry.attempt[0] != DOWN else (0, 0, 0)),
                entry.failed,
            )
            for entry, cores in together.values()
        ]

    def _open(self, ongoing: list[Ongoing]) -> list[OpenSpan]:
        together: dict[tuple[object, ...], tuple[Ongoing, list[int]]] = {}
        for each in ongoing:
            alike = (each.node, *each[2:])
            found = together.get(alike)
            if found is None:
                together[alike] = (each, [each.core])
            else:
                found[1].append(each.core)
        return [self._opened(each, cores) for each, cores in together.values()]

    def _opened(self, each: Ongoing, cores: list[int]) -> OpenSpan:
        batch = self._jobs.batches.get(each.task)
        account, condition = Account.LOST if each.task == DOWN else Account.NOTHING, 0
        if batch is not None and each.what == "busy":
            account = Account(batch.tier)
            if batch.condition and batch.condition not in self._decided and batch.tier is not Tier.SERVICE:
                account, condition = Account.SPECULATIVE, batch.condition
        names = [self._nodes[each.node].cores[core] for core in cores]
        return OpenSpan(each.node, names, each.since, each.until, each.what, int(account), condition, max(0, each.task))
