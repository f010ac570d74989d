"""What the daemon and a function worker say to each other: one packet holds many.

A packet is a MessagePack array. One that is too large for the socket travels as the descriptor of a memory file, its
packet then being :data:`BY_FILE`.
"""

from __future__ import annotations

import os
import socket
import struct
from mmap import mmap

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl_agent.node.spawner import BUFFER, fds_in

LIMIT = BUFFER // 2
"""Larger packets go by file, so that a few always fit the socket's buffer."""
BY_FILE = b"\xc1"
"""A byte that MessagePack never uses."""
PAGE_SIZE = 4096
"""The page a worker shares with the daemon: its process number once it works, the task that it runs (0: none), when."""
PID = struct.Struct("<Q")
PID_AT = 0
RUNNING = struct.Struct("<Qd")
RUNNING_AT = 8


class Code(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A function, before its first call.

    ``sandbox`` is the directory its calls run in, empty for the default; ``anew``: it is loaded for each call.
    """

    template: int
    digest: bytes
    code: bytes
    name: str
    sandbox: str
    anew: bool = False


class Call(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One call."""

    task: int
    epoch: int
    run: int
    template: int
    body: bytes
    inputs: list[tuple[int, bytes]]


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


ToWorker = Code | Call
FromWorker = Done | Back | Leaving


def send(link: socket.socket, packet: bytes) -> None:
    """Send one packet, of any size.

    Raises:
        BlockingIOError: the socket does not block and its buffer is full.
        OSError: the other side is gone, or there is no memory.
    """
    if len(packet) <= LIMIT:
        link.send(packet, socket.MSG_NOSIGNAL)
        return
    fd = os.memfd_create("pilot-hitl-packet", os.MFD_CLOEXEC)
    try:
        view, done = memoryview(packet), 0
        while done < len(packet):
            done += os.write(fd, view[done:])
        socket.send_fds(link, [BY_FILE], [fd], socket.MSG_NOSIGNAL)
    finally:
        os.close(fd)


def receive(link: socket.socket, buffer: bytearray | mmap, flags: int = 0) -> bytes:
    """Return one packet; empty when the other side is gone or sent something oversized.

    Raises:
        BlockingIOError: there is none, and the socket or ``flags`` say not to wait.
        OSError: the connection broke.
    """
    size, ancillary, back, _ = link.recvmsg_into([buffer], socket.CMSG_SPACE(16), flags)
    fds = fds_in(ancillary)
    try:
        if back & socket.MSG_TRUNC:
            return b""
        packet = bytes(memoryview(buffer)[:size])
        if not fds or packet != BY_FILE:
            return packet
        length = os.fstat(fds[0]).st_size
        return os.pread(fds[0], length, 0)
    finally:
        for fd in fds:
            os.close(fd)
