"""Which tasks run, in files that outlive the agent: so that who begins after a death knows who was there.

A worker's shared page is such a file, and for programs there is one table. Nothing is written by a call of the system:
they are mapped. On a pilot of many nodes, whose folder is a shared file system, they are in memory only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
from pathlib import Path

from pilot_hitl_agent.node import frames

_ENTRY = struct.Struct("<Q")
PROGRAMS = 4096
"""Programs at a time that are written down; those beyond are not."""


class Running:
    """The record of one node."""

    def __init__(self, folder: Path, *, kept: bool) -> None:
        """Read what an earlier life left in a folder, and begin anew there."""
        self.before: list[int] = _left(folder) if kept else []
        """Tasks that ran when the agent before this one ended without a word."""
        self._folder = folder
        self._kept = kept
        if kept:
            shutil.rmtree(folder, ignore_errors=True)
        self._table: mmap.mmap | None = None
        self._free: list[int] = []
        self._places: dict[int, int] = {}

    def page(self, worker: int) -> int:
        """Return the descriptor of a new page for a worker.

        Raises:
            OSError: there is no room.
        """
        if self._kept:
            with contextlib.suppress(OSError):  # without a file it is not known after a death; it works all the same
                return _made(self._folder / f"worker.{worker}", frames.PAGE_SIZE)
        fd = os.memfd_create("pilot-hitl-worker", os.MFD_CLOEXEC)
        os.ftruncate(fd, frames.PAGE_SIZE)
        return fd

    def drop_page(self, worker: int) -> None:
        """Forget a worker."""
        if self._kept:
            (self._folder / f"worker.{worker}").unlink(missing_ok=True)

    def add(self, task: int) -> None:
        """Write down that a program runs, or is about to."""
        if not self._kept or task in self._places:
            return
        if self._table is None:
            self._open()
        if self._table is not None and self._free:
            place = self._places[task] = self._free.pop()
            _ENTRY.pack_into(self._table, place, task)

    def drop(self, task: int) -> None:
        """Strike a program out."""
        place = self._places.pop(task, None)
        if place is not None and self._table is not None:
            _ENTRY.pack_into(self._table, place, 0)
            self._free.append(place)

    def freeze(self) -> None:
        """Leave the record as it is: what is struck out from now on did not come to its own end."""
        self._kept = False
        self._places.clear()

    def close(self) -> None:
        """Remove the record: this end was meant."""
        if self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        size = PROGRAMS * _ENTRY.size
        try:
            fd = _made(self._folder / "programs", size)
        except OSError:
            # There is no room for it: asked again with the next one.
            return
        self._table = mmap.mmap(fd, size)
        os.close(fd)
        self._free = list(range(0, size, _ENTRY.size))


def _made(path: Path, size: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # Now, because a full disk is a SIGBUS later.
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _left(folder: Path) -> list[int]:
    """Return the tasks that the files of a folder name."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            if path.name == "programs":
                whole = content[: len(content) // _ENTRY.size * _ENTRY.size]
                found += [task for (task,) in _ENTRY.iter_unpack(whole) if task]
            elif len(content) >= frames.PAGE_SIZE:
                task = frames.RUNNING.unpack_from(content, frames.RUNNING_AT)[0]
                found += [task] if task else []
    return found
