"""Asking which launchers a PATH leads to: once for each, unless the answer was cut short by a shortage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl_agent.node.launchers import PROBE, Found, parse
from pilot_hitl_agent.node.link import Exit, Unspawned
from pilot_hitl_agent.node.logs import read_file

if TYPE_CHECKING:
    from pilot_hitl_agent.node.spawners import Spawners

TRIES = 3
"""How often it is asked until what is known has to do, for those who wait."""
CUT_SHORT = "; not every launcher could be asked, because descriptors, processes or memory ran short: try again"


class Probes:
    """What is known of launchers, by PATH. An answer that was cut short says nothing of what is not in it.

    It serves those who waited for it, after :data:`TRIES`, and is then forgotten: see :meth:`forget`.
    """

    def __init__(self, spawners: Spawners, name: str) -> None:
        """Know nothing; ``name`` is that of the files into which the answers go."""
        self._spawners = spawners
        self._name = name
        self._found: dict[str, Found] = {}
        self._asked: dict[int, tuple[str, int, str]] = {}
        self._tries: dict[str, int] = {}
        self._count = 0

    def known(self, path: str) -> Found | None:
        """Return what a PATH leads to, None when :meth:`ask` has to find out."""
        return self._found.get(path)

    def ask(self, path: str, environment: int) -> None:
        """Find out, in an environment with this PATH; :meth:`answered` takes the answer."""
        if not any(asked == path for asked, _, _ in self._asked.values()):
            token, out = self._spawners.look(PROBE, environment, f"{self._name}-{self._count}")
            self._count += 1
            self._asked[token] = (path, environment, out)

    def __contains__(self, token: int) -> bool:
        """Return whether a process finds out."""
        return token in self._asked

    def answered(self, news: Exit | Unspawned) -> str | None:
        """Take an answer; return the PATH that is known from now on, None when it is asked again."""
        path, environment, out = self._asked.pop(news.token)
        found = parse(read_file(out)[0].decode(errors="replace"))
        tries = self._tries[path] = self._tries.get(path, 0) + 1
        if not found.complete and tries < TRIES:
            self.ask(path, environment)
            return None
        del self._tries[path]
        self._found[path] = found
        return path

    def forget(self, path: str) -> None:
        """Those who waited have seen the answer: ask again next time if it was cut short."""
        found = self._found.get(path)
        if found is not None and not found.complete:
            del self._found[path]


__all__ = ["CUT_SHORT", "Probes"]
