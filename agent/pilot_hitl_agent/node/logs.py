"""Append logs for what tasks write: one pair per process that runs at the same time, reused from task to task."""

from __future__ import annotations

import contextlib
import heapq
import os
from pathlib import Path

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

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return a range of a log when it may travel inline, else nothing. A range that is gone is empty."""
        if not 0 < length <= INLINE_LIMIT:
            return b""
        try:
            reader = self._readers.get(path)
            if reader is None:
                reader = self._readers[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(reader, length, offset)
        except OSError:
            return b""

    def tail(self, path: str, begin: int, end: int) -> str:
        """Return the last of a range as text."""
        start = max(begin, end - TAIL)
        return self.read(path, start, end - start).decode(errors="replace")

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


def read_file(path: str) -> tuple[bytes, int]:
    """Return a file's content, when it may travel inline, and its length; an absent file is empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b"", 0
    try:
        length = os.fstat(fd).st_size
        return (os.pread(fd, length, 0) if length <= INLINE_LIMIT else b""), length
    except OSError:
        return b"", 0
    finally:
        os.close(fd)
