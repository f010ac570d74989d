"""Noticing answers that are put into a spool while the hub holds its session."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path


class SpoolWatch:
    """Tells by SIGIO that a file appeared in one of some folders.

    The kernel's directory notification: no library, no thread, no polling. It does not see what other hosts do on a
    network file system, so the hub also looks now and then (:data:`pilot_hitl.hub.server.RENEW_EVERY`).
    """

    def __init__(self) -> None:
        """Watch nothing yet. Takes SIGIO, whose default is to end the process."""
        self.fired = False
        self._folders: dict[Path, int] = {}
        signal.signal(signal.SIGIO, self._on_signal)

    def add(self, folder: Path) -> None:
        """Watch a folder, which is made when it is missing; nothing happens where that cannot be done."""
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # A rename into the folder counts as creation.
                fcntl.fcntl(descriptor, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
            except OSError:
                os.close(descriptor)
                raise
            self.remove(folder)
            self._folders[folder] = descriptor

    def remove(self, folder: Path) -> None:
        """Watch a folder no longer."""
        descriptor = self._folders.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)

    def take(self) -> bool:
        """Return whether a file appeared since the last call."""
        fired, self.fired = self.fired, False
        return fired

    def close(self) -> None:
        """Watch nothing any more."""
        for folder in list(self._folders):
            self.remove(folder)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.fired = True
