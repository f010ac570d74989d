"""Append logs for what tasks write: one pair per process that runs at the same time, reused from task to task."""

from __future__ import annotations

import contextlib
import heapq
import os
from pathlib import Path

from pilot_hitl.model.outputs import SAMPLE, Range
from pilot_hitl.wire.outputs import checksum
from pilot_hitl.wire.values import INLINE_LIMIT

TAIL = 2000


class Logs:
    """Numbers and reads the logs of one node."""

    def __init__(self, folder: Path) -> None:
        """Keep logs below ``folder``; it is made with the first one."""
        self._folder = folder
        self._free: list[int] = []
        self._count = 0
        self._paths: list[tuple[str, str]] = []
        self._readers: dict[str, int] = {}

    def take(self) -> int:
        """Return a log that nobody writes to now."""
        if self._free:
            return heapq.heappop(self._free)
        if not self._count:
            # Should it fail, whoever opens the log learns why.
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
        self._paths.append((f"{self._folder}/slot-{self._count:04d}.out", f"{self._folder}/slot-{self._count:04d}.err"))
        self._count += 1
        return self._count - 1

    def free(self, number: int) -> None:
        """Let the log be used again; its content stays."""
        heapq.heappush(self._free, number)

    def paths(self, number: int) -> tuple[str, str]:
        """Return the files for standard output and error."""
        return self._paths[number]

    def read(self, at: Range) -> bytes:
        """Return a range of a log when it may travel inline, else nothing; nothing too when it is not as it was."""
        if not 0 < at.length <= INLINE_LIMIT:
            return b""
        try:
            reader = self._readers.get(at.path)
            if reader is None:
                reader = self._readers[at.path] = os.open(at.path, os.O_RDONLY | os.O_CLOEXEC)
            content = os.pread(reader, at.length, at.offset)
        except OSError:
            return b""
        return content if checksum(content) == at.checksum else b""

    def size(self, path: str) -> int:
        """Return how long a log is now."""
        try:
            return Path(path).stat().st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Close what was read."""
        for reader in self._readers.values():
            os.close(reader)
        self._readers.clear()


def read_file(path: str) -> tuple[bytes, Range]:
    """Return a file's content, when it may travel inline, and what identifies it; an absent file is empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b"", Range(path)
    try:
        length = os.fstat(fd).st_size
        if length <= INLINE_LIMIT:
            content = os.pread(fd, length, 0)
            return content, Range(path, 0, length, checksum(content))
        ends = os.pread(fd, SAMPLE, 0) + os.pread(fd, SAMPLE, length - SAMPLE)
        return b"", Range(path, 0, length, checksum(ends, sampled=True), sampled=True)
    except OSError:
        return b"", Range(path)
    finally:
        os.close(fd)


def tail_of(path: str, begin: int = 0) -> bytes:
    """Return the end of a file, of what lies behind ``begin``; an absent file is empty."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - TAIL))
            return file.read(TAIL)
    except OSError:
        return b""
