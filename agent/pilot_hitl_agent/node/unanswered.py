"""What spawners were asked for and have not answered."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pilot_hitl_agent.node.link import Link


class Unanswered:
    """Asks spawners, once for each process, whether it arrived at all."""

    def __init__(self) -> None:
        """Begin with none."""
        self._young: set[int] = set()
        self._asked: set[int] = set()

    def look(self, tokens: Collection[int], link_of: Callable[[int], Link]) -> bool:
        """Ask for those that were there at the last look and have not ended; return whether there are others."""
        present = set(tokens)
        old: dict[int, tuple[Link, list[int]]] = {}
        for token in self._young & present:
            link = link_of(token)
            old.setdefault(id(link), (link, []))[1].append(token)
        for link, theirs in old.values():
            link.look(theirs)
            self._asked.update(theirs)
        self._asked &= present
        self._young = present - self._asked
        return bool(self._young)
