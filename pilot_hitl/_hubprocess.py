"""Finding this user's hub, or starting it. Light on imports: starting it early is what makes a session start fast.

On a node of a pilot, the hub is on another host: there it is found by what it wrote into the home, and never started.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path

from pilot_hitl.errors import HubUnreachable
from pilot_hitl.wire.modes import own_file
from pilot_hitl.wire.places import (
    DOOR_SOCKET,
    HUB_SOCKET,
    MARK_VARIABLE,
    check_private,
    home_hash,
    hub_address,
    private_folder,
    runtime_folder,
    sweep_sockets,
)

OF_A_PILOT = (MARK_VARIABLE, "PILOT_HITL_TOKEN")
"""Variables by which pilots know what they started, and end it."""
_CREDENTIALS = struct.Struct("3i")
LAST_WORDS = 500
"""Milliseconds for which a hub that ended is still listened to: its process is seen to end before ZeroMQ's thread of
ours has read all that it sent."""
OTHERS_FIRST, LOOK = 5.0, 0.05
"""Seconds for which a process of a pilot waits until others have started a hub, and between its looks."""
LOG_TAIL = 2000


class HubProcess:
    """A hub, ours or somebody's, as a process to watch.

    Attributes:
        pid: its process id.
        endpoint: where it listens, or will.
        handle: a pidfd, readable once the process ended.
        child: whether this process started it.
    """

    def __init__(self, pid: int, child: bool, endpoint: str) -> None:
        """Open the handle.

        Raises:
            ProcessLookupError: it is gone already.
        """
        self.pid = pid
        self.endpoint = endpoint
        self.child = child
        self.handle = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        poller = select.poll()
        poller.register(self.handle, select.POLLIN)
        return bool(poller.poll(0))

    def ended(self) -> int:
        """Return the exit code once :attr:`handle` is readable; -1 when it is not known to us."""
        if self._code is None and self.child:
            try:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                self._code = -1
        return -1 if self._code is None else self._code

    def close(self) -> None:
        """Stop watching."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class RemoteHub:
    """The hub of a home on another host, as it said where it listens; it may move, or not listen (any more).

    Attributes:
        endpoint: where it listens; empty while it does not listen for other hosts.
        host: where it runs.
    """

    def __init__(self, home: Path) -> None:
        """Look where it is."""
        self._home = home
        self.endpoint = ""
        self.host = ""
        self.moved()

    def moved(self) -> bool:
        """Look again; return whether it is elsewhere now."""
        before, address = self.endpoint, hub_address(self._home)
        if address is not None:
            self.endpoint, self.host = address.tcp, address.host
        return self.endpoint != before

    def close(self) -> None:
        """Nothing is held open."""


def elsewhere(home: Path) -> RemoteHub | None:
    """Return the hub when this is a process of a pilot on another host than the hub's; None anywhere else.

    Such a process starts no hub: it would be one on a compute node, and gone with the job.
    """
    if not os.environ.get(MARK_VARIABLE):
        return None
    address = hub_address(home)
    return RemoteHub(home) if address is not None and address.host != _socket.gethostname() else None


def socket_path(home: Path) -> Path:
    """Return where the hub of a home listens."""
    return runtime_folder(home) / HUB_SOCKET


def log_path(home: Path) -> Path:
    """Return where a started hub writes what it has to say."""
    return home / "hub" / "hub.log"


def find(home: Path) -> HubProcess | None:
    """Return the hub that listens for this home, None when nobody does.

    Raises:
        HubUnreachable: somebody else's process listens there, or the folder of sockets is not this user's.
    """
    mine, *others = _paths(home)
    for path in others:
        # What is somebody else's there by now is no reason not to look in the usual place.
        with contextlib.suppress(HubUnreachable):
            there = _at(home, path)
            if there is not None:
                return there
    return _at(home, mine)


def sweep(home: Path) -> None:
    """Remove the sockets that a killed hub left; nothing happens while there is one."""
    for path in _paths(home):
        if path.exists():
            _clear(home, path.parent)


