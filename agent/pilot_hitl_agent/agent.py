"""The agent: the shell around the scheduling core.

One loop, no threads: frames of the hub become events of the core, its instructions become messages to the nodes, what
nodes say becomes events again, and what ended is reported to the hub in one frame a turn. Bodies and values pass
through unread.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket as sockets_of_host
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import zmq

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State, Tier, Truth
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate, Template
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.codec import TO_AGENT, FrameError, encode, pack_bodies, unpack_bodies
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.processes import start_time
from pilot_hitl.wire.sockets import dealer, rest_of
from pilot_hitl_agent.accounts import Accounts
from pilot_hitl_agent.core import events as ev
from pilot_hitl_agent.core import instructions as do
from pilot_hitl_agent.core.core import SchedulingCore
from pilot_hitl_agent.jobs import Batch, Jobs
from pilot_hitl_agent.nodes import LiveNode, Node
from pilot_hitl_agent.relay import Frames, Relay, is_relayed

_log = logging.getLogger(__name__)
_template = msgspec.msgpack.Decoder(Template)
_body = msgspec.msgpack.Decoder(ExecutableBody)
WINDOW = 4096
STOP_GRACE = 3.0
"""Seconds that running tasks get when the pilot is told to stop."""
RUNNING_AFTER = 0.02
"""Seconds that a task runs before the hub hears that it runs: most short calls have ended by then."""
STREAM = 16
"""While the agent holds so many tasks, reports gather for :data:`REPORT_GAP` seconds before they leave again."""
REPORT_GAP = 0.002
DEEP = 256
DEEP_GAP = 0.006
"""The same while so many are held: then no core waits for what the hub would send in answer."""
FRAMES_A_TURN = 500
CREDIT = 128
"""Attempts that a node holds ahead for each running one: two packets of short calls, and as many on the way to it."""


class NodeBroken(RuntimeError):
    """A node of this pilot cannot run anything any more."""


class Agent:
    """Schedules everything inside one pilot."""

    def __init__(self, config: PilotConfig, nodes: list[Node]) -> None:
        """Prepare for the nodes of ``config.nodes``, in order."""
        self._config = config
        self._nodes = nodes
        self._live: list[LiveNode] = [cast("LiveNode", node) for node in nodes if hasattr(node, "fileno")]
        self._core = SchedulingCore(credit=CREDIT)
        self._jobs = Jobs(config.nodes)
        self._accounts = Accounts(config.nodes, self._jobs, self._core)
        self._keys = keyring(Path(config.home))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._socket: zmq.Socket[bytes] | None = None
        self._relay = Relay(
            self._context, self._keys, self._poller, lambda task: task in self._jobs.batches, self._send_frames
        )
        self._hub_fd = -1
        self._hub_lost_at: float | None = time.monotonic()
        self._epoch = 0
        self._binding = 0
        self._templates: dict[int, tuple[bytes, Template]] = {}
        self._outside: set[int] = set()
        """Templates whose tasks act outside their sandboxes."""
        self._told: list[set[int]] = [set() for _ in nodes]
        self._mail: list[list[wn.ToNode]] = [[] for _ in nodes]
        self._truths: dict[int, Truth] = {0: Truth.TRUE}
        self._reports: list[m.Report] = []
        self._started: dict[int, tuple[int, int]] = {}
        self._tell_started = 0.0
        self._reported_at = 0.0
        self._unacknowledged: list[m.Reports | m.Spans] = []
        self._sequence = 0
        self._later: dict[int, m.Dispatch] = {}
        self._restoring: dict[int, list[int]] = {}
        self._wait_for_idle: list[int] = []
        self._outbox: list[m.Message] = []
        self._stopping = ""
        self._draining = False
        self._ends_at = time.time() + config.runtime * 60
        self._handlers: dict[type[do.Instruction], Callable[..., None]] = {
            do.Start: self._start,
            do.Ahead: self._ahead,
            do.Retract: lambda x: self._mail[x.node].append(wn.Retract(x.tasks)),
            do.Unchain: lambda x: self._mail[x.node].append(wn.Unchain(x.tasks)),
            do.End: self._end,
            do.Over: self._over,
            do.Return: self._return,
            do.Restored: self._restored,
            do.Note: self._note,
        }
        self._words: dict[type[m.Message], Callable[..., None]] = {
            m.AgentWelcome: self._welcome,
            m.AgentTemplate: self._take_template,
            m.AgentCondition: self._take_condition,
            m.Dispatch: self._dispatch,
            m.CancelAttempts: self._cancel,
            m.Reserve: self._reserve,
            m.AgentAck: self._acknowledged,
            m.AgentQuery: self._query,
            m.AgentStop: self._stop,
            m.Publish: self._publish,
            m.AgentLend: self._lend,
            m.Refused: lambda x: self._stop(m.AgentStop(reason=x.message)),
            m.Reconnect: lambda _x: self._say_hello(),
        }

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until the hub says stop, the walltime ends, or no hub is there for too long."""
        for index, inventory in enumerate(self._config.nodes):
            self._feed(ev.NodeUp(index, inventory))
        self._feed(ev.WalltimeEnds(self._ends_at))
        signals, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGTERM, lambda *_: self._stop(m.AgentStop(reason="it got SIGTERM")))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._poller.register(signals, zmq.POLLIN)
        for node in self._live:
            self._poller.register(node.fileno(), zmq.POLLIN)
        self._connect()
        self._accounts.ready()
        try:
            while not self._finished():
                self._turn(signals)
        finally:
            signal.set_wakeup_fd(-1)
            self._leave()

    def _turn(self, signals: int) -> None:
        said = False
        for ready, _mask in self._poller.poll(self._timeout()):
            if ready is self._socket:
                # Only then: an empty socket costs a system call and an exception to look at.
                said = True
            elif not isinstance(ready, int):
                self._relay.bring_back(ready)
            elif ready == signals:
                os.read(signals, 64)
            elif ready == self._hub_fd:
                self._hub_ended()
            else:
                for node in self._live:
                    if ready == node.fileno():
                        node.on_readable()
        if said:
            self._take_in()
        now = time.monotonic()
        for node in self._live:
            due = node.next_deadline()
            if due is not None and due <= now:
                node.on_timer()
        if time.time() >= self._ends_at and not self._stopping:
            self._stop(m.AgentStop(reason="its walltime is over"))
        self._talk_with_nodes()
        if self._later:
            self._dispatch_later()
        if self._wait_for_idle and self._core.idle:
            self._outbox.extend(m.AgentReply(token, "{}") for token in self._wait_for_idle)
            self._wait_for_idle = []
        self._flush()

    def _timeout(self) -> int:
        now = time.monotonic()
        moments = [now + self._ends_at - time.time()]
        moments += [due for node in self._live if (due := node.next_deadline()) is not None]
        if self._started:
            moments.append(self._tell_started)
        if self._reports:
            moments.append(self._report_due())
        if (due := self._accounts.due()) is not None and self._binding:
            moments.append(due)
        if self._hub_lost_at is not None:
            moments.append(self._hub_lost_at + self._config.hub_timeout)
        return int(max(0.0, min(moments) - now) * 1000 + 0.9)

    def _talk_with_nodes(self) -> None:
        """Pass messages back and forth until nobody has anything to say."""
        quiet = False
        while not quiet:
            quiet = True
            for index, node in enumerate(self._nodes):
                mail = self._mail[index]
                if mail:
                    self._mail[index] = []
                    node.handle(mail)
                said = node.drain()
                if said:
                    quiet = False
                    for message in said:
                        self._hear(message)
            quiet = quiet and not any(self._mail)

    def _finished(self) -> bool:
        if self._hub_lost_at is not None and time.monotonic() - self._hub_lost_at > self._config.hub_timeout:
            self._stopping = "no hub came back"
        broken = next((node.broken for node in self._live if node.broken), "")
        if broken:
            raise NodeBroken(broken)
        if self._draining and not self._jobs.batches:
            self._stopping = self._stopping or "everything is done"
        return bool(self._stopping)

    def _leave(self) -> None:
        self._tell_started = self._reported_at = 0.0
        self._flush()
        self._accounts.closing()
        for index, node in enumerate(self._live):
            last = node.close(STOP_GRACE)
            for message in last:
                if isinstance(message, wn.Changes):
                    self._accounts.hear(index, message.changes, time.time())
        self._tell_spans(final=True)
        self._flush()
        if self._socket is not None:
            self._socket.send(encode([m.AgentBye(self._stopping or "it failed")]))
            self._socket.close(linger=500)
        self._relay.close()
        self._context.term()

    # --- the hub ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(linger=0)
        self._socket = dealer(self._context, self._keys, secrets.token_bytes(8))
        self._socket.connect(self._config.endpoint)
        self._poller.register(self._socket, zmq.POLLIN)
        self._say_hello()

    def _say_hello(self) -> None:
        assert self._socket is not None  # only called once connected
        config = self._config
        pid = os.getpid()
        known = self._jobs.known() + [
            (report.task, report.epoch, report.run)
            for batch in self._unacknowledged
            if isinstance(batch, m.Reports)
            for report in batch.reports
        ]
        host = sockets_of_host.gethostname()
        hello = m.AgentHello(
            config.session,
            config.pilot,
            self._epoch,
            pid,
            start_time(pid),
            host,
            config.nodes,
            self._binding,
            known,
            WINDOW,
        )
        self._socket.send(encode([hello]))

    def _welcome(self, welcome: m.AgentWelcome) -> None:
        if welcome.epoch < self._epoch:
            _log.warning("a hub of epoch %d is older than %d and is not obeyed", welcome.epoch, self._epoch)
            return
        self._epoch, self._binding = welcome.epoch, welcome.binding
        self._hub_lost_at = None
        if self._hub_fd < 0:
            try:
                self._hub_fd = os.pidfd_open(welcome.hub_pid)
                self._poller.register(self._hub_fd, zmq.POLLIN)
            except OSError:
                self._hub_ended()
                return
        self._outbox = [*self._unacknowledged, *self._outbox]

    def _hub_ended(self) -> None:
        _log.warning("the hub is gone; going on without it")
        if self._hub_fd >= 0:
            self._poller.unregister(self._hub_fd)
            os.close(self._hub_fd)
            self._hub_fd = -1
        self._hub_lost_at = time.monotonic()
        # A new hub learns of everything unacknowledged when it says welcome.
        self._outbox = [message for message in self._outbox if not isinstance(message, m.Reports | m.Spans)]
        self._connect()

    def _take_in(self) -> None:
        assert self._socket is not None  # the loop runs connected
        for _ in range(FRAMES_A_TURN):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if is_relayed(frame):
                self._relay.take(frame, rest_of(self._socket))
                continue
            try:
                messages = TO_AGENT.decode(frame)
            except FrameError as error:
                _log.warning("dropped a frame of the hub: %s", error)
                continue
            for message in messages:
                self._words[type(message)](message)

    def _send_frames(self, frames: Frames) -> None:
        if self._socket is not None and self._hub_lost_at is None:
            self._socket.send_multipart(list(frames), copy=False)

    def _flush(self) -> None:
        if self._started and time.monotonic() >= self._tell_started:
            for task, (epoch, run) in self._started.items():
                self._reports.append(m.Report(task, epoch, run, State.RUNNING))
            self._started.clear()
        if self._reports and time.monotonic() >= self._report_due():
            self._reported_at = time.monotonic()
            self._sequence += 1
            reports = m.Reports(self._sequence, self._reports)
            self._reports = []
            self._unacknowledged.append(reports)
            if self._hub_lost_at is None:
                self._outbox.append(reports)
        if self._binding and (due := self._accounts.due()) is not None and due <= time.monotonic():
            self._tell_spans()
        if self._outbox and self._hub_lost_at is None and self._socket is not None:
            self._socket.send(encode(self._outbox))
            self._outbox = []

    def _tell_spans(self, *, final: bool = False) -> None:
        """Let the hub have the ledger up to now."""
        if not self._binding:
            return
        self._sequence += 1
        tell = self._accounts.close if final else self._accounts.spans
        spans = tell(self._sequence, self._binding)
        self._unacknowledged.append(spans)
        if self._hub_lost_at is None:
            self._outbox.append(spans)
        if (faults := self._accounts.faults()) is not None:
            self._outbox.append(faults)

    def _report_due(self) -> float:
        """Return when the reports that gathered may leave: at once, unless they are a stream's."""
        held = len(self._jobs.batches)
        if held < STREAM:
            return 0.0
        return self._reported_at + (REPORT_GAP if held < DEEP else DEEP_GAP)

    def _acknowledged(self, ack: m.AgentAck) -> None:
        self._unacknowledged = [reports for reports in self._unacknowledged if reports.sequence > ack.sequence]

    # --- what the hub says --------------------------------------------------------------------------------------------

    def _take_template(self, message: m.AgentTemplate) -> None:
        template = _template.decode(message.blob)
        self._templates[message.template] = (message.blob, template)
        if template.effects == "outside":
            self._outside.add(message.template)

    def _take_condition(self, message: m.AgentCondition) -> None:
        self._truths[message.condition] = message.truth
        self._accounts.decided(message.condition, message.truth)
        if message.truth is not Truth.UNDECIDED:
            for mail in self._mail:
                mail.append(wn.NodeCondition(message.condition, message.truth is Truth.TRUE))
        self._feed(ev.Condition(message.condition, message.truth, message.score, message.kinds))

    def _dispatch(self, order: m.Dispatch) -> None:
        held = self._jobs.batches
        if any(task in held for task in range(order.first, order.first + order.count)):
            self._dispatch_singly(order)
            return
        bodies = unpack_bodies(order.bodies)
        batch = Batch(
            order.first,
            order.epoch,
            order.run,
            order.template,
            order.shape.ranks,
            order.condition,
            bodies,
            order.inputs,
            Tier.SERVICE if order.service else Tier.BACKFILL if order.backfill else Tier.NEEDED,
            order.shape.exclusive,
        )
        self._jobs.add(batch)
        template = self._templates[order.template][1]
        bulk = ev.Bulk(
            first=order.first,
            count=order.count,
            epoch=order.epoch,
            run=order.run,
            shape=order.shape,
            tier=Tier.SERVICE if order.service else Tier.BACKFILL if order.backfill else Tier.NEEDED,
            priority=order.priority,
            condition=order.condition,
            on_preempt=template.on_preempt,
            grace=template.grace,
            expected_runtime=template.expected_runtime,
            kind=order.kind,
            parent=order.parent,
            kept=order.kept,
        )
        self._feed(ev.Submit([bulk]))

    def _reserve(self, message: m.Reserve) -> None:
        if message.resources is None:
            self._feed(ev.Unreserve(message.checkpoint))
        else:
            self._feed(ev.Reserve(message.checkpoint, message.resources, message.conditions, message.lend))

    def _lend(self, order: m.AgentLend) -> None:
        """Lend a task's cores, or take them back and say when they are all there."""
        batch = self._jobs.batches.get(order.task)
        present = batch is not None and (batch.epoch, batch.run) == (order.epoch, order.run)
        if order.on or not present:
            if present:
                self._feed(ev.Lend(order.task, True))
            self._outbox.append(m.AgentReply(order.token, "{}"))
            return
        self._restoring.setdefault(order.task, []).append(order.token)
        self._feed(ev.Lend(order.task, False))

    def _restored(self, order: do.Restored) -> None:
        for task in order.tasks:
            self._outbox.extend(m.AgentReply(token, "{}") for token in self._restoring.pop(task, ()))

    def _stop(self, message: m.AgentStop) -> None:
        if message.drain:
            self._draining = True
            self._feed(ev.Drain(message.reason))
        else:
            self._stopping = message.reason or "it was told to stop"

    def _publish(self, order: m.Publish) -> None:
        template = self._templates[order.template][1]
        told = m.Published(order.task, ok=True)
        try:
            body = _body.decode(order.body)
            attempt = (order.task, order.epoch, order.run)
            begun = (
                isinstance(template, ExecutableTemplate)
                and bool(self._live)
                and self._live[0].publish(attempt, order.sandbox, template, body)
            )
            if not begun:
                self._outbox.append(told)
        except (ValueError, msgspec.MsgspecError) as error:
            self._outbox.append(m.Published(order.task, ok=False, message=str(error)))

    def _query(self, query: m.AgentQuery) -> None:
        arguments: dict[str, Any] = json.loads(query.arguments)
        reply: dict[str, Any] = {}
        if query.what == "explain":
            explained = self._core.explain(int(arguments["task"]))
            reply = {"explanation": explained.text}
        elif query.what == "processes":
            facts = {"session": self._config.session, "host": sockets_of_host.gethostname()}
            reply = {"processes": [facts | process for node in self._live for process in node.processes()]}
        elif query.what == "idle":
            self._wait_for_idle.append(query.token)
            return
        self._outbox.append(m.AgentReply(query.token, json.dumps(reply)))

    # --- the core -----------------------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        handlers = self._handlers
        now = time.time()
        instructions = self._core.step(event, now)
        self._accounts.looked(now)
        for instruction in instructions:
            handlers[type(instruction)](instruction)

    def _start(self, order: do.Start) -> None:
        self._accounts.placed(order.node, order.placed, time.time())
        launches = []
        for placed in order.placed:
            self._jobs.place(placed.task, order.node, placed.slots)
            launches.append(self._launch(order.node, placed.task, placed.chain, placed.rank, placed.slots))
        self._mail[order.node].append(wn.Launches(launches))

    def _ahead(self, order: do.Ahead) -> None:
        launches = [self._launch(order.node, task, order.chain, order.rank, ()) for task in order.tasks]
        self._mail[order.node].append(wn.Launches(launches))

    def _launch(self, node: int, task: int, chain: int, rank: tuple[int, int], slots: tuple[Any, ...]) -> wn.Launch:
        batch = self._jobs.batches[task]
        if batch.template not in self._told[node]:
            self._told[node].add(batch.template)
            self._mail[node].append(wn.NodeTemplate(batch.template, self._templates[batch.template][0]))
        undecided = self._truths.get(batch.condition, Truth.UNDECIDED) is Truth.UNDECIDED
        if undecided and self._acts_outside(batch, task):
            self._jobs.unpublished.add(task)
        return wn.Launch(
            task,
            batch.epoch,
            batch.run,
            batch.template,
            chain,
            rank,
            batch.condition if undecided else 0,
            slots,
            batch.bodies[task - batch.first],
            batch.inputs,
            batch.ranks,
        )

    def _acts_outside(self, batch: Batch, task: int) -> bool:
        """Return whether something of a speculative attempt is to be made real after the commit."""
        template = self._templates[batch.template][1]
        if not isinstance(template, ExecutableTemplate):
            return False
        body = _body.decode(batch.bodies[task - batch.first])
        return bool(template.output_staging or body.sandbox)

    def _end(self, order: do.End) -> None:
        ends = [wn.End(task, order.mode, order.grace, order.reason) for task in order.tasks]
        self._mail[order.node].append(wn.Ends(ends))

    def _hear(self, message: wn.FromNode) -> None:
        if isinstance(message, wn.NodeLog):
            self._hear_events(message.events)
            return
        started, jobs = self._started, self._jobs
        if not started:
            self._tell_started = time.monotonic() + RUNNING_AFTER
        for change in message.changes:
            if change.kind is wn.ChangeKind.FINISHED:
                started.pop(change.task, None)
                jobs.end(change)
            elif change.kind is wn.ChangeKind.STARTED:
                started[change.task] = (change.epoch, change.run)
                if self._outside and self._is_outside(change.task):
                    self._tell_started = 0.0
                if change.after:
                    jobs.follow(change.task, change.after)
        self._accounts.hear(message.node, message.changes, time.time())
        self._feed(ev.NodeChanges(message.node, message.changes))
        self._accounts.settle(message.node, time.time())

    def _is_outside(self, task: int) -> bool:
        """Return whether the hub must hear at once that a task runs: it must not run it again."""
        batch = self._jobs.batches.get(task)
        return batch is not None and batch.template in self._outside

    def _hear_events(self, events: list[str]) -> None:
        for event in map(json.loads, events):
            if event.get("event") == "published":
                self._outbox.append(m.Published(event["task"], event["ok"], event["message"]))
        self._outbox.append(m.AgentLog(events))

    def _dispatch_singly(self, order: m.Dispatch) -> None:
        """Let those wait whose earlier attempt is still ending here: the core would give them back at once."""
        for index, body in enumerate(unpack_bodies(order.bodies)):
            single = msgspec.structs.replace(order, first=order.first + index, count=1, bodies=pack_bodies([body]))
            if single.first in self._jobs.batches:
                self._later[single.first] = single
            else:
                self._dispatch(single)

    def _dispatch_later(self) -> None:
        """Take in what waited for an earlier attempt of the same task to end."""
        for task in [task for task in self._later if task not in self._jobs.batches]:
            self._dispatch(self._later.pop(task))

    def _cancel(self, message: m.CancelAttempts) -> None:
        for first, count in message.runs:
            for task in [task for task in self._later if first <= task < first + count]:
                order = self._later.pop(task)
                failure = Failure(Cause.CANCELED, message.reason or "it was canceled")
                self._reports.append(m.Report(task, order.epoch, order.run, State.CANCELED, b"", failure))
        self._feed(ev.Cancel(message.runs, message.reason))

    def _over(self, order: do.Over) -> None:
        over = self._jobs.over
        for task in order.tasks if self._restoring else ():
            self._restoring.pop(task, None)
        self._reports.extend(report for task in order.tasks if (report := over(task)) is not None)

    def _return(self, order: do.Return) -> None:
        for first, count in order.tasks:
            for task in range(first, first + count):
                if self._jobs.has_place(task):
                    self._accounts.gone(task)
                report = self._jobs.give_back(task, order.failure)
                if report is not None:
                    self._reports.append(report)

    def _note(self, note: do.Note) -> None:
        entry = {"what": note.what, "task": note.task, "reason": note.reason, "at": time.time()}
        self._outbox.append(m.AgentLog([json.dumps(entry)]))
