"""The hub: one process a home. Takes frames in, lets sessions act on them, writes, sends.

A turn of the loop drains every socket, forwards work to agents, commits once, and only then tells results. Nothing in
it waits for anything else than the poll at its top, and no frame of a peer can end it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket as sockets_of_host
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from pilot_hitl.errors import PilotHitlError, SessionBusy, SessionError
from pilot_hitl.hub.descriptors import Descriptors
from pilot_hitl.hub.desk import Desk
from pilot_hitl.hub.door import Door
from pilot_hitl.hub.live import LiveSession
from pilot_hitl.hub.peers import Agent, Client, Peer
from pilot_hitl.hub.pilots import PilotKeeper
from pilot_hitl.hub.refusals import needs_no_word, refused_tasks, token_of
from pilot_hitl.hub.relay import Relay
from pilot_hitl.hub.services import ReplicaPeer, ServiceKeeper
from pilot_hitl.hub.spoolwatch import SpoolWatch
from pilot_hitl.hub.store import WRITE_ERRORS, cannot_open, why_unwritten
from pilot_hitl.hub.watch import Watch
from pilot_hitl.inbox import spool
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.clock import on_steady, steady
from pilot_hitl.wire.codec import TO_HUB, FrameError, Unreadable, encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.modes import keep_private
from pilot_hitl.wire.places import DOOR_SOCKET, HUB_SOCKET, SessionPlaces, private_folder, runtime_folder, sweep_sockets
from pilot_hitl.wire.processes import runs, start_time
from pilot_hitl.wire.relay import RELAY
from pilot_hitl.wire.sockets import Doorkeeper, rest_of, router
from pilot_hitl.wire.waits import Waits

_log = logging.getLogger(__name__)
LAZY_COMMIT = 0.02
"""Seconds that rows nobody waits for may lie in memory: they ride with the next commit that somebody waits for."""
FIRST_PEER = 20.0
"""Seconds a fresh hub waits for its first peer before it ends."""
REFUSED = 256
"""So many of those whose greeting was refused last are not answered when they greet again."""
FRAMES_A_TURN = 2000
BYTES_A_TURN = 128 * 1024
"""After so many bytes of frames what they lead to is sent and written, before more is read: decoded, they take ten
times as much memory, and all that is behind after a slow disk would take it at once."""
RENEW_EVERY = 20.0
CLIENT_PATIENCE = 15.0
"""Seconds that a client on another host may be out of reach before it is taken for dead."""
LOCK_TRIES, LOCK_PAUSE = 10, 0.02
RETRY_COMMIT = 1.0
"""Seconds between tries while the disk refuses."""


ALLOWED: dict[str, tuple[type[m.Message], ...]] = {
    "observer": (sv.FindService, m.Flush, m.Fetch, m.Bye),
    "tool": (m.Answer, m.Extend, sv.StopService, m.Cancel, m.CancelPilot, m.SubmitPilot, m.Flush, m.Bye),
}
"""What clients of these roles may say; the other roles may say everything. Queries are for all."""


class AlreadyRunning(Exception):
    """Another hub holds this home."""


class Hub:
    """Owner of a home's sessions while it runs."""

    def __init__(self, home: Path, *, stay: bool = False) -> None:
        """Take the home and bind the socket. ``stay``: do not end with the last session.

        Raises:
            AlreadyRunning: another hub holds the home.
            PermissionError: a folder of ours is open to others.
        """
        self.home = home
        self.host = sockets_of_host.gethostname()
        self.started = start_time(os.getpid())
        self.stay = stay
        keep_private()
        private_folder(private_folder(home) / "hub")
        self._lock = self._take_lock(home / "hub" / "hub.lock")
        keys = keyring(home)
        self._runtime = private_folder(runtime_folder(home))
        sweep_sockets(self._runtime)
        self.endpoint = f"ipc://{self._runtime / HUB_SOCKET}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._doorkeeper = Doorkeeper(self._context, keys)
        self._router = router(self._context, keys)
        self.descriptors = Descriptors()
        self.descriptors.raise_limit()
        self.watch = Watch()
        self.door = Door(home, self.host, self._router, self.endpoint, self.watch, self.descriptors)
        self.spools = SpoolWatch()
        self.peers: dict[bytes, Peer] = {}
        self._unreachable: dict[Client, float] = {}
        self.sessions: dict[str, LiveSession] = {}
        self.pilots = PilotKeeper(self)
        self.services = ServiceKeeper(self)
        self.dropped = 0
        self.began = time.time()
        self._idle_since = time.monotonic()
        self._had_peer = False
        self._refused: deque[bytes] = deque(maxlen=REFUSED)
        self._stopping = False
        self._lost = False
        """Whether a connection was lost, and whose is not yet looked for."""
        self._renew_at = steady() + RENEW_EVERY
        self.desk = Desk(self)
        self._relay = Relay(self, self._router)
        self._poller = zmq.Poller()
        self._polled: set[int] = set()
        self._handlers: dict[type[m.Message], Callable[..., None]] = {
            m.PutTemplate: lambda c, x: c.session.template(x),
            m.PutCondition: lambda c, x: c.session.define(x),
            m.Submit: self._submit,
            m.Cancel: lambda c, x: c.session.feed(ev.CancelTasks(tuple(map(tuple, x.runs)), x.reason)),
            m.SubmitPilot: self.pilots.submit,
            m.CancelPilot: self.pilots.cancel,
            m.Ask: lambda c, x: c.session.gates.ask(c, x),
            m.Answer: lambda c, x: c.session.gates.answer(c, x),
            m.Withdraw: lambda c, x: c.session.gates.withdraw(x),
            sv.StartService: self.services.start,
            sv.StopService: self.services.stop,
            sv.FindService: self.services.find,
            sv.KeepBroadcast: self.services.keep,
            m.Flush: lambda c, x: c.flushes.append(x.token),
            m.Fetch: lambda c, x: c.session.fetch(c, x.runs),
            m.Watch: lambda c, x: c.session.watch(c, x.runs),
            m.Extend: lambda c, x: c.session.gates.extend(c, x),
            m.Lend: self.desk.lend,
            Waits: lambda c, x: setattr(c, "waits", x if x.tasks or x.said else None),
            m.Bye: self._bye,
        }

    @staticmethod
    def _take_lock(path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # Tools look for a hub by holding the lock for a moment, and a hub that ends still holds it for one.
        for attempt in range(LOCK_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == LOCK_TRIES - 1:
                    os.close(handle)
                    raise AlreadyRunning(str(path)) from None
                time.sleep(LOCK_PAUSE)
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": sockets_of_host.gethostname()}).encode())
        return handle

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until the last session is closed, or :meth:`stop`."""
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._doorkeeper.socket, zmq.POLLIN)
        self._poller.register(self.door.events, zmq.POLLIN)
        signals, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stop())
        self._poller.register(signals, zmq.POLLIN)
        try:
            while not self._finished():
                self._turn(signals)
        finally:
            signal.set_wakeup_fd(-1)
            self._close()

    def stop(self) -> None:
        """End: local pilots are stopped, sessions closed; unfinished tasks resume on the next run."""
        self._stopping = True

    def _turn(self, signals: int) -> None:
        self._watch_descriptors()
        for ready, _mask in self._poller.poll(self._timeout()):
            if ready is self._doorkeeper.socket:
                self._doorkeeper.answer()
            elif ready is self.door.events:
                self._lost = self.door.lost() or self._lost
            elif isinstance(ready, int):
                if ready == signals:
                    os.read(signals, 64)
                else:
                    self.watch.fired(ready)
        if self._drain() and self._lost:
            # After what they had said: the last words of an agent may lie here.
            self._lost = False
            self._look_for_lost()
        self._timers()
        self._send_and_commit()

    def _watch_descriptors(self) -> None:
        wanted = set(self.watch.descriptors)
        for descriptor in self._polled - wanted:
            self._poller.unregister(descriptor)
        for descriptor in wanted - self._polled:
            self._poller.register(descriptor, zmq.POLLIN)
        self._polled = wanted

    def _timeout(self) -> int | None:
        """Return how many milliseconds the poll may last."""
        moments = [self.desk.next_deadline(), self.pilots.next_deadline(), self.services.next_deadline()]
        moments += [self.door.next_deadline(), *self._unreachable.values()]
        if self.sessions:
            moments.append(self._renew_at)
        elif not self.stay:
            moments.append(steady() + 0.5)
        for session in self.sessions.values():
            if session.core.backlog:
                return 0
            due = session.core.next_deadline()
            moments += [None if due is None else on_steady(due), session.commit_due]
            moments += [a.acknowledge_at for a in session.agents.values() if a.durable > a.acknowledged]
        earliest = min((moment for moment in moments if moment is not None), default=None)
        return None if earliest is None else int(max(0.0, earliest - steady()) * 1000 + 0.9)

    def _drain(self) -> bool:
        """Take in what has arrived; return whether that was all."""
        size = 0
        for _ in range(FRAMES_A_TURN):
            if size >= BYTES_A_TURN:
                return False
            try:
                identity = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return True
            frame = self._router.recv() if self._router.getsockopt(zmq.RCVMORE) else b""
            rest = rest_of(self._router)
            size += len(frame)
            try:
                if frame[:1] == RELAY:
                    self._relay.take(identity, frame, rest)
                    continue
                messages = TO_HUB.decode(frame)
            except FrameError as error:
                self._take_readable(identity, frame, error)
                continue
            if rest:
                self._drop(identity, f"{len(rest) + 2} parts instead of 2")
                continue
            self._take(identity, messages)
        return False

    def _drop(self, identity: bytes, reason: str) -> None:
        self.dropped += 1
        _log.warning("dropped a frame of or for %s: %s", identity.hex(), reason)

    def _take_readable(self, identity: bytes, frame: bytes, error: FrameError) -> None:
        """Take what can be read of a frame, and tell its sender what cannot: it may be waiting for it."""
        self._drop(identity, str(error))
        try:
            parts = TO_HUB.decode_singly(frame)
        except FrameError:
            parts = [Unreadable(None, {}, str(error))]
        self._take(identity, [part for part in parts if not isinstance(part, Unreadable)])
        peer = self.peers.get(identity)
        for part in parts if isinstance(peer, Client) else ():
            if isinstance(part, Unreadable):
                what = part.kind.__name__ if part.kind is not None else "frame"
                why = SessionError(f"the hub cannot read a {what} of this client: {part.reason}")
                self._refuse(identity, peer, part, why)

    def _timers(self) -> None:
        now, shown = steady(), time.time()
        if self.spools.take() or now >= self._renew_at:
            for session in list(self.sessions.values()):
                session.gates.take_spool()
        for session in list(self.sessions.values()):
            due = session.core.next_deadline()
            # Now and then in any case: a clock that was set back has moved all deadlines away.
            if session.core.backlog or (due is not None and (due <= shown or now >= self._renew_at)):
                # Answers given before the deadline come first, however late the hub looks.
                session.gates.take_spool()
                session.feed(ev.Tick())
        if now >= self._renew_at:
            self._renew_at = now + RENEW_EVERY
            for session in self.sessions.values():
                session.store.renew()
            self.door.tell(now)
        self.desk.timers(now)
        self.pilots.timers(now)
        self.services.timers(now)
        self.door.timers(now)
        self._drop_unreachable(now)

    def _send_and_commit(self) -> None:
        for session in list(self.sessions.values()):
            # An answer is on disk before an agent acts on it, and that a task acts outside before it runs; anything
            # else may run again, so it is forwarded first.
            now = steady()
            if session.commits_first and (session.retry_at > now or not self.commit(session)):
                self._commit_if_due(session)
                continue
            for agent in list(session.agents.values()):
                self.send(agent, agent.gather(now))
            self._commit_if_due(session)
        for peer in list(self.peers.values()):
            if isinstance(peer, Client):
                if peer.urgent:
                    self.send(peer, peer.urgent)
                    peer.urgent = []
                if peer.session is None or not peer.session.must_commit or not peer.session.store.dirty:
                    self.send(peer, peer.gather())
            elif isinstance(peer, Agent):
                if peer.outbox and not peer.session.commits_first:
                    self.send(peer, peer.gather(0.0))
            elif peer.outbox:
                self.send(peer, peer.outbox)
                peer.outbox = []

    def _commit_if_due(self, session: LiveSession) -> None:
        wanted = session.store.dirty or session.unwritten
        if not wanted and not any(c.frames > c.acknowledged or c.flushes for c in session.clients):
            return
        now = steady()
        if session.commit_due is None:
            session.commit_due = now + LAZY_COMMIT
        if session.must_commit:
            session.commit_due = min(session.commit_due, session.commit_wanted)
        if max(session.commit_due, session.retry_at) <= now:
            self.commit(session)

    def commit(self, session: LiveSession) -> bool:
        """Write what gathered; False when it cannot be written, which those who wait are told."""
        try:
            session.commit()
        except WRITE_ERRORS as error:
            self._commit_failed(session, error)
            return False
        if session.unwritten:
            session.unwritten, session.retry_at = "", 0.0
            _log.warning("session %s can be written again", session.name)
            self._tell_unwritten(session)
            self.finish_if_done(session)
        return True

    def _commit_failed(self, session: LiveSession, error: Exception) -> None:
        session.retry_at = session.commit_due = steady() + RETRY_COMMIT
        before, session.unwritten = session.unwritten, why_unwritten(session.store.path, error)
        if session.unwritten != before:
            # Once: the log may lie on the same disk.
            _log.error("session %s: results wait: %s", session.name, session.unwritten)
            self._tell_unwritten(session)

    @staticmethod
    def _tell_unwritten(session: LiveSession) -> None:
        for client in session.clients:
            client.urgent.append(m.Unwritten(session.unwritten))

    def _close_session(self, session: LiveSession) -> None:
        """Close a session for good; what cannot be written now is done again by the next run of its script."""
        try:
            session.close()
        except WRITE_ERRORS as error:
            _log.error("session %s is closed without its last words: %s", session.name, error)

    def send(self, peer: Peer, messages: list[m.Message]) -> None:
        """Send messages to a peer now. A peer that is gone is ignored: its end is noticed elsewhere."""
        if not messages:
            return
        try:
            frame = encode(messages)
        except Exception as error:  # boundary: what cannot be sent to one peer must not end the hub of all
            self._drop(peer.identity, f"{[type(message).__name__ for message in messages]} cannot be sent: {error!r}")
            return
        try:
            self._router.send_multipart([peer.identity, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.info("peer %s is gone: %s", peer.identity.hex(), error)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _take(self, identity: bytes, messages: Sequence[sv.ToHub]) -> None:
        self._had_peer = True
        peer = self.peers.get(identity)
        if isinstance(peer, Client) and not isinstance(messages[0] if messages else None, m.Hello):
            peer.frames += 1
        for message in messages:
            try:
                peer = self._take_one(identity, peer, message)
            except PilotHitlError as error:
                self._refuse(identity, peer, message, error)
            except Exception as error:  # boundary: whatever a peer says, the hub goes on
                self._drop(identity, f"{type(message).__name__} cannot be acted upon: {error!r}")
                _log.warning("it came to that here:", exc_info=True)
                kind = type(message).__name__
                self._refuse(identity, peer, message, SessionError(f"the hub cannot act upon this {kind}: {error!r}"))

    def _take_one(self, identity: bytes, peer: Peer | None, message: sv.ToHub) -> Peer | None:
        if isinstance(message, m.Hello):
            # Who waits for its welcome may greet again.
            known = isinstance(peer, Client) or identity in self._refused
            return peer if known else self._hello(identity, message)
        if isinstance(message, m.AgentHello):
            # What was said twice on one connection, before its welcome was read.
            return peer if isinstance(peer, Agent) else self.pilots.hello(identity, message)
        if isinstance(message, sv.ReplicaHello):
            return self.services.hello(identity, message)
        if isinstance(message, sv.ReplicaBye):
            self.services.bye(identity, message)
            return None
        if peer is None:
            stranger = Peer(identity)
            self.send(stranger, [m.Reconnect()])
            return None
        if isinstance(peer, Agent):
            self.pilots.take(peer, message)
        elif isinstance(peer, Client):
            self._take_from_client(peer, message)
        elif isinstance(peer, ReplicaPeer):
            self.services.take(peer, message)
        return peer

    def _take_from_client(self, client: Client, message: m.Message) -> None:
        if isinstance(message, m.Query):
            self.desk.query(client, message)
            return
        handler = self._handlers.get(type(message))
        allowed = ALLOWED.get(client.role)
        if handler is None or (allowed is not None and not isinstance(message, allowed)):
            what, token = type(message).__name__, token_of(message)
            client.tell(m.Refused("SessionError", f"{what} is not for a client of role {client.role}", token))
        elif client.session is not None:
            handler(client, message)
        elif isinstance(message, m.Bye):
            self.send(client, [*client.gather(), m.Closed()])
            self.peers.pop(client.identity, None)
        else:
            client.tell(m.Refused("UnknownSession", "name the session that this is for", token_of(message)))

    @staticmethod
    def _submit(client: Client, submit: m.Submit) -> None:
        last = submit.first + submit.count - 1
        if submit.first >> 32 != client.incarnation or last >> 32 != client.incarnation:
            raise SessionError(f"tasks {submit.first} to {last} are not named by client {client.incarnation}")
        assert client.session is not None  # only clients with a session have handlers
        client.session.submit(submit, resent=client.frames <= client.resent)

    def _refuse(
        self, identity: bytes, peer: Peer | None, message: m.Message | Unreadable, error: PilotHitlError
    ) -> None:
        if needs_no_word(message):
            _log.warning("refused of %s: %s", identity.hex(), error)
            return
        if isinstance(peer, Client) and (outcomes := refused_tasks(message, str(error))):
            peer.outcomes += outcomes
            return
        if isinstance(message, m.Hello):
            self._refused.append(identity)
        token = message.token if isinstance(message, Unreadable) else token_of(message)
        refusal = m.Refused(type(error).__name__, str(error), token)
        if peer is None:
            self.send(Peer(identity), [refusal])
        else:
            peer.tell(refusal)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _hello(self, identity: bytes, hello: m.Hello) -> Peer | None:
        if hello.role == "tool" and not hello.session:
            client = Client(identity, "tool", None, 0)
            self.peers[identity] = client
            client.tell(m.Welcome(0, str(self.home), os.getpid(), self.started, 0))
            return client
        session = self._session_for(hello)
        incarnation = hello.incarnation or (0 if hello.role in ALLOWED else self.new_incarnation(session))
        client = Client(identity, hello.role, session, incarnation)
        client.namespace, client.on_exit, client.resent = hello.namespace, hello.on_exit, hello.resent
        client.pid, client.started, client.host = hello.pid, hello.started, hello.host
        self.peers[identity] = client
        session.clients.append(client)
        if hello.role == "owner":
            session.use_policy(hello.policy)
            self.pilots.owner_came(session, client)
            self.services.owner_came(session, client)
            self._remember_command(session, hello)
        here = bool(hello.pid) and hello.host == self.host
        gone = here and self.watch.add(hello.pid, lambda: self._client_died(client), hello.started) < 0
        welcome = m.Welcome(
            incarnation, str(session.places.folder), os.getpid(), self.started, session.store.epoch, session.resumed
        )
        client.tell(welcome)
        self.pilots.tell_all(session, client, again=bool(hello.incarnation))
        if hello.incarnation:
            session.feed(ev.Revive(incarnation))
            session.fetch(client, hello.waiting)
            session.watch(client, hello.watching)
            session.gates.remind(client)
        self.commit(session)
        if session.unwritten:
            client.urgent += [m.Unwritten(session.unwritten), *([welcome] if hello.role in ALLOWED else [])]
        if gone:
            # It was killed before its greeting was read, and nothing else will tell of that.
            self._client_died(client)
            return None
        return client

    @staticmethod
    def _remember_command(session: LiveSession, hello: m.Hello) -> None:
        """Keep how the script was started, for ``session resume``."""
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{hello.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            session.store.put("meta", "command", json.dumps([os.fsdecode(word) for word in words]))
            session.store.put("meta", "directory", str(Path(f"/proc/{hello.pid}/cwd").readlink()))

    def _session_for(self, hello: m.Hello) -> LiveSession:
        _check_name(hello.session)
        session = self.sessions.get(hello.session)
        if session is not None and hello.role == "owner":
            self._check_busy(session, hello)
        if hello.fresh:
            self._forget(hello.session, session)
            session = None
        return session if session is not None else self.open_session(hello.session)

    def _check_busy(self, session: LiveSession, hello: m.Hello) -> None:
        for other in session.owners:
            if other.namespace != hello.namespace or other.leaving:
                continue
            alive = other.host != self.host or runs(other.pid, other.started)
            if other.incarnation == hello.incarnation or not alive:
                self.drop_client(other)
                continue
            if other.pid == hello.pid and other.host == hello.host:
                raise SessionBusy(
                    f"session {session.name!r} is open in this script already: use what opened it, or close() it "
                    "first; Session(…, namespace='another') shares it"
                )
            raise SessionBusy(
                f"session {session.name!r} is open in another script (pid {other.pid} on {other.host}): end that one, "
                "or open this one with Session(…, namespace='another') to share it"
            )

    def open_session(self, name: str) -> LiveSession:
        """Return the open session, opening its file if need be. The spool is taken in before any deadline fires.

        Raises:
            SessionBusy, SessionError: see :class:`~pilot_hitl.hub.store.Store`.
        """
        session = self.sessions.get(name)
        if session is None:
            _check_name(name)
            places = SessionPlaces(self.home, name)
            try:
                session = LiveSession(places, self.host)
            except (*WRITE_ERRORS, msgspec.MsgspecError, ValueError) as error:
                raise SessionError(cannot_open(places.database, error)) from error
            self.sessions[name] = session
            self.pilots.recall_all(session)
            # Watched first: what is put there from now on is noticed, what was there before is taken.
            self.spools.add(spool.folder(session.places))
            self.services.recall_all(session)
            session.gates.take_spool()
            session.opening = False
        return session

    def _forget(self, name: str, session: LiveSession | None) -> None:
        if session is not None:
            self.pilots.abandon(session)
            for client in list(session.clients):
                self.drop_client(client)
            self.services.forget(session)
            self._close_session(session)
            self.spools.remove(spool.folder(session.places))
            self.sessions.pop(name, None)
        try:
            SessionPlaces(self.home, name).remove()
        except OSError as error:
            raise SessionError(f"session {name!r} cannot be begun anew: {error}") from error

    @staticmethod
    def new_incarnation(session: LiveSession) -> int:
        """Return a number under which tasks can be named; it is on disk."""
        incarnation = int(session.store.meta("incarnation") or 0) + 1
        session.store.put("meta", "incarnation", incarnation)
        try:
            session.commit()
        except WRITE_ERRORS as error:
            raise SessionError(why_unwritten(session.store.path, error)) from error
        return incarnation

    def _bye(self, client: Client, bye: m.Bye) -> None:
        client.leaving = True
        client.on_exit = bye.on_exit
        assert client.session is not None  # only clients with a session have handlers
        self.services.owner_left(client.session, client)
        self.pilots.owner_left(client.session, client)
        self.finish_if_done(client.session)

    def _client_died(self, client: Client) -> None:
        session = client.session
        if session is None or client not in session.clients:
            return
        _log.info("client %d of session %s is gone", client.pid, session.name)
        self.drop_client(client)
        self.services.owner_left(session, client)
        self.pilots.owner_left(session, client)
        self.finish_if_done(session)

    def _look_for_lost(self) -> None:
        """A connection was lost: find out which peer on another host had it. Those of this host are watched anyway."""
        if not self.door.is_open:
            return
        for peer in list(self.peers.values()):
            if not isinstance(peer, Client | Agent) or peer.host in ("", self.host):
                continue
            if self._reaches(peer):
                continue
            if isinstance(peer, Agent):
                self.pilots.unreachable(peer)
            else:
                # If it was only the network, it is back soon.
                self._unreachable.setdefault(peer, steady() + CLIENT_PATIENCE)

    def _reaches(self, peer: Peer) -> bool:
        """Return whether a peer on another host is connected; it gets a frame without messages."""
        try:
            self._router.send_multipart([peer.identity, encode([])], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _drop_unreachable(self, now: float) -> None:
        """Take clients for dead that did not come back."""
        for client, moment in list(self._unreachable.items()):
            if moment <= now:
                del self._unreachable[client]
                if not self._reaches(client):
                    self._client_died(client)

    def drop_client(self, client: Client) -> None:
        """Forget a client."""
        if client.session is not None and client in client.session.clients:
            client.session.clients.remove(client)
            client.session.reuse.forget(client.incarnation)
        self.peers.pop(client.identity, None)

    def finish_if_done(self, session: LiveSession) -> None:
        """Let leaving clients go once nothing of theirs runs, and close the session after the last."""
        if session.name not in self.sessions or session.opening:
            return
        staying = [client for client in session.clients if not client.leaving]
        running = [pilot for pilot in session.active_pilots if pilot.stopping or not pilot.keep]
        if any(client.role == "owner" for client in staying):
            running = []
        if running:
            return
        if not self.commit(session):
            return  # Looked at again once it can be written.
        if session.name not in self.sessions:
            return
        for client in [c for c in session.clients if c.leaving]:
            self.send(client, [*client.gather(), m.Closed()])
            self.drop_client(client)
        if not session.clients and not session.active_pilots and not session.agents:
            self.services.forget(session)
            self._close_session(session)
            self.spools.remove(spool.folder(session.places))
            del self.sessions[session.name]

    def _finished(self) -> bool:
        if self._stopping:
            return True
        if self.sessions or self.stay:
            self._idle_since = time.monotonic()
            return False
        waited = time.monotonic() - self._idle_since
        if waited < (0.0 if self._had_peer else FIRST_PEER):
            return False
        return self._router.poll(0) == 0

    def _close(self) -> None:
        self.pilots.end_all()
        self.services.close()
        for session in list(self.sessions.values()):
            for client in list(session.clients):
                if self.commit(session):
                    self.send(client, client.gather())
                self.send(client, [m.Closed("the hub was stopped")])
            self._close_session(session)
        self.watch.close()
        self.spools.close()
        self.door.stop_telling()
        for sock in (self._router, self._doorkeeper.socket):
            sock.close(linger=200)
        self._context.term()
        self.door.close()
        sweep_sockets(self._runtime, HUB_SOCKET, DOOR_SOCKET)
        os.close(self._lock)


def _check_name(session: str) -> None:
    try:
        check_session_name(session)
    except ValueError as error:
        raise SessionError(str(error)) from error
