"""The pilots of a study: where a task may run, where it never could, and who gets it.

Binding is *late*: an agent gets no more than it can use soon while another pilot could do the work, so that a pilot
that starts later, or whose tasks end sooner, finds some left. A pilot alone gets as much as its agent's window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import largest
from pilot_hitl.model.states import Tier, Truth
from pilot_hitl.study.estimates import Runtimes
from pilot_hitl.study.pilots import Pilot, describe

if TYPE_CHECKING:
    from pilot_hitl.model.resources import Shape
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.study.events import PilotAsked

AHEAD = 2.0
"""Seconds of work that an agent is given beyond what it can run at once, while another pilot could do it."""
LAYERS = 2
"""How often an agent could fill its nodes with what it is given at least: it starts the next without asking."""
UNKNOWN = 4
"""The same, while nobody knows how long such a task takes."""
QUICKEST = 1e-4
"""Seconds below which run times make no difference."""


class Fleet:
    """All pilots that were asked for and have not ended, and what is to be remembered of those that have."""

    def __init__(self) -> None:
        """Start without any."""
        self.pilots: dict[int, Pilot] = {}
        self.ended: set[int] = set()
        """Numbers of pilots that ended for good."""
        self._ended_sites: set[str] = set()
        self._lineages: dict[int, int] = {}
        self._shapes: dict[Shape, int] = {}
        self._runtimes = Runtimes()

    # --- what happens -------------------------------------------------------------------------------------------------

    def asked(self, event: PilotAsked) -> None:
        """Know of a pilot, its site and whose successor it is."""
        pilot = self.get(event.pilot)
        pilot.site = event.site
        pilot.lineage = self._lineages.get(event.lineage, event.lineage) or event.pilot
        self._lineages[event.pilot] = pilot.lineage

    def get(self, number: int) -> Pilot:
        """Return a pilot; one that was not asked for, or had ended, is there from now on."""
        self.ended.discard(number)
        return self.pilots.setdefault(number, Pilot(number))

    def end(self, number: int) -> None:
        """A pilot ended for good."""
        self.ended.add(number)
        pilot = self.pilots.pop(number, None)
        if pilot is not None and pilot.site:
            self._ended_sites.add(pilot.site)

    def ran(self, shape: Shape, seconds: float) -> None:
        """Learn how long tasks of a shape take, as far as that matters to who gets them."""
        if len(self.pilots) > 1:
            kind = self._shapes.setdefault(shape, len(self._shapes))
            if self._runtimes.wants(kind):
                self._runtimes.learn(kind, max(0.0, seconds))

    # --- where a task may run -----------------------------------------------------------------------------------------

    def admits(self, pilot: Pilot, number: int, site: str) -> bool:
        """Return whether a pilot is the one that is asked for by number, or succeeds it, and is of the site."""
        if site and pilot.site != site:
            return False
        if number in (0, pilot.number):
            return True
        return number < pilot.number and self._lineages.get(number, number) == pilot.lineage

    def candidates(self, bulk: Bulk) -> list[Pilot]:
        """Return the pilots on which a bulk may run, with or without an agent."""
        return [pilot for pilot in self.pilots.values() if self.admits(pilot, bulk.pilot, bulk.site)]

    def unfit(self, bulk: Bulk) -> Failure | None:
        """Return why no pilot could ever hold a bulk. While a pilot's size is unknown, nobody can say.

        What needs nodes that a pilot lost is not among it: they may come back until the pilot ends.
        """
        candidates = self.candidates(bulk)
        if not candidates:
            return self._gone(bulk)
        if any(pilot.could_hold(bulk.shape) for pilot in candidates):
            return None
        most = largest(bulk.shape, (pilot.best for pilot in candidates if pilot.best is not None))
        why = f"no pilot {_place(bulk)} could ever hold {describe(bulk)}: {most}; ask for less, or for a larger pilot"
        return Failure(Cause.UNFIT, why)

    def _gone(self, bulk: Bulk) -> Failure | None:
        number, site = bulk.pilot, bulk.site
        if number in self.ended:
            return Failure(Cause.PILOT_ENDED, f"it must run on pilot {number}, and that pilot has ended")
        if number in self.pilots:
            here = self.pilots[number].site or "none"
            return Failure(Cause.UNFIT, f"it must run on pilot {number} at site {site!r}, and its site is {here!r}")
        if site in self._ended_sites and not any(pilot.site == site for pilot in self.pilots.values()):
            why = f"it must run at site {site!r}, and the last pilot there has ended; submit another one"
            return Failure(Cause.PILOT_ENDED, why)
        return None

    def holds(self, bulk: Bulk) -> str:
        """Return in words what of the pilots keeps a bulk waiting, empty when it is only that others have the cores."""
        candidates = self.candidates(bulk)
        if not candidates:
            where = f" {_place(bulk)}" if bulk.pilot or bulk.site else ""
            return f"no pilot{where} was submitted; session.submit_pilot(…) asks for one"
        active = [pilot for pilot in candidates if pilot.active]
        if not active:
            pinned = bulk.pilot or bulk.site
            # Where the best node is known, the agent was there before.
            when = "now" if any(pilot.best is not None for pilot in candidates) else "yet"
            return f"no pilot {_place(bulk)} is active {when}" if pinned else f"no pilot is active {when}"
        able = [pilot for pilot in active if pilot.places(bulk.shape)]
        if not able:
            lost = [f"pilot {p.number} has {len(p.nodes)} of its {p.expected} nodes" for p in active if p.missing]
            why = f": {', '.join(lost)}" if lost else ""
            return f"no pilot that is active can hold {describe(bulk)} now{why}; it waits for a node or another pilot"
        if all(bulk.shape in pilot.short for pilot in able):
            return "it cannot end before its pilot does; it waits for another pilot"
        return ""

    # --- who gets it --------------------------------------------------------------------------------------------------

    def choose(self, bulk: Bulk) -> tuple[Pilot | None, int]:
        """Return which agent gets the next tasks of a bulk, and how many at once; None when nobody wants one."""
        if len(self.pilots) == 1:
            (pilot,) = self.pilots.values()
            credit = self.credit(pilot, bulk)
            return (pilot, credit) if credit > 0 else (None, 0)
        best: Pilot | None = None
        most, least = 0, 0.0
        for pilot in self.pilots.values():
            credit = self.credit(pilot, bulk)
            if credit > 0 and (best is None or pilot.load < least):
                best, most, least = pilot, credit, pilot.load
        if best is None:
            return None, 0
        if self._rivals(best, bulk):
            # Not all to one: after what it can run at once, or a good part of its share, it is looked at again.
            most = min(most, max(1, best.places(bulk.shape), self._share(best, bulk.shape) // 8))
        return best, most

    def credit(self, pilot: Pilot, bulk: Bulk) -> int:
        """Return how many more tasks of a bulk a pilot gets now."""
        if not pilot.active or bulk.shape in pilot.short or not self.admits(pilot, bulk.pilot, bulk.site):
            return 0
        if not pilot.places(bulk.shape):
            return 0
        share = pilot.window
        if len(self.pilots) > 1 and self._rivals(pilot, bulk):
            share = self._share(pilot, bulk.shape)
        credit = pilot.credit(bulk.tier, bulk.shape, share)
        if bulk.tier == Tier.SPECULATIVE and bulk.condition.truth is Truth.TRUE:
            # Committed work must not wait behind a window full of guesses.
            credit += share
        return credit

    def _rivals(self, pilot: Pilot, bulk: Bulk) -> bool:
        """Return whether another pilot could do the work, now or when it has started."""
        return any(
            other is not pilot and bulk.shape not in other.short and other.could_hold(bulk.shape)
            for other in self.candidates(bulk)
        )

    def _share(self, pilot: Pilot, shape: Shape) -> int:
        seconds = self._runtimes.expected(self._shapes.get(shape, -1))
        if not seconds and shape.runtime_bucket >= 0:
            seconds = float(2**shape.runtime_bucket)
        layers = LAYERS + AHEAD / max(seconds, QUICKEST) if seconds else UNKNOWN
        return max(1, min(pilot.window, int(pilot.places(shape) * layers)))


def _place(bulk: Bulk) -> str:
    """Return where a bulk must run, in words."""
    parts = [f"{bulk.pilot}"] if bulk.pilot else []
    if bulk.site:
        parts.append(f"at site {bulk.site!r}")
    return " ".join(parts) or "of the session"
