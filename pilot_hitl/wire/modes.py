"""Who may read what lies below a home: its user alone, whatever that user's umask is.

Processes that are ours alone, the hub and the agents, say so once, at their start (:func:`keep_private`). Scripts,
tools and function workers run code of the user, whose umask is none of our business: there each file and folder of ours
is made by :func:`own_file` or :func:`own_folder`. What tasks write is the user's and keeps the umask of the script.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
_OTHERS = 0o077


def keep_private() -> None:
    """Let whatever this process makes from now on be for its user alone."""
    os.umask(_OTHERS)


def own_umask() -> int:
    """Return this process's umask without touching it: other threads may be making files."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    before = os.umask(_OTHERS)
    os.umask(before)
    return before


def own_folder(folder: Path) -> None:
    """Make a folder of ours, and those above it that are missing; one that is there stays as it is.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    try:
        folder.mkdir(FOLDER)
    except FileNotFoundError:
        own_folder(folder.parent)
        folder.mkdir(FOLDER, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    folder.chmod(FOLDER)


def asked_folder(folder: Path, ours: Path, umask: int | None = None) -> None:
    """Make the folder that a task is to run in, and those above it: ours below ``ours``, else as its user's umask is.

    ``umask`` is that umask, None where this process has it.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    if folder.is_relative_to(ours):
        own_folder(folder)
        return
    try:
        folder.mkdir()
    except FileNotFoundError:
        asked_folder(folder.parent, ours, umask)
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if umask is not None:
        folder.chmod(0o777 & ~umask)


def own_file(path: str | Path, flags: int) -> int:
    """Open a file of ours, making it if ``flags`` say so, and return its descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(path, flags | os.O_CLOEXEC, FILE)
    found = os.fstat(handle).st_mode
    if stat.S_ISREG(found) and stat.S_IMODE(found) != FILE:  # a device, such as /dev/null, is nobody's
        with contextlib.suppress(OSError):  # some file systems know no modes
            os.fchmod(handle, FILE)
    return handle


def made_ours(*paths: str | Path) -> None:
    """Make files of ours, empty, into which a process with the user's umask is to write.

    Raises:
        OSError: one cannot be made.
    """
    for path in paths:
        os.close(own_file(path, os.O_WRONLY | os.O_CREAT))
