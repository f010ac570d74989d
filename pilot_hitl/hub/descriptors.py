"""How many files and connections the hub may have open, and how many of them connections over TCP may use."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

MOST = 16384
"""Descriptors are not raised above this: a connection costs memory as well."""


class Descriptors:
    """The limits of this process.

    Attributes:
        given: the soft and the hard limit that this process was started with; what it starts gets them back.
        for_strangers: how many connections over TCP there may be, whoever makes them. The rest is for this machine.
    """

    def __init__(self) -> None:
        """Look at the limits; nothing changes before :meth:`raise_limit`."""
        self.given = resource.getrlimit(resource.RLIMIT_NOFILE)
        hard = self.given[1]
        self._most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        self.for_strangers = self._most // 2

    def raise_limit(self) -> None:
        """Have as many as can be."""
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(self._most, self.given[0]), self.given[1]))
        self.for_strangers = min(self._most, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 2

    @contextlib.contextmanager
    def as_given(self) -> Iterator[None]:
        """Let what is started meanwhile have the limits that this process was given."""
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.given)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, now)
