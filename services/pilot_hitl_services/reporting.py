"""A replica's word to the hub: a thread of its own, so that the hub hears of a handler that hangs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket as sockets_of_host
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from pilot_hitl.wire import messages as m
from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.codec import TO_REPLICA, FrameError, encode
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.places import hub_address
from pilot_hitl.wire.processes import start_time
from pilot_hitl.wire.services import ReplicaConfig
from pilot_hitl.wire.sockets import dealer, keep_alive
from pilot_hitl_services.inside import Inside

BEAT = 5.0
"""Seconds between beats."""
LOOKS = 3
"""How often within ``request_timeout`` the handler is looked at."""
SHORTEST_LOOK = 0.02
GOODBYE = 1000
"""Milliseconds that the last message may take."""


class Pulse:
    """What the serving thread lets the reporter see. Plain attributes: one writes, the other reads.

    Attributes:
        busy_since: when the present call of the handler began, the oldest of several, 0 while there is none.
        patience: seconds more than ``request_timeout`` that it may take.
        inside: which requests are in it.
        over: the hub was told that the handler hangs, and what it has: nothing else may be begun.
    """

    __slots__ = ("busy_since", "inside", "over", "patience")

    def __init__(self, inside: Inside) -> None:
        """Start idle."""
        self.busy_since = self.patience = 0.0
        self.inside = inside
        self.over = False


class Reporter:
    """Says hello, beats, notices a hung handler, and hands over what the hub orders."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keyring,
        config: ReplicaConfig,
        pulse: Pulse,
        order: Callable[[Any], None],
    ) -> None:
        """Prepare; ``order`` is called in the reporter's thread with what the hub wants."""
        self._context = context
        self._keys = keys
        self._config = config
        self._pulse = pulse
        self._order = order
        self._view: Callable[[], dict[str, object]] = dict
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._began = _began_at()
        self._hello = sv.ReplicaHello(
            config.session,
            config.service,
            config.number,
            config.task,
            os.getpid(),
            start_time(os.getpid()),
            sockets_of_host.gethostname(),
            launch=max(0.0, self._began - config.asked),
        )
        self._bye: sv.ReplicaBye | None = None
        self._changed = self._over = False
        self._asked_at = self._published = 0.0
        self._complained = 0.0
        self._hub = -1
        self._place = ""
        self._poller = zmq.Poller()
        self._poller.register(self._bell, zmq.POLLIN)
        self._link: zmq.Socket[bytes] = self._connect()
        self._thread = threading.Thread(target=self._run, name="pilot-hitl-reporter", daemon=True)

    # --- from the serving thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Say that the process began, and go on from there."""
        self._thread.start()

    def ready(self, endpoint: str, tcp: str, view: Callable[[], dict[str, object]], kept: int) -> None:
        """Say that the replica serves, and where; ``view`` gives its metrics, ``kept`` is of :meth:`took_in`."""
        self._view = view
        self._hello = msgspec.structs.replace(
            self._hello, endpoint=endpoint, tcp=tcp, init=time.time() - self._began, kept=kept
        )
        self._changed = True
        os.eventfd_write(self._bell, 1)

    def took_in(self, kept: int) -> None:
        """Take note of the revision of the kept broadcasts that the handler knows."""
        self._hello = msgspec.structs.replace(self._hello, kept=kept)

    def finish(self, message: str = "", detail: str = "", *, failed: bool = False, hopeless: bool = False) -> None:
        """Say goodbye and end the thread; ``hopeless``: another replica would end like this one."""
        config = self._config
        self._bye = sv.ReplicaBye(
            config.session, config.service, config.number, config.task, failed, message[:2000], detail, hopeless
        )
        os.eventfd_write(self._bell, 1)
        self._thread.join(GOODBYE / 1000 + 1)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _connect(self) -> zmq.Socket[bytes]:
        link = dealer(self._context, self._keys, b"replica-" + secrets.token_bytes(8))
        self._place = self._where()
        if self._far:
            keep_alive(link)
        link.connect(self._place)
        self._poller.register(link, zmq.POLLIN)
        return link

    @property
    def _far(self) -> bool:
        """Whether the hub is on another host: then its process cannot be watched, and it may move."""
        return self._place.startswith("tcp:")

    def _where(self) -> str:
        """Return where the hub listens, as far as this host can see."""
        address = hub_address(Path(self._config.home))
        if address is None or address.host == self._hello.host:
            return self._config.hub
        return address.tcp or self._config.hub

    def _run(self) -> None:
        self._send(self._hello)
        beat_at = time.monotonic() + BEAT
        while not self._over:
            now = time.monotonic()
            for ready, _mask in self._poller.poll(int(max(0.0, self._look_at(now, beat_at) - now) * 1000) + 1):
                if ready is self._link:
                    self._take_in()
                elif ready == self._bell:
                    os.eventfd_read(self._bell)
                elif ready == self._hub:
                    self._hub_ended()
            self._speak()
            now = time.monotonic()
            self._watch(now)
            if now >= beat_at and not self._over:
                beat_at = now + BEAT
                if self._far and self._where() != self._place:
                    self._greet_anew()
                self._beat()

    def _look_at(self, now: float, beat_at: float) -> float:
        bound = self._config.request_timeout
        if not bound:
            return beat_at
        since = self._pulse.busy_since
        due = since + bound + self._pulse.patience if since and since != self._complained else now + bound / LOOKS
        return min(beat_at, max(due, now + SHORTEST_LOOK))

    def _watch(self, now: float) -> None:
        bound, since = self._config.request_timeout, self._pulse.busy_since
        if bound and since and since != self._complained and now - since >= bound + self._pulse.patience:
            self._complained = since
            self._pulse.over = True  # before it is looked at, so that either this or the server sees the other
            reason = f"its handler did not return within {bound:g} s"
            self._send(sv.ReplicaUnhealthy(reason, self._pulse.inside.begun()))

    def _speak(self) -> None:
        if self._changed:
            self._changed = False
            self._asked_at = time.monotonic()
            self._send(self._hello)
        if self._bye is not None:
            self._send(self._bye)
            self._link.close(linger=GOODBYE)
            self._over = True

    def _beat(self) -> None:
        since = self._pulse.busy_since
        hello = self._hello
        view = {
            "bootstrap": {"launch_s": hello.launch, "init_s": hello.init, "publish_s": self._published},
            **self._view(),
        }
        self._send(sv.ReplicaBeat(time.monotonic() - since if since else 0.0, json.dumps(view)))

    def _take_in(self) -> None:
        while not self._over:
            try:
                frame = self._link.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                messages = TO_REPLICA.decode(frame)
            except FrameError:
                continue  # a malformed frame never stops a loop
            for message in messages:
                self._act(message)

    def _act(self, message: sv.ToReplica) -> None:
        if isinstance(message, sv.ReplicaWelcome):
            self._welcomed(message)
        elif isinstance(message, m.Reconnect):
            self._send(self._hello)
        elif isinstance(message, sv.ReplicaReport):
            self._beat()
        elif isinstance(message, m.Refused):
            self._order(sv.ReplicaStop(drain=False))
        else:
            self._order(message)

    def _welcomed(self, welcome: sv.ReplicaWelcome) -> None:
        # The answer to the first hello may come when the handler is set up already, and that was not said yet.
        if self._hello.endpoint and self._asked_at and not self._published:
            self._published = time.monotonic() - self._asked_at
        if self._hub < 0 and not self._far:
            with contextlib.suppress(OSError):
                self._hub = os.pidfd_open(welcome.hub_pid)
                self._poller.register(self._hub, zmq.POLLIN)

    def _hub_ended(self) -> None:
        self._poller.unregister(self._hub)
        os.close(self._hub)
        self._hub = -1
        self._greet_anew()

    def _greet_anew(self) -> None:
        """Greet the next hub; what was written to the dead one is lost with it, so with a socket of its own."""
        self._poller.unregister(self._link)
        self._link.close(linger=0)
        self._link = self._connect()
        self._send(self._hello)

    def _send(self, message: m.Message) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._link.send(encode([message]), zmq.NOBLOCK)


def _began_at() -> float:
    """Return when this process started, in seconds since 1970."""
    ticks = start_time(os.getpid())
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def read_config(path: Path) -> ReplicaConfig:
    """Return what the hub wrote for a replica.

    Raises:
        OSError, msgspec.MsgspecError: there is none.
    """
    return msgspec.msgpack.decode(path.read_bytes(), type=ReplicaConfig)
