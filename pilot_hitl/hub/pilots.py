"""The hub's pilots: started, welcomed, watched, ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.errors import PilotError, PilotHitlError, UnknownPlatform
from pilot_hitl.hub import books
from pilot_hitl.hub.live import LiveSession, PilotRecord
from pilot_hitl.hub.peers import Agent, Client, Peer
from pilot_hitl.launch import local
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.states import PilotState
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.processes import parent_of

if TYPE_CHECKING:
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
_describe = msgspec.msgpack.Decoder(PilotDescription)
RESTARTS = 3
"""A local pilot that dies is started again, this often within RESTART_WINDOW seconds."""
RESTART_WINDOW = 60.0
STOP_PATIENCE = 15.0
"""Seconds a pilot may take to end when told to, before its root is killed."""
OWNER_PATIENCE = 15.0
"""Seconds an agent without an owner is kept, because the owner may be reconnecting."""
HUB_TIMEOUT = 60.0
"""Seconds a local pilot goes on without a hub."""


class PilotKeeper:
    """Starts pilots and keeps their records true."""

    def __init__(self, hub: Hub) -> None:
        """Start without pilots."""
        self._hub = hub
        self._leases = local.CoreLeases()
        self._deadlines: dict[tuple[str, int], float] = {}
        self._roots: dict[tuple[str, int], int] = {}

    # --- asked for by clients -----------------------------------------------------------------------------------------

    def submit(self, client: Client, ask: m.SubmitPilot) -> None:
        """Start a pilot; the client hears of it by PilotUpdate."""
        session = _session(client)
        description = ask.description
        try:
            description.verify()
        except ValueError as error:
            raise PilotError(str(error)) from error
        if description.resource not in ("local", "localhost", "local.localhost"):
            raise UnknownPlatform(
                f"no platform {description.resource!r} is known to this release; PilotDescription(resource='local') "
                "runs on this machine"
            )
        pilot = session.new_pilot(description, client)
        pilot.token = ask.token
        pilot.environment, pilot.cwd, pilot.sys_path = ask.environment, ask.cwd, ask.sys_path
        self._start(session, pilot)

    def cancel(self, client: Client, cancel: m.CancelPilot) -> None:
        """End a pilot; its unfinished tasks are bound again elsewhere."""
        session = _session(client)
        pilot = session.pilots.get(cancel.pilot)
        if pilot is None:
            raise PilotError(f"session {session.name!r} has no pilot {cancel.pilot}")
        pilot.state = PilotState.CANCELED if pilot.state is PilotState.NEW else pilot.state
        self.stop(session, pilot, cancel.reason or "canceled")

    def _start(self, session: LiveSession, pilot: PilotRecord) -> None:
        pilot.starts.append(time.time())
        description = pilot.description
        key = (session.name, pilot.number)
        cpus, pinned = self._leases.take(key, 0 if description.noop else description.cores)
        config = PilotConfig(
            home=str(self._hub.home),
            session=session.name,
            pilot=pilot.number,
            folder=str(session.places.pilot(pilot.number)),
            session_folder=str(session.places.folder),
            endpoint=self._hub.endpoint,
            keys=str(self._hub.home / "hub" / "keys.json"),
            nodes=local.inventory(description, self._hub.host, cpus, pinned=pinned),
            environment=pilot.environment,
            cwd=pilot.cwd,
            sys_path=pilot.sys_path,
            runtime=description.runtime,
            noop=description.noop,
            hub_timeout=HUB_TIMEOUT,
            mark=local.pilot_mark(session.places, pilot.number),
        )
        try:
            pilot.pid = local.start(config)
        except OSError as error:
            self._ended(session, pilot, PilotState.FAILED, f"it cannot be started on {self._hub.host}: {error}")
            return
        pilot.state = PilotState.PENDING
        self._watch_root(session, pilot)
        session.save_pilot(pilot)

    def _watch_root(self, session: LiveSession, pilot: PilotRecord) -> None:
        key = (session.name, pilot.number)
        if key in self._roots:
            return
        descriptor = self._hub.watch.add(pilot.pid, lambda: self._root_ended(session, pilot))
        if descriptor < 0:
            self._root_ended(session, pilot)
        else:
            self._roots[key] = descriptor

    # --- agents -------------------------------------------------------------------------------------------------------

    def hello(self, identity: bytes, hello: m.AgentHello) -> Peer | None:
        """Welcome an agent, or send it home when nobody wants it any more."""
        try:
            session = self._hub.open_session(hello.session)
        except PilotHitlError as error:
            _log.warning("agent of session %s is sent home: %s", hello.session, error)
            self._send_home(identity, str(error))
            return None
        pilot = session.pilots.get(hello.pilot) or self._recall(session, hello.pilot)
        if pilot is not None and hello.term < pilot.term:
            self._send_home(identity, f"the agent of term {pilot.term} has taken over")
            return None
        if pilot is None or pilot.state.final or pilot.stopping or hello.epoch > session.store.epoch:
            self._hub.finish_if_done(session)
            self._send_home(identity, "its session does not want it any more")
            return None
        agent = session.agents.get(pilot.number)
        if agent is not None:
            self._hub.peers.pop(agent.identity, None)
        agent = Agent(identity, session, pilot.number)
        agent.pid, agent.host = hello.pid, hello.host
        pilot.term = hello.term
        self._hub.peers[identity] = agent
        session.agents[pilot.number] = agent
        if not pilot.pid and not hello.job and hello.host == self._hub.host:
            pilot.pid = parent_of(hello.pid)
            self._watch_root(session, pilot)
        binding = hello.binding
        if not binding:
            binding = int(session.store.meta("binding") or 0) + 1
            session.store.put("meta", "binding", binding)
            session.commit()
        agent.tell(m.AgentWelcome(session.store.epoch, binding, os.getpid(), self._hub.started))
        session.feed(ev.AgentReady(pilot.number, binding, tuple(hello.nodes), tuple(hello.known), hello.window))
        session.publish_waiting()
        pilot.state = PilotState.ACTIVE
        session.save_pilot(pilot)
        if not session.owners and not pilot.keep:
            self._deadlines[(session.name, pilot.number)] = time.time() + OWNER_PATIENCE
        return agent

    def _recall(self, session: LiveSession, number: int) -> PilotRecord | None:
        """Return the record of a pilot that an earlier hub started."""
        rows = list(session.store.rows("SELECT * FROM pilot WHERE number=?", (number,)))
        if not rows:
            return None
        _number, blob, state, message, began, ended, incarnation, keep = rows[0]
        pilot = PilotRecord(number, _describe.decode(blob), incarnation, keep=bool(keep))
        pilot.state, pilot.message, pilot.began, pilot.ended = PilotState(state), message, began, ended
        session.pilots[number] = pilot
        if not pilot.state.final:
            session.feed(ev.PilotAsked(number, site=pilot.description.site))
        return pilot

    def recall_all(self, session: LiveSession) -> None:
        """Know the pilots that an earlier hub left running, before their agents report again."""
        final = int(PilotState.DONE)
        for (number,) in list(session.store.rows("SELECT number FROM pilot WHERE state<?", (final,))):
            root = local.root_of(session.places.pilot(number))
            pilot = self._recall(session, number)
            if pilot is None:
                continue
            if not root:
                last = books.last_word(session.store, number)
                self._ended(session, pilot, PilotState.FAILED, "it ended while no hub ran", last)
                continue
            pilot.pid = root
            if not pilot.keep:
                self._deadlines[(session.name, number)] = time.time() + OWNER_PATIENCE
            self._watch_root(session, pilot)

    def _send_home(self, identity: bytes, reason: str) -> None:
        stranger = Peer(identity)
        stranger.tell(m.AgentStop(reason=reason))
        self._hub.send(stranger, stranger.outbox)

    def take(self, agent: Agent, message: m.Message) -> None:
        """Act upon what an agent says."""
        session = agent.session
        agent.heard = time.time()
        if isinstance(message, m.Reports):
            session.reports(agent, message)
            self._drain(session)
        elif isinstance(message, m.Published):
            session.published(message)
        elif isinstance(message, m.AgentNodes):
            session.feed(ev.PilotNodes(agent.pilot, tuple(message.nodes)))
        elif isinstance(message, m.Spans):
            agent.reported = max(agent.reported, message.sequence)
            books.keep(session.store, agent.pilot, message)
        elif isinstance(message, m.AgentReply):
            self._hub.desk.agent_reply(message)
        elif isinstance(message, m.AgentLog):
            for entry in message.events:
                session.store.put("event", time.time(), entry)
        elif isinstance(message, m.AgentBye):
            pilot = session.pilots.get(agent.pilot)
            if pilot is not None:
                pilot.message = pilot.message or message.reason
            self._agent_gone(session, agent.pilot)

    def _drain(self, session: LiveSession) -> None:
        if session.draining and not session.work:
            session.draining = False
            self._stop_all(session, "everything is done")

    def _agent_gone(self, session: LiveSession, number: int) -> None:
        agent = session.agents.pop(number, None)
        if agent is not None:
            self._hub.peers.pop(agent.identity, None)
        session.feed(ev.PilotEnded(number, final=False))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _root_ended(self, session: LiveSession, pilot: PilotRecord) -> None:
        """The spawner is gone, and with it (or right after it) everything of the pilot."""
        self._roots.pop((session.name, pilot.number), None)
        if session.name not in self._hub.sessions or pilot.state.final:
            return
        agent = session.agents.get(pilot.number)
        self._agent_gone(session, pilot.number)
        if agent is not None and agent.host == self._hub.host:
            # An agent without its root ends everything that carries the pilot's mark: what comes next must come later.
            _signal(agent.pid, signal.SIGKILL)
            if self._hub.watch.add(agent.pid, lambda: self._all_ended(session, pilot)) >= 0:
                return
        self._all_ended(session, pilot)

    def _all_ended(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Start a pilot again that died, or note its end."""
        if session.name not in self._hub.sessions or pilot.state.final:
            return
        now = time.time()
        pilot.starts = [moment for moment in pilot.starts if moment > now - RESTART_WINDOW]
        walltime = now >= pilot.began + pilot.description.runtime * 60
        if pilot.stopping or walltime:
            state = PilotState.CANCELED if pilot.state is PilotState.CANCELED else PilotState.DONE
            self._ended(session, pilot, state, pilot.message or ("walltime reached" if walltime else "stopped"))
        elif session.owners and len(pilot.starts) <= RESTARTS and pilot.cwd:
            _log.warning("pilot %d of session %s died and is started again", pilot.number, session.name)
            self._start(session, pilot)
        else:
            log = session.places.pilot(pilot.number) / "logs" / "pilot.log"
            self._ended(session, pilot, PilotState.FAILED, f"it died on {self._hub.host}; see {log}{_tail(log)}")

    def _ended(
        self, session: LiveSession, pilot: PilotRecord, state: PilotState, message: str, at: float | None = None
    ) -> None:
        pilot.state, pilot.message, pilot.ended = state, message, time.time() if at is None else at
        key = (session.name, pilot.number)
        self._leases.give_back(key)
        self._deadlines.pop(key, None)
        session.feed(ev.PilotEnded(pilot.number, final=True))
        session.save_pilot(pilot)
        self._hub.finish_if_done(session)

    def stop(self, session: LiveSession, pilot: PilotRecord, reason: str) -> None:
        """Tell a pilot to end; its root is killed when it does not obey."""
        if pilot.state.final:
            return
        pilot.stopping = True
        pilot.message = reason
        agent = session.agents.get(pilot.number)
        if agent is not None:
            agent.tell(m.AgentStop(reason=reason))
            self._deadlines[(session.name, pilot.number)] = time.time() + STOP_PATIENCE
        elif pilot.pid:
            _signal(pilot.pid, signal.SIGTERM)
            self._deadlines[(session.name, pilot.number)] = time.time() + STOP_PATIENCE
        else:
            self._ended(session, pilot, PilotState.DONE, reason)

    def _stop_all(self, session: LiveSession, reason: str) -> None:
        for pilot in session.active_pilots:
            if not pilot.keep and not pilot.stopping:
                self.stop(session, pilot, reason)

    # --- owners come and go -------------------------------------------------------------------------------------------

    def owner_came(self, session: LiveSession, client: Client) -> None:
        """End what an earlier script left behind, unless it asked to leave it; its own pilots stay."""
        for pilot in session.active_pilots:
            self._deadlines.pop((session.name, pilot.number), None)
            if pilot.incarnation != client.incarnation and not pilot.keep and not session.owners[:-1]:
                self.stop(session, pilot, "its script was run again")

    def owner_left(self, session: LiveSession, client: Client) -> None:
        """Do with the pilots what the owner wanted."""
        if client.role != "owner" or any(other is not client and not other.leaving for other in session.owners):
            return
        for pilot in session.active_pilots:
            pilot.keep = client.on_exit == "detach"
        if client.on_exit == "drain" and session.work:
            session.draining = True
        elif client.on_exit != "detach":
            self._stop_all(session, "its session was closed")

    def abandon(self, session: LiveSession) -> None:
        """Kill a session's pilots at once, because the session is forgotten."""
        for pilot in session.active_pilots:
            pilot.stopping = True
            if pilot.pid:
                _signal(pilot.pid, signal.SIGTERM)
            pilot.state = PilotState.CANCELED
            self._leases.give_back((session.name, pilot.number))
        for agent in session.agents.values():
            self._hub.peers.pop(agent.identity, None)

    def end_all(self) -> None:
        """The hub ends: pilots that nobody wants to keep are told to end."""
        for session in self._hub.sessions.values():
            for pilot in session.active_pilots:
                if not pilot.keep and pilot.pid:
                    _signal(pilot.pid, signal.SIGTERM)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        return min(self._deadlines.values(), default=None)

    def timers(self, now: float) -> None:
        """Kill what does not end; stop what no owner came back for."""
        for key, moment in list(self._deadlines.items()):
            if moment > now:
                continue
            del self._deadlines[key]
            session = self._hub.sessions.get(key[0])
            pilot = session.pilots.get(key[1]) if session else None
            if session is None or pilot is None or pilot.state.final:
                continue
            if not pilot.stopping:
                self.stop(session, pilot, "its script did not come back")
            elif pilot.pid:
                _signal(pilot.pid, signal.SIGKILL)


def _session(client: Client) -> LiveSession:
    assert client.session is not None  # only clients with a session have handlers
    return client.session


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
            text = file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f"; its last words: {text}" if text else ""
