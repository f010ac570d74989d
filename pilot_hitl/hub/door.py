"""Where the hub listens: on a socket of this machine always, on one TCP address once pilots elsewhere need it."""

from __future__ import annotations

import logging
from pathlib import Path

import zmq

from pilot_hitl.wire.places import HubAddress, hub_address, publish_hub_address
from pilot_hitl.wire.sockets import events_of, keep_alive

_log = logging.getLogger(__name__)


class Door:
    """The hub's ROUTER as others find it.

    Attributes:
        events: socket that is readable when a connection was made or lost; see :meth:`happened`.
    """

    def __init__(self, home: Path, host: str, router: zmq.Socket[bytes], ipc: str) -> None:
        """Bind the socket of this machine and say where.

        Raises:
            OSError: the home cannot be written.
        """
        self._home = home
        self._router = router
        self._before = hub_address(home)
        self._address = HubAddress(host=host, ipc=ipc)
        router.bind(ipc)
        self._paused = False
        self.events = router.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPTED)
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
        if ":" in address:
            self._router.setsockopt(zmq.IPV6, 1)
        # Only from here on: what is bound already keeps what it had.
        keep_alive(self._router)
        before = self._before.tcp if self._before is not None else ""
        tries = [f"tcp://{host}:*"]
        if before.startswith(f"tcp://{host}:"):
            tries.insert(0, before)
        complaint = ""
        for endpoint in tries:
            try:
                self._router.bind(endpoint)
            except zmq.ZMQError as error:
                complaint = str(error)
                continue
            return self._published(self._router.getsockopt_string(zmq.LAST_ENDPOINT))
        raise OSError(
            f"the hub cannot listen on {address}: {complaint}; set PILOT_HITL_HUB_ADDRESS to an address of this "
            "machine that compute nodes reach"
        )

    def open_again(self) -> None:
        """Listen where an earlier hub of this machine did, if it did: its pilots need nobody to tell them."""
        before = self._before
        if before is not None and before.tcp and before.host == self._address.host:
            try:
                self.open(before.tcp.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
            except OSError as error:
                _log.warning("%s", error)

    def _published(self, endpoint: str) -> str:
        self._address = HubAddress(host=self._address.host, ipc=self._address.ipc, tcp=endpoint)
        publish_hub_address(self._home, self._address)
        _log.info("listening on %s", endpoint)
        return endpoint

    @property
    def is_open(self) -> bool:
        """Whether the hub listens on TCP."""
        return bool(self._address.tcp)

    def happened(self) -> tuple[bool, bool]:
        """Take in what :attr:`events` tells; return whether connections were made, and whether any was lost."""
        events = events_of(self.events)
        return bool(events & zmq.EVENT_ACCEPTED), bool(events & zmq.EVENT_DISCONNECTED)

    def pause(self) -> None:
        """Cut all connections over TCP and take none for now: whoever has the key comes again by itself.

        ZeroMQ has no way to keep some; silent ones would have stayed until their handshake is overdue.
        """
        if self._address.tcp and not self._paused:
            self._router.unbind(self._address.tcp)
            self._paused = True

    def resume(self) -> None:
        """Take connections over TCP again. Who dialled meanwhile comes in then.

        Raises:
            zmq.ZMQError: the port was taken, or is not free yet; call it again.
        """
        if self._paused:
            self._router.bind(self._address.tcp)
            self._paused = False

    def close(self) -> None:
        """Stop telling of lost connections; before the ROUTER is closed."""
        self._router.disable_monitor()
        self.events.close(linger=0)
