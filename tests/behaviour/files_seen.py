"""Sees every file that comes into being below some folders, by the kernel's own word (inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_EVENT = struct.Struct("iIII")
_CREATE, _MOVED_TO, _ISDIR = 0x100, 0x80, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def inotify() -> int:
    """Return a new inotify descriptor.

    Raises:
        OSError: the kernel has none to give.
    """
    descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


class FilesSeen:
    """While it is entered, ``names`` gathers every path that was ever there, however short."""

    def __init__(self, *tops: Path) -> None:
        self.names: set[str] = set()
        self._tops = tops
        self._folders: dict[int, str] = {}
        self._fd = -1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._fd = inotify()
        for top in self._tops:
            self._watch(str(top))
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._take()
        os.close(self._fd)

    def _run(self) -> None:
        while not self._over.wait(0.005):
            self._take()

    def _watch(self, folder: str) -> None:
        number = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _CREATE | _MOVED_TO)
        if number < 0:
            return  # It is gone again; its name was seen.
        self._folders[number] = folder
        # What came into it before it was watched.
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            self.names.add(path)
            if os.path.isdir(path) and not os.path.islink(path):
                self._watch(path)

    def _take(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                number, mask, _cookie, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                path = f"{self._folders.get(number, '?')}/{os.fsdecode(name)}"
                self.names.add(path)
                if mask & _ISDIR:
                    self._watch(path)
