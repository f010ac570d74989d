"""Nodes that are hosts of their own: namespaces for network, processes, host name, IPC and mounts, joined by a bridge.

The file system is shared, as home folders on a cluster are; /dev/shm is each node's own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.slurm.configuration import Shape
from tests.slurm.daemons import Daemon, until

SET_UP = """\
hostname "$1" && mount --make-rprivate / && mount --bind "$2" /etc/hosts &&
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$3" -I -S -c "$4" "$5"
"""
INIT = """\
import pathlib, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""
"""Process 1 of a node: with its end, all processes of the node end."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


class Network:
    """The bridge of a cluster and the links of its nodes."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._bridge = f"ph{shape.port}"

    def namespace(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self._bridge}-{node}"

    def build(self) -> None:
        """Make bridge, namespaces and links."""
        shape = self._shape
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{shape.network}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node in shape.names:
            inside = ("-n", self.namespace(node))
            _ip("netns", "add", self.namespace(node))
            _ip("link", "add", self._link(node), "type", "veth", "peer", "name", "eth0", "netns", self.namespace(node))
            _ip("link", "set", self._link(node), "master", self._bridge, "up")
            _ip(*inside, "address", "add", f"{shape.address(node)}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "route", "add", "default", "via", f"{shape.network}.1")

    def remove(self) -> None:
        """Remove what is there of it, also what a run that was killed left."""
        commands = [["link", "delete", self._link(node)] for node in self._shape.names]
        commands += [["netns", "delete", self.namespace(node)] for node in self._shape.names]
        for words in (*commands, ["link", "delete", self._bridge]):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*words)

    def set(self, node: str, state: str) -> None:
        """Bring a node's link ``up`` or ``down``."""
        _ip("link", "set", self._link(node), state)

    def _link(self, node: str) -> str:
        return f"{self._bridge}.{node}"


class Host:
    """A node's namespaces, held by its process 1."""

    def __init__(self, name: str, network: Network, base: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._up = base / "run" / f"host.{name}.up"
        self._daemon = Daemon(
            f"host {name}",
            [
                *("nsenter", f"--net=/run/netns/{network.namespace(name)}"),
                *("unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", SET_UP, "node", name, str(base / "etc" / "hosts"), sys.executable, INIT, str(self._up)),
            ],
            base / "log" / f"host.{name}.out",
            environment,
        )

    @property
    def alive(self) -> bool:
        """Whether it is switched on."""
        return self._daemon.alive

    def start(self) -> None:
        """Switch it on."""
        if not self.alive:
            self._up.unlink(missing_ok=True)
            self._daemon.start()
            until(self._up.exists, f"{self.name} is set up", why=self._daemon.said)

    def crash(self) -> None:
        """Switch it off: every process on it is gone when this returns."""
        if self.alive:
            # Process 1 first: unshare waits for it, and it is gone only when all processes of the node are.
            psutil.Process(self._init()).kill()
            self._daemon.end()

    def enter(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command on it."""
        kinds = ("--net", "--uts", "--ipc", "--mount", "--pid")
        return ["nsenter", f"--target={self._init()}", *kinds, "--", *command]

    def has(self, process: psutil.Process) -> bool:
        """Tell whether a process runs on it."""
        if not self.alive:
            return False
        try:
            return Path(f"/proc/{process.pid}/ns/pid").readlink() == Path(f"/proc/{self._init()}/ns/pid").readlink()
        except OSError:  # ended meanwhile
            return False

    def _init(self) -> int:
        """Return the host's number of the node's process 1."""
        (init,) = psutil.Process(self._daemon.pid).children()
        return init.pid
