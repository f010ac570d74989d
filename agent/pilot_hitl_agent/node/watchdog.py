"""Workers that have calls and do nothing: what they were sent never reached them, or what they said went elsewhere.

Neither is meant to be possible; but code of the user may read, close or replace any descriptor of its process, and
whoever waits for such a call would wait for ever. Nothing is written or sent for this while calls run: a worker's
shared page says that none does, and the kernel that its main thread sleeps and has not run since the look before.
"""

from __future__ import annotations

from collections.abc import Iterable
from mmap import mmap
from pathlib import Path

from pilot_hitl_agent.node import frames

NOT_BEGUN = -1
"""What stands for the processor time of a worker that has not begun to work."""
_STATE, _USER, _SYSTEM = 0, 11, 12


class Watchdog:
    """Looks at workers now and then, and remembers only the look before."""

    def __init__(self) -> None:
        """Begin with none."""
        self._before: dict[int, tuple[int, int]] = {}

    def look(self, workers: Iterable[tuple[int, int, mmap]]) -> tuple[list[int], list[int]]:
        """Take ``(number, first task that it has, page)`` of each worker that has calls.

        Returns:
            Workers that had not begun to work at the last look either, and workers that did nothing since then.
        """
        now: dict[int, tuple[int, int]] = {}
        absent: list[int] = []
        idle: list[int] = []
        for number, head, page in workers:
            if frames.RUNNING.unpack_from(page, frames.RUNNING_AT)[0] or page[frames.BUSY_AT]:
                continue
            pid = frames.PID.unpack_from(page, frames.PID_AT)[0]
            ticks = asleep(pid) if pid else NOT_BEGUN
            if ticks is None:
                continue
            now[number] = (head, ticks)
            if self._before.get(number) == now[number]:
                (idle if pid else absent).append(number)
        self._before = now
        return absent, idle


def asleep(pid: int) -> int | None:
    """Return how long the main thread of a process has run, in ticks, if it sleeps; None if not, or if it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name may hold spaces and parentheses; what follows its last one does not.
    fields = text[text.rfind(b")") + 2 :].split()
    # Stopped, or in uninterruptible sleep, it goes on where it is when that is over.
    return int(fields[_USER]) + int(fields[_SYSTEM]) if fields[_STATE] == b"S" else None
