"""The agent: the shell around the scheduling core.

One loop, no threads: frames of the hub become events of the core, its instructions become messages to the nodes, what
nodes say becomes events again, and what ended is reported to the hub in one frame a turn. Bodies and values pass
through unread.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket as sockets_of_host
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import zmq

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.model.states import State, Tier, Truth
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.codec import FrameError, pack_bodies, unpack_bodies
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.processes import start_time
from pilot_hitl_agent.accounts import Accounts
from pilot_hitl_agent.cluster.office import EndsAt, Office
from pilot_hitl_agent.cluster.roster import Answered, Joined, Lost
from pilot_hitl_agent.core import events as ev
from pilot_hitl_agent.core import instructions as do
from pilot_hitl_agent.core.core import SchedulingCore
from pilot_hitl_agent.hublink import HubLink
from pilot_hitl_agent.jobs import Batch, Jobs
from pilot_hitl_agent.layouts import Layouts
from pilot_hitl_agent.nodes import LiveNode, Node
from pilot_hitl_agent.relay import Relay
from pilot_hitl_agent.templates import Templates

_log = logging.getLogger(__name__)
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
LAST_WORDS = 5.0
"""Seconds that the hub gets to write down the last results before a pilot of a batch system ends without its word."""
CREDIT = 128
"""Attempts that a node holds ahead for each running one: two packets of short calls, and as many on the way to it."""

ROUNDS = 64
"""So often nodes are heard at once before the ends of processes, and the hub, are looked at again."""
PINGS = 3
"""Signs of life of a batch job's agent to the hub in one lease; each is answered."""
ANSWER_WITHIN = 2.0
"""Seconds that other nodes get to say what runs there."""


class NodeBroken(RuntimeError):
    """A node of this pilot cannot run anything any more."""


