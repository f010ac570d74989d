"""Whether tasks that somebody waits for move, and what holds those that do not: one reason for many, never one each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pilot_hitl_agent.core.attempt import Attempt, Phase
from pilot_hitl_agent.core.explanation import SOFT, Explanation, Holds, explain
from pilot_hitl_agent.core.queues import Run
from pilot_hitl_agent.core.world import World

TaskRuns = Sequence[tuple[int, int]]


class Held(msgspec.Struct, frozen=True):
    """One thing that holds some of the tasks.

    Attributes:
        key: the same for the same thing, whichever task it is that shows it.
        task: one of those that it holds; text: in words about that one, without its name.
        count: how many it holds, as far as that is counted.
        soft: it ends by itself when what runs ends.
        checkpoint: for which the slots are kept, 0 for none.
    """

    key: str
    task: int
    text: str
    count: int
    soft: bool
    checkpoint: int = 0


class Standstill(msgspec.Struct, frozen=True):
    """What an agent says of tasks.

    Attributes:
        moves: at least one of them runs and does not itself wait for others that stand still.
        lending: those that run and wait.
        held: what holds the others.
    """

    moves: bool
    lending: list[int]
    held: list[Held]


class _Runs:
    """Tests whether a task is in one of many runs of ids."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self.all = sorted(runs)
        self._firsts = [first for first, _ in self.all]

    def __contains__(self, task: int) -> bool:
        place = bisect_right(self._firsts, task) - 1
        return place >= 0 and task < self._firsts[place] + self.all[place][1]


def look(world: World, runs: TaskRuns) -> Standstill:
    """Return what is to be said of the tasks in runs of ids ``(first, count)``; others are left out."""
    wanted = _Runs(runs)
    placed = [attempt for task, attempt in world.attempts.items() if task in wanted]
    lending = [attempt for attempt in placed if _waits(attempt)]
    parents = {attempt.task for attempt in lending}
    placed += [each for each in world.attempts.values() if each.queue.parent in parents and each.task not in wanted]
    found: dict[str, Held] = {}
    for attempt in placed:
        if attempt.phase is not Phase.RUNNING:
            _add(found, explain(world, attempt.task), 1)
    for run, task in _queued(world, wanted.all, parents):
        _add(found, explain(world, task), len(run))
    moves = any(attempt.phase is Phase.RUNNING and not _waits(attempt) for attempt in placed)
    return Standstill(moves, sorted(parents), list(found.values()))


def _waits(attempt: Attempt) -> bool:
    return attempt.phase is Phase.RUNNING and attempt.lending


def _queued(world: World, runs: TaskRuns, parents: set[int]) -> Iterator[tuple[Run, int]]:
    """Yield the queued runs of the tasks and of what their running ones submitted, each with a task of it."""
    seen: set[int] = set()
    for first, count in runs:
        for run in world.runs.overlapping(first, count):
            task = next((task for task in range(max(first, run.next), run.end) if task not in run.holes), -1)
            if id(run) not in seen and first <= task < first + count:
                seen.add(id(run))
                yield run, task
    for parent in parents:
        for queue in world.by_parent.get(parent, {}).values():
            for run in (*queue.waiting(), *queue.late):
                if id(run) not in seen and len(run):
                    seen.add(id(run))
                    yield run, run.next


def _add(found: dict[str, Held], why: Explanation, count: int) -> None:
    if why.holds is Holds.UNKNOWN:
        return
    key = f"{why.holds} {why.checkpoint}" if why.checkpoint else str(why.holds)
    before = found.get(key)
    if before is None:
        found[key] = Held(key, why.task, why.reason, count, why.holds in SOFT, why.checkpoint)
    else:
        found[key] = msgspec.structs.replace(before, count=before.count + count)
