"""A session that is open: its study core, its store, and who is connected to it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.errors import SessionError
from pilot_hitl.hub import counts
from pilot_hitl.hub.counts import gaps
from pilot_hitl.hub.gatekeeper import Gatekeeper
from pilot_hitl.hub.inherited import explained
from pilot_hitl.hub.keyindex import KEY_BYTES, KeyIndex
from pilot_hitl.hub.kinds import Kinds
from pilot_hitl.hub.outside import Outside
from pilot_hitl.hub.peers import Agent, Client
from pilot_hitl.hub.reuse import Reuse
from pilot_hitl.hub.store import OutcomeRow, Store, encode_failure
from pilot_hitl.inbox import forms
from pilot_hitl.model.conditions import Term, holds
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import NUMBER_MASK, RUN_BITS
from pilot_hitl.model.states import PilotState, State, Truth
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.core import StudyCore
from pilot_hitl.study.recovery import GRACE
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.codec import FrameError, pack_bodies, unpack_bodies
from pilot_hitl.wire.outputs import bare

if TYPE_CHECKING:
    from pilot_hitl.model.descriptions import PilotDescription
    from pilot_hitl.study.bulk import Bulk
    from pilot_hitl.wire.places import SessionPlaces

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_spec = msgspec.msgpack.Decoder(m.Submit)
_result = msgspec.msgpack.Decoder(ExecutableResult)
_terms = msgspec.msgpack.Decoder(list[Term])
NO_CORES = ""
RETIRE = 256
"""Bulks that end before the core forgets them: what follows upon a result often asks for it once more."""
TEMPLATES = 256
"""Templates that are kept in memory; the others are read from the file."""
MANY_ROWS = 64
"""A commit of so many rows means that results stream in; then the next one waits, to take more of them at once."""
GROUP_COMMIT = 0.004
"""Seconds between the commits of a stream, or of results that nobody answers with new work."""
DEEP = 256
DEEP_COMMIT = 0.010
"""The same while so many tasks are unfinished: a result's few milliseconds are nothing beside the queue before it."""
ACKNOWLEDGE_AFTER = 0.05
"""Seconds after which an agent is told what is on disk, when there is nothing else to tell it."""


class PilotRecord:
    """What the hub knows of one pilot beside the core: its description, process and owner.

    Attributes:
        canceled: somebody asked for its end, other than by leaving the session.
        job: its id in the batch system, empty for a local pilot and until it has one.
        lineage: number of the first pilot of the row in which it succeeds others; its own when it succeeds none.
        successor: number of the pilot that renews it, 0 for none.
    """

    def __init__(self, number: int, description: PilotDescription, incarnation: int, *, keep: bool) -> None:
        """Start NEW."""
        self.number = number
        self.description = description
        self.incarnation = incarnation
        self.keep = keep
        self.token = 0
        self.state = PilotState.NEW
        self.message = ""
        self.began = steady()
        self.ended = 0.0
        self.pid = 0
        self.term = 0
        """Of the agent that was heard last; one of an earlier term is not heard any more."""
        self.starts: list[float] = []
        self.stopping = False
        self.canceled = False
        self.job = ""
        self.lineage = number
        self.successor = 0
        self.environment: dict[str, str] = {}
        self.cwd = ""
        self.sys_path: list[str] = []
        self.flags: list[str] = []
        self.umask = 0o022


