"""Working directories of attempts.

Each attempt has one of its own, named ``<task>.<epoch>.<run>``. Most programs leave nothing in it; such a folder is
renamed for the next attempt instead of being removed and made anew (9 against 85 µs on ext4), so after the end of an
attempt its folder exists if and only if there is something in it. That nothing was ever put into a folder shows in its
modification time, which is set back before it is used again: on no file system can a change give it that time again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SPARE = 64
BACK = 3600 * 1_000_000_000
"""Nanoseconds that modification times are set back: more than clocks are coarse, or apart."""


class Sandboxes:
    """Makes and reuses the folders of one node's attempts."""

    def __init__(self, folder: Path) -> None:
        """Make folders below ``folder``, which is made with the first one."""
        self._folder = folder
        self._prefix = f"{folder}/"
        self._spare: dict[str, int] = {}
        self._modified: dict[str, int] = {}
        self._ready = False

    def path(self, name: str, epoch: int, run: int) -> str:
        """Return where the own folder of a task's attempt lies."""
        return f"{self._prefix}{name}.{epoch}.{run}"

    def make(self, path: str) -> None:
        """Make an attempt's own folder.

        Raises:
            OSError: it cannot be made.
        """
        if not self._ready:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._ready = True
        if (modified := self._spare.pop(path, -1)) >= 0 and os.path.isdir(path):  # once a task
            # It was this attempt's before, which then was given back: nothing else may be renamed onto it.
            self._modified[path] = modified
            return
        while self._spare:
            old, modified = self._spare.popitem()
            try:
                os.rename(old, path)  # once a task: a Path costs as much as the call
            except OSError:
                # Somebody removed it, or the target exists: make it the plain way.
                continue
            self._modified[path] = modified
            return
        try:
            os.mkdir(path)  # as above
        except FileExistsError:
            # Left by an agent that died; an attempt's number is never given twice, so it is this attempt's.
            return
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.mkdir(path)  # as above

    def leave(self, path: str) -> bool:
        """Keep the folder when something is in it, else use it again; the attempt and all its processes ended.

        Returns:
            Whether something is in it, as far as can be seen.
        """
        before = self._modified.pop(path, -1)
        try:
            modified = os.stat(path).st_mtime_ns  # as above
            untouched = modified == before
            if not untouched and os.listdir(path):  # as above
                return True
            if len(self._spare) >= SPARE:
                os.rmdir(path)  # as above
                return False
            if not untouched:
                moment = time.time_ns() - BACK
                os.utime(path, ns=(moment, moment))
                # Its file system may know no nanoseconds.
                modified = os.stat(path).st_mtime_ns  # as above
            self._spare[path] = modified
        except OSError:
            # The task removed it, or made it unreadable: then it stays as it is.
            return os.path.isdir(path)  # as above
        return False

    def close(self) -> None:
        """Remove what is empty."""
        for path in self._spare:
            try:
                os.rmdir(path)  # as above
            except OSError:
                continue
        self._spare.clear()
