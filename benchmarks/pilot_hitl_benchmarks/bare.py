"""Processes that the limits consist of. Run as a script, with nothing of ours imported: ``bare.py WHAT ARGUMENT …``."""

from __future__ import annotations

import os
import sys


def loop(tasks: int, program: str, log: str) -> None:
    """Start a program and wait for it, again and again, once a line arrives on standard input."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    actions = [(os.POSIX_SPAWN_DUP2, handle, 1), (os.POSIX_SPAWN_DUP2, handle, 2)]
    environment = dict(os.environ)
    os.write(1, b"ready\n")
    os.read(0, 3)
    for _ in range(tasks):
        pid = os.posix_spawn(program, [program], environment, file_actions=actions, setsid=True)
        os.waitpid(pid, 0)
    os.write(1, b"done\n")


def echo(endpoint: str, secret: str) -> None:
    """Send every message back until killed."""
    import zmq

    socket = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
    socket.bind(endpoint)
    while True:
        socket.send_multipart(socket.recv_multipart())


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        loop(int(sys.argv[2]), *sys.argv[3:5])
    else:
        echo(*sys.argv[2:4])
