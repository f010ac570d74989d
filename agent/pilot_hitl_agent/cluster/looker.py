"""Looks at the shared file system from a thread of its own: one that hangs must not keep a node from its fence."""

from __future__ import annotations

import os
import queue
import threading
from typing import NamedTuple

from pilot_hitl.wire.cluster import Claim
from pilot_hitl_agent.cluster.claims import Claims


class Sight(NamedTuple):
    """What was seen: the claim that counts, and its beat."""

    claim: Claim | None
    beat: int


class Looker:
    """Answers :meth:`look` with a :class:`Sight`; its descriptor is readable when there is one."""

    def __init__(self, claims: Claims) -> None:
        """Start the thread."""
        self._claims = claims
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._seen: queue.SimpleQueue[Sight] = queue.SimpleQueue()
        self._pending = False
        threading.Thread(target=self._run, name="looker", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._reading

    def look(self) -> None:
        """Ask for a sight; nothing while one is under way."""
        if not self._pending:
            self._pending = True
            self._wanted.put(True)

    def sights(self) -> list[Sight]:
        """Return what was seen since the last call."""
        os.read(self._reading, 64)
        found = []
        while not self._seen.empty():
            found.append(self._seen.get())
            self._pending = False
        return found

    def close(self) -> None:
        """End the thread, unless the file system holds it."""
        self._wanted.put(False)

    def _run(self) -> None:
        while self._wanted.get():
            claim = self._claims.latest()
            self._seen.put(Sight(claim, self._claims.beat_of(claim.term) if claim else 0))
            os.write(self._writing, b"\0")
