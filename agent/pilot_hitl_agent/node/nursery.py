"""The nursery: a spawner that also forks function workers.

It has imported what a worker needs and runs no user code and no threads, so a fork of it is a warm worker within about
a millisecond, most of whose memory is shared. Being a spawner, it sees its workers end and kills their trees.
"""

from __future__ import annotations

import _socket
import contextlib
import mmap
import os
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from pilot_hitl_agent.node.call_output import Streams
from pilot_hitl_agent.node.spawner import FAIL, FORK, SETTINGS, TOKEN_VARIABLE, Process, Spawner
from pilot_hitl_agent.node.worker import Settings, become_worker


class Nursery(Spawner):
    """A spawner with two more records: :data:`FORK` and :data:`SETTINGS`."""

    def __init__(self, link: _socket.socket) -> None:
        """Serve ``link``."""
        super().__init__(link)
        self._settings = Settings(host="", blobs="", work="/")

    def handle(self, record: tuple[Any, ...], fds: list[int]) -> None:
        """Do what one record asks."""
        try:
            if record[0] == FORK:
                self._fork(record, fds)
            elif record[0] == SETTINGS:
                self._settings = msgspec.json.decode(record[1], type=Settings)
            else:
                super().handle(record, fds)
        except (IndexError, KeyError, TypeError, ValueError):
            # Not of this protocol; dropped.
            return

    def _fork(self, record: tuple[Any, ...], fds: list[int]) -> None:
        """Fork ``(FORK, token, label, more, cpus)``; descriptors: the worker's socket, its page, its two logs."""
        _, token, label, more, cpus = record
        process = Process(token, label, 0, time.time())
        streams = None
        try:
            streams = Streams(fds[1], (fds[2], fds[3]))
            process.pid = os.fork()
        except OSError as error:
            if streams is not None:
                streams.close()
            self._replies.append((FAIL, token, error.errno or 5, "worker", "fork"))
            return
        if process.pid:
            process.out, process.err = streams.watch(self.captures)
            self.family.add(process)
            return
        code = 1
        try:
            self._child(token, more, cpus, fds, streams)
            code = 0
        except BaseException:  # boundary: a child must never return into the nursery's loop
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    def _child(self, token: int, more: dict[str, str], cpus: tuple[int, ...], fds: list[int], streams: Streams) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        link_fd, page_fd, out, err = fds
        page = mmap.mmap(page_fd, 0)
        os.dup2(self._null, 0)
        output = streams.install(page)
        self._abandon()
        for fd in (page_fd, out, err):
            os.close(fd)
        if cpus:
            os.sched_setaffinity(0, cpus)
        os.environ.update(more)
        os.environ[TOKEN_VARIABLE] = f"{self.family.prefix}:{token}"
        become_worker(socket.socket(fileno=link_fd), page, self._settings, output)


def main(link: int) -> None:
    """Serve the socket with this number; returns when its other side closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    side = _socket.socket(fileno=link)
    os.set_inheritable(link, False)
    side.setblocking(False)
    nursery = Nursery(side)
    nursery.hello(0)
    nursery.serve()


def pack_settings(settings: Settings) -> bytes:
    """Return what a :data:`SETTINGS` record carries."""
    return msgspec.json.encode(settings)


def command(path: list[str]) -> list[str]:
    """Return the command that runs a nursery on descriptor 3; ``path`` is where our packages and libraries lie."""
    code = f"import sys; sys.path[:] = {path!r}; from pilot_hitl_agent.node.nursery import main; main(3)"
    return [sys.executable, "-I", "-S", "-c", code]


__all__ = ["FORK", "SETTINGS", "Nursery", "Settings", "command", "main", "pack_settings"]
