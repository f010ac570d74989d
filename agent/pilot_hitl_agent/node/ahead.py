"""What a call that runs ahead of a decision must not do: go on without a file that it would see if it were needed.

It runs in a folder of its own, so files of the script's folder are not there under relative names. A call that takes
that for an answer (``except FileNotFoundError``, nothing matches a pattern, a log begins anew) would give a wrong
result without a word. So the interpreter's own audit is listened to, and an attempt that looks by name for what lies
only in the script's folder ends; it is tried again there once it counts. Truncating a file looks for nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_TEXT = "it lies in the script's folder, which a call that runs ahead of a decision does not see"
_FIRST = frozenset({
    "os.chdir", "os.chmod", "os.chown", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "os.link",
    "os.getxattr", "os.setxattr", "sqlite3.connect", "shutil.copyfile", "shutil.copytree", "shutil.move",
    "shutil.rmtree", "shutil.unpack_archive",
})  # fmt: skip
"""Events whose first argument names something that has to be there."""
_LISTS = frozenset({"os.listdir", "os.scandir"})
_COMMANDS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"})


class Watch:
    """Listens while a call runs apart. An audit hook cannot be taken away: a process that never does so has none."""

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self._own = self._place = ""
        self._missed = ""
        self._listens = False
        self._checks: dict[str, Callable[[tuple[Any, ...]], Iterator[str]]] = {
            "open": _opened,
            **dict.fromkeys(_FIRST, _first),
            **dict.fromkeys(_COMMANDS, _words),
        }

    def begin(self, own: str, place: str) -> None:
        """A call runs in ``own`` that would run in ``place``."""
        if not self._listens:
            self._listens = True
            sys.addaudithook(self._hear)
        self._missed, self._place, self._own = "", place, own

    def end(self) -> str:
        """The call is over: return the first path in ``place`` that it looked for in vain, empty for none."""
        self._own = ""
        return self._missed

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        own = self._own
        if not own or not (event in self._checks or event in _LISTS):
            return
        # What is looked up here is not the call's doing.
        self._own = ""
        try:
            missed = self._lacks(event, arguments, own)
        finally:
            self._own = own
        if missed:
            self._missed = self._missed or missed
            raise FileNotFoundError(errno.ENOENT, _TEXT, missed)

    def _lacks(self, event: str, arguments: tuple[Any, ...], own: str) -> str:
        if event in _LISTS:
            return self._lacks_entries(arguments[0], own)
        for name in self._checks[event](arguments):
            relative = _inside(name, own)
            if relative and not os.path.lexists(f"{own}/{relative}"):
                there = f"{self._place}/{relative}"
                if os.path.lexists(there):
                    return there
        return ""

    def _lacks_entries(self, folder: object, own: str) -> str:
        relative = _inside("." if folder is None else folder, own)
        if not relative or sys._getframe(3).f_code.co_filename.startswith("<frozen importlib"):
            return ""
        here, there = f"{own}/{relative}", f"{self._place}/{relative}"
        if not os.path.isdir(there):
            return ""
        seen = set(os.listdir(here)) if os.path.isdir(here) else set()
        return next((f"{there}/{name}" for name in os.listdir(there) if name not in seen), "")


def _inside(name: object, own: str) -> str:
    """Return a path relative to the call's own folder; empty for one that leads elsewhere, or is none."""
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or not name:
        return ""
    # Lexically, seen from where the call is now; whose directory is gone finds nothing, and can only leave it.
    if not os.path.isabs(name):
        try:
            name = os.path.join(os.getcwd(), name)
        except FileNotFoundError:
            return ""
    path = os.path.normpath(name)
    if path == own:
        return "."
    return path[len(own) + 1 :] if path.startswith(f"{own}/") else ""


def _opened(arguments: tuple[Any, ...]) -> Iterator[str]:
    name, _mode, flags = arguments
    if not (isinstance(flags, int) and flags & os.O_TRUNC):
        yield name


def _first(arguments: tuple[Any, ...]) -> Iterator[str]:
    yield arguments[0]


def _words(arguments: tuple[Any, ...]) -> Iterator[str]:
    """Yield what looks like a file in a command: a shell's own words are as good as any."""
    for each in arguments:
        words = each if isinstance(each, list | tuple) else [each]
        for word in words:
            text = os.fsdecode(word) if isinstance(word, bytes) else word
            if isinstance(text, str):
                yield text
                yield from text.split()
