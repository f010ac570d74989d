"""Logs of hubs and agents: they never grow beyond a size, and never lose what was written last.

Such a log is the standard error of its process, where also an interpreter that fails and C code write, and processes
that were started with it. So a long log is not renamed, which they would not notice: what it holds is copied beside it
as ``NAME.1``, and it begins anew. All who write append.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

from pilot_hitl.wire.modes import own_file

LIMIT = 4 << 20
"""Bytes of a log at which it begins anew; as much again is kept beside it."""
_LOOKS = 16
"""How often its size is looked at while it grows by that."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class BoundedLog(logging.Handler):
    """Writes records to a descriptor, and bounds the file that it leads to; anything else is only written to."""

    def __init__(self, descriptor: int, limit: int = LIMIT) -> None:
        """Write to ``descriptor``, which was opened for appending and stays open."""
        super().__init__()
        self._descriptor = descriptor
        self._limit = limit
        self._unseen = limit

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. One that cannot be written, on a full disk say, is given up: a log must end nothing."""
        try:
            text = self.format(record)
        except (TypeError, ValueError, KeyError):  # its arguments are not those that its text wants
            self.handleError(record)
            return
        # Names of files and words of peers may hold anything, and people read this in a terminal.
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        try:
            os.write(self._descriptor, data)
            self._unseen += len(data)
            if self._unseen >= self._limit // _LOOKS:
                self._unseen = 0
                bound(self._descriptor, self._limit)
        except OSError:
            return


def bound(descriptor: int, limit: int = LIMIT) -> None:
    """Let a file begin anew when it is long; its end, ``limit`` bytes at most, is kept beside it.

    Raises:
        OSError: that cannot be kept; then nothing is changed.
    """
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size <= limit:
        return
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    if not path.exists() or not path.samefile(f"/proc/self/fd/{descriptor}"):
        return  # It was removed: nobody would find what is kept.
    partial = path.with_name(f".{path.name}.1")
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kept = own_file(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            at = max(0, facts.st_size - limit)
            # To its end as it is now: others may be writing.
            while sent := os.sendfile(kept, source, at, limit):
                at += sent
        finally:
            os.close(kept)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(source)
    partial.replace(path.with_name(f"{path.name}.1"))
    os.ftruncate(descriptor, 0)


def log_to(descriptor: int, form: str) -> None:
    """Let the root logger write there, from INFO on."""
    handler = BoundedLog(descriptor)
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
