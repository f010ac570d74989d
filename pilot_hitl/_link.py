"""The connection to the hub: one I/O thread that starts the hub, says hello, sends, receives, and begins again.

The thread sleeps in one poll and is woken only when it sleeps; what was put in line meanwhile leaves together. When the
hub dies it is started again, the session is reopened as the same incarnation, and every frame that was not
acknowledged is sent again. A hub on another host is looked for instead, for as long as REMOTE_PATIENCE.
"""

from __future__ import annotations

import os
import secrets
import socket as sockets_of_host
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from pilot_hitl import _hubprocess, errors
from pilot_hitl._hubprocess import HubProcess, RemoteHub
from pilot_hitl._outbox import Outbox
from pilot_hitl.wire.codec import TO_CLIENT, FrameError, encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.messages import Acknowledged, Closed, Hello, Message, Reconnect, Refused, Welcome
from pilot_hitl.wire.sockets import dealer, events_of, keep_alive

WELCOME_TIMEOUT = 60.0
RESTARTS, RESTART_WINDOW = 5, 60.0
"""More than so many lost hubs within so many seconds, and the session gives up."""
REMOTE_PATIENCE = 50.0
"""Seconds for which a hub on another host is looked for, before the session gives up."""
SEEK = 500
"""Milliseconds between looks at where it is: over a shared file system nobody tells."""
GREET_AGAIN = 1000
"""Milliseconds after which a hub that does not answer is greeted again: on one connection, that does nothing."""
_RECEIVE_AT_ONCE = 64
_LOCK_RETRY = 0.05


