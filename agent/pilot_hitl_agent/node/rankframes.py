"""What the daemon and a rank of an MPI group say to each other, beside code, calls and their ends."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from pilot_hitl_agent.node.frames import Call, Code, Done

GROUP_VARIABLE = "PILOT_HITL_MPI_GROUP"
"""Tells ranks which group they are of: ``token key ranks``."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """First word of a rank; the descriptor of its page comes along.

    Attributes:
        token, key: of the group.
        rank, ranks: of the whole group.
        here: ranks on this node.
    """

    token: str
    key: str
    rank: int
    ranks: int
    here: int


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answer to :class:`Hello`.

    Attributes:
        host, blobs, work, path, pythonpath: as in :class:`.worker.Settings`.
        out, err: beside these lie the files that calls write to.
    """

    host: str
    blobs: str
    work: str
    path: list[str] = []
    pythonpath: str = ""
    out: str = ""
    err: str = ""


class Up(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The rank waits for calls."""


class Unable(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The rank cannot take part, and why."""

    reason: str
    detail: str = ""


class Anew(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Make another communicator: a call failed, so the present one may hold messages that nobody received."""


ToRank = Code | Call | Anew
FromRank = Done | Up | Unable


def door(mark: str) -> bytes:
    """Return the address at which the daemon of the node with this mark waits for ranks.

    It lies in Linux's abstract name space: nothing to clean up, and as short as it must be. Both sides check that the
    other is of the same user.
    """
    return b"\0" + _name(mark).encode()


def shared_memory(mark: str, token: str = "") -> Path:
    """Return the folder for the shared memory of a group's ranks on the node with this mark.

    MPI leaves its files behind when it is killed; what lies in a folder of our own can be removed. Without a token it
    is the beginning of all their names.
    """
    return Path("/dev", "shm", f"{_name(mark)}.{token}")


def _name(mark: str) -> str:
    return f"pilot-hitl-mpi-{hashlib.blake2b(mark.encode(), digest_size=12).hexdigest()}"
