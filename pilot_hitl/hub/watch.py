"""Noticing that a process ended, without asking again and again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from pilot_hitl.wire.processes import start_time


class Watch:
    """Calls back when processes end; :attr:`descriptors` are to be polled for reading."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._calls: dict[int, tuple[int, Callable[[], None], bool]] = {}

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that become readable when a process ends."""
        return list(self._calls)

    def add(self, pid: int, ended: Callable[[], None], started: int = 0, *, reap: bool = True) -> int:
        """Call ``ended`` once the process is gone, and return the descriptor; -1 when it is gone already.

        ``started`` guards against a number that another process got meanwhile. Without ``reap``, a child is left for
        ``ended`` to reap, which then learns its exit code.
        """
        try:
            descriptor = os.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            return -1
        if started and start_time(pid) != started:
            os.close(descriptor)
            return -1
        self._calls[descriptor] = (pid, ended, reap)
        return descriptor

    def remove(self, descriptor: int) -> None:
        """Forget a process."""
        if self._calls.pop(descriptor, None) is not None:
            os.close(descriptor)

    def fired(self, descriptor: int) -> None:
        """Act upon a readable descriptor. A child of ours is reaped."""
        entry = self._calls.pop(descriptor, None)
        if entry is None:
            return
        os.close(descriptor)
        pid, ended, reap = entry
        if reap:
            with contextlib.suppress(ChildProcessError):  # Not a child of ours: somebody else reaps it.
                os.waitpid(pid, os.WNOHANG)
        ended()

    def close(self) -> None:
        """Forget everything."""
        for descriptor in list(self._calls):
            self.remove(descriptor)
