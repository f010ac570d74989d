"""The roster over real sockets: who is in, what they say, and when they are out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.codec import encode
from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.sockets import dealer
from pilot_hitl_agent.cluster.roster import FENCING, Answered, Happening, Joined, Lost, Roster

LEASE = 10.0


class Peer:
    """A member as bare as can be."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, roster: Roster, node: int) -> None:
        self.roster = roster
        self.node = node
        self.socket = dealer(context, keys, f"peer{node}-{time.monotonic_ns()}".encode())
        self.socket.connect(roster.endpoint)

    def hello(self, life: int = 0, machine: str = "") -> wc.MemberHello:
        """Return a hello of this node."""
        inventory = NodeInventory(name=f"n{self.node}", cores=[0, 1])
        return wc.MemberHello(self.node, inventory, "127.0.0.1", machine or f"m{self.node}", 1, 1, life, 1)

    def say(self, *messages: wc.FromMember, now: float | None = None) -> list[Happening]:
        """Send messages in a frame; returns what happened at the roster."""
        self.socket.send(encode(messages))
        moment = time.monotonic() if now is None else now
        happened: list[Happening] = []
        router, doorkeeper = self.roster.sockets
        while not happened and not router.poll(20):
            # A connection that is new is asked about first.
            if doorkeeper.poll(0):
                happened += self.roster.take_in(moment)
        return happened + self.roster.take_in(moment)

    def hear(self) -> list[wc.ToMember]:
        """Return the messages of the next frame."""
        assert self.socket.poll(20_000)
        return wc.TO_MEMBER.decode(self.socket.recv())


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context that is gone after the test, with its sockets."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.term()


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    """Keys of a home."""
    return keyring(tmp_path / "home")


@pytest.fixture
def roster(context: zmq.Context[zmq.Socket[bytes]], keys: Keyring) -> Iterator[Roster]:
    """A roster of term 3."""
    made = Roster(context, keys, "127.0.0.1", LEASE, 3)
    yield made
    made.close()


Member = Callable[[int], Peer]


@pytest.fixture
def member(context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, roster: Roster) -> Iterator[Member]:
    """Make members by the number of their node."""
    made: list[Peer] = []

    def make(node: int) -> Peer:
        made.append(Peer(context, keys, roster, node))
        return made[-1]

    yield make
    for peer in made:
        peer.socket.close(linger=0)


def test_a_node_is_in_after_its_hello(member: Member) -> None:
    peer = member(4)
    happened = peer.say(peer.hello())
    assert [type(it) for it in happened] == [Joined]
    assert peer.hear() == [wc.MemberWelcome(3, 1, True)]
    assert peer.say(wc.Ping(9)) == []
    assert peer.hear() == [wc.Pong(9)]
    assert peer.say(peer.hello()) == []
    assert peer.hear() == [wc.MemberWelcome(3, 1, True)]


def test_nodes_that_share_a_machine_bind_nothing(member: Member, roster: Roster) -> None:
    roster.local(0, "box")
    peer = member(1)
    (joined,) = peer.say(peer.hello(machine="box"))
    assert isinstance(joined, Joined)
    assert not joined.inventory.pinned
    assert peer.hear() == [wc.MemberWelcome(3, 1, False)]


def test_a_silent_node_is_lost_after_its_lease_and_must_begin_anew(member: Member, roster: Roster) -> None:
    peer = member(1)
    peer.say(peer.hello(), now=100.0)
    peer.hear()
    assert roster.expired(100.0 + LEASE + FENCING - 0.1) == []
    assert [(lost.node, lost.said) for lost in roster.expired(100.0 + LEASE + FENCING)] == [(1, [])]
    late = wn.Changes(1, [wn.Change(5, 1, 1, wn.ChangeKind.FINISHED)])
    assert peer.say(late, now=120.0) == []
    assert [type(it) for it in peer.hear()] == [wc.MemberAnew]
    assert roster.read(1) == []
    assert [type(it) for it in peer.say(peer.hello(life=1), now=121.0)] == [Joined]


def test_what_a_node_said_before_it_went_is_not_lost(member: Member) -> None:
    peer = member(2)
    peer.say(peer.hello())
    ended = wn.Changes(2, [wn.Change(5, 1, 1, wn.ChangeKind.FINISHED)])
    (lost,) = peer.say(ended, wc.MemberBye("the pilot ended"))
    assert isinstance(lost, Lost)
    assert lost.said == [ended]
    assert "the pilot ended" in lost.reason


def test_a_node_speaks_for_itself_alone(member: Member, roster: Roster) -> None:
    peer = member(2)
    peer.say(peer.hello())
    own = wn.Changes(2, [])
    peer.say(wn.Changes(1, []), own, wc.MemberReply(7, "[]"))
    assert roster.read(2) == [own]
    assert peer.say(wc.MemberReply(8, "[]")) == [Answered(2, 8, "[]")]


def test_a_member_that_begins_anew_joins_anew(member: Member) -> None:
    first, second = member(1), member(1)
    first.say(first.hello())
    first.hear()
    assert [type(it) for it in second.say(second.hello(life=1))] == [Joined]
    assert first.say(wc.Ping(1)) == []
    assert [type(it) for it in first.hear()] == [wc.MemberAnew]


def test_garbage_is_dropped(member: Member) -> None:
    peer = member(1)
    peer.socket.send(b"\xff\x00garbage")
    assert [type(it) for it in peer.say(peer.hello())] == [Joined]


def test_a_stranger_is_not_let_in(
    context: zmq.Context[zmq.Socket[bytes]], member: Member, roster: Roster, tmp_path: Path
) -> None:
    own = member(1)
    stranger = Peer(context, keyring(tmp_path / "other"), roster, 2)
    stranger.socket.send(encode([stranger.hello()]))
    assert [it.node for it in own.say(own.hello()) if isinstance(it, Joined)] == [1]
    stranger.socket.close(linger=0)
    assert set(roster.members) == {1}
