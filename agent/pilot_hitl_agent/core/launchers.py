"""Launcher slots: how many multi-rank starts (srun steps, mpirun) a site bears at once, counted over the whole pilot.

An attempt of a shape with ``launcher`` holds one from its start to its end, suspended or ending as well; who follows it
on its slots takes it over. One that finds none waits in its queue and keeps nothing from others. A plan for such an
attempt has one laid by, so that whoever waits for cores too is not overtaken for ever. Needed work that would fit but
for a launcher makes the least valuable attempt of a lower tier give way, as for cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl_agent.core.attempt import Phase

if TYPE_CHECKING:
    from pilot_hitl_agent.core.attempt import Attempt
    from pilot_hitl_agent.core.claims import Plan
    from pilot_hitl_agent.core.queues import Queue


class Launchers:
    """Who has the launcher slots of a pilot, or has one laid by.

    Attributes:
        total: how many there are.
        used: attempts that hold one.
        plans: those whose attempts, not started yet, want one.
    """

    __slots__ = ("plans", "total", "used")

    def __init__(self, total: int) -> None:
        self.total = max(1, total)
        self.used: dict[int, Attempt] = {}
        self.plans: dict[Plan, None] = {}

    @property
    def left(self) -> int:
        """How many may be taken without a plan; below zero while plans wait for some."""
        return self.total - len(self.used) - len(self.plans)

    def allow(self, queue: Queue) -> bool:
        """Return whether the next attempt of a queue may start, as far as launchers go."""
        return not queue.form.launcher or self.left > 0

    def allow_plan(self, plan: Plan) -> bool:
        """Return whether the attempt of a plan may start, as far as launchers go: those that do not wait go first."""
        if plan not in self.plans:
            return True
        before = sum(1 for other in self.plans if not other.waiting) if plan.waiting else 0
        return len(self.used) + before < self.total

    def short(self, plan: Plan) -> int:
        """Return how many are missing for a plan and those that do not wait, when all that leave have left."""
        if plan not in self.plans:
            return 0
        firm = sum(1 for other in self.plans if other is plan or not other.waiting)
        return max(0, firm - (self.total - len(self.used)) - self.leaving)

    @property
    def leaving(self) -> int:
        """How many are held by attempts that are on their way out."""
        return sum(1 for attempt in self.used.values() if attempt.phase is Phase.ENDING)

    @property
    def promised(self) -> bool:
        """Whether one will be left without anybody being told to give way."""
        return self.left + self.leaving > 0

    def victims(self) -> list[Attempt]:
        """Return who could be told to give one up, in no particular order."""
        return [
            attempt
            for attempt in self.used.values()
            if attempt.evictable or (attempt.phase is Phase.SUSPENDED and attempt.queue.preemptible)
        ]