class Agent:
    """Schedules everything inside one pilot."""

    def __init__(self, config: PilotConfig, nodes: dict[int, Node], office: Office | None = None) -> None:
        """Prepare for the nodes of this machine; ``office`` brings those of others.

        Args:
            config: of the pilot.
            nodes: by their index in the pilot.
            office: of the agent of a pilot of a batch system.
        """
        self._config = config
        self._nodes = nodes
        self._office = office
        self._near = dict(nodes)
        self._live = {i: cast("LiveNode", node) for i, node in nodes.items() if hasattr(node, "fileno")}
        self._inventories: dict[int, NodeInventory] = (
            dict(enumerate(config.nodes)) if office is None else {office.node: office.inventory}
        )
        self._core = SchedulingCore(credit=CREDIT, nodes=office.nodes if office else 1, launchers=config.launchers)
        self._jobs = Jobs(self._inventories)
        self._layouts = Layouts(self._jobs, self._inventories, office.addresses if office else {})
        self._accounts = Accounts(self._inventories, self._jobs, self._core)
        self._context: zmq.Context[zmq.Socket[bytes]] = office.context if office else zmq.Context()
        self._poller = zmq.Poller()
        keys = keyring(Path(config.home))
        self._hub = HubLink(self._context, keys, config, self._poller)
        self._relay = Relay(
            self._context, keys, self._poller, lambda task: task in self._jobs.batches, self._hub.send_frames
        )
        self._hub.relayed = self._relay.take
        self._epoch = 0
        self._binding = 0
        self._templates = Templates()
        self._told: dict[int, set[int]] = {node: set() for node in nodes}
        self._mail: dict[int, list[wn.ToNode]] = {}
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
        self._alive_at = 0.0
        self._stopping = ""
        self._draining = False
        self._asked: dict[int, tuple[list[dict[str, Any]], set[int], float]] = {}
        """Questions that wait for other nodes: what is known, who is to answer, until when."""
        self._ends_at = office.ends_at if office else steady() + config.runtime * 60
        self._handlers: dict[type[do.Instruction], Callable[..., None]] = {
            do.Start: self._start,
            do.Ahead: self._ahead,
            do.Retract: lambda x: self._post(x.node, wn.Retract(x.tasks)),
            do.Unchain: lambda x: self._post(x.node, wn.Unchain(x.tasks)),
            do.End: self._end,
            do.Over: self._over,
            do.Return: self._return,
            do.Restored: self._restored,
            do.Note: self._note,
        }
        self._words: dict[type[m.Message], Callable[..., None]] = {
            m.AgentWelcome: self._welcome,
            m.AgentTemplate: lambda x: self._templates.learn(x.template, x.blob),
            m.AgentCondition: self._take_condition,
            m.RunApart: self._run_apart,
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

    def run(self) -> str:
        """Work until the hub says stop, the walltime ends, or no hub is there for too long; return why it ended."""
        for index, inventory in self._inventories.items():
            self._feed(ev.NodeUp(index, inventory))
        self._feed(ev.WalltimeEnds(self._last_moment()))
        signals, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGTERM, lambda *_: self._stop(m.AgentStop(reason="it got SIGTERM")))
        signal.signal(signal.SIGUSR1, lambda *_: self._walltime_is_near())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._poller.register(signals, zmq.POLLIN)
        for node in self._live.values():
            self._poller.register(node.fileno(), zmq.POLLIN)
        if self._office is not None:
            self._office.attach(self._poller)
        for live in self._live.values():
            live.settle()
        self._hub.connect()
        self._see_hub(time.monotonic())
        self._accounts.ready()
        meant = False
        try:
            while not self._finished():
                self._turn(signals)
            meant = True
        finally:
            signal.set_wakeup_fd(-1)
            # Where one of many nodes fails, another agent goes on: nobody is sent away, nothing is said for the pilot.
            if meant or self._office is None:
                self._leave()
        return self._stopping

    def _turn(self, signals: int) -> None:
        said = False
        for ready, _mask in self._poller.poll(self._timeout()):
            if ready == signals:
                os.read(signals, 64)
            elif self._hub.owns(ready):
                # Only then: an empty socket costs a system call and an exception to look at.
                said = self._hub.readable(ready) or said
            elif not isinstance(ready, int):
                # The office's sockets are looked at in any case.
                self._relay.bring_back(ready)
            else:
                for node in self._live.values():
                    if ready == node.fileno():
                        node.on_readable()
        if said:
            self._take_in()
        self._timers(time.monotonic())
        self._talk_with_nodes()
        if self._later:
            self._dispatch_later()
        if self._wait_for_idle and self._core.idle:
            self._outbox.extend(m.AgentReply(token, "{}") for token in self._wait_for_idle)
            self._wait_for_idle = []
        self._flush()

    def _timers(self, now: float) -> None:
        """Do what is due at this moment."""
        if self._office is not None:
            self._happened(self._office.turn(now, hub_heard=self._hub.heard_at))
        self._see_hub(now)
        for node in self._live.values():
            due = node.next_deadline()
            if due is not None and due <= now:
                node.on_timer()
        if steady() >= self._last_moment() and not self._stopping:
            self._stop(m.AgentStop(reason="its walltime is over"))
        if self._asked:
            self._answer_late(now)
        if self._office is not None and now >= self._alive_at:
            self._alive_at = now + self._config.lease / PINGS
            if self._binding:
                self._outbox.append(m.AgentAlive())

    def _timeout(self) -> int:
        if self._mail:
            return 0  # for the nodes, who still have something to say
        now = time.monotonic()
        moments = [now + self._last_moment() - steady()]
        moments += [due for node in self._live.values() if (due := node.next_deadline()) is not None]
        if self._started:
            moments.append(self._tell_started)
        if self._reports:
            moments.append(self._report_due())
        if (due := self._accounts.due()) is not None and self._binding:
            moments.append(due)
        if self._hub.lost_at is not None:
            moments.append(self._hub.lost_at + self._config.hub_timeout)
        if (due := self._hub.next_deadline()) is not None:
            moments.append(due)
        if self._office is not None:
            moments += [self._office.next_deadline(), self._alive_at]
        moments += [until for _known, _missing, until in self._asked.values()]
        return int(max(0.0, min(moments) - now) * 1000 + 0.9)

    def _see_hub(self, now: float) -> None:
        """Report for duty once the nodes are there, and look for a hub that moved."""
        self._hub.seek()
        if self._hub.fresh and (self._office is None or self._office.complete(now)):
            # A new hub learns of everything unacknowledged when it says welcome.
            self._outbox = [message for message in self._outbox if not isinstance(message, m.Reports | m.Spans)]
            self._say_hello()

    def _last_moment(self) -> float:
        """Return when this pilot stops by itself: in time for its tasks to end before the batch system ends them."""
        return self._ends_at - self._office.margin if self._office else self._ends_at

    def _post(self, node: int, message: wn.ToNode) -> None:
        """Put a message into a node's mail."""
        mail = self._mail.get(node)
        if mail is None:
            self._mail[node] = [message]
        else:
            mail.append(message)

    def _talk_with_nodes(self) -> None:
        """Pass messages back and forth until nobody has anything to say, or it is time to look at the world again."""
        office, nodes = self._office, self._nodes
        for _ in range(ROUNDS):
            posted, self._mail = self._mail, {}
            for index, mail in posted.items():
                node = nodes.get(index)
                if node is not None:
                    node.handle(mail)
            said = [message for node in self._near.values() for message in node.drain()]
            if office is not None:
                said += office.said()
            for message in said:
                self._hear(message)
            if not said and not self._mail:
                return

    def _finished(self) -> bool:
        if self._hub.lost_at is not None and time.monotonic() - self._hub.lost_at > self._config.hub_timeout:
            self._stopping = "no hub came back"
        if self._office is not None and self._office.cut_off:
            self._stopping = "its node is cut off"
        broken = next((node.broken for node in self._live.values() if node.broken), "")
        if broken:
            raise NodeBroken(broken)
        if self._draining and not self._jobs.batches:
            self._stopping = self._stopping or "everything is done"
        return bool(self._stopping)

    def _leave(self) -> None:
        self._tell_started = self._reported_at = 0.0
        self._flush()
        self._accounts.closing()
        office = self._office
        if office is not None and office.cut_off:
            # Others have taken over, or are about to: nothing is said in the pilot's name any more.
            for node in self._live.values():
                node.close(0.0)
            return
        grace = office.grace(self._ends_at) if office else STOP_GRACE
        if office is not None:
            office.dismiss(self._stopping, grace)
        for index, node in self._live.items():
            for message in node.close(grace):
                self._last_word(index, message)
        if office is not None:
            for index, message in office.last_words(grace):
                self._last_word(index, message)
        self._flush_last()
        self._tell_spans(final=True)
        self._flush()
        if office is not None:
            self._wait_for_acknowledgement(office)
        self._hub.send([m.AgentBye(self._stopping or "it failed")])
        self._hub.close()
        self._relay.close()
        if office is not None:
            office.close()
        self._context.term()

    def _last_word(self, node: int, message: wn.FromNode) -> None:
        """Take in what ended with the pilot: what succeeded until then counts."""
        if isinstance(message, wn.Changes):
            self._accounts.hear(node, message.changes, time.time())
            if self._office is not None:
                self._hear_changes(message)
        elif isinstance(message, wn.NodePublished):
            self._hear(message)

    def _flush_last(self) -> None:
        """Report everything that is still held as unfinished."""
        if self._office is None:
            return
        self._feed(ev.Drain(self._stopping or "the pilot ended"))
        self._tell_started = self._reported_at = 0.0
        self._flush()

    def _wait_for_acknowledgement(self, office: Office) -> None:
        """Let the hub write down the last results, or leave them where the next hub finds them."""
        limit = time.monotonic() + min(LAST_WORDS, max(0.5, self._ends_at - steady() - 1.0))
        while self._unacknowledged and self._hub.lost_at is None and (left := limit - time.monotonic()) > 0:
            for ready, _mask in self._poller.poll(int(left * 1000)):
                if self._hub.owns(ready):
                    if self._hub.readable(ready):
                        self._take_in()
                else:
                    # Nobody reads it any more, and it would end every wait at once.
                    self._poller.unregister(ready)
        if self._unacknowledged:
            office.journal(self._epoch, self._binding, self._unacknowledged)

    # --- other nodes --------------------------------------------------------------------------------------------------

    def _happened(self, happenings: Iterable[Joined | Lost | Answered | EndsAt]) -> None:
        for happening in happenings:
            if isinstance(happening, Joined):
                self._joined(happening.node, happening.inventory)
            elif isinstance(happening, Lost):
                for message in happening.said:
                    self._hear(message)
                self._lost(happening.node, happening.reason)
            elif isinstance(happening, Answered):
                self._answered(happening)
            else:
                self._ends_at = happening.at
                self._feed(ev.WalltimeEnds(self._last_moment()))

    def _joined(self, node: int, inventory: NodeInventory) -> None:
        assert self._office is not None  # nobody else has nodes elsewhere
        if node in self._nodes:
            self._lost(node, f"node {inventory.name} has begun anew")
        self._inventories[node] = inventory
        self._nodes[node] = self._office.remote(node)
        self._told[node] = set()
        self._accounts.node_up(node, time.time())
        self._feed(ev.NodeUp(node, inventory))
        self._tell_nodes()

    def _lost(self, node: int, reason: str) -> None:
        if self._nodes.pop(node, None) is None:
            return
        self._mail.pop(node, None)
        self._log_event("node_lost", node=node, name=self._inventories[node].name, reason=reason)
        self._feed(ev.NodeDown(node, reason))
        self._accounts.node_down(node, time.time())
        for _known, missing, _until in self._asked.values():
            missing.discard(node)
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        """Let the hub know what the pilot has now, before anything that follows from it."""
        if self._binding:
            self._outbox.append(m.AgentNodes(self._present()))

    def _present(self) -> list[NodeInventory]:
        return [self._inventories[node] for node in sorted(self._nodes)]

    def _log_event(self, event: str, **facts: Any) -> None:
        self._outbox.append(m.AgentLog([json.dumps({"event": event, "time": time.time(), **facts})]))

    def _walltime_is_near(self) -> None:
        """The batch system warns: see how much time is left, for somebody may have changed it."""
        if self._office is not None:
            self._office.ask_for_end()

    # --- the hub ------------------------------------------------------------------------------------------------------

    def _say_hello(self) -> None:
        config, office = self._config, self._office
        self._hub.fresh = False
        pid = os.getpid()
        known = self._jobs.known() + [
            (report.task, report.epoch, report.run)
            for batch in self._unacknowledged
            if isinstance(batch, m.Reports)
            for report in batch.reports
        ]
        hello = m.AgentHello(
            config.session,
            config.pilot,
            self._epoch,
            pid,
            start_time(pid),
            sockets_of_host.gethostname(),
            self._present(),
            self._binding,
            known,
            WINDOW,
            office.term if office else 0,
            office.job if office else "",
            office.nodes if office else 0,
            [] if self._binding else [task for node in self._live.values() for task in node.ran],
            None if office else [attempt for node in self._live.values() for attempt in node.acted.attempts()],
        )
        self._hub.send([hello])

    def _welcome(self, welcome: m.AgentWelcome) -> None:
        if welcome.epoch < self._epoch:
            _log.warning("a hub of epoch %d is older than %d and is not obeyed", welcome.epoch, self._epoch)
            return
        self._epoch, self._binding = welcome.epoch, welcome.binding
        self._hub.welcome(welcome.hub_pid)
        if self._hub.lost_at is None:
            self._outbox = [*self._unacknowledged, *self._outbox]

    def _take_in(self) -> None:
        for messages in self._hub.frames():
            for message in messages:
                self._words[type(message)](message)

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
            if self._hub.lost_at is None:
                self._outbox.append(reports)
        if self._binding and (due := self._accounts.due()) is not None and due <= time.monotonic():
            self._tell_spans()
        if self._outbox and self._hub.lost_at is None:
            self._hub.send(self._outbox)
            self._outbox = []

    def _tell_spans(self, *, final: bool = False) -> None:
        """Let the hub have the ledger up to now."""
        if not self._binding:
            return
        self._sequence += 1
        tell = self._accounts.close if final else self._accounts.spans
        spans = tell(self._sequence, self._binding)
        self._unacknowledged.append(spans)
        if self._hub.lost_at is None:
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
        for node in self._live.values():
            for each in self._unacknowledged if node.acted else ():
                if each.sequence <= ack.sequence and isinstance(each, m.Reports):
                    node.acted.told(each.reports)
        self._unacknowledged = [reports for reports in self._unacknowledged if reports.sequence > ack.sequence]

    # --- what the hub says --------------------------------------------------------------------------------------------

    def _run_apart(self, message: m.RunApart) -> None:
        for node in self._nodes:
            self._post(node, wn.NodeRunApart(message.tasks))

    def _take_condition(self, message: m.AgentCondition) -> None:
        self._truths[message.condition] = message.truth
        self._accounts.decided(message.condition, message.truth)
        if message.truth is not Truth.UNDECIDED:
            for node in self._nodes:
                self._post(node, wn.NodeCondition(message.condition, message.truth is Truth.TRUE))
        self._feed(ev.Condition(message.condition, message.truth, message.score, message.kinds))

    def _dispatch(self, order: m.Dispatch) -> None:
        bodies = self._bodies(order)
        held = self._jobs.batches
        if any(task in held for task in range(order.first, order.first + len(bodies))):
            self._dispatch_singly(order, bodies)
        elif bodies:
            self._accept(order, bodies)

    def _bodies(self, order: m.Dispatch) -> list[bytes]:
        """Return what each task of an order is given; nothing when they cannot be read, which is reported of each."""
        why, bodies = self._templates.refusal(order.template), []
        try:
            bodies = unpack_bodies(order.bodies)
            if len(bodies) != order.count:
                why = why or f"there are {len(bodies)} arguments for {order.count} tasks"
        except FrameError as error:
            why = why or f"its arguments cannot be read: {error}"
        if not why:
            return bodies
        failure = Failure(Cause.PAYLOAD, why)
        tasks = range(order.first, order.first + order.count)
        self._reports += [m.Report(task, order.epoch, order.run, State.FAILED, b"", failure) for task in tasks]
        return []

    def _accept(self, order: m.Dispatch, bodies: list[bytes]) -> None:
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
        self._layouts.possible = self._layouts.possible or order.shape.ranks > 1
        template = self._templates[order.template]
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
        try:
            template, asked = self._templates.asked(order.template, order.body)
            for node in [*self._live.values()][:1]:
                node.publish((order.task, order.epoch, order.run), order.sandbox, template, asked)
            if not self._live:
                # Nodes that only pretend leave nothing.
                self._outbox.append(m.Published(order.task, ok=True))
        except ValueError as error:
            self._outbox.append(m.Published(order.task, ok=False, message=str(error)))

    def _query(self, query: m.AgentQuery) -> None:
        arguments: dict[str, Any] = json.loads(query.arguments)
        reply: dict[str, Any] = {}
        if query.what == "explain":
            explained = self._core.explain(int(arguments["task"]))
            reply = {"explanation": explained.text}
        elif query.what == "standstill":
            runs = [(int(first), int(count)) for first, count in arguments["tasks"]]
            reply = msgspec.to_builtins(self._core.standstill(runs))
        elif query.what == "processes":
            found = [process for node in self._live.values() for process in node.processes()]
            self._gather(query.token, self._located(found))
            return
        elif query.what == "idle":
            self._wait_for_idle.append(query.token)
            return
        self._outbox.append(m.AgentReply(query.token, json.dumps(reply)))

    def _located(self, processes: Iterable[dict[str, Any]], host: str = "") -> list[dict[str, Any]]:
        facts = {"session": self._config.session, "host": host or sockets_of_host.gethostname()}
        return [facts | process for process in processes]

    def _gather(self, token: int, known: list[dict[str, Any]]) -> None:
        """Ask the other nodes too, and answer when they have."""
        missing = self._office.ask(token, "processes") if self._office else set()
        if missing:
            self._asked[token] = (known, missing, time.monotonic() + ANSWER_WITHIN)
        else:
            self._outbox.append(m.AgentReply(token, json.dumps({"processes": known})))

    def _answered(self, answer: Answered) -> None:
        known, missing, _until = self._asked.get(answer.token, ([], set(), 0.0))
        if answer.node in missing:
            missing.discard(answer.node)
            known.extend(self._located(json.loads(answer.payload), self._inventories[answer.node].name))

    def _answer_late(self, now: float) -> None:
        for token, (known, missing, until) in list(self._asked.items()):
            if not missing or until <= now:
                del self._asked[token]
                self._outbox.append(m.AgentReply(token, json.dumps({"processes": known})))

    # --- the core -----------------------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        handlers = self._handlers
        instructions = self._core.step(event, steady())
        self._accounts.looked(time.time())
        if self._layouts.possible:
            self._layouts.learn(instructions)
        for instruction in instructions:
            handlers[type(instruction)](instruction)

    def _start(self, order: do.Start) -> None:
        self._accounts.placed(order.node, order.placed, time.time())
        launches = []
        for placed in order.placed:
            self._jobs.place(placed.task, order.node, placed.slots)
            launches.append(self._launch(order.node, placed.task, placed.chain, placed.rank, placed.slots))
        self._post(order.node, wn.Launches(launches))

    def _ahead(self, order: do.Ahead) -> None:
        launches = [self._launch(order.node, task, order.chain, order.rank, ()) for task in order.tasks]
        self._post(order.node, wn.Launches(launches))

    def _launch(self, node: int, task: int, chain: int, rank: tuple[int, int], slots: tuple[Any, ...]) -> wn.Launch:
        batch = self._jobs.batches[task]
        if batch.template not in self._told[node]:
            self._told[node].add(batch.template)
            self._post(node, wn.NodeTemplate(batch.template, self._templates.blob(batch.template)))
        undecided = self._truths.get(batch.condition, Truth.UNDECIDED) is Truth.UNDECIDED
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
            self._layouts.of(task) if batch.ranks > 1 else (),
        )

    def _end(self, order: do.End) -> None:
        ends = [wn.End(task, order.mode, order.grace, order.reason) for task in order.tasks]
        self._post(order.node, wn.Ends(ends))

    def _hear(self, message: wn.FromNode) -> None:
        if isinstance(message, wn.NodeLog):
            self._hear_events(message.events)
        elif isinstance(message, wn.Changes):
            self._hear_changes(message)
        elif isinstance(message, wn.NodePublished):
            self._outbox.append(
                m.Published(message.task, message.ok, message.message, [*message.outputs], message.sandbox)
            )

    def _hear_changes(self, message: wn.Changes) -> None:
        started, jobs = self._started, self._jobs
        if not started:
            self._tell_started = time.monotonic() + RUNNING_AFTER
        for change in message.changes:
            if change.kind is wn.ChangeKind.FINISHED:
                started.pop(change.task, None)
                jobs.end(change, message.node)
                if self._layouts.possible and (others := self._layouts.led(change.task, message.node)):
                    for node in others:
                        self._post(node, wn.LeadEnded([change.task]))
            elif change.kind is wn.ChangeKind.STARTED:
                if self._templates.outside and self._is_outside(change.task):
                    # At once, and before its end, of which nobody may conclude that it can begin again.
                    self._reports.append(m.Report(change.task, change.epoch, change.run, State.RUNNING))
                    self._reported_at = 0.0
                else:
                    started[change.task] = (change.epoch, change.run)
                if change.after:
                    jobs.follow(change.task, change.after)
        self._accounts.hear(message.node, message.changes, time.time())
        self._feed(ev.NodeChanges(message.node, message.changes))
        self._accounts.settle(message.node, time.time())

    def _is_outside(self, task: int) -> bool:
        """Return whether the hub must hear at once that a task runs: it must not run it again."""
        batch = self._jobs.batches.get(task)
        return batch is not None and batch.template in self._templates.outside

    def _hear_events(self, events: list[str]) -> None:
        self._outbox.append(m.AgentLog(events))

    def _dispatch_singly(self, order: m.Dispatch, bodies: list[bytes]) -> None:
        """Let those wait whose earlier attempt is still ending here: the core would give them back at once."""
        for index, body in enumerate(bodies):
            single = msgspec.structs.replace(order, first=order.first + index, count=1, bodies=pack_bodies([body]))
            if single.first in self._jobs.batches:
                self._later[single.first] = single
            else:
                self._accept(single, [body])

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
        if self._layouts.possible:
            self._layouts.forget(order.tasks)
        for task in order.tasks if self._restoring else ():
            self._restoring.pop(task, None)
        self._reports.extend(report for task in order.tasks if (report := over(task)) is not None)

    def _return(self, order: do.Return) -> None:
        for first, count in order.tasks:
            for task in range(first, first + count):
                if self._layouts.possible:
                    self._layouts.forget([task])
                if self._restoring:
                    self._restoring.pop(task, None)
                if self._jobs.has_place(task):
                    self._accounts.gone(task)
                report = self._jobs.give_back(task, order.failure)
                if report is not None:
                    self._reports.append(report)

    def _note(self, note: do.Note) -> None:
        entry = {"what": note.what, "task": note.task, "reason": note.reason, "at": time.time()}
        self._outbox.append(m.AgentLog([json.dumps(entry)]))
