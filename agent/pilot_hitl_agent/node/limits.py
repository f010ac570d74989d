"""Holds attempts to the memory that they ask for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl_agent.node import memory
from pilot_hitl_agent.node.calls import Calls
from pilot_hitl_agent.node.core import NodeCore
from pilot_hitl_agent.node.events import Exceeded
from pilot_hitl_agent.node.executables import Executables
from pilot_hitl_agent.node.memory import MB, Lookout
from pilot_hitl_agent.node.proctree import descendants


class Seen(msgspec.Struct):
    """What was last seen of a worker: its task, what that found in use when it began, and what it uses."""

    task: int
    found: int
    most: int = 0


class Limits:
    """Looks at what runs on lanes whose slots have a limit. Costs nothing while there are none."""

    def __init__(self, host: str, executables: Executables, calls: Calls) -> None:
        """Look at what these two run; ``host`` is named in failures."""
        self._host = host
        self._executables = executables
        self._calls = calls
        self._lookout = Lookout()
        self._seen: dict[int, Seen] = {}

    @property
    def due(self) -> float | None:
        """When :meth:`look` is due, None for never."""
        return self._lookout.due

    def begin(self, lane: int, megabytes: int, task: int) -> None:
        """Hold what runs on a lane, now ``task``, to so much memory a rank."""
        self._lookout.add(lane, megabytes, time.monotonic())
        if worker := self._calls.worker(lane):
            # An earlier call may have left something in it.
            self._seen[worker] = Seen(task, memory.used(self._calls.roots(lane, task), megabytes * MB // 2))

    def look(self, core: NodeCore) -> Iterator[Exceeded]:
        """Yield who uses more than it asked for."""
        began = time.monotonic()
        fullness: dict[int, float] = {}
        for lane, limit in list(self._lookout.limits.items()):
            running = core.running(lane)
            if running is None:
                self._lookout.drop(lane)
                continue
            most = self._most(lane, running, limit)
            fullness[lane] = most / limit
            found = self._found(self._calls.worker(lane), running, most)
            if most <= limit or not running:
                continue
            # Mostly what earlier calls left in the worker: this one gets another worker.
            if found <= limit // 2 or not self._calls.renew(lane):
                yield Exceeded(running, self._failure(most, limit))
        if not self._lookout.limits:
            self._seen.clear()
        now = time.monotonic()
        self._lookout.looked(fullness, now, now - began)

    def _found(self, worker: int, task: int, most: int) -> int:
        """Return what a call found in use in its worker; ``most`` is used now."""
        if not worker:
            return 0
        seen = self._seen.get(worker)
        if seen is None or seen.task != task:
            # It came behind others, in one packet with them.
            seen = self._seen[worker] = Seen(task, seen.most if seen is not None else 0)
        seen.most = most
        return seen.found

    def _most(self, lane: int, task: int, limit: int) -> int:
        """Return what the largest rank of an attempt uses here."""
        if self._executables.runs(lane):
            trees = self._executables.trees(lane, task)
        else:
            trees = [[root] for root in self._calls.roots(lane, task)]
        whole = [[pid for root in roots for pid in (root, *descendants(root))] for roots in trees]
        return max((memory.used(set(pids), limit) for pids in whole), default=0)

    def _failure(self, most: int, limit: int) -> Failure:
        used, asked = -(-most // MB), limit // MB
        text = f"out of memory: it used more than the {asked} MB that mem_per_rank asks for"
        return Failure(Cause.OUT_OF_MEMORY, text, self._host, -9, note=f"it used {used} MB when it was ended")
