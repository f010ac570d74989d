"""Where the hub listens: on a socket of this machine always, on one TCP address once pilots elsewhere need it.

What comes in over TCP is taken by a process of its own, :mod:`~pilot_hitl.hub.doorman`, and reaches the hub through a
second socket of this machine: that no stranger has a descriptor of the hub.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import zmq

from pilot_hitl.hub import doorman
from pilot_hitl.hub.descriptors import Descriptors
from pilot_hitl.hub.watch import Watch
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.places import DOOR_SOCKET, HubAddress, hub_address, publish_hub_address
from pilot_hitl.wire.sockets import events_of, keep_alive

_log = logging.getLogger(__name__)
PORT_TRIES, PORT_PAUSE = 20, 0.05
"""How often, and how long apart, the port of an earlier hub is tried: its doorman may be about to end."""
START_AGAIN = 1.0
"""Seconds between two starts of the doorman."""
GOODBYE = 5.0
"""Seconds that the doorman has to pass on the hub's last words."""
TELL_EVERY = 60.0


class Door:
    """The hub's ROUTER as others find it.

    Attributes:
        events: socket that is readable when a connection was lost; see :meth:`lost`.
    """

    def __init__(
        self, home: Path, host: str, router: zmq.Socket[bytes], ipc: str, watch: Watch, descriptors: Descriptors
    ) -> None:
        """Bind the socket of this machine and say where.

        Raises:
            OSError: the home cannot be written.
        """
        self._home = home
        self._router = router
        self._watch = watch
        self._descriptors = descriptors
        self._before = hub_address(home)
        self._address = HubAddress(host=host, ipc=ipc)
        router.bind(ipc)
        self._inside = Path(ipc.removeprefix("ipc://")).with_name(DOOR_SOCKET)
        self._listener: socket.socket | None = None
        self._control = self._counts = -1
        self._doorman: subprocess.Popen[bytes] | None = None
        self._start_at: float | None = None
        self._started = 0.0
        self._told, self._tell_at = 0, 0.0
        self._turned_away = 0
        self.events = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        publish_hub_address(home, self._address)

    def open(self, address: str) -> str:
        """Listen on a TCP address of this machine, unless that is done; return the endpoint.

        The port is the one that an earlier hub had, if it is free: who still dials that finds this hub.

        Raises:
            OSError: it cannot be bound, and what to do.
        """
        if self._address.tcp:
            return self._address.tcp
        host = f"[{address}]" if ":" in address else address
        before = self._before.tcp if self._before is not None else ""
        port = before.removeprefix(f"tcp://{host}:")
        try:
            listener = _listen(address, int(port) if port.isdigit() else 0)
        except OSError as error:
            raise OSError(
                f"the hub cannot listen on {address}: {error.strerror or error}; set PILOT_HITL_HUB_ADDRESS to an "
                "address of this machine that compute nodes reach"
            ) from error
        # Only from here on: what is bound already keeps what it had.
        keep_alive(self._router)
        self._router.bind(f"ipc://{self._inside}")
        self._listener = listener
        self._counts = os.memfd_create("counts")
        os.pwrite(self._counts, doorman.COUNTED.pack(0, 0, 0), 0)
        self._start()
        endpoint = f"tcp://{host}:{listener.getsockname()[1]}"
        self._address = HubAddress(host=self._address.host, ipc=self._address.ipc, tcp=endpoint)
        publish_hub_address(self._home, self._address)
        _log.info("listening on %s", endpoint)
        return endpoint

    def open_again(self) -> None:
        """Listen where an earlier hub of this machine did, if it did: its pilots need nobody to tell them."""
        before = self._before
        if before is not None and before.tcp and before.host == self._address.host:
            try:
                self.open(before.tcp.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
            except OSError as error:
                _log.warning("%s", error)

    @property
    def is_open(self) -> bool:
        """Whether the hub listens on TCP."""
        return bool(self._address.tcp)

    def lost(self) -> bool:
        """Take in what :attr:`events` tells; return whether a connection was lost."""
        return bool(events_of(self.events) & zmq.EVENT_DISCONNECTED)

    # --- the doorman --------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """How many come in over TCP, how many of them are known, and how many strangers had to make way."""
        if self._counts < 0:
            return {"tcp_connections": 0, "tcp_known": 0, "tcp_turned_away": 0}
        at_hub, known, away = doorman.COUNTED.unpack(os.pread(self._counts, doorman.COUNTED.size, 0))
        return {"tcp_connections": at_hub, "tcp_known": known, "tcp_turned_away": self._turned_away + away}

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` has something to do."""
        return self._start_at

    def timers(self, now: float) -> None:
        """Start the doorman again if it ended."""
        if self._start_at is not None and self._start_at <= now:
            self._start_at = None
            self._start()

    def tell(self, now: float) -> None:
        """Log, now and then, that strangers had to make way."""
        away = self.counts["tcp_turned_away"]
        if away != self._told and now >= self._tell_at:
            _log.warning("%d connections over TCP made way for others without having said who they are", away)
            self._told, self._tell_at = away, now + TELL_EVERY

    def _start(self) -> None:
        assert self._listener is not None
        reading, self._control = os.pipe2(os.O_CLOEXEC)
        passed = (self._listener.fileno(), reading, self._counts)
        command = [sys.executable, "-I", "-S", doorman.__file__, *map(str, passed)]
        command += [str(self._descriptors.for_strangers), str(self._inside)]
        self._started = steady()
        try:
            with self._descriptors.as_given():
                self._doorman = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, cwd="/", pass_fds=passed, start_new_session=True
                )
        except OSError as error:
            _log.warning("connections over TCP are not taken: %s", error)
            os.close(self._control)
            self._start_at = steady() + START_AGAIN
            return
        finally:
            os.close(reading)
        if self._watch.add(self._doorman.pid, self._ended, reap=False) < 0:
            self._ended()

    def _ended(self) -> None:
        """The doorman is gone; who was connected comes again by itself."""
        if self._doorman is None:
            return
        code = self._doorman.wait()
        self._doorman = None
        os.close(self._control)
        self._turned_away = self.counts["tcp_turned_away"]
        os.pwrite(self._counts, doorman.COUNTED.pack(0, 0, 0), 0)
        _log.warning("what takes connections over TCP ended (exit code %d) and is started again", code)
        self._start_at = max(steady(), self._started + START_AGAIN)

    def stop_telling(self) -> None:
        """Stop telling of lost connections; before the ROUTER is closed."""
        self._router.disable_monitor()
        self.events.close(linger=0)

    def close(self) -> None:
        """Let nobody in any more, and leave nothing behind; after the ROUTER is closed."""
        if self._listener is None:
            return
        self._listener.close()
        os.close(self._counts)
        if self._doorman is not None:
            os.close(self._control)
            try:
                self._doorman.wait(GOODBYE)
            except subprocess.TimeoutExpired:
                self._doorman.kill()
                self._doorman.wait()


def _listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens, on this port if it can be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for tries in range(PORT_TRIES):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port if tries < PORT_TRIES - 1 else 0))
            listener.listen(doorman.BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES) or not port or tries == PORT_TRIES - 1:
                raise
            if error.errno == errno.EADDRINUSE:
                time.sleep(PORT_PAUSE)
        else:
            return listener
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
