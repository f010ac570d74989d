"""The hub's information desk: answers queries with JSON, and serves the tools of the command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl.errors import SessionError, UnknownCheckpoint, UnknownSession
from pilot_hitl.hub.counts import counts_of
from pilot_hitl.hub.explaining import explained, explanation
from pilot_hitl.hub.live import LiveSession
from pilot_hitl.hub.peers import Client
from pilot_hitl.hub.standstill import Survey
from pilot_hitl.hub.store import OutcomeRow, read_summary
from pilot_hitl.hub.tasklist import Part, page
from pilot_hitl.hub.whyreused import WhyReused
from pilot_hitl.inbox import audit
from pilot_hitl.inbox.requests import parse_id
from pilot_hitl.model.ids import parse_task, task_name
from pilot_hitl.model.states import CheckpointState, State
from pilot_hitl.study.pilots import describe
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.completed import written_of
from pilot_hitl.wire.places import SessionPlaces

if TYPE_CHECKING:
    from pilot_hitl.hub.server import Hub

AGENT_PATIENCE = 2.0
"""Seconds a query waits for agents before it is answered without them."""
READ_AT_ONCE = 32 << 20
"""Bytes of a task's output that are read for whoever asks; of more it is said where they lie."""
LEND_PATIENCE = 3600.0
"""Seconds that a task waits at most for cores that it lent: whoever has them may take its grace."""


class _Gathering:
    """A query that needs words from agents."""

    def __init__(
        self,
        client: Client,
        token: int,
        finish: Callable[[list[Any]], Any],
        *,
        patience: float = AGENT_PATIENCE,
        first: bool = False,
    ) -> None:
        """Wait ``patience`` seconds at most; ``first``: the first agent that speaks settles it."""
        self.client = client
        self.token = token
        self.finish = finish
        self.expected: set[int] = set()
        self.silent: set[bytes] = set()
        self.replies: list[Any] = []
        self.deadline = steady() + patience
        self.first = first


