"""A member of a pilot of many nodes: the daemon of one node, and whoever it has for an agent — perhaps itself.

The member decides by :class:`~pilot_hitl_agent.cluster.membership.Membership`; this is the shell around it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import zmq

from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.codec import FrameError, encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.messages import Message
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.processes import start_time
from pilot_hitl.wire.sockets import dealer, keep_alive
from pilot_hitl_agent.agent import Agent
from pilot_hitl_agent.cluster import membership as ms
from pilot_hitl_agent.cluster.claims import Claims
from pilot_hitl_agent.cluster.inventory import Whereabouts, whereabouts
from pilot_hitl_agent.cluster.looker import Looker
from pilot_hitl_agent.cluster.office import Office
from pilot_hitl_agent.node.daemon import NodeDaemon, inherited_link
from pilot_hitl_agent.node.settings import NodeSettings, job_facts
from pilot_hitl_agent.nodes import LiveNode, Node
from pilot_hitl_agent.noop import NoopNode

_log = logging.getLogger(__name__)
FENCE_GRACE = 1.0
"""Seconds that tasks get to end when the lease is over."""
STOP_GRACE = 3.0
ANEW = 75
"""Exit code at which the spawner starts the member anew: what ran here could not be ended in time."""
FRAMES_A_TURN = 500


class Member:
    """One node's part in the pilot."""

    def __init__(self, config: PilotConfig) -> None:
        """Find out where this is, and get ready to run tasks here."""
        self._config = config
        self._here: Whereabouts = whereabouts(config)
        self._node = self._make_node()
        self._live = cast("LiveNode", self._node) if hasattr(self._node, "fileno") else None
        self._claims = Claims(Path(config.folder), self._here.job)
        self._looker = Looker(self._claims)
        self._core = ms.Membership(self._here.node, config.lease, time.monotonic())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._socket: zmq.Socket[bytes] | None = None
        self._claim: wc.Claim | None = None
        self._connected = 0
        self._life = 0
        self._office: Office | None = None
        self._ended = ""
        self._leave_grace = STOP_GRACE
        self._exit = 0

    def run(self) -> int:
        """Work until the pilot ends, or this node is no part of it any more; return the exit code."""
        signals, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Walltime is the agent's business, and this node may be its next one.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._poller.register(signals, zmq.POLLIN)
        self._poller.register(self._looker.fileno(), zmq.POLLIN)
        if self._live is not None:
            self._poller.register(self._live.fileno(), zmq.POLLIN)
            self._live.settle()
        self._step(ms.Tick())
        while not self._ended and self._office is None:
            self._turn(signals)
        self._looker.close()
        if self._office is not None:
            self._close_socket()
            self._poller.unregister(signals)
            return self._be_agent(self._office)
        self._go()
        return self._exit

    def _make_node(self) -> Node:
        config, here = self._config, self._here
        if config.noop:
            return NoopNode(here.node)
        settings = NodeSettings(
            node=here.node,
            inventory=here.inventory,
            session=config.session,
            pilot=config.pilot,
            home=config.home,
            mark=f"{config.mark}/{here.node}",
            session_folder=config.session_folder,
            pilot_folder=config.folder,
            blobs=str(Path(config.session_folder) / "blobs"),
            work=config.cwd or "/",
            path=config.sys_path,
            flags=config.flags,
            umask=config.umask,
            environment=config.environment,
            address=here.address,
            shared=True,
            job=job_facts(os.environ),
        )
        return NodeDaemon(settings, inherited_link())

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self, signals: int) -> None:
        for ready, _mask in self._poller.poll(self._timeout()):
            if ready == signals:
                os.read(signals, 64)
            elif ready is self._socket:
                self._take_in()
            elif ready == self._looker.fileno():
                for sight in self._looker.sights():
                    self._saw(sight.claim, sight.beat)
            elif self._live is not None:
                self._live.on_readable()
        now = time.monotonic()
        if self._live is not None:
            due = self._live.next_deadline()
            if due is not None and due <= now:
                self._live.on_timer()
            if self._live.broken:
                self._ended, self._exit = self._live.broken, 1
        if now >= self._core.next_deadline():
            self._step(ms.Tick())
        said = self._node.drain()
        if said and self._core.busy:
            self._send(said)

    def _timeout(self) -> int:
        now = time.monotonic()
        moments = [self._core.next_deadline()]
        if self._live is not None and (due := self._live.next_deadline()) is not None:
            moments.append(due)
        return int(max(0.0, min(moments) - now) * 1000 + 0.9)

    def _terminated(self, _number: int, _frame: object) -> None:
        self._ended = self._ended or "it got SIGTERM"

    def _step(self, event: ms.Event) -> None:
        for order in self._core.step(event, time.monotonic()):
            self._do(order)

    def _do(self, order: ms.Instruction) -> None:
        if isinstance(order, ms.Ping):
            self._send([wc.Ping(order.number)])
        elif isinstance(order, ms.Hello):
            self._say_hello(order.number)
        elif isinstance(order, ms.Look):
            self._looker.look()
        elif isinstance(order, ms.Fence):
            self._fence(order.reason)
        elif isinstance(order, ms.Elect):
            self._elect()
        elif isinstance(order, ms.Leave):
            self._ended = order.reason

    def _saw(self, claim: wc.Claim | None, beat: int) -> None:
        if claim is not None and (self._claim is None or claim.term > self._claim.term):
            self._claim = claim
        mine = claim is not None and claim.node == self._here.node
        self._step(ms.Looked(claim.term if claim else 0, mine, beat))

    # --- the agent ----------------------------------------------------------------------------------------------------

    def _say_hello(self, number: int) -> None:
        claim = self._claim
        if claim is None:
            return
        if self._socket is None or self._connected != claim.term:
            self._connect(claim)
        pid = os.getpid()
        here = self._here
        hello = wc.MemberHello(
            here.node, here.inventory, here.address, here.machine, pid, start_time(pid), self._life, number
        )
        self._send([hello])

    def _connect(self, claim: wc.Claim) -> None:
        self._close_socket()
        socket = dealer(self._context, keyring(Path(self._config.home)), secrets.token_bytes(8))
        keep_alive(socket)
        socket.connect(claim.endpoint)
        self._poller.register(socket, zmq.POLLIN)
        self._socket, self._connected = socket, claim.term

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(linger=0)
            self._socket = None

    def _send(self, messages: Sequence[Message]) -> None:
        if self._socket is not None:
            self._socket.send(encode(messages))

    def _take_in(self) -> None:
        for _ in range(FRAMES_A_TURN):
            if self._socket is None or self._ended:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                messages = wc.TO_MEMBER.decode(frame)
            except FrameError as error:
                _log.warning("dropped a frame of the agent: %s", error)
                continue
            orders: list[wn.ToNode] = []
            for message in messages:
                if isinstance(message, wc.MemberWelcome | wc.Pong | wc.MemberQuery | wc.MemberLeave | wc.MemberAnew):
                    self._hear(message)
                else:
                    orders.append(message)
            if orders and self._core.busy:
                self._node.handle(orders)

    def _hear(self, message: wc.MemberWelcome | wc.Pong | wc.MemberQuery | wc.MemberLeave | wc.MemberAnew) -> None:
        if isinstance(message, wc.Pong):
            self._step(ms.Ponged(message.number))
        elif isinstance(message, wc.MemberWelcome):
            if self._live is not None:
                self._live.pin(pinned=message.pinned)
            self._step(ms.Welcomed(message.term, message.number))
        elif isinstance(message, wc.MemberAnew):
            self._step(ms.Forgotten())
        elif isinstance(message, wc.MemberQuery):
            found = self._live.processes() if self._live is not None else []
            self._send([wc.MemberReply(message.token, json.dumps(found))])
        else:
            self._ended = message.reason or "the pilot ended"
            self._leave_grace = message.grace

    def _fence(self, reason: str) -> None:
        """End all that runs here: in a moment it is somebody else's."""
        _log.warning("what runs on this node is ended: %s", reason)
        self._life += 1
        if self._live is not None and not self._live.clear(FENCE_GRACE, reason):
            self._ended, self._exit = "something here cannot be ended", ANEW
        self._node.drain()

    def _elect(self) -> None:
        heir = self._claim is not None and self._claim.node == self._here.node
        office = Office(self._config, self._here, self._claims, self._claims.next_term(), heir=heir)
        if office.claim():
            _log.info("this node's member is the agent now, term %d", office.term)
            self._office = office
        else:
            self._looker.look()

    def _be_agent(self, office: Office) -> int:
        agent = Agent(self._config, {self._here.node: self._node}, office)
        reason = agent.run()
        _log.info("the agent ended: %s", reason)
        # The job's end comes with a signal, and one that died of that would be started again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        office.end_job()
        return 0

    def _go(self) -> None:
        """End everything, say how it ended, and say goodbye."""
        _log.info("this member ends: %s", self._ended)
        last: list[wn.FromNode] = self._live.close(self._leave_grace) if self._live is not None else []
        if self._socket is None:
            return
        words: list[Message] = [*last] if self._core.busy else []
        self._socket.send(encode([*words, wc.MemberBye(self._ended)]))
        self._socket.close(linger=1000)
        self._context.term()


def run(config: PilotConfig) -> int:
    """Be a member of a pilot of many nodes; return the exit code, 0 when the end was meant."""
    return Member(config).run()