class Link:
    """One client's connection. Callbacks run in the I/O thread and must not block.

    Attributes:
        outbox: where messages are put.
        welcome: the hub's latest welcome.
    """

    def __init__(
        self,
        home: Path,
        process: HubProcess | RemoteHub,
        hello: Callable[[Welcome | None], Hello],
        receive: Callable[[list[Any]], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """Prepare; :meth:`open` connects.

        ``hello`` makes the greeting, given the earlier welcome; ``receive`` takes messages; ``broken`` is called once
        when the link ends, with the reason.
        """
        self.outbox = Outbox(self._wake)
        self.welcome: Welcome | None = None
        self._home = home
        self._process = process
        self._hello = hello
        self._receive = receive
        self._broken = broken
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._socket: zmq.Socket[bytes] | None = None
        self._watched: zmq.Socket[bytes] | int = -1
        self._lost_at = time.monotonic()
        self._broke = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._asleep = False
        self._welcomed = False
        self._greeted = 0.0
        self._greet_at = 0.0
        self._over = False
        self._closing = False
        self._goodbye: list[Message] = []
        self._lost: deque[float] = deque(maxlen=RESTARTS + 1)
        self._ready = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pilot-hitl-link", daemon=True)

    def open(self) -> Welcome:
        """Connect and return the hub's welcome.

        Raises:
            HubUnreachable: it cannot be started or does not answer within a minute.
            SessionError: the hub refuses, and why.
        """
        self._poller.register(self._bell, zmq.POLLIN)
        self._thread.start()
        if not self._ready.wait(WELCOME_TIMEOUT):
            self.stop()
            raise errors.HubUnreachable(
                f"the hub of {self._home} did not answer within {WELCOME_TIMEOUT:.0f} s; its log ends with: "
                f"{_hubprocess.log_tail(self._home)}"
            )
        if self._error is not None:
            raise errors.fresh(self._error)
        if self.welcome is None:
            raise errors.SessionClosed("the session was closed while it was being opened")
        return self.welcome

    def leave(self, goodbye: list[Message], timeout: float | None) -> bool:
        """Send the last messages and wait until the hub let us go; return whether it did in time.

        Whichever hub welcomes us meanwhile gets them once more: one that ended may have left things undone.
        """
        self._closing = True
        self._goodbye = goodbye
        try:
            for message in goodbye:
                self.outbox.put(message)
        except errors.PilotHitlError:
            return False
        return self._done.wait(timeout)

    @property
    def leaving(self) -> bool:
        """Whether goodbye was said."""
        return self._closing

    def stop(self) -> None:
        """End the I/O thread, whatever the hub says. No callback runs after this."""
        self._over = True
        self._wake_always()
        if threading.current_thread() is not self._thread:
            self._done.wait(10)

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake_always()

    def _wake_always(self) -> None:
        if not self._done.is_set():
            os.eventfd_write(self._bell, 1)

    # --- the I/O thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.outbox.drainer = threading.get_ident()
        try:
            self._connect()
            while not self._over:
                self._turn()
            reason: BaseException = errors.SessionClosed("the session was closed; run the script again to resume it")
        except BaseException as error:  # boundary: whatever ends this thread ends the session
            reason = error
        self._end(reason)

    def _end(self, reason: BaseException) -> None:
        self._over = True
        if not isinstance(reason, errors.SessionClosed):
            self._error = reason
        self.outbox.fail(reason)
        try:
            self._broken(reason)
        finally:
            self._disconnect()
            self._done.set()
            self._ready.set()
            self._context.term()
            os.close(self._bell)
            if isinstance(self._process, HubProcess) and self._process.child and self._process.handle >= 0:
                self._process.ended()  # waits, so that a hub that we started leaves no zombie
            self._process.close()

    def _turn(self) -> None:
        socket, outbox = self._socket, self.outbox
        if socket is None:
            raise errors.HubUnreachable("the link has no socket")
        if self._welcomed and not outbox.empty:
            for frame in outbox.take():
                socket.send(frame, 0, copy=len(frame) < 65536)
        self._asleep = True
        if self._welcomed and not outbox.empty:
            self._asleep = False
            return
        seeking = isinstance(self._process, RemoteHub) and not self._welcomed
        again = not self._welcomed
        events = dict(self._poller.poll(SEEK if seeking else GREET_AGAIN if again else None))
        self._asleep = False
        if self._bell in events:
            os.eventfd_read(self._bell)
        if socket in events:
            self._take_in(socket)
        if self._watched in events and socket is self._socket:
            self._hear_out(socket)
            if not self._over:
                self._hub_ended()
        elif seeking and not self._welcomed:
            self._seek()
        elif again and time.monotonic() >= self._greet_at and socket is self._socket and not self._welcomed:
            # A hub that ended may have taken the greeting along, and the next one that listens here never saw it.
            self._greet(socket)

    def _greet(self, socket: zmq.Socket[bytes]) -> None:
        self._greet_at = time.monotonic() + GREET_AGAIN / 1000
        socket.send(encode([self._hello(self.welcome)]))

    def _hear_out(self, socket: zmq.Socket[bytes]) -> None:
        """Take in what a hub that is lost had still said; whoever leaves waits for its last word."""
        self._take_in(socket)
        local = isinstance(self._watched, int)
        while local and self._closing and not self._over and socket.poll(_hubprocess.LAST_WORDS):
            self._take_in(socket)

    def _take_in(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(_RECEIVE_AT_ONCE):
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                messages = TO_CLIENT.decode(frame)
            except FrameError:
                continue  # a malformed frame never stops a loop
            for message in messages:
                self._notice(message)
            if self._socket is not socket:
                return
            self._receive(messages)
            if self._over:
                # Whatever follows the goodbye, such as a Reconnect, a greeting would open the session once more.
                return
            if self._welcomed:
                # Not before what came with the welcome was taken in.
                self._ready.set()

    def _notice(self, message: Any) -> None:
        kind = type(message)
        if kind is Acknowledged:
            self.outbox.acknowledge(message.frames)
        elif kind is Welcome:
            self._admit(message)
        elif kind is Refused and not message.token:
            raise error_named(message.code, message.message)
        elif kind is Closed:
            self._over = True
            if not self._closing:
                raise errors.SessionClosed(message.message or "the hub closed the session")
        elif kind is Reconnect and self._welcomed:
            self._again("the hub forgot this client again and again")

    def _admit(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self._welcomed = True
        self._lost_at = 0.0
        if self._socket is not None:
            for frame in self.outbox.unacknowledged():
                self._socket.send(frame)
            for message in self._goodbye:
                self.outbox.put(message)

    def _connect(self) -> None:
        self._socket = dealer(self._context, keyring(self._home), secrets.token_bytes(8))
        if isinstance(self._process, RemoteHub):
            keep_alive(self._socket)
            self._watched = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        else:
            self._watched = self._process.handle
        if self._process.endpoint:
            self._socket.connect(self._process.endpoint)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._watched, zmq.POLLIN)
        self._welcomed = False
        self._broke = False
        self._greeted = time.monotonic()
        if self._process.endpoint:  # without any, sending would wait
            self._greet(self._socket)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._poller.unregister(self._watched)
            if not isinstance(self._watched, int):
                self._socket.disable_monitor()
                self._watched.close(linger=0)
            self._socket.close(linger=0)
            self._socket = None

    def _hub_ended(self) -> None:
        if isinstance(self._process, RemoteHub):
            self._remote_lost()
            return
        code = self._process.ended()
        tail = _hubprocess.log_tail(self._home)
        if not self._welcomed and (code == 0 or not self._process.child):
            # It ended as it should: another one serves, or it had nothing to do when we found it.
            self._watch_another()
            return
        if self._admitted_elsewhere():
            return
        if self._process.child and self.welcome is None:
            raise errors.HubUnreachable(f"the hub of {self._home} ended with code {code} at its start: {tail}")
        self._count_loss(f"the hub of {self._home} ended again and again; its log ends with: {tail}")
        self._disconnect()
        self._process.close()
        self._process = _hubprocess.find_or_start(self._home)
        self._connect()

    def _admitted_elsewhere(self) -> bool:
        """Watch the hub that let us in, if what ended is another one and that one is still there; return whether.

        Where several processes start a hub at a time, all connect to the first one, and the others end a moment later.
        """
        assert isinstance(self._process, HubProcess)
        if not self._welcomed or self.welcome is None or self.welcome.hub_pid == self._process.pid:
            return False
        found = _hubprocess.find(self._home)
        if found is None or found.pid != self.welcome.hub_pid:
            if found is not None:
                found.close()
            return False
        self._watch(found)
        return True

    def _watch(self, process: HubProcess) -> None:
        """Notice the end of another process from now on; the connection stays."""
        assert isinstance(self._watched, int)
        self._poller.unregister(self._watched)
        self._process.close()
        self._process, self._watched = process, process.handle
        self._poller.register(self._watched, zmq.POLLIN)

    def _remote_lost(self) -> None:
        """The connection to the hub was lost: introduce ourselves anew, where it is now."""
        assert not isinstance(self._watched, int)
        events_of(self._watched)
        if not self._welcomed:
            self._broke = True  # the greeting may be lost: see _seek
            return
        self._lost_at = time.monotonic()
        self._count_loss(f"the connection to the hub of {self._home} broke again and again")
        self._disconnect()
        self._connect()

    def _seek(self) -> None:
        """Follow a hub on another host to where it is now, for a while."""
        hub = self._process
        assert isinstance(hub, RemoteHub)
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if hub.moved() or self._broke:
            self._disconnect()
            self._connect()
        elif now - self._lost_at > REMOTE_PATIENCE:
            where = f"at {hub.endpoint}" if hub.endpoint else "on any address of the network"
            raise errors.HubUnreachable(
                f"the hub of {self._home} runs on {hub.host} and was not reached from {sockets_of_host.gethostname()} "
                f"{where} within {REMOTE_PATIENCE:.0f} s: see there with 'pilot-hitl hub status'; if it is up, set "
                "PILOT_HITL_HUB_ADDRESS to an address of it that compute nodes reach"
            )

    def _watch_another(self) -> None:
        """The hub that we started found the lock taken: by one that listens, is starting, or is ending. Or one ended.

        The socket is kept: the other one may have our hello already, and must not get it from two peers.
        """
        if time.monotonic() > self._greeted + WELCOME_TIMEOUT / 2:
            raise errors.HubUnreachable(
                f"another hub holds {self._home}/hub/hub.lock and does not answer; "
                f"see {_hubprocess.log_path(self._home)}"
            )
        time.sleep(_LOCK_RETRY)
        self._watch(_hubprocess.found_or_started(self._home))

    def _again(self, complaint: str) -> None:
        """Greet whoever listens now and does not know us. If the hub that did has ended, that is one loss, not two."""
        process, welcome = self._process, self.welcome
        if isinstance(process, HubProcess) and welcome and process.pid == welcome.hub_pid and process.has_ended:
            self._hub_ended()
            return
        self._count_loss(complaint)
        self._disconnect()
        self._connect()

    def _count_loss(self, complaint: str) -> None:
        now = time.monotonic()
        self._lost.append(now)
        if len(self._lost) > RESTARTS and now - self._lost[0] < RESTART_WINDOW:
            raise errors.HubUnreachable(complaint)


def error_named(code: str, message: str) -> errors.PilotHitlError:
    """Return the error that a refusal names; ``code`` is the name of its class."""
    kind = getattr(errors, code, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.PilotHitlError)):
        return errors.SessionError(f"{code}: {message}")
    error = kind(message)
    if isinstance(error, errors.AnswerRefused):
        # The message begins with what errors.AnswerRefused calls its code.
        error.code = message.partition(":")[0]
    return error
