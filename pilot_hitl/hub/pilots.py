"""The hub's pilots: asked for, welcomed, watched, ended. How each kind starts and ends is its launcher's business."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from pilot_hitl.errors import PilotError, PilotHitlError
from pilot_hitl.hub import books, journal
from pilot_hitl.hub.batch import BatchPilots
from pilot_hitl.hub.live import LiveSession, PilotRecord, unreachable
from pilot_hitl.hub.localpilots import LocalPilots
from pilot_hitl.hub.peers import Agent, Client, Peer
from pilot_hitl.launch import platforms
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.states import PilotState
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.clock import steady

if TYPE_CHECKING:
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
_describe = msgspec.msgpack.Decoder(PilotDescription)
OWNER_PATIENCE = 15.0
"""Seconds an agent without an owner is kept, because the owner may be reconnecting."""


class Launcher(Protocol):
    """How pilots of one kind are started and ended. Ends are told to :meth:`PilotKeeper.ended`, by whoever learns them.

    Attributes:
        patience: seconds that a pilot may take to end when told to, before it is ended by force.
    """

    patience: float

    def start(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Start a pilot that was asked for."""

    def arrived(self, session: LiveSession, pilot: PilotRecord, hello: m.AgentHello) -> None:
        """Its agent reported."""

    def left(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Its agent said good-bye, or cannot be reached."""

    def end(self, session: LiveSession, pilot: PilotRecord, *, at_once: bool) -> bool:
        """End it from outside, by force if ``at_once``; return whether there is anything that will end."""

    def recall(self, session: LiveSession, pilot: PilotRecord) -> bool:
        """Know a pilot again that an earlier hub started, or note that it ended; return whether it may be running."""

    def owner_came(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Its script is connected."""

    def forget(self, session: LiveSession, pilot: PilotRecord) -> None:
        """End it, because its session is forgotten."""

    def let_go(self, session: LiveSession, pilot: PilotRecord) -> None:
        """It ended: give back what it used."""


class PilotKeeper:
    """Starts pilots and keeps their records true."""

    def __init__(self, hub: Hub) -> None:
        """Start without pilots."""
        self._hub = hub
        self._local = LocalPilots(hub, self)
        self.batch = BatchPilots(hub, self)
        self._deadlines: dict[tuple[str, int], float] = {}

    def _launcher(self, pilot: PilotRecord) -> Launcher:
        return self._local if pilot.description.resource in platforms.LOCAL else self.batch

    def _is_batch(self, pilot: PilotRecord) -> bool:
        return self._launcher(pilot) is self.batch

    # --- asked for by clients -----------------------------------------------------------------------------------------

    def submit(self, client: Client, ask: m.SubmitPilot) -> None:
        """Start a pilot; the client hears of it by PilotUpdate.

        It is asked for again by a client that lost its hub before it heard that this was written: that is the same one.
        """
        session = _session(client)
        if (known := self._asked_for(session, client, ask)) is not None:
            session.tell_pilot(client, known)
            return
        try:
            description = ask.description.verify()
        except ValueError as error:
            raise PilotError(str(error)) from error
        if any("\0" in each for each in (*ask.environment, *ask.environment.values(), ask.cwd, *ask.sys_path)):
            raise PilotError("environment, cwd, sys_path: no process can be given a NUL character")
        if description.resource not in platforms.LOCAL:
            platforms.find(description.resource, self._hub.home)
        pilot = session.new_pilot(description, client)
        pilot.token = ask.token
        pilot.environment, pilot.cwd, pilot.sys_path = ask.environment, ask.cwd, ask.sys_path
        pilot.flags, pilot.umask = ask.flags, ask.umask & 0o777
        self._launcher(pilot).start(session, pilot)

    def _asked_for(self, session: LiveSession, client: Client, ask: m.SubmitPilot) -> PilotRecord | None:
        """Return the pilot that a client has asked for by the same message before."""
        if not client.incarnation:
            return None
        for pilot in session.pilots.values():
            if (pilot.incarnation, pilot.token) == (client.incarnation, ask.token):
                return pilot
        query = "SELECT number FROM pilot WHERE incarnation=? AND token=?"
        rows = list(session.store.rows(query, (client.incarnation, ask.token)))
        return self._recall(session, rows[0][0]) if rows else None

    def cancel(self, client: Client, cancel: m.CancelPilot) -> None:
        """End a pilot, and the successor that it has; unfinished tasks are bound again elsewhere."""
        session = _session(client)
        pilot = session.pilots.get(cancel.pilot)
        if pilot is None:
            raise PilotError(f"session {session.name!r} has no pilot {cancel.pilot}")
        row = [each for each in session.active_pilots if each.lineage == pilot.lineage and each.number >= pilot.number]
        for each in row:
            each.canceled = True
            self.stop(session, each, cancel.reason or "canceled")

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
        if not hello.binding:
            # It begins: an earlier one, such as that of the job's run before a requeue, has ended.
            journal.take(session, pilot.number)
        agent = session.agents.get(pilot.number)
        if agent is not None:
            self._hub.peers.pop(agent.identity, None)
        agent = Agent(identity, session, pilot.number)
        agent.pid, agent.host = hello.pid, hello.host
        pilot.term = hello.term
        self._hub.peers[identity] = agent
        session.agents[pilot.number] = agent
        self._launcher(pilot).arrived(session, pilot, hello)
        binding = hello.binding
        if not binding:
            binding = int(session.store.meta("binding") or 0) + 1
            session.store.put("meta", "binding", binding)
            # Before it gets work: a later hub has to know that it may have some.
            pilot.state = PilotState.ACTIVE
            session.put_pilot(pilot)
            # On a full disk it goes on: should a later hub give it again, runs are numbered by the hub's life as well.
            self._hub.commit(session)
        agent.tell(m.AgentWelcome(session.store.epoch, binding, os.getpid(), self._hub.started))
        nodes, known = tuple(hello.nodes), tuple(hello.known)
        ran, acted = tuple(hello.ran), None if hello.acted is None else tuple(hello.acted)
        session.feed(ev.AgentReady(pilot.number, binding, nodes, known, hello.window, hello.expected, ran, acted))
        if not hello.binding:
            session.outside.life_over(pilot.number)
        session.publish_waiting()
        pilot.state = PilotState.ACTIVE
        if pilot.message == unreachable(pilot.number):
            pilot.message = ""
        session.save_pilot(pilot)
        if not session.owners and not pilot.keep:
            self.await_owner(session, pilot)
        return agent

    def _recall(self, session: LiveSession, number: int) -> PilotRecord | None:
        """Return the record of a pilot that an earlier hub started."""
        rows = list(session.store.rows("SELECT * FROM pilot WHERE number=?", (number,)))
        if not rows:
            return None
        _number, blob, state, message, began, ended, incarnation, keep, token = rows[0]
        pilot = PilotRecord(number, _describe.decode(blob), incarnation, keep=bool(keep))
        pilot.token = token
        pilot.state, pilot.message, pilot.began, pilot.ended = PilotState(state), message, began, ended
        for job, lineage, successor in session.store.rows(
            "SELECT job, lineage, successor FROM job WHERE pilot=?", (number,)
        ):
            pilot.job, pilot.lineage, pilot.successor = job, lineage, successor
        session.pilots[number] = pilot
        if not pilot.state.final:
            session.feed(ev.PilotAsked(number, pilot.lineage, pilot.description.site))
        return pilot

    def recall_all(self, session: LiveSession) -> None:
        """Know the pilots that an earlier hub left running, before their agents report again."""
        final = int(PilotState.DONE)
        for (number,) in list(session.store.rows("SELECT number FROM pilot WHERE state<? ORDER BY number", (final,))):
            pilot = self._recall(session, number)
            if pilot is not None and self._launcher(pilot).recall(session, pilot) and pilot.state is PilotState.ACTIVE:
                session.feed(ev.AgentExpected(number))
        for number in session.outside.pilots.difference(session.pilots):
            # It had ended, and that is all that was written of its tasks: nobody else will say what became of them.
            session.feed(ev.PilotEnded(number, final=True))
            session.outside.life_over(number)

    def _send_home(self, identity: bytes, reason: str) -> None:
        stranger = Peer(identity)
        stranger.tell(m.AgentStop(reason=reason))
        self._hub.send(stranger, stranger.outbox)

    def take(self, agent: Agent, message: m.Message) -> None:
        """Act upon what an agent says."""
        session = agent.session
        agent.heard = steady()
        if isinstance(message, m.Reports):
            session.reports(agent, message)
            self._drain(session)
        elif isinstance(message, m.Published):
            session.published(message)
        elif isinstance(message, m.AgentAlive):
            agent.tell(m.AgentAck(agent.durable))
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
            self.agent_gone(session, agent.pilot)
            if pilot is not None:
                pilot.message = message.reason if not pilot.stopping else pilot.message or message.reason
                self._launcher(pilot).left(session, pilot)

    def _drain(self, session: LiveSession) -> None:
        if session.draining and not session.work:
            session.draining = False
            self._stop_all(session, "everything is done")

    def agent_gone(self, session: LiveSession, number: int) -> None:
        """The life of a pilot's agent ended: nothing that it had runs any more."""
        journal.take(session, number)
        agent = session.agents.pop(number, None)
        if agent is not None:
            self._hub.peers.pop(agent.identity, None)
        session.feed(ev.PilotEnded(number, final=False))
        session.outside.life_over(number)

    def unreachable(self, agent: Agent) -> None:
        """The connection to an agent is lost: it has to introduce itself again, or its job may have ended."""
        self._hub.peers.pop(agent.identity, None)
        pilot = agent.session.pilots.get(agent.pilot)
        if pilot is not None:
            self._launcher(pilot).left(agent.session, pilot)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def ended(
        self, session: LiveSession, pilot: PilotRecord, state: PilotState, message: str, at: float | None = None
    ) -> None:
        """Note that a pilot ended: nothing of it runs any more."""
        journal.take(session, pilot.number)
        pilot.state, pilot.message, pilot.ended = state, message, time.time() if at is None else at
        agent = session.agents.pop(pilot.number, None)
        if agent is not None:
            self._hub.peers.pop(agent.identity, None)
        self._deadlines.pop((session.name, pilot.number), None)
        self._launcher(pilot).let_go(session, pilot)
        session.feed(ev.PilotEnded(pilot.number, final=True))
        session.outside.life_over(pilot.number)
        session.save_pilot(pilot)
        self._hub.finish_if_done(session)

    def stop(self, session: LiveSession, pilot: PilotRecord, reason: str) -> None:
        """Tell a pilot to end; it is ended by force when it does not obey."""
        if pilot.state.final:
            return
        pilot.stopping = True
        pilot.message = reason
        launcher = self._launcher(pilot)
        agent = session.agents.get(pilot.number)
        if agent is not None:
            agent.tell(m.AgentStop(reason=reason))
            self._deadlines[(session.name, pilot.number)] = steady() + launcher.patience
        elif launcher.end(session, pilot, at_once=False):
            self._deadlines[(session.name, pilot.number)] = steady() + launcher.patience
        elif not pilot.state.final:
            self.ended(session, pilot, PilotState.CANCELED if pilot.canceled else PilotState.DONE, reason)

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
            elif pilot.incarnation == client.incarnation and not pilot.stopping:
                self._launcher(pilot).owner_came(session, pilot)

    def owner_left(self, session: LiveSession, client: Client) -> None:
        """Do with the pilots what the owner wanted."""
        if client.role != "owner" or any(other is not client and not other.leaving for other in session.owners):
            return
        for pilot in session.active_pilots:
            pilot.keep = client.on_exit == "detach" or (client.on_exit == "keep" and self._is_batch(pilot))
            session.save_pilot(pilot)
        if client.on_exit == "drain" and session.work:
            session.draining = True
        elif client.on_exit != "detach":
            self._stop_all(session, "its session was closed")

    def await_owner(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Stop a pilot unless its owner comes back soon."""
        self._deadlines[(session.name, pilot.number)] = steady() + OWNER_PATIENCE

    def awaits_owner(self, session: LiveSession, pilot: PilotRecord) -> bool:
        """Return whether a pilot that goes on is to be stopped unless its owner comes back soon."""
        return not pilot.stopping and (session.name, pilot.number) in self._deadlines

    def tell_all(self, session: LiveSession, client: Client, *, again: bool) -> None:
        """Tell a client of the pilots that live; ``again``: it was here before, so also how its own ended meanwhile."""
        if again:
            rows = session.store.rows("SELECT number FROM pilot WHERE incarnation=?", (client.incarnation,))
            for number in [number for (number,) in rows]:
                if number not in session.pilots:
                    self._recall(session, number)
        for pilot in list(session.pilots.values()):
            own = pilot.incarnation == client.incarnation
            if (own and (again or not pilot.state.final)) or not (own or pilot.state.final or pilot.stopping):
                session.tell_pilot(client, pilot)

    def abandon(self, session: LiveSession) -> None:
        """End a session's pilots at once, because the session is forgotten."""
        for pilot in session.active_pilots:
            pilot.stopping = True
            self._launcher(pilot).forget(session, pilot)
            pilot.state = PilotState.CANCELED
        for agent in session.agents.values():
            self._hub.peers.pop(agent.identity, None)

    def end_all(self) -> None:
        """The hub ends: pilots that nobody wants to keep are told to end."""
        for session in self._hub.sessions.values():
            for pilot in session.active_pilots:
                if not pilot.keep:
                    self._launcher(pilot).end(session, pilot, at_once=False)
        self.batch.close()

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        moments = [self.batch.next_deadline(), min(self._deadlines.values(), default=None)]
        return min((moment for moment in moments if moment is not None), default=None)

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
            else:
                self._launcher(pilot).end(session, pilot, at_once=True)
        self.batch.timers(now)


def _session(client: Client) -> LiveSession:
    assert client.session is not None  # only clients with a session have handlers
    return client.session