class Desk:
    """Answers :class:`~pilot_hitl.wire.messages.Query`."""

    def __init__(self, hub: Hub) -> None:
        """Serve a hub."""
        self._hub = hub
        self._tokens = 0
        self._gatherings: list[_Gathering] = []
        self._queries: dict[str, Callable[[Client, m.Query, dict[str, Any]], Any]] = {
            "status": self._status,
            "sessions": self._sessions,
            "session": lambda c, _q, a: self._session_view(self._find(c, a)),
            "tasks": lambda c, _q, a: self._tasks(self._find(c, a), a),
            "task": lambda c, _q, a: self._task(self._find(c, a), a),
            "explain": self._explain,
            "standstill": self._standstill,
            "pilots": self._pilots,
            "inbox": self._inbox,
            "request": self._request,
            "audit": self._audit,
            "idle": self._idle,
            "key": lambda c, _q, a: self._key(self._find(c, a), a),
            "reuse": lambda c, _q, a: msgspec.to_builtins(self._find(c, a).reuse.tally(c.incarnation)),
            "why-reused": lambda c, _q, a: self._why_reused(self._find(c, a), a),
            "services": self._services,
            "service": self._service,
        }

    # --- queries ------------------------------------------------------------------------------------------------------

    def query(self, client: Client, query: m.Query) -> None:
        """Answer a query, or gather what agents say first.

        Raises:
            PilotHitlError: it cannot be answered; the hub tells the client.
        """
        handler = self._queries.get(query.what)
        if handler is None:
            raise SessionError(f"nothing is known about {query.what!r}; known are {', '.join(self._queries)}")
        try:
            arguments = json.loads(query.arguments)
        except ValueError as error:
            raise SessionError(f"the arguments of query {query.what!r} are not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise SessionError(f"the arguments of query {query.what!r} are not a JSON object")
        reply = handler(client, query, arguments)
        if reply is not None:
            client.reply(m.Reply(query.token, json.dumps(reply)))

    def _find(self, client: Client, arguments: dict[str, Any]) -> LiveSession:
        name = str(arguments.get("session") or (client.session.name if client.session else ""))
        session = self._hub.sessions.get(name)
        if session is None:
            if not SessionPlaces(self._hub.home, name).database.exists() or not name:
                raise UnknownSession(f"there is no session {name!r} in {self._hub.home}")
            raise UnknownSession(f"session {name!r} is not open now: run its script, or 'pilot-hitl session resume'")
        return session

    def _sessions(self, _client: Client, _query: m.Query, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        folder = self._hub.home / "sessions"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            session = self._hub.sessions.get(path.name)
            if session is not None:
                found.append(self._session_view(session))
                continue
            try:
                found.append(read_summary(path / "session.sqlite"))
            except SessionError as error:
                found.append({"session": path.name, "state": "unreadable", "message": str(error)})
        return found

    def _session_view(self, session: LiveSession) -> dict[str, Any]:
        total, states = counts_of(session.core.tasks, session.core.adoption.repeats)
        return {
            "session": session.name,
            "state": "open",
            "folder": str(session.places.folder),
            "tasks": total,
            "states": states,
            "live": session.core.live,
            "pilots": [self._pilot_view(session, pilot) for pilot in session.pilots.values()],
            "open_checkpoints": sum(
                1 for c in session.core.checkpoints if c.state in (CheckpointState.OPEN, CheckpointState.PENDING)
            ),
            "clients": [{"pid": c.pid, "host": c.host, "role": c.role} for c in session.clients],
            "epoch": session.store.epoch,
            "unwritten": session.unwritten,
            "command": json.loads(session.store.meta("command") or "[]"),
            "directory": session.store.meta("directory") or "",
            "stale_reports": session.core.stale,
        }

    @staticmethod
    def _pilot_view(session: LiveSession, pilot: Any) -> dict[str, Any]:
        core = session.core.pilots.get(pilot.number)
        return {
            "session": session.name,
            "pilot": pilot.number,
            "name": pilot.description.name,
            "resource": pilot.description.resource,
            "state": pilot.state.name,
            "message": pilot.message,
            "nodes": [node.name for node in core.nodes] if core else [],
            "cores": sum(len(node.cores) for node in core.nodes) if core else 0,
            "gpus": sum(len(node.gpus) for node in core.nodes) if core else 0,
            "pid": pilot.pid,
            "job": pilot.job,
            "lineage": pilot.lineage,
            "successor": pilot.successor,
            "began": pilot.began,
            "runtime": pilot.description.runtime,
        }

    def _pilots(self, client: Client, _query: m.Query, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        if arguments.get("session") or client.session:
            sessions = [self._find(client, arguments)]
        else:
            sessions = list(self._hub.sessions.values())
        return [self._pilot_view(session, pilot) for session in sessions for pilot in session.pilots.values()]

    @staticmethod
    def _tasks(session: LiveSession, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        limit, skip = int(arguments.get("limit") or 1000), int(arguments.get("offset") or 0)
        wanted = str(arguments.get("state") or "").upper()
        found: list[dict[str, Any]] = []
        if wanted and wanted not in State.__members__:
            return []
        state = State[wanted] if wanted else None
        tasks = session.core.tasks
        parts = [Part(each.first, each.count, each.states) for each in tasks.ended]
        bulks = {bulk.first: bulk for bulk in tasks}
        parts += [Part(bulk.first, bulk.count) for bulk in tasks]
        for task in page(
            parts, lambda part: bytes(bulks[part.first].states), session.store.recorded_in, state, skip, limit
        ):
            bulk = tasks.find(task)
            if bulk is None:
                continue
            at = task - bulk.first
            facts: dict[str, Any] = {"task": task_name(task), "name": session.kinds.name(bulk.kind)}
            facts |= {"state": State(bulk.states[at]).name, "epoch": bulk.epochs[at]}
            facts |= {"condition": bulk.condition.number, "condition_truth": bulk.condition.truth.name}
            row = session.store.outcome(task)
            found.append(facts | (_attempt_view(row) if row is not None else {}))
        return found

    def _task(self, session: LiveSession, arguments: dict[str, Any]) -> dict[str, Any]:
        task = _task_of(arguments)
        bulk = session.core.tasks.find(task)
        if bulk is None:
            raise SessionError(f"session {session.name!r} has no {task_name(task)}")
        at = task - bulk.first
        facts: dict[str, Any] = {
            "task": task_name(task),
            "name": session.kinds.name(bulk.kind),
            "session": session.name,
            "state": State(bulk.states[at]).name,
            "request": describe(bulk),
            "priority": bulk.priority,
            "condition": bulk.condition.number,
            "condition_truth": bulk.condition.truth.name,
            "epoch": bulk.epochs[at],
            "run": bulk.runs.get(at, 0),
            "depends_on": [task_name(dep) for dep in bulk.deps],
        }
        judgement = session.core.speculation.judgement(bulk.condition, bulk.kind)
        if judgement is not None:
            facts |= {"score": judgement.score, "score_reason": judgement.reason}
        if events := session.store.events_of(task):
            facts["events"] = events
        row = session.store.outcome(task)
        return facts | (_row_view(row) if row is not None else {})

    def _explain(self, client: Client, query: m.Query, arguments: dict[str, Any]) -> dict[str, Any] | None:
        session = self._find(client, arguments)
        facts = self._task(session, arguments)
        if session.unwritten:
            return facts | {"explanation": f"results wait: {session.unwritten}"}
        task = _task_of(arguments)
        bulk = session.core.tasks.find(task)
        assert bulk is not None  # _task refused an unknown one
        state = State(bulk.states[task - bulk.first])
        pilot = session.core.pilot_of(task)
        agent = session.agents.get(pilot) if pilot else None
        if state is State.SCHEDULED and agent is not None:
            gathering = _Gathering(client, query.token, lambda said: explained(session, task, facts, said))
            self._ask(gathering, {agent: ("explain", {"task": task})})
            return None
        return facts | {"explanation": explanation(session, task)}

    def _standstill(self, client: Client, query: m.Query, arguments: dict[str, Any]) -> None:
        """Answer whether tasks move, and what holds them."""
        session = self._find(client, arguments)
        try:
            runs = [(int(first), int(count)) for first, count in arguments["tasks"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SessionError(f"standstill: tasks are pairs (first id, count): {error!r}") from error
        survey = Survey(session, runs)
        self._ask(
            _Gathering(client, query.token, survey.finish),
            {agent: ("standstill", {"tasks": asked}) for agent, asked in survey.asked.items()},
        )

    def _idle(self, client: Client, query: m.Query, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Answer as soon as an agent has cores that no needed work wants, or that none had for a while."""
        session = self._find(client, arguments)
        if not session.core.speculation.policy.speculates:
            # The client may not know: a script that names no policy goes on with the session's.
            return {"idle": False}
        gathering = _Gathering(client, query.token, lambda said: {"idle": bool(said)}, first=True)
        self._ask(gathering, {agent: ("idle", {}) for agent in session.agents.values()}, alone=True)
        return None

    @staticmethod
    def _key(session: LiveSession, arguments: dict[str, Any]) -> dict[str, str]:
        return {"key": session.key_of(_task_of(arguments)).hex()}

    def _why_reused(self, session: LiveSession, arguments: dict[str, Any]) -> dict[str, str]:
        task = _task_of(arguments)
        self._hub.commit(session)  # what is told is what is written
        why = WhyReused(session.store.rows, BlobStore(session.places.blobs)).of(task)
        if not why:
            raise SessionError(f"session {session.name!r} has no {task_name(task)}")
        return {"task": task_name(task), "why": why}

    def lend(self, client: Client, lend: m.Lend) -> None:
        """Pass on that a running task lends its cores or wants them back, and what the agent says to it."""
        session = client.session
        agent = session.agents.get(session.core.pilot_of(lend.task)) if session is not None else None
        if agent is None:
            client.tell(m.Reply(lend.token, "{}"))
            return
        gathering = _Gathering(client, lend.token, lambda said: said[0] if said else {}, patience=LEND_PATIENCE)
        self._tokens += 1
        gathering.expected.add(self._tokens)
        self._gatherings.append(gathering)
        agent.tell(m.AgentLend(self._tokens, lend.task, lend.epoch, lend.run, lend.on))

    def _status(self, client: Client, query: m.Query, _arguments: dict[str, Any]) -> dict[str, Any] | None:
        mine: list[dict[str, Any]] = [{"kind": "hub", "pid": os.getpid(), "host": self._hub.host, "session": ""}]
        orders: dict[Any, tuple[str, dict[str, Any]]] = {}
        for session in self._hub.sessions.values():
            mine.extend(
                {"kind": "client", "pid": peer.pid, "host": peer.host, "session": session.name}
                for peer in session.clients
            )
            for agent in session.agents.values():
                facts = {"kind": "agent", "pid": agent.pid, "host": agent.host, "session": session.name}
                mine.append(facts)
                orders[agent] = ("processes", {})
        gathering = _Gathering(client, query.token, lambda said: self._status_view(mine, said))
        self._ask(gathering, orders)
        return None

    def _status_view(self, mine: list[dict[str, Any]], said: list[Any]) -> dict[str, Any]:
        processes = [*mine, *(process for reply in said for process in reply.get("processes", []))]
        return {
            "running": True,
            "pid": os.getpid(),
            "host": self._hub.host,
            "home": str(self._hub.home),
            "began": self._hub.began,
            "epoch": max((session.store.epoch for session in self._hub.sessions.values()), default=0),
            "dropped_frames": self._hub.dropped,
            **self._hub.door.counts,
            "sessions": [self._session_view(session) for session in self._hub.sessions.values()],
            "processes": processes,
        }

    # --- requests to people -------------------------------------------------------------------------------------------

    def _inbox(self, client: Client, _query: m.Query, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        sessions = [self._find(client, arguments)] if arguments.get("session") else list(self._hub.sessions.values())
        everything = bool(arguments.get("all"))
        return [
            session.gates.view(number)
            for session in sessions
            for number in session.gates
            if everything or session.gates.is_open(number)
        ]

    def _request(self, client: Client, _query: m.Query, arguments: dict[str, Any]) -> dict[str, Any]:
        session, number = self._locate(client, str(arguments.get("id", "")))
        return session.gates.view(number)

    def _services(self, client: Client, _query: m.Query, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        sessions = [self._find(client, arguments)] if arguments.get("session") else list(self._hub.sessions.values())
        keeper = self._hub.services
        return [keeper.view(service) for session in sessions for service in keeper.of(session).values()]

    def _service(self, client: Client, query: m.Query, arguments: dict[str, Any]) -> None:
        keeper = self._hub.services
        service = keeper.named(self._find(client, arguments), str(arguments.get("name", "")))
        gathering = _Gathering(client, query.token, lambda _said: keeper.view(service))
        gathering.silent = set(keeper.ask_for_metrics(service))
        self._gatherings.append(gathering)
        if not gathering.silent:
            self._finish(gathering)

    def replica_spoke(self, identity: bytes) -> None:
        """A replica sent its metrics: answer whoever waited for the last of them."""
        for gathering in list(self._gatherings):
            if identity in gathering.silent:
                gathering.silent.discard(identity)
                if not gathering.silent:
                    self._finish(gathering)

    def _audit(self, client: Client, _query: m.Query, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = None
        if arguments.get("id"):
            session, wanted = self._locate(client, str(arguments["id"]))
        else:
            session = self._find(client, arguments)
        rows = list(session.store.rows("SELECT content, hash FROM audit ORDER BY sequence"))
        fault = audit.verify(((bytes(c), bytes(h)) for c, h in rows), session.name)
        entries = []
        for content, digest in rows:
            entry: dict[str, Any] = dict(audit.read(content))
            if wanted is None or entry.get("checkpoint") == wanted:
                entries.append(entry | {"hash": bytes(digest).hex()})
        if fault is not None:
            entries.append({"kind": "fault", "at": time.time(), "facts": {"index": fault.index, "why": fault.reason}})
        return entries

    def _locate(self, client: Client, text: str) -> tuple[LiveSession, int]:
        named = parse_id(text)
        if named is None:
            raise UnknownCheckpoint(
                f"{text!r} is no id of a request, such as SESSION/1; 'pilot-hitl inbox list' has them"
            )
        session = self._find(client, {"session": named.session})
        if named.number not in session.gates:
            raise UnknownCheckpoint(
                f"session {named.session!r} has no request {named.number}; 'pilot-hitl inbox list -a' shows all"
            )
        return session, named.number

    # --- agents -------------------------------------------------------------------------------------------------------

    def _ask(
        self, gathering: _Gathering, orders: dict[Any, tuple[str, dict[str, Any]]], *, alone: bool = False
    ) -> None:
        """Ask agents; ``alone``: without any, wait for the patience to end, because one may be about to come."""
        for agent, (what, arguments) in orders.items():
            self._tokens += 1
            gathering.expected.add(self._tokens)
            agent.tell(m.AgentQuery(self._tokens, what, json.dumps(arguments)))
        self._gatherings.append(gathering)
        if not gathering.expected and not alone:
            self._finish(gathering)

    def agent_reply(self, reply: m.AgentReply) -> None:
        """Take an agent's words; the query is answered when the last one spoke."""
        for gathering in list(self._gatherings):
            if reply.token in gathering.expected:
                gathering.expected.discard(reply.token)
                try:
                    gathering.replies.append(json.loads(reply.body))
                except ValueError:
                    continue
                if not gathering.expected or gathering.first:
                    self._finish(gathering)

    def _finish(self, gathering: _Gathering) -> None:
        self._gatherings.remove(gathering)
        body = json.dumps(gathering.finish(gathering.replies))
        gathering.client.reply(m.Reply(gathering.token, body))

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        return min((gathering.deadline for gathering in self._gatherings), default=None)

    def timers(self, now: float) -> None:
        """Answer without the agents that stay silent."""
        for gathering in list(self._gatherings):
            if gathering.deadline <= now:
                self._finish(gathering)


def _task_of(arguments: dict[str, Any]) -> int:
    value = arguments.get("task")
    if isinstance(value, int):
        return value
    try:
        return parse_task(str(value))
    except ValueError as error:
        raise SessionError(str(error)) from error


def _attempt_view(row: OutcomeRow) -> dict[str, Any]:
    """Return the attempt that decided a task: what the ledger can be recomputed from."""
    return {
        "began": row.began,
        "ended": row.ended,
        "pilot": row.pilot,
        "node": row.node,
        "cores": row.cores,
        "epoch": row.epoch,
        "run": row.run,
        "reused": bool(row.reused),
    }


def _row_view(row: OutcomeRow) -> dict[str, Any]:
    outcome = row.outcome()
    failure = outcome.failure
    return (
        _attempt_view(row)
        | written_of(row.payload).view(READ_AT_ONCE)
        | {
            "failure": None
            if failure is None
            else {
                "cause": failure.cause.name,
                "message": failure.message,
                "host": failure.host,
                "exit_code": failure.exit_code,
                "detail": failure.detail,
                "stdout": failure.stdout,
                "stderr": failure.stderr,
                "root": task_name(failure.root) if failure.root else "",
            },
        }
    )
