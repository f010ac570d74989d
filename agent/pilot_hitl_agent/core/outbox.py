"""Collects instructions, many tasks to one."""

from __future__ import annotations

from pilot_hitl.model.failures import Failure
from pilot_hitl_agent.core.instructions import (
    Ahead,
    End,
    EndMode,
    Instruction,
    Note,
    Over,
    Placed,
    Restored,
    Retract,
    Return,
    Start,
    Unchain,
)


class Outbox:
    """What one step wants done.

    Attributes:
        over: tasks that ended everywhere.
    """

    def __init__(self) -> None:
        self.over: list[int] = []
        self._starts: dict[int, list[Placed]] = {}
        self._aheads: list[Instruction] = []
        self._retracts: dict[int, list[int]] = {}
        self._unchains: dict[int, list[int]] = {}
        self._ends: list[tuple[int, int, EndMode, float, Failure]] = []
        self._returns: list[Instruction] = []
        self._restored: list[int] = []
        self._notes: list[Instruction] = []

    def start(self, node: int, placed: Placed) -> None:
        """Start an attempt, or its share of a gang."""
        found = self._starts.get(node)
        if found is None:
            self._starts[node] = [placed]
        else:
            found.append(placed)

    def ahead(self, node: int, chain: int, rank: tuple[int, int], tasks: list[int]) -> None:
        """Hold attempts ahead."""
        self._aheads.append(Ahead(node, chain, rank, tasks))

    def retract(self, node: int, task: int) -> None:
        """Ask a held-ahead attempt back."""
        self._retracts.setdefault(node, []).append(task)

    def unchain(self, node: int, task: int) -> None:
        """Let nothing follow a running attempt."""
        self._unchains.setdefault(node, []).append(task)

    def end(self, node: int, task: int, mode: EndMode, grace: float, reason: Failure) -> None:
        """End, suspend or resume an attempt on a node."""
        self._ends.append((node, task, mode, grace, reason))

    def give_back(self, tasks: list[tuple[int, int]], failure: Failure) -> None:
        """Return attempts."""
        last = self._returns[-1] if self._returns else None
        if isinstance(last, Return) and last.failure == failure:
            last.tasks.extend(tasks)
        else:
            self._returns.append(Return(list(tasks), failure))

    def restored(self, task: int) -> None:
        """Say that a lender has its cores back."""
        self._restored.append(task)

    def note(self, what: str, task: int, reason: str) -> None:
        """Keep a decision."""
        self._notes.append(Note(what, task, reason))

    def flush(self) -> list[Instruction]:
        """Return everything collected and begin anew."""
        out: list[Instruction] = []
        if self._retracts:
            out.extend([Retract(node, tasks) for node, tasks in self._retracts.items()])
            self._retracts = {}
        if self._ends:
            out.extend(self._gathered_ends())
            self._ends = []
        if self._starts:
            out.extend([Start(node, placed) for node, placed in self._starts.items()])
            self._starts = {}
        if self._unchains:
            out.extend([Unchain(node, tasks) for node, tasks in self._unchains.items()])
            self._unchains = {}
        if self._aheads:
            out.extend(self._aheads)
            self._aheads = []
        if self.over:
            out.append(Over(self.over))
            self.over = []
        if self._returns:
            out.extend(self._returns)
            self._returns = []
        if self._restored:
            out.append(Restored(self._restored))
            self._restored = []
        if self._notes:
            out.extend(self._notes)
            self._notes = []
        return out

    def _gathered_ends(self) -> list[End]:
        # In order of decision for each task: a suspend may be followed by a kill in one step.
        gathered: list[End] = []
        for node, task, mode, grace, reason in self._ends:
            last = gathered[-1] if gathered else None
            if last and (last.node, last.mode, last.grace, last.reason) == (node, mode, grace, reason):
                last.tasks.append(task)
            else:
                gathered.append(End(node, [task], mode, grace, reason))
        return gathered
