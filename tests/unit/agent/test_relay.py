"""The agent's part of the relay, with a real replica's sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.relay import OVERLOADED, UNREACHABLE, Bounced, Broken, Relayed, Taken, decode_relay, encode_relay
from pilot_hitl.wire.services import Porter, bind_tcp, serving_socket, serving_tcp_socket
from pilot_hitl_agent.relay import TELL_EVERY, WAITING, Frames, Relay

HERE = socket.gethostname()
TASK = 77


class World:
    """A relay, what it said to the hub, and the two sockets of a replica."""

    def __init__(self, folder: Path, keys: Keyring) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.poller = zmq.Poller()
        self.told: list[list[bytes]] = []
        self.mine = {TASK}
        self.relay = Relay(self.context, keys, self.poller, self.mine.__contains__, self.tell)
        self.place = folder / "r.sock"
        replica: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.replica = replica
        self.porter = Porter(replica, keys, f"ipc://{self.place}")
        self.host, self.node = serving_socket(replica), serving_tcp_socket(replica, keys)
        self.tcp = bind_tcp(self.node, "127.0.0.1")

    def tell(self, frames: Frames) -> None:
        self.told.append([bytes(frame.buffer) if isinstance(frame, zmq.Frame) else frame for frame in frames])

    def frame(self, host: str = HERE, client: bytes = b"c1", task: int = TASK) -> bytes:
        return encode_relay(Relayed("s", "it", task, client, host, f"ipc://{self.place}", self.tcp))

    def receive(self, source: zmq.Socket[bytes]) -> list[bytes]:
        """What the replica gets; its porter opens meanwhile."""
        poller = zmq.Poller()
        poller.register(source, zmq.POLLIN)
        poller.register(self.porter.socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(10_000))
            assert ready, "nothing came"
            if self.porter.socket in ready:
                self.porter.answer()
            if source in ready:
                return source.recv_multipart()

    def bring_back(self) -> None:
        for ready, _mask in self.poller.poll(10_000):
            assert isinstance(ready, zmq.Socket)
            self.relay.bring_back(ready)

    def end_replica(self) -> None:
        for each in (self.host, self.node, self.porter.socket):
            each.close(linger=0)
        self.replica.term()

    def close(self) -> None:
        self.relay.close()
        self.end_replica()
        self.context.term()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    tmp_path.chmod(0o700)
    made = World(tmp_path, keyring(tmp_path / "home"))
    yield made
    made.close()


@pytest.mark.parametrize("host", [HERE, "elsewhere"])
def test_frames_pass_unread_in_both_directions(world: World, host: str) -> None:
    world.host.bind(f"ipc://{world.place}")
    source = world.host if host == HERE else world.node
    frame = world.frame(host)
    world.relay.take(frame, [b"\xffno head", b"x" * 100_000])
    connection, *came = world.receive(source)
    assert came == [frame, b"\xffno head", b"x" * 100_000]
    source.send_multipart([connection, frame, b"\xfereply", b"y" * 50_000])
    world.bring_back()
    assert world.told == [[frame, b"\xfereply", b"y" * 50_000]]


def test_callers_share_a_connection_and_are_told_apart_by_the_frame(world: World) -> None:
    world.host.bind(f"ipc://{world.place}")
    for client in (b"c1", b"c2"):
        world.relay.take(world.frame(client=client), [b"q"])
    first, second = world.receive(world.host), world.receive(world.host)
    assert first[0] == second[0]
    assert {first[1], second[1]} == {world.frame(client=b"c1"), world.frame(client=b"c2")}


def test_what_is_for_a_task_that_is_not_here_comes_back(world: World) -> None:
    world.relay.take(world.frame(task=TASK + 1), [b"head", b"buffer"])
    (frame, *rest) = world.told[0]
    bounced = decode_relay(frame)
    assert isinstance(bounced, Bounced)
    assert (bounced.client, bounced.kind, rest) == (b"c1", UNREACHABLE, [b"head"])


def test_a_replica_that_takes_nothing_makes_overloaded(world: World) -> None:
    for _ in range(WAITING + 10):
        world.relay.take(world.frame(), [b"head"])
    bounced = [decode_relay(frames[0]) for frames in world.told]
    assert bounced
    assert all(isinstance(each, Bounced) and each.kind == OVERLOADED for each in bounced)


def test_the_connection_ends_with_the_task(world: World) -> None:
    world.host.bind(f"ipc://{world.place}")
    world.relay.take(world.frame(), [b"q"])
    world.receive(world.host)
    world.mine.clear()
    world.mine.add(TASK + 1)
    world.relay.take(world.frame(task=TASK + 1), [b"q"])
    world.receive(world.host)
    world.relay.take(world.frame(), [b"late"])
    (frames,) = world.told
    assert isinstance(decode_relay(frames[0]), Bounced)


def test_the_hub_is_told_what_was_taken(world: World) -> None:
    world.host.bind(f"ipc://{world.place}")
    world.relay.take(world.frame(), [b"q"])
    assert world.told == []
    world.relay.take(world.frame(), [b"q", bytes(TELL_EVERY)])
    (frames,) = world.told
    taken = decode_relay(frames[0])
    assert isinstance(taken, Taken)
    assert taken.size > TELL_EVERY


def test_a_connection_to_another_host_that_breaks_is_told(world: World) -> None:
    world.relay.take(world.frame("elsewhere"), [b"q"])
    world.receive(world.node)
    world.end_replica()
    world.bring_back()
    (frames,) = world.told
    assert decode_relay(frames[0]) == Broken("s", "it", TASK)


def test_nonsense_is_dropped(world: World) -> None:
    world.relay.take(b"\x02nonsense", [b"q"])
    world.relay.take(world.frame(), [])
    world.relay.take(encode_relay(Taken(1)), [b"q"])
    assert world.told == []
