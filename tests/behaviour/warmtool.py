"""The command line for tests: each command a process of its own, forked from one that has imported it already.

Importing it takes longer than most commands do, and the tests run hundreds. Tests of the command line itself, of the
demo and of the examples start an interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pilot_hitl.cli import main

ROOM = 1 << 20
"""Bytes that a request may have."""


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str


class Commands:
    """Starts commands. Safe to use from several threads."""

    def __init__(self) -> None:
        """Start the process that they are forked from."""
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self._socket, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], timeout: float) -> Ended:
        """Run ``pilot-hitl ARGUMENTS`` to its end.

        Raises:
            TimeoutError: it takes longer; it is killed.
        """
        request = json.dumps({"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())})
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        told, tell = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [request.encode()], [out, err, tell])
            os.close(tell)
            with open(told, "rb", buffering=0) as status:
                process = int(status.read(16))
                if not select.select([status], [], [], timeout)[0]:
                    os.kill(process, signal.SIGKILL)
                    raise TimeoutError(f"pilot-hitl {' '.join(arguments)} takes more than {timeout} s")
                code = int(status.read(16))
            return Ended(code, *(_text(each) for each in (out, err)))
        finally:
            os.close(out)
            os.close(err)

    def close(self) -> None:
        """End the process that commands are forked from."""
        self._socket.close()
        self._process.wait()


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode()


@functools.cache
def commands() -> Commands:
    """Return those of this process."""
    made = Commands()
    atexit.register(made.close)
    return made


# --- the process that commands are forked from --------------------------------------------------------------------


def serve(link: socket.socket) -> list[str] | None:
    """Fork a command for each request; returns its arguments in it, None where nobody is left to make requests."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd
    poller = select.poll()
    poller.register(link, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready == link.fileno():
                request, files, _, _ = socket.recv_fds(link, ROOM, 3, socket.MSG_CMSG_CLOEXEC)
                if not request:
                    return None
                out, err, tell = files
                if (process := os.fork()) == 0:
                    os.dup2(out, 1)
                    os.dup2(err, 2)
                    return become(json.loads(request))
                os.write(tell, b"%16d" % process)
                os.close(out)
                os.close(err)
                watch = os.pidfd_open(process)
                poller.register(watch, select.POLLIN)
                running[watch] = process, tell
            else:
                process, tell = running.pop(ready)
                poller.unregister(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(tell, b"%16d" % code)
                os.close(tell)


def become(request: dict[str, Any]) -> list[str]:
    """Be as a process that was started for it, and return the arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]  # as with python -m
    arguments: list[str] = request["arguments"]
    return arguments


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the tests
    for entry in main.COMMANDS.values():
        importlib.import_module(entry.module)
    link = socket.socket(fileno=int(sys.argv.pop()))
    sys.argv += ["platforms", "list"]
    with contextlib.suppress(SystemExit):  # a first command imports what reads arguments
        main.main()
    gc.freeze()
    if (arguments := serve(link)) is not None:
        sys.argv[1:] = arguments
        main.main()
