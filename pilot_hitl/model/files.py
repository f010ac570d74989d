"""Files that work depends on: what was seen of them when it was submitted, and whether that is still so.

A file is known by its size and the time of its last change, or by its content where somebody asked for that. Neither
its inode nor the time of its last change of state counts: both differ after a copy, a restored backup or another mount
of the same folder, where nothing that a program could read has changed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

NOTHING = -1
"""Size of what is not there."""
TAKEN = -2
"""Size of what is not there because the work itself moves it away."""
SLACK = 50_000_000
"""Nanoseconds by which the clock of files lags behind that of programs, at most."""


class File(os.PathLike[str]):
    """A file, or a folder, whose content is meant: when it changed, work that has it as an argument is other work.

    In the function it is a plain :class:`pathlib.Path`, an absolute one.

    Attributes:
        path: absolute.
        hashed: its content counts; otherwise its size and the time of its last change.
    """

    __slots__ = ("hashed", "path")

    def __init__(self, path: str | os.PathLike[str], hash: bool = False) -> None:
        """Name a file; it is looked at when work is submitted with it.

        Raises:
            TypeError: it is no path.
        """
        given = os.fspath(path)
        if not isinstance(given, str) or not given:
            raise TypeError(f"File: {path!r} is no path of a file")
        self.path = os.path.abspath(os.path.expanduser(given))  # text, as in keys and messages
        self.hashed = bool(hash)

    def __fspath__(self) -> str:
        """Return the path."""
        return self.path

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a plain path."""
        return Path, (self.path,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and (self.path, self.hashed) == (other.path, other.hashed)

    def __hash__(self) -> int:
        return hash((self.path, self.hashed))

    def __repr__(self) -> str:
        return f"File({self.path!r}{', hash=True' if self.hashed else ''})"


class FileState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was seen of a file, or of several together.

    Attributes:
        path: absolute; of several together their folder or pattern.
        size: bytes; of several how many they are; :data:`NOTHING` or :data:`TAKEN`.
        mtime: nanoseconds since 1970; of several the newest; 0 where the content counts instead.
        digest: of the content where that counts; of several, of their names, sizes and times.
        several: whether it is a folder or a pattern.
    """

    path: str
    size: int
    mtime: int = 0
    digest: bytes = b""
    several: bool = False

    @property
    def there(self) -> bool:
        """Whether there is something."""
        return self.size >= 0

    def differs(self, before: FileState) -> bool:
        """Return whether it is another file than before."""
        if self.size == TAKEN:
            return False
        return (self.size, self.mtime, self.digest) != (before.size, before.mtime, before.digest)

    def change(self, before: FileState | None) -> str:
        """Return in words how it differs from before; None: it was not looked at then."""
        if before is None or not before.there:
            return f"{self.path} is there now, and was not then" if self.there else f"{self.path} counts now"
        if not self.there:
            return f"{self.path} is not there any more"
        if (self.size, self.mtime) == (before.size, before.mtime):
            return f"{self.path} changed: {'other files' if self.several else 'other content'}"
        return f"{self.path} changed: {before.describe()} then, {self.describe()} now"

    def describe(self) -> str:
        """Return size and time in words."""
        what = "file" if self.several else "byte"
        when = ""
        if self.mtime:
            seconds, rest = divmod(self.mtime, 1_000_000_000)
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
            when = f"{', newest' if self.several else ''} of {stamp}.{rest // 1_000_000:03d}"
        return f"{self.size} {what}{'' if self.size == 1 else 's'}{when}"


class Note(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What stands beside the resume key of work that depends on files.

    Attributes:
        base: the key of the same work whatever is in its files.
        files: what was seen of them.
    """

    base: bytes
    files: list[FileState]


def changes(now: list[FileState], before: list[FileState]) -> list[tuple[FileState, FileState | None]]:
    """Return what is not as it was, as ``(now, before)``; what only counted before is now :data:`NOTHING`."""
    then = {state.path: state for state in before}
    found: list[tuple[FileState, FileState | None]] = []
    for state in now:
        old = then.pop(state.path, None)
        if (old is None and state.size != TAKEN) or (old is not None and state.differs(old)):
            found.append((state, old))
    found.extend((FileState(path, NOTHING), old) for path, old in then.items())
    return found


def written_by(state: FileState, began: float, ended: float) -> bool:
    """Return whether a file was last changed while an attempt ran, from ``began`` to ``ended``."""
    at = state.mtime
    return state.there and not state.several and began * 1e9 - SLACK <= at <= ended * 1e9 + SLACK