class LiveSession:
    """Executes what the study core wants: forwards at once, writes, and tells results after they are written."""

    def __init__(self, places: SessionPlaces, host: str) -> None:
        """Open the session's file and rebuild the core from it.

        Raises:
            SessionBusy, SessionError: see :class:`~pilot_hitl.hub.store.Store`.
        """
        self.places = places
        self.name = places.name
        self.store = Store(places.database, host)
        self.outside = Outside(self.store)
        # Attempts of an owner that died before it wrote them must not be numbered again.
        self.core = StudyCore(forms.matches, self.store.epoch - 1 << RUN_BITS, self._recorded)
        self._keys = KeyIndex(self.store, places.folder)
        self.gates = Gatekeeper(self)
        self.reuse = Reuse(self)
        self.clients: list[Client] = []
        self.agents: dict[int, Agent] = {}
        self.pilots: dict[int, PilotRecord] = {}
        self.draining = False
        self.opening = True  # Whoever opens it is not a client yet, and it must not be closed for want of one.
        self.opened_at = time.time()
        self.commit_due: float | None = None
        self.commit_after = 0.0
        self.unwritten = ""
        """Why nothing can be written, in words; empty while it can."""
        self.retry_at = 0.0
        self.once_written: list[Callable[[], None]] = []
        """What is to be done after the next commit."""
        self._streaming = self._submitted = False
        self._bodies: dict[int, bytes] = {}
        self._split: dict[int, list[bytes]] = {}
        self._submits: dict[int, m.Submit] = {}
        self._over: dict[int, Bulk] = {}
        """Bulks that ended since the last were retired."""
        self._templates: dict[int, bytes] = {}
        self._unpublished: dict[int, OutcomeRow] = {}
        """What agents were asked to put in place."""
        self._published: OutcomeRow | None = None
        self._reporter = 0
        self._inherited: tuple[int, bytes | None] = (0, None)
        self._reserved: dict[int, do.KeepReservation] = {}
        self.kinds = Kinds()
        self.replica_tasks: set[int] = set()
        self.replica_ends: list[do.Record] = []
        """Ends of replicas' tasks, for the keeper of services."""
        self.resolved: list[int] = []
        """Conditions that were decided, for the same."""
        self._handlers: dict[type[do.Instruction], Callable[..., None]] = {
            do.Dispatch: self._dispatch,
            do.RunApart: self._run_apart,
            do.RecoveryEnded: self._recovery_ended,
            do.TellCondition: self._tell_condition,
            do.EndAttempts: self._end_attempts,
            do.Record: self._record,
            do.Reuse: self._reuse,
            do.Release: self._release,
            do.Publish: self._publish,
            do.Resolve: self._resolve,
            do.DefinedCondition: self._defined,
            do.SaveCheckpoint: self.gates.save,
            do.RefuseAnswer: self.gates.refuse,
            do.KeepReservation: self._keep_reservation,
            do.Judged: self._judged,
        }
        self._restore()

    # --- the core -----------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        """Let the core take an event and do what it wants."""
        handlers = self._handlers
        for instruction in self.core.step(event, time.time()):
            handlers[type(instruction)](instruction)

    def _restore(self) -> None:
        """Rebuild the core from the file. Unfinished tasks sleep until somebody wants them."""
        self.core.adoption.repeats = counts.of_kept(self.store.meta(counts.KEPT))
        self._repeats = self.core.adoption.repeats.total()
        names: dict[int, list[int]] = {}
        for name, number in self.store.rows("SELECT name, number FROM condition_name"):
            names.setdefault(number, []).append(name)
        self.gates.restore_checkpoints(before_conditions=True)
        for number, terms, probability, truth in self.store.rows("SELECT * FROM condition ORDER BY number"):
            for name in [*names.get(number, []), 0] if number in names else [0]:
                self.feed_quietly(
                    ev.RestoreCondition(name, tuple(_terms.decode(terms)), Truth(truth), probability, number)
                )
        for ended in self.store.ended():
            self.core.tasks.ended.restore(ended)
        unpublished = self.store.unpublished()
        bulks = "SELECT first, count, condition, spec FROM bulk WHERE first>=? AND first<? ORDER BY first"
        for gap in gaps(self.core.tasks.ended):
            for row in self.store.rows(bulks, gap):
                self._restore_bulk(unpublished, *row)
        self._retire(0)
        for event in self.outside.restored():
            self.feed_quietly(event)
        self.gates.restore_checkpoints(before_conditions=False)
        self.feed_quietly(ev.UsePolicy(self.store.meta("policy") or ""))

    def _restore_bulk(self, unpublished: list[int], first: int, count: int, condition: int, spec: bytes) -> None:
        submit = self._submits[first] = _spec.decode(spec)
        recorded = self._states(first, count)
        left = tuple(task for task in unpublished if first <= task < first + count)
        states = self._effective(recorded, condition, [task - first for task in left])
        for at in (at for at in range(count) if states[at] != recorded[at]) if states != recorded else ():
            # It was decided, and not yet written what became of it.
            if (row := self.store.outcome(first + at)) is not None:
                self.store.put_outcome(msgspec.structs.replace(row, state=states[at]))
        self.feed_quietly(ev.RestoreTasks(submit_event(submit, (), condition, self._kind_of(submit)), states, left))
        bulk = self.core.tasks.find(first)
        if bulk is not None and not bulk.live:
            self._over[first] = bulk

    def _states(self, first: int, count: int) -> bytearray:
        states = bytearray(count)
        for task, state in self.store.states(first, count):
            states[task - first] = state
        return states

    def _recorded(self, task: int) -> ev.RestoreTasks | None:
        """Return the bulk of a task that was retired."""
        found = self.store.bulk_of(task)
        if found is None:
            return None
        first, count, condition, spec = found
        submit = _spec.decode(spec)
        tasks = submit_event(submit, (), condition, self._kind_of(submit))
        return ev.RestoreTasks(tasks, bytes(self._states(first, count)))

    def _retire(self, least: int) -> None:
        """Let the core forget what has ended and is on disk, when that is so many bulks that it is worth it."""
        tasks = self.core.tasks
        if not self._over or len(self._over) < max(least, len(tasks) // 8 if least else 0):
            return
        tasks.retire(self._over.values())
        for first in self._over:
            if first in tasks.ended:
                self._submits.pop(first, None)
                self._forget_bodies(first)
        self._over.clear()
        self.store.put_ended(tasks.ended)

    def use_policy(self, policy: str) -> None:
        """Speculate by this policy from now on, also after the session was opened again; empty: by the present one."""
        if policy:
            self.store.put("meta", "policy", policy)
        self.feed(ev.UsePolicy(policy))

    def feed_quietly(self, event: ev.Event) -> None:
        """Let the core take an event whose effects are written already."""
        self.core.step(event, time.time())

    def _effective(self, states: bytearray, condition: int, unpublished: Sequence[int]) -> bytes:
        truth = self.core.conditions.numbered(condition).truth
        if truth is Truth.TRUE:
            states = states.replace(bytes((State.HELD,)), bytes((State.DONE,)))
            for at in unpublished:
                states[at] = State.HELD
            return bytes(states)
        if truth is Truth.FALSE:
            held = states.replace(bytes((State.HELD,)), bytes((State.DISCARDED,)))
            return bytes(held.replace(bytes((State.HELD_FAILED,)), bytes((State.DISCARDED,))))
        return bytes(states)

    # --- what clients want --------------------------------------------------------------------------------------------

    def submit(self, submit: m.Submit, *, resent: bool = False) -> None:
        """Take a bulk: forwarded at once, on disk with the next commit. ``resent``: an earlier hub was sent it as well.

        Raises:
            SessionError: its keys are not one a task.
        """
        if submit.keys and len(submit.keys) != KEY_BYTES * submit.count:
            raise SessionError(f"{len(submit.keys)} bytes of keys for {submit.count} tasks")
        if self.core.tasks.find(submit.first) is not None:
            return
        self._submitted = True
        bodies, keys = submit.bodies, submit.keys
        self._bodies[submit.first] = bodies
        sources = self.reuse.sources(submit) if keys else ()
        event = submit_event(submit, sources, submit.condition, self._kind_of(submit), resent=resent)
        self._submits[submit.first] = lean = msgspec.structs.replace(submit, bodies=b"", keys=b"", notes=b"")
        self.feed(event)
        bulk = self.core.tasks.find(submit.first)
        condition = bulk.condition.number if bulk else 0
        row = (submit.first, submit.count, submit.template, condition, time.time(), _encode(lean), keys, bodies)
        self.store.put("bulk", *row)
        if keys:
            self._keys.note(submit.first)
        if submit.notes:
            self.store.put("note", submit.first, submit.notes)
        if bulk is not None and not bulk.live:
            self._forget_bodies(submit.first)

    @property
    def resumed(self) -> int:
        """Ended tasks that it holds."""
        tasks = self.core.tasks
        return sum(ended.count for ended in tasks.ended) + sum(bulk.count - bulk.live for bulk in tasks)

    def submit_of(self, task: int) -> m.Submit | None:
        """Return how a task was submitted, without what is its own; None for an unknown task."""
        bulk = self.core.tasks.find(task)
        return None if bulk is None else self._submit_of(bulk.first)

    def templates_before(self, first: int) -> set[tuple[int, int]]:
        """Return ``(kind, template)`` of all that was submitted under ids below this one."""
        found = {
            template for (template,) in self.store.rows("SELECT DISTINCT template FROM bulk WHERE first<?", (first,))
        }
        found.update(submit.template for at, submit in self._submits.items() if at < first)
        return {(self.kinds.of(each, partial(self.template_blob, each)), each) for each in found}

    def earlier(self, first: int, keys: bytes) -> dict[int, int]:
        """Return by offset what other incarnations have under the keys of tasks that are to come."""
        return self.core.adoption.best(self._keys.sources(first, keys))

    def key_of(self, task: int) -> bytes:
        """Return a task's resume key; for one without a key its id, which no other run of a script will have."""
        return self.store.key_at(task) or task.to_bytes(KEY_BYTES, "big")

    def define(self, put: m.PutCondition) -> None:
        """Take a condition; terms name checkpoints by the client's handles.

        Raises:
            SessionError: a term cannot be looked at, so that nothing could tell whether it holds.
        """
        for term in put.terms:
            try:
                json.loads(term.operand)
                holds(term, "null", forms.matches)
            except (ValueError, TypeError, RecursionError) as error:
                raise SessionError(f"a term of condition {put.condition} is not made of JSON: {error}") from error
        terms = tuple(Term(self.gates.number_of(t.checkpoint), t.test, t.operand) for t in put.terms)
        self.feed(ev.DefineCondition(put.condition, terms, put.probability))

    def template(self, put: m.PutTemplate) -> None:
        """Take a template."""
        self.store.put("template", put.template, put.blob)
        self._templates[put.template] = put.blob

    def _kind_of(self, submit: m.Submit) -> int:
        return self.kinds.of(submit.template, lambda: self.template_blob(submit.template))

    def template_blob(self, template: int) -> bytes:
        """Return a template, from memory or from the file; empty when there is none."""
        blob = self._templates.get(template)
        if blob is None:
            rows = list(self.store.rows("SELECT blob FROM template WHERE id=?", (template,)))
            blob = self._templates[template] = rows[0][0] if rows else b""
        return blob

    def fetch(self, client: Client, runs: Sequence[tuple[int, int]]) -> None:
        """Tell a client the outcomes that are there already."""
        for first, count in runs:
            for bulk, offset, length in self.core.tasks.overlapping(first, count):
                for at in range(offset, offset + length):
                    state = State(bulk.states[at])
                    if state.final:
                        self._tell_outcome(client, bulk.first + at, state)

    # --- what agents say ----------------------------------------------------------------------------------------------

    def reports(self, agent: Agent, message: m.Reports) -> None:
        """Take reports; they are acknowledged after the commit that holds them."""
        agent.reported = max(agent.reported, message.sequence)
        self.left_behind(agent.pilot, message.reports)

    def left_behind(self, pilot: int, reports: Sequence[m.Report]) -> None:
        """Take reports of a pilot that nobody waits to hear acknowledged."""
        self._reporter = pilot
        # Before what follows from them: what is given back may be sent again at once.
        self.outside.heard(reports)
        self.feed(ev.Reported(reports))
        self._reporter = 0

    # --- instructions -------------------------------------------------------------------------------------------------

    def _dispatch(self, order: do.Dispatch) -> None:
        agent = self.agents.get(order.pilot)
        bulk = self.core.tasks.find(order.first)
        if agent is None or bulk is None:
            _log.warning("dispatch of %d tasks to pilot %d without an agent", order.count, order.pilot)
            return
        submit = self._submit_of(bulk.first)
        if submit.effects_outside:
            self.outside.sent(order)
        self._tell_template(agent, submit.template)
        inputs = [(dep, bare(row.payload)) for dep in submit.deps if (row := self.store.outcome(dep)) is not None]
        agent.tell(
            m.Dispatch(
                order.first,
                order.count,
                submit.template,
                submit.shape,
                order.epoch,
                order.run,
                self._bodies_of(bulk.first, order.first - bulk.first, order.count, bulk.count),
                submit.priority,
                submit.backfill,
                order.condition,
                inputs,
                submit.service,
                self._kind_of(submit),
                submit.parent,
                order.kept,
            )
        )

    def _submit_of(self, first: int) -> m.Submit:
        submit = self._submits.get(first)
        if submit is None:
            found = self.store.bulk_of(first)
            assert found is not None  # a bulk is forgotten here only once it is on disk
            submit = _spec.decode(found[3])
        return submit

    def _run_apart(self, order: do.RunApart) -> None:
        if agent := self.agents.get(order.pilot):
            agent.tell(m.RunApart(list(order.tasks)))

    def _tell_template(self, agent: Agent, template: int) -> None:
        if template not in agent.templates:
            agent.templates.add(template)
            agent.tell(m.AgentTemplate(template, self.template_blob(template)))

    def _bodies_of(self, first: int, offset: int, count: int, whole: int) -> bytes:
        blob = self._bodies.get(first)
        if blob is None:
            blob = self._bodies[first] = self.store.bodies(first) or pack_bodies([b""] * whole)
        if count == whole:
            return blob
        split = self._split.get(first)
        if split is None:
            try:
                split = unpack_bodies(blob)
            except FrameError:
                split = []
            split += [b""] * (whole - len(split))
            self._split[first] = split
        return pack_bodies(split[offset : offset + count])

    def _forget_bodies(self, first: int) -> None:
        self._bodies.pop(first, None)
        self._split.pop(first, None)

    def _tell_condition(self, order: do.TellCondition) -> None:
        if agent := self.agents.get(order.pilot):
            agent.tell(m.AgentCondition(order.condition, order.truth, order.score, order.kinds))

    def _judged(self, order: do.Judged) -> None:
        entry = {"event": "judged", "condition": order.condition, "kind": self.kinds.name(order.kind)}
        self.store.put("event", time.time(), json.dumps(entry | {"score": order.score, "reason": order.reason}))

    def _end_attempts(self, order: do.EndAttempts) -> None:
        if agent := self.agents.get(order.pilot):
            agent.tell(m.CancelAttempts(list(order.runs), order.reason))

    def _keep_reservation(self, order: do.KeepReservation) -> None:
        if order.resources is None:
            self._reserved.pop(order.checkpoint, None)
        else:
            self._reserved[order.checkpoint] = order
        self._tell_reservation(order)

    def _tell_reservation(self, order: do.KeepReservation) -> None:
        if agent := self.agents.get(order.pilot):
            conditions = self.core.conditions.naming(order.checkpoint)
            agent.tell(m.Reserve(order.checkpoint, order.resources, conditions, order.lend))

    def _record(self, order: do.Record) -> None:
        report = order.report
        failure = self._failure_of(order)
        if isinstance(report, m.Report):
            cores = ",".join(map(str, report.core_set))
            row = OutcomeRow(
                order.task,
                int(order.state),
                report.epoch,
                report.run,
                report.began,
                report.ended,
                self._reporter,
                report.node,
                cores,
                0,
                failure,
                report.payload,
                report.unpublished,
            )
        elif (row_of := self._published) is not None and row_of.task == order.task:
            row = msgspec.structs.replace(row_of, state=int(order.state), failure=failure, unpublished="")
        else:
            now = time.time()
            row = OutcomeRow(order.task, int(order.state), 0, 0, now, now, 0, 0, NO_CORES, 0, failure, b"")
        self.store.put_outcome(row)
        self._ended(order.task, order.state, row)
        if order.task in self.replica_tasks and order.state.final:
            self.replica_ends.append(order)

    def _failure_of(self, order: do.Record) -> bytes | None:
        """Return a failure as it is written; an inherited one names the task that failed first, and its error."""
        failure = order.failure
        if failure is None or failure.cause is not Cause.DEPENDENCY or not failure.root:
            return encode_failure(failure)
        root = failure.root
        if self._inherited[0] != root:
            row, bulk = self.store.outcome(root), self.core.tasks.find(root)
            if row is not None and bulk is not None:
                failure = explained(failure, row, self.kinds.name(bulk.kind))
            # The tasks of a bulk inherit the same; a chain's each that of the one before, where it was just written.
            self._inherited = (root, encode_failure(failure))
        return self._inherited[1]

    def _reuse(self, order: do.Reuse) -> None:
        source = self.store.outcome(order.source)
        if source is None:
            failure = Failure(Cause.PAYLOAD, "the earlier result is gone from the session's file")
            self._record(do.Record(order.task, State.FAILED, None, failure))
            return
        self.reuse.took(order.task, order.state)
        row = msgspec.structs.replace(source, task=order.task, state=int(order.state), reused=1)
        self.store.put_outcome(row)
        self._ended(order.task, order.state, row)

    def _release(self, order: do.Release) -> None:
        for task in order.tasks:
            row = self.store.outcome(task)
            if row is not None:
                row = msgspec.structs.replace(row, state=int(order.state))
                self.store.put_outcome(row)
                self._ended(task, order.state, row)

    def _ended(self, task: int, state: State, row: OutcomeRow) -> None:
        if not state.final:
            if state is State.HELD:
                self._tell_held(task, row)
            return
        incarnation = task >> 32
        for client in self.clients:
            if client.incarnation == incarnation:
                client.outcomes.append(row.outcome(state))
                if client.watched:
                    client.watched.discard(task)
        bulk = self.core.tasks.find(task)
        if bulk is not None and not bulk.live:
            self._forget_bodies(bulk.first)
            self._over[bulk.first] = bulk

    def _tell_held(self, task: int, row: OutcomeRow) -> None:
        # Who goes on with a value might look for what came with it, which is not in place yet.
        for client in self.clients if not row.unpublished else ():
            if client.incarnation == task >> 32 and task in client.watched:
                client.held.append(row.outcome(State.HELD))

    def watch(self, client: Client, runs: Sequence[tuple[int, int]]) -> None:
        """Tell a client values of these tasks also while they only count under a condition."""
        for first, count in runs:
            for bulk, offset, length in self.core.tasks.overlapping(first, count):
                for at in range(offset, offset + length):
                    task = bulk.first + at
                    client.watched.add(task)
                    if bulk.states[at] != State.HELD or task in self.core.unpublished:
                        continue
                    if (row := self.store.outcome(task)) is not None:
                        client.held.append(row.outcome(State.HELD))

    def _tell_outcome(self, client: Client, task: int, state: State) -> None:
        row = self.store.outcome(task)
        if row is not None:
            client.outcomes.append(row.outcome(state))

    # --- outside effects of committed attempts ------------------------------------------------------------------------

    def _publish(self, order: do.Publish) -> None:
        """Let agents put in place what tasks left; what ended last comes last, so that of two files its one stays."""
        rows = [row for task in order.tasks if (row := self.store.outcome(task)) is not None]
        self._unpublished.update((row.task, row) for row in sorted(rows, key=lambda row: row.ended))
        for row in sorted(rows, key=lambda row: row.ended):
            self._ask_to_publish(row)

    def _ask_to_publish(self, row: OutcomeRow) -> None:
        agent = self.agents.get(row.pilot)
        if agent is None and not self.core.recovery.missing:  # One that is missing may be at it.
            agent = next(iter(self.agents.values()), None)
        bulk = self.core.tasks.find(row.task)
        if agent is None or bulk is None:
            return
        submit = self._submit_of(bulk.first)
        self._tell_template(agent, submit.template)
        body = b""
        if submit.template not in self.kinds.functions:
            body = unpack_bodies(self._bodies_of(bulk.first, row.task - bulk.first, 1, bulk.count))[0]
        agent.tell(m.Publish(row.task, row.epoch, row.run, submit.template, body, row.unpublished))

    def publish_waiting(self) -> None:
        """Ask again for what no agent did yet; call it when an agent came."""
        for row in self._unpublished.values():
            self._ask_to_publish(row)

    def _recovery_ended(self, order: do.RecoveryEnded) -> None:
        for number in order.missing:
            _log.warning("session %s: %s", self.name, unreachable(number))
            self.store.put("event", time.time(), json.dumps({"event": "missing", "pilot": number}))
            if (pilot := self.pilots.get(number)) is not None:
                pilot.message = unreachable(number)
                self.save_pilot(pilot)
        self.publish_waiting()

    def published(self, message: m.Published) -> None:
        """Let a task count whose files are in place now, or fail because they could not be put there."""
        row = self._unpublished.pop(message.task, None)
        if row is None:
            return
        failure = None
        if not message.ok:
            why = f"its outputs could not be put in place after the commit: {message.message}"
            failure = Failure(Cause.SETUP, why)
        self._published = _with_outputs(row, message)
        self.feed(ev.Published(message.task, failure))
        self._published = None

    def _resolve(self, order: do.Resolve) -> None:
        self._write_condition(order.condition)
        self.resolved.append(order.condition)

    def _defined(self, order: do.DefinedCondition) -> None:
        self._write_condition(order.condition)
        for term in self.core.conditions.numbered(order.condition).terms if self._reserved else ():
            if (reservation := self._reserved.get(term.checkpoint & NUMBER_MASK)) is not None:
                self._tell_reservation(reservation)
        if order.name:
            self.store.put("condition_name", order.name, order.condition)

    def _write_condition(self, number: int) -> None:
        condition = self.core.conditions.numbered(number)
        terms = _encode(sorted(condition.terms, key=lambda t: (t.checkpoint, t.test, t.operand)))
        self.store.put("condition", number, terms, condition.probability, int(condition.truth))

    # --- pilots -------------------------------------------------------------------------------------------------------

    def save_pilot(self, pilot: PilotRecord) -> None:
        """Write a pilot's state and tell the clients."""
        self.put_pilot(pilot)
        for client in self.clients:
            self.tell_pilot(client, pilot)

    def put_pilot(self, pilot: PilotRecord) -> None:
        """Write a pilot's state with the next commit."""
        row = (pilot.number, _encode(pilot.description), int(pilot.state), pilot.message, pilot.began, pilot.ended)
        self.store.put("pilot", *row, pilot.incarnation, int(pilot.keep), pilot.token)
        if pilot.job or pilot.lineage != pilot.number or pilot.successor:
            self.store.put("job", pilot.number, pilot.job, pilot.lineage, pilot.successor)

    def tell_pilot(self, client: Client, pilot: PilotRecord) -> None:
        """Tell a client a pilot's state."""
        core = self.core.pilots.get(pilot.number)
        nodes = list(core.nodes) if core else []
        token = pilot.token if client.incarnation == pilot.incarnation else 0
        client.tell(m.PilotUpdate(token, pilot.number, pilot.state, pilot.message, nodes))

    def new_pilot(self, description: PilotDescription, client: Client) -> PilotRecord:
        """Make the record of a pilot that was asked for."""
        keep = client.on_exit == "detach" or client.role == "tool"
        pilot = PilotRecord(self._pilot_number(), description, client.incarnation, keep=keep)
        self.pilots[pilot.number] = pilot
        self.feed(ev.PilotAsked(pilot.number, site=description.site))
        return pilot

    def new_successor(self, before: PilotRecord) -> PilotRecord:
        """Make the record of the pilot that renews one; what is pinned to that one may run on it."""
        pilot = PilotRecord(self._pilot_number(), before.description, before.incarnation, keep=before.keep)
        pilot.lineage, before.successor = before.lineage, pilot.number
        pilot.environment, pilot.cwd, pilot.sys_path = before.environment, before.cwd, before.sys_path
        pilot.flags, pilot.umask = before.flags, before.umask
        self.pilots[pilot.number] = pilot
        self.feed(ev.PilotAsked(pilot.number, pilot.lineage, pilot.description.site))
        return pilot

    def _pilot_number(self) -> int:
        highest = next(self.store.rows("SELECT coalesce(max(number),0) FROM pilot"))[0]
        return max([highest, *self.pilots], default=0) + 1

    @property
    def work(self) -> int:
        """Tasks without a final state that somebody wants; replicas of services are not among them."""
        ended = self.core.tasks.ended
        states = (self.core.tasks.find(task) for task in self.replica_tasks if task not in ended)
        return self.core.live - sum(1 for bulk in states if bulk is not None and bulk.live and not bulk.asleep)

    @property
    def active_pilots(self) -> list[PilotRecord]:
        """Pilots that have not ended."""
        return [pilot for pilot in self.pilots.values() if not pilot.state.final]

    @property
    def owners(self) -> list[Client]:
        """Clients that submit."""
        return [client for client in self.clients if client.role == "owner"]

    # --- commits ------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write what gathered and release what waited for it."""
        if (repeats := self.core.adoption.repeats.total()) != self._repeats:
            self._repeats = repeats
            self.store.put("meta", counts.KEPT, counts.kept(self.core.adoption.repeats))
        rows = self.store.commit()
        self.outside.unwritten = False
        now = steady()
        self.commit_due = None
        self._retire(RETIRE)
        if len(self._templates) > TEMPLATES:
            self._templates.clear()
        self.commit_after = now + (GROUP_COMMIT if self.core.live < DEEP else DEEP_COMMIT)
        self._streaming = rows >= MANY_ROWS
        self._submitted = False
        written, self.once_written = self.once_written, []
        for do_it in written:
            do_it()
        self.gates.committed()
        for client in self.clients:
            if client.frames > client.acknowledged:
                client.acknowledged = client.frames
                client.tell(m.Acknowledged(client.frames))
            client.tell(*(m.Flushed(token) for token in client.flushes))
            client.flushes.clear()
        for agent in self.agents.values():
            if agent.reported > agent.durable:
                agent.acknowledge_at = now + ACKNOWLEDGE_AFTER
                agent.durable = agent.reported

    @property
    def commit_wanted(self) -> float:
        """When to commit for those who wait: at once for who calls and waits, call by call; a stream may gather."""
        return self.commit_after if self._streaming or not self._submitted else 0.0

    @property
    def commits_first(self) -> bool:
        """Whether something must be on disk before an agent hears of it."""
        return self.gates.waiting or self.outside.unwritten

    @property
    def must_commit(self) -> bool:
        """Whether somebody waits for the next commit."""
        return self.commits_first or any(
            client.outcomes or client.held or client.outbox or client.flushes for client in self.clients
        )

    def close(self) -> None:
        """Write everything and give the session up."""
        self.gates.close()
        self._keys.close()
        self.store.close()


def unreachable(pilot: int) -> str:
    """Return in words that an agent did not reconnect to a new hub."""
    return f"the agent of pilot {pilot} did not reconnect within {GRACE:g} s: its tasks may run on other pilots"


def _with_outputs(row: OutcomeRow, message: m.Published) -> OutcomeRow:
    """Return an outcome that says where things are now: the same as if the task had been needed from the start."""
    if not message.ok or not (message.outputs or message.sandbox):
        return row
    result = _result.decode(row.payload)
    result = msgspec.structs.replace(result, outputs=message.outputs, sandbox=message.sandbox or result.sandbox)
    return msgspec.structs.replace(row, payload=_encode(result))


def submit_event(
    submit: m.Submit, sources: tuple[tuple[int, int], ...], condition: int, kind: int, *, resent: bool = False
) -> ev.SubmitTasks:
    """Return the core's event for a bulk; ``sources``: what has the resume keys of its tasks."""
    return ev.SubmitTasks(
        first=submit.first,
        count=submit.count,
        shape=submit.shape,
        sources=sources,
        priority=submit.priority,
        backfill=submit.backfill,
        pilot=submit.pilot,
        retries=submit.retries,
        outside=submit.effects_outside,
        deps=tuple(submit.deps),
        condition=condition,
        service=submit.service,
        parent=submit.parent,
        kind=kind,
        site=submit.site,
        keeps_failures=submit.keeps_failures,
        resent=resent,
    )
