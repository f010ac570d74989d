"""What outlives a replica: which requests it had begun, and what its next life must know."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from pilot_hitl.wire.messages import Number

BEGUN_HEAD, BEGUN_NUMBER = "=4q", "=q"
"""The file in which a replica says what its handler has: how many numbers there are now and may be, how many of the
latest answers have room, how many answers there were; then these numbers, and those of the latest answers."""
FINISHED_KEPT = 1024
"""So many of the latest answers of a replica are known when it is gone, where a request may not run again."""


class Begun(msgspec.Struct, frozen=True, array_like=True):
    """What a replica had begun when it was gone.

    Attributes:
        inside: numbers of the requests that were in its handler.
        finished: of the latest ones that it answered, in no order; kept only where a request may not run again.
        total: how many it answered.
    """

    inside: tuple[Number, ...] = ()
    finished: tuple[Number, ...] = ()
    total: Number = 0


def begun_path(folder: Path, task: str, pid: int) -> Path:
    """Return where a replica says what it has begun; ``folder`` is of its service's files."""
    return folder / f"{task}.{pid}.begun"


def read_begun(path: Path) -> Begun | None:
    """Return what a replica that is gone had begun; None when nobody knows."""
    try:
        content = path.read_bytes()
        count, most, kept, total = struct.unpack_from(BEGUN_HEAD, content)
        start, size = struct.calcsize(BEGUN_HEAD), struct.calcsize(BEGUN_NUMBER)
        inside = struct.unpack_from(f"={count}q", content, start)
        finished = struct.unpack_from(f"={min(total, kept)}q", content, start + most * size)
    except (OSError, struct.error):
        return None
    return Begun(inside, finished, total)


class KeptBroadcast(msgspec.Struct, frozen=True, array_like=True):
    """A broadcast that every replica takes in before it is ready, whenever it starts.

    Attributes:
        key: a later one of the same key stands in its place.
        method: of the handler.
        blob: names its frames, the body first, in the session's folder of large values.
        sizes: bytes of each frame.
        revision: grows with each one that the service keeps.
    """

    key: str
    method: str
    blob: bytes
    sizes: tuple[Number, ...]
    revision: Number = 0
