"""What the daemon and a function worker say to each other: one packet holds many.

A packet is a MessagePack array; of whatever size, see :mod:`.packets`.
"""

from __future__ import annotations

import os
import socket
import struct
from mmap import mmap

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl_agent.node import packets

ROOM = packets.PACKET
"""Bytes that who receives must have room for."""
PAGE_SIZE = 4096
"""The page a worker shares with the daemon: its process number once it works, the task that it runs (0: none), when.
Further on it shares with the fork server what of the running call's output is in the log, see :mod:`.call_output`."""
PID = struct.Struct("<Q")
PID_AT = 0
RUNNING = struct.Struct("<Qd")
RUNNING_AT = 8
OVER = struct.Struct("<QdQ")
"""The same two, and the last task that ended: what a worker did whose results never arrived."""
BUSY_AT = RUNNING_AT + OVER.size
"""A byte that is not 0 while the worker loads functions, or waits until its results can be sent."""


class Code(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A function, before its first call.

    Attributes:
        sandbox: the directory its calls run in, empty for the default.
        logging, anew: as in ``FunctionTemplate``.
    """

    template: int
    digest: bytes
    code: bytes
    name: str
    sandbox: str
    logging: int = 0
    anew: bool = False


class Call(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One call. ``folder`` is the one of its own that it runs in, ahead of a decision; empty when it is needed."""

    task: int
    epoch: int
    run: int
    template: int
    body: bytes
    inputs: list[tuple[int, bytes]]
    folder: str = ""


class Done(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """One call ended."""

    task: int
    payload: bytes
    failure: Failure | None
    began: float
    ended: float


class Back(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """These calls were not begun and will not be: a long one is before them."""

    tasks: list[int]


class Leaving(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The last packet of a worker that can run nothing more; ``why`` in words."""

    why: str


class Unsent(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Stands for what could not be sent: a call, which the worker answers in its turn with ``failure``, or a function.

    ``task`` is 0 for a function, ``template`` for a call.
    """

    task: int
    template: int
    failure: Failure


ToWorker = Code | Call | Unsent
FromWorker = Done | Back | Leaving


def send(link: socket.socket, packet: bytes) -> None:
    """Send one packet, of any size.

    Raises:
        OSError: see :func:`.packets.send`.
    """
    packets.send(link, packet)


def receive(link: socket.socket, buffer: bytearray | mmap, flags: int = 0) -> bytes:
    """Return one packet; empty when the other side is gone.

    Raises:
        BlockingIOError: there is none, and the socket or ``flags`` say not to wait.
        OSError: the connection broke, or a packet was lost (see :func:`.packets.receive`).
    """
    packet, fds = packets.receive(link, buffer, flags)
    for fd in fds:
        os.close(fd)
    return packet
