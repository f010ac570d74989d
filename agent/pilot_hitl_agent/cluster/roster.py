"""The agent's side of a pilot of many nodes: who is in, and one socket to all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.codec import FrameError, encode
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.messages import Message
from pilot_hitl.wire.sockets import Doorkeeper, router

_log = logging.getLogger(__name__)
FENCING = 4.0
"""Seconds beyond the lease after which a silent node is counted as lost: by then it has ended its tasks itself."""
FRAMES_A_TURN = 1000


class Member(msgspec.Struct):
    """One node that is in.

    Attributes:
        heard: when it last said anything, monotonic.
        inbox: what it said of attempts and nobody has read yet.
    """

    identity: bytes
    hello: wc.MemberHello
    heard: float
    inbox: list[wn.FromNode] = []


class Joined(msgspec.Struct, frozen=True):
    """A node is ready, with nothing on it. One that was in before has begun anew; it may be out again by now."""

    node: int
    inventory: NodeInventory
    address: str


class Lost(msgspec.Struct, frozen=True):
    """A node is gone, with all that ran there; ``said`` is what it said of attempts and nobody has read."""

    node: int
    name: str
    reason: str
    said: list[wn.FromNode] = []


class Answered(msgspec.Struct, frozen=True):
    """A node answers a question."""

    node: int
    token: int
    payload: str


Happening = Joined | Lost | Answered


class Roster:
    """Members by node. Poll :attr:`sockets`, then call :meth:`take_in`."""

    def __init__(self, context: zmq.Context[Any], keys: Keyring, address: str, lease: float, term: int) -> None:
        """Listen on ``address``, on a port of its own."""
        self._doorkeeper = Doorkeeper(context, keys)
        self._router = router(context, keys)
        if ":" in address:
            self._router.setsockopt(zmq.IPV6, 1)
        host = f"[{address}]" if ":" in address else address
        port = self._router.bind_to_random_port(f"tcp://{host}")
        self.endpoint = f"tcp://{host}:{port}"
        self.term = term
        self.members: dict[int, Member] = {}
        self.fresh: dict[int, None] = {}
        """Nodes whose inbox holds something."""
        self._by_identity: dict[bytes, int] = {}
        self._lease = lease
        self._machines: dict[int, str] = {}
        self._last_heard: dict[int, float] = {}
        """Of the nodes that are out."""

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """What to poll for reading."""
        return self._router, self._doorkeeper.socket

    def local(self, node: int, machine: str) -> None:
        """Note on which machine the agent's own node is."""
        self._machines[node] = machine

    def take_in(self, now: float) -> list[Happening]:
        """Take in what members say; what concerns attempts lies in their inboxes afterwards."""
        self._doorkeeper.answer()
        happened: list[Happening] = []
        for _ in range(FRAMES_A_TURN):
            try:
                identity, frame = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            except ValueError:
                continue
            try:
                messages = wc.FROM_MEMBER.decode(frame)
            except FrameError as error:
                _log.warning("dropped a frame of a member: %s", error)
                continue
            for message in messages:
                self._take(identity, message, now, happened)
        return happened

    def expired(self, now: float) -> list[Lost]:
        """Return the nodes that were silent for too long; they are out."""
        limit = now - self._lease - FENCING
        gone = [node for node, member in self.members.items() if member.heard <= limit]
        return [self._out(node, f"no word of it for {self._lease + FENCING:g} s") for node in gone]

    def next_deadline(self) -> float | None:
        """Return when :meth:`expired` may find something."""
        earliest = min((member.heard for member in self.members.values()), default=None)
        return None if earliest is None else earliest + self._lease + FENCING

    def contact(self, others: int) -> float:
        """Return when at least half of so many other nodes were last heard, monotonic; 0 for never."""
        heard = sorted((*self._last_heard.values(), *(member.heard for member in self.members.values())), reverse=True)
        most = (others + 1) // 2
        return heard[most - 1] if 0 < most <= len(heard) else 0.0

    def send(self, node: int, messages: Sequence[Message]) -> None:
        """Send messages to a node; nothing to one that is not in."""
        member = self.members.get(node)
        if member is not None and messages:
            self._send(member.identity, messages)

    def read(self, node: int) -> list[wn.FromNode]:
        """Return what a node said of attempts since the last call."""
        member = self.members.get(node)
        self.fresh.pop(node, None)
        if member is None or not member.inbox:
            return []
        inbox, member.inbox = member.inbox, []
        return [message for message in inbox if message.node == node]

    def dismiss(self, reason: str, grace: float) -> None:
        """Tell all members to end."""
        for node in self.members:
            self.send(node, [wc.MemberLeave(reason, grace)])

    def close(self) -> None:
        """Close the sockets; what was sent last still leaves."""
        self._router.close(linger=500)
        self._doorkeeper.socket.close(linger=0)

    def _take(self, identity: bytes, message: wc.FromMember, now: float, happened: list[Happening]) -> None:
        if isinstance(message, wc.MemberHello):
            self._hello(identity, message, now, happened)
            return
        node = self._by_identity.get(identity)
        if node is None:
            # It was counted as lost, or an agent before this one took it in.
            if not isinstance(message, wc.MemberBye):
                self._send(identity, [wc.MemberAnew("this agent does not know the node")])
            return
        member = self.members[node]
        member.heard = now
        if isinstance(message, wc.Ping):
            self._send(identity, [wc.Pong(message.number)])
        elif isinstance(message, wc.MemberReply):
            happened.append(Answered(node, message.token, message.payload))
        elif isinstance(message, wc.MemberBye):
            happened.append(self._out(node, message.reason or "it ended"))
        else:
            member.inbox.append(message)
            self.fresh[node] = None

    def _hello(self, identity: bytes, hello: wc.MemberHello, now: float, happened: list[Happening]) -> None:
        known = self.members.get(hello.node)
        machines = [machine for node, machine in self._machines.items() if node != hello.node]
        pinned = hello.inventory.pinned and hello.machine not in machines
        welcome = wc.MemberWelcome(self.term, hello.number, pinned)
        if known is not None and known.identity == identity and known.hello.life == hello.life:
            known.heard = now
            self._send(identity, [welcome])
            return
        if known is not None:
            self._by_identity.pop(known.identity, None)
        self.members[hello.node] = Member(identity, hello, now)
        self._last_heard.pop(hello.node, None)
        self.fresh.pop(hello.node, None)
        self._by_identity[identity] = hello.node
        self._machines[hello.node] = hello.machine
        self._send(identity, [welcome])
        inventory = msgspec.structs.replace(hello.inventory, pinned=pinned)
        happened.append(Joined(hello.node, inventory, hello.address))

    def _out(self, node: int, reason: str) -> Lost:
        member = self.members.pop(node)
        self._last_heard[node] = member.heard
        self.fresh.pop(node, None)
        self._by_identity.pop(member.identity, None)
        _log.warning("node %d (%s) is out: %s", node, member.hello.inventory.name, reason)
        said = [message for message in member.inbox if message.node == node]
        name = member.hello.inventory.name
        return Lost(node, name, f"node {name} is lost: {reason}", said)

    def _send(self, identity: bytes, messages: Sequence[Message]) -> None:
        try:
            self._router.send_multipart([identity, encode(messages)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Its end is noticed by its silence.
            _log.info("a member cannot be reached: %s", error)


class RemoteNode:
    """One node of the roster, as the agent's loop sees a node."""

    def __init__(self, roster: Roster, node: int) -> None:
        """Speak for ``node``."""
        self._roster = roster
        self.node = node

    def handle(self, messages: list[wn.ToNode]) -> None:
        """Send messages to the node."""
        self._roster.send(self.node, messages)

    def drain(self) -> list[wn.FromNode]:
        """Return what the node said since the last call."""
        return self._roster.read(self.node)
