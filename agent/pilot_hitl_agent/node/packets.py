"""Packets of any size over the ``SOCK_SEQPACKET`` sockets between a daemon and its processes.

A socket takes no packet above its send limit, which the kernel caps at ``net.core.wmem_max``, doubled: 425,984 bytes
where nobody raised it. So what is large for the socket at hand travels as the descriptor of a memory file, its packet
then being :data:`BY_FILE`; and only an error that says so is taken for the end of the other side.

The spawner loads this file by path, so it imports next to nothing and nothing of ours.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

BUFFER_VARIABLE = "PILOT_HITL_SOCKET_BUFFER"
"""Bytes that these sockets ask for as their send buffer, instead of :data:`BUFFER`."""
BUFFER = 1 << 20
"""What is asked for. The kernel gives at most ``net.core.wmem_max``, and counts twice what it gives."""
LIMIT = BUFFER // 2
"""Larger packets never go inline, however much a socket takes: receivers have room for twice as much."""
PACKET = 2 * BUFFER
"""Bytes that a receiver has room for."""
SMALL = 1024
"""Packets up to this size fit every socket: the kernel's least send buffer holds them four times."""
SHARE = 4
"""A packet goes inline when it takes no more than this part of the send buffer, so that a few always fit."""
MAX_FDS = 8
"""Descriptors that come along with a packet, the memory file's not counted."""
BY_FILE = b"\xc1"
"""A byte that begins neither MessagePack nor what marshal writes."""
GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED, errno.EBADF))
"""Errors that mean that there is nobody on the other side. All others are of one packet."""
FULL = frozenset((errno.EAGAIN, errno.ETOOMANYREFS))
"""Errors that end when the other side reads. (Too many descriptors are on their way: each is one unread packet.)"""
_RIGHTS = _socket.CMSG_SPACE((MAX_FDS + 1) * 4)
_AT_ONCE = 1 << 30


def buffer_size() -> int:
    """Return how many bytes sockets ask for."""
    asked = os.environ.get(BUFFER_VARIABLE, "")
    return int(asked) if asked.isdigit() else BUFFER


def socketpair() -> tuple[_socket.socket, _socket.socket]:
    """Return a non-blocking ``SOCK_SEQPACKET`` pair with large send buffers."""
    pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    for side in pair:
        enlarge(side)
    return pair


def enlarge(link: _socket.socket) -> None:
    """Ask for a large send buffer; how large it became is looked up when it matters."""
    link.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, buffer_size())


def inline_limit(link: _socket.socket) -> int:
    """Return the size in bytes up to which a packet goes inline over a socket, by what the kernel gave it."""
    return min(LIMIT, max(SMALL, link.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) // SHARE))


def send(link: _socket.socket, packet: bytes, fds: Sequence[int] = ()) -> None:
    """Send one packet, of any size, with up to :data:`MAX_FDS` descriptors.

    Raises:
        OSError: it was not sent. ``errno`` tells why: in :data:`FULL`, the other side has to read first (for a socket
            that does not block); in :data:`GONE`, there is no other side; any other, this packet cannot be sent.
    """
    size = len(packet)
    if size <= SMALL or size <= inline_limit(link):
        if fds:
            link.sendmsg([packet], _rights(fds), _socket.MSG_NOSIGNAL)
        else:
            link.send(packet, _socket.MSG_NOSIGNAL)
        return
    file = os.memfd_create("pilot-hitl-packet", os.MFD_CLOEXEC)
    try:
        view, done = memoryview(packet), 0
        while done < size:
            done += os.write(file, view[done : done + _AT_ONCE])
        link.sendmsg([BY_FILE], _rights((*fds, file)), _socket.MSG_NOSIGNAL)
    finally:
        os.close(file)


def receive(link: _socket.socket, buffer: bytearray | mmap, flags: int = 0) -> tuple[bytes, list[int]]:
    """Return one packet and the descriptors that came with it, which are the caller's; no packet: nobody is there.

    Raises:
        BlockingIOError: there is none, and the socket or ``flags`` say not to wait.
        OSError: the connection broke, or a packet was lost because this process may have no more descriptors
            (``EMFILE``): whoever sent it waits for an answer that will not come.
    """
    size, ancillary, back, _ = link.recvmsg_into([buffer], _RIGHTS, flags | _socket.MSG_CMSG_CLOEXEC)
    packet = bytes(memoryview(buffer)[:size])
    fds = fds_in(ancillary) if ancillary else []
    why = 0
    if back & _socket.MSG_TRUNC:
        why = errno.EMSGSIZE
    elif back & _socket.MSG_CTRUNC or (packet == BY_FILE and not fds):
        why = errno.EMFILE
    if why:
        for fd in fds:
            os.close(fd)
        raise OSError(why, f"a packet was lost: {os.strerror(why)}")
    return (_content(fds.pop()) if packet == BY_FILE else packet), fds


def fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with a packet."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = data[: len(data) // 4 * 4]
            found.extend(int.from_bytes(whole[at : at + 4], sys.byteorder) for at in range(0, len(whole), 4))
    return found


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))]


def _content(file: int) -> bytes:
    try:
        size = os.fstat(file).st_size
        content = os.pread(file, size, 0)
        while len(content) < size and (part := os.pread(file, size - len(content), len(content))):
            # The kernel gives at most 2 GiB at a time.
            content += part
    finally:
        os.close(file)
    return content
