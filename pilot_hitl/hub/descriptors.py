"""How many files and connections the hub may have open, and that strangers cannot use all of them.

Whoever reaches the hub's TCP port can open connections that say nothing; each costs a descriptor until its handshake is
overdue. At the very last descriptor ZeroMQ would end the hub, so it cuts them off long before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import time
from collections.abc import Iterator

_log = logging.getLogger(__name__)
MOST = 16384
"""Descriptors are not raised above this: a connection costs memory as well."""
LOOK_EVERY = 0.005
"""Seconds between counts while connections come in."""


class Descriptors:
    """The limits of this process.

    Attributes:
        given: the soft and the hard limit that this process was started with; what it starts gets them back.
        pauses: how often strangers had to be kept out.
    """

    def __init__(self) -> None:
        """Look at the limits; nothing changes before :meth:`raise_limit`."""
        self.given = resource.getrlimit(resource.RLIMIT_NOFILE)
        hard = self.given[1]
        self._most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        self.pauses = 0
        self.paused = False
        self._looked = 0.0

    def raise_limit(self) -> None:
        """Have as many as can be; a quarter is kept for when strangers took the rest."""
        self._set(self._most * 3 // 4)

    def full(self) -> bool:
        """Return whether half of what can be had is taken; call it when a connection came in."""
        now = time.monotonic()
        if now < self._looked + LOOK_EVERY:
            return self.paused
        self._looked = now
        if not self.paused and self._taken() > self._most // 2:
            self.paused = True
            self.pauses += 1
            self._set(self._most)
            _log.warning("more than %d connections and files are open: those over TCP are cut off", self._most // 2)
        return self.paused

    def free_again(self) -> bool:
        """Return whether there is room again after :meth:`full`."""
        if self.paused and self._taken() < self._most // 3:
            self.paused = False
            self.raise_limit()
            _log.info("connections are taken over TCP again")
            return True
        return False

    @contextlib.contextmanager
    def as_given(self) -> Iterator[None]:
        """Let what is started meanwhile have the limits that this process was given."""
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.given)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, now)

    def _set(self, soft: int) -> None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, self.given[0]), hard))

    def _taken(self) -> int:
        try:
            return len(os.listdir("/proc/self/fd"))
        except OSError:  # not even one is left for looking
            return self._most
