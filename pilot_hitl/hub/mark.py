"""The last known owner of a session's file, noted beside it: that what was lost is not taken for never written.

SQLite opens a file whose log (``…-wal``) is missing or damaged as what it was before, and an empty one as a new one,
without a word. Each owner's first entry is in that log, so a file that does not know its last owner has lost something.
What is lost of a log *after* that is not noticed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pilot_hitl.errors import SessionError

NAME = "session.mark"
_LENGTH = 16
"""Always so many bytes, written in place: that needs no room on a disk that is full."""


class Mark:
    """The mark of one file."""

    def __init__(self, database: Path) -> None:
        """Read it; call it before SQLite makes what is missing.

        Raises:
            SessionError: there is a mark, and the file is gone or empty.
        """
        self._database = database
        self._path = database.with_name(NAME)
        self.epoch = 0
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.epoch = int(self._path.read_text(encoding="ascii"))
        if self.epoch and not (database.exists() and database.stat().st_size):
            self._refuse("is empty or gone, and it was not")

    def check(self, epoch: int) -> None:
        """Compare with the epoch that the file itself knows.

        Raises:
            SessionError: it is older than it was.
        """
        if epoch < self.epoch:
            what = f"{self._database.name}-wal beside it is missing or damaged"
            self._refuse(f"is older than it was (opened {epoch} times, not {self.epoch}): {what}")

    def write(self, epoch: int) -> None:
        """Note the owner of the file; without room for it, loss is not noticed later."""
        with contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, b"%*d\n" % (_LENGTH - 1, epoch), 0)
            finally:
                os.close(handle)

    def _refuse(self, what: str) -> None:
        name = self._database.parent.name
        raise SessionError(
            f"{self._database} {what}. Put back what is missing, or a copy of the whole folder; to begin again without "
            f"it, run pilot-hitl session rm {name}, or open the session with fresh=True"
        )
