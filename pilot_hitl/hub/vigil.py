"""Whether any agent of a pilot on a batch system still lives, as the file system shows that hub and nodes share.

An agent that the hub does not hear may do well: only the way to it may be broken. So long as it lives it *beats*: a
file in the pilot's folder changes several times in each lease (``docs/specs/node-loss.md``). When the beat has stopped
as well, every node's tasks have ended with their leases, and nothing can come of the job any more.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SILENCE, MARGIN = 3.0, 10.0
"""Leases, and seconds beside them, without a word of the agent before the hub looks at its beat."""
STILL, LEAST_STILL = 6.0, 60.0
"""Leases without a beat after which no agent lives any more, and the seconds that it takes at least."""
LOOK = 5.0
"""Seconds between looks, at least; a longer lease has fewer."""


class Vigil:
    """Watch over one pilot, for as long as its job runs.

    Attributes:
        at: when :meth:`look` is due, in seconds since 1970.
        silent: the agent was not heard for so long that its job may have ended.
        over: no agent lives any more.
    """

    __slots__ = ("_began", "_folder", "_lease", "_seen", "_since", "at", "over", "silent")

    def __init__(self, folder: Path, lease: float, now: float) -> None:
        """Begin with an agent that was heard just now; ``folder`` is the pilot's."""
        self._folder = folder / "agents"
        self._lease = lease
        self._began = now
        self._seen: tuple[int, str] | None = None
        self._since = 0.0
        self.at = now + self._silence
        self.silent = self.over = False

    @property
    def _silence(self) -> float:
        return SILENCE * self._lease + MARGIN

    def look(self, heard: float, now: float, passed: float | None = None) -> None:
        """Look at the beat, if the agent was silent for long enough.

        Args:
            heard: when the agent was last heard, on the steady clock; 0 when there is none.
            now: on that clock.
            passed: monotonic seconds; the wall clock may jump, and that must not end a pilot.
        """
        passed = time.monotonic() if passed is None else passed
        due = max(heard, self._began) + self._silence
        self.silent = now >= due
        if not self.silent:
            self._seen, self.over = None, False
            self.at = due
            return
        seen = self._beat()
        if seen != self._seen:
            self._seen, self._since = seen, passed
        self.over = passed - self._since >= max(LEAST_STILL, STILL * self._lease)
        self.at = now + max(LOOK, self._lease)

    def _beat(self) -> tuple[int, str]:
        """Return the highest term that there is, and its beat; who is elected meanwhile changes that as well."""
        try:
            term = max((int(name) for name in os.listdir(self._folder) if name.isdigit()), default=0)
            return term, (self._folder / f"{term}.beat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0, ""
