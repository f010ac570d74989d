"""Whether tasks that a script waits for move, and what holds those that do not: a line a cause, never one a task."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from pilot_hitl.hub.explaining import Reason, agent_words, is_unmet, reason
from pilot_hitl.hub.live import LiveSession
from pilot_hitl.hub.peers import Agent
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.study.bulk import Bulk

Runs = Sequence[tuple[int, int]]
MOST_DEPENDENCIES = 5000
"""How many unfinished tasks are looked at beside those that are waited for, because these wait for them."""


class Survey:
    """What is known of tasks: first here, then by the agents that have some.

    Attributes:
        asked: by agent, the runs of ids to ask it about.
    """

    def __init__(self, session: LiveSession, runs: Iterable[tuple[int, int]]) -> None:
        """Look at the tasks in runs of ids ``(first, count)``, and at what they wait for."""
        self.asked: dict[Agent, list[tuple[int, int]]] = {}
        self._session = session
        self._found: dict[str, dict[str, Any]] = {}
        self._from: dict[int, int] = {}
        self._inside = {each.waits.task: each.waits for each in session.clients if each.waits is not None}
        self._told: set[int] = set()
        todo = deque(runs)
        while todo:
            first, count = todo.popleft()
            for bulk, offset, length in session.core.tasks.overlapping(first, count):
                todo.extend(self._look(bulk, offset, length))

    def _look(self, bulk: Bulk, offset: int, length: int) -> list[tuple[int, int]]:
        """Sort some tasks of a bulk; return those to look at because these wait for them."""
        session, states = self._session, bulk.states[offset : offset + length]
        if State.SCHEDULED in states or State.RUNNING in states:
            self._bound(bulk, offset, length)
        found = self._wait_themselves(bulk.first + offset, length)
        for state in set(states) - {State.SCHEDULED, State.RUNNING}:
            task, count = bulk.first + offset + states.index(state), states.count(state)
            if State(state).final:
                if task in session.core.unpublished:
                    self._add(reason(session, task), task, count)
            elif state == State.NEW and bulk.missing and not bulk.asleep:
                found += self._dependencies(bulk, task)
            else:
                self._add(reason(session, task), task, count)
        return found

    def _dependencies(self, bulk: Bulk, task: int) -> list[tuple[int, int]]:
        found = []
        for dep in bulk.deps:
            if dep not in self._from and is_unmet(self._session, dep) and len(self._from) < MOST_DEPENDENCIES:
                self._from[dep] = self._from.get(task, task)
                found.append((dep, 1))
        return found

    def _wait_themselves(self, first: int, count: int) -> list[tuple[int, int]]:
        """Say what some tasks wait for that run; return the tasks to look at because these wait for them."""
        found: list[tuple[int, int]] = []
        for task in [each for each in self._inside if first <= each < first + count and each not in self._told]:
            self._told.add(task)
            for text in self._inside[task].said:
                self._add(Reason(f"inside {text}", text), task, 1)
            for run in self._inside[task].tasks:
                self._from[run[0]] = self._from.get(task, task)
                found.append(run)
        return found

    def _bound(self, bulk: Bulk, offset: int, length: int) -> None:
        session = self._session
        task = bulk.first + offset
        epochs = set(bulk.epochs[offset : offset + length])
        for at in range(offset, offset + length) if 0 in epochs and session.core.recovery.missing else ():
            if session.core.recovery.waited_for(bulk, at):
                # It may follow an attempt of which nobody has heard yet.
                self._add(reason(session, bulk.first + at), bulk.first + at, 1)
        for epoch in epochs - {0}:
            pilot = session.core.pilot_of(bulk.first + bulk.epochs.index(epoch, offset))
            agent = session.agents.get(pilot)
            if agent is None:
                text = f"pilot {pilot} has it, and its agent is not there at present"
                self._add(Reason(f"agent {pilot}", text), task, length)
            else:
                self.asked.setdefault(agent, []).append((task, length))

    def _add(self, why: Reason, task: int, count: int) -> None:
        before = self._found.get(why.key)
        if before is not None:
            before["count"] += count
            return
        self._found[why.key] = {
            "key": why.key,
            "task": task_name(task),
            "name": self._name(task),
            "for": task_name(self._from[task]) if task in self._from else "",
            "count": count,
            "text": why.text,
            "soft": why.soft,
        }

    def _name(self, task: int) -> str:
        bulk = self._session.core.tasks.find(task)
        return "" if bulk is None else self._session.kinds.name(bulk.kind)

    def finish(self, said: Iterable[Any]) -> dict[str, Any]:
        """Return everything, with what the agents said."""
        moves = False
        for reply in said:
            moves = moves or bool(reply.get("moves"))
            for each in reply.get("held", ()):
                task = int(each["task"])
                text = agent_words(self._session, task, str(each["text"]))
                self._add(Reason(str(each["key"]), text, bool(each["soft"])), task, int(each["count"]))
            for task in reply.get("lending", ()):
                self._waits_inside(int(task))
        return {"moves": moves, "found": list(self._found.values())}

    def _waits_inside(self, task: int) -> None:
        """Say which people a task waits for that runs and waits, and has not said so itself."""
        if task in self._told and self._inside[task].said:
            return
        if (asks := reason(self._session, task)).key.startswith("people"):
            self._add(asks, task, 1)