def _paths(home: Path) -> list[Path]:
    """Where a hub may listen: as this process's variables have it, and where one on this host said that it does."""
    mine, said = socket_path(home), hub_address(home)
    if said is None or said.host != _socket.gethostname() or said.ipc == f"ipc://{mine}":
        return [mine]
    return [mine, Path(said.ipc.removeprefix("ipc://"))]


def _at(home: Path, path: Path) -> HubProcess | None:
    """Return the hub that listens at a path; what a killed one left there is removed."""
    try:
        check_private(path.parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HubUnreachable(f"the hub of {home} cannot be reached: {error}") from error
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        probe.connect(os.fspath(path))
        credentials = probe.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    except FileNotFoundError:
        return None
    except ConnectionError:
        _clear(home, path.parent)
        return None
    except OSError as error:
        raise HubUnreachable(f"the hub of {home} cannot be reached at {path}: {error}") from error
    finally:
        probe.close()
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid != os.getuid():
        raise HubUnreachable(f"{path} is served by user {uid}, not by you: remove it or set another home")
    try:
        return HubProcess(pid, False, f"ipc://{path}")
    except ProcessLookupError:
        return None


def _clear(home: Path, folder: Path) -> None:
    """Remove the sockets that a hub left when it was killed, unless there is one again: its lock says so."""
    try:
        lock = os.open(home / "hub" / "hub.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep_sockets(folder, HUB_SOCKET, DOOR_SOCKET)
    except OSError:  # it is held, or the folder is not writable
        return
    finally:
        os.close(lock)


def start(home: Path) -> HubProcess:
    """Start a hub for this home; when another one holds the lock, the started one exits with 0.

    Raises:
        HubUnreachable: the home cannot be used or the process cannot be started.
    """
    try:
        private_folder(private_folder(home) / "hub")
        log = own_file(log_path(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "pilot_hitl.hub", "--home", os.fspath(home)],
                _environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                # A script in the background of a shell ignores some: its tasks shall not.
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        finally:
            os.close(log)
        return HubProcess(pid, True, f"ipc://{socket_path(home)}")
    except OSError as error:
        raise HubUnreachable(f"the hub of {home} cannot be started: {error}") from error


def find_or_start(home: Path) -> HubProcess | RemoteHub:
    """Return the hub that listens, or one that was just started; see :func:`elsewhere`.

    Raises:
        HubUnreachable: see :func:`find` and :func:`start`.
    """
    return elsewhere(home) or found_or_started(home)


def found_or_started(home: Path) -> HubProcess:
    """Return the hub of this host that listens, or one that was just started.

    A process of a pilot leaves that to the script and to whoever else is outside, for a while: whatever it starts is
    part of its task, and ends with it or with the pilot.

    Raises:
        HubUnreachable: see :func:`find` and :func:`start`.
    """
    found = find(home)
    end = time.monotonic() + OTHERS_FIRST
    while found is None and of_a_pilot(home) and time.monotonic() < end:
        time.sleep(LOOK)
        found = find(home)
    return found or start(home)


def of_a_pilot(home: Path) -> bool:
    """Return whether this is a process of a pilot of this home."""
    return os.environ.get(MARK_VARIABLE, "").startswith(home_hash(home))


def log_tail(home: Path) -> str:
    """Return the last lines of the hub's log."""
    try:
        with log_path(home).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            return file.read().decode("utf-8", "replace").strip()
    except OSError as error:
        return f"(no log: {error})"


def _environment() -> dict[str, str]:
    """Return this process's environment; the hub finds the package where this process found it."""
    environment = dict(os.environ)
    # It is no part of a pilot, whoever starts it: what ends a pilot by its mark must not find it.
    for name in OF_A_PILOT:
        environment.pop(name, None)
    parent = os.fspath(Path(__file__).resolve().parent.parent)
    if "-packages" not in parent:
        known = environment.get("PYTHONPATH", "").split(os.pathsep)
        if parent not in known:
            environment["PYTHONPATH"] = os.pathsep.join([*filter(None, known), parent])
    return environment
