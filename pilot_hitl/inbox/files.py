"""Small files that must be whole or absent, however the writer dies."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pilot_hitl.wire.modes import own_file

FILE_LIMIT = 16 << 20
"""A file of requests or answers above this many bytes is not read."""


def write_whole(folder: Path, target: Path, content: bytes) -> None:
    """Write ``target`` so that it appears at once with all of its content, and survives a loss of power.

    The unfinished file lies in ``folder``, on the same file system. Both folders exist.

    Raises:
        OSError: it could not be written; then nothing of it stays.
    """
    partial = folder / f".{target.name}.{secrets.token_hex(6)}"
    handle = own_file(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    except BaseException:  # boundary: of the file system, where nothing half written stays
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames into a folder survive a loss of power, where the file system can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse to sync a folder; they order renames themselves
        pass
    finally:
        os.close(handle)


def read_plain(path: Path) -> tuple[bytes, os.stat_result]:
    """Return content and facts of a plain file; links, pipes and oversized files are refused.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a plain file of one name and sensible size.
    """
    # NONBLOCK: somebody's named pipe must not make the reader wait.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("not a plain file")
        if facts.st_size > FILE_LIMIT:
            raise ValueError(f"{facts.st_size} bytes are too many")
        return file.read(FILE_LIMIT + 1), facts
