"""An agent that was started again waits for what the one before had started, before anything runs here anew."""

from __future__ import annotations

import marshal
import signal
import socket
import threading
from pathlib import Path

import pytest

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl_agent.node import daemon, packets, spawner
from pilot_hitl_agent.node.daemon import NodeDaemon, NodeSettings

LEFT = [(7, "task", 4_000_001, 0.0), (8, "nursery", 4_000_002, 0.0)]


class World:
    """A daemon whose root is this test."""

    def __init__(self, folder: Path) -> None:
        self.root, theirs = packets.socketpair()
        self.root.setblocking(True)
        self.root.settimeout(20)
        home = str(folder)
        settings = NodeSettings(
            node=0, inventory=NodeInventory(name="here", cores=[0]), session="study", pilot=1, home=home,
            mark="nobody/study/1", session_folder=home, pilot_folder=home, blobs=home, work=home,
        )  # fmt: skip
        self.daemon = NodeDaemon(settings, socket.socket(fileno=theirs.detach()))
        self.settled = threading.Thread(target=self.daemon.settle)

    def tell(self, *records: tuple[object, ...]) -> None:
        self.root.send(marshal.dumps([*records]))

    def heard(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = marshal.loads(self.root.recv(1 << 20))
        return found

    def close(self) -> None:
        self.root.close()
        if self.settled.ident is not None:
            self.settled.join(20)
        self.daemon.close()


def exited(token: int) -> tuple[object, ...]:
    return (spawner.EXIT, token, 1, -9, 0.0, 0.0, b"", b"", 0.0, 0.0, 0)


@pytest.mark.parametrize("first", [7, 8])
def test_it_waits_for_all_that_is_left(tmp_path: Path, first: int) -> None:
    world = World(tmp_path)
    world.settled.start()
    try:
        world.tell((spawner.HELLO, 1, "1-a", LEFT, 1))
        assert world.heard() == [(spawner.KILL, token, signal.SIGKILL) for token, *_ in LEFT]
        world.tell(exited(first))
        # What is asked for is answered in order: nothing else was read before.
        assert world.daemon._left_over
        assert world.settled.is_alive()
        world.tell((spawner.FAIL, 15 - first, 3, spawner.LOST, ""))
        world.settled.join(20)
        assert not world.settled.is_alive()
        assert "left_over" not in str(world.daemon.drain())
    finally:
        world.close()


def test_it_knows_first_whether_there_was_one_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.settled.start()
    try:
        assert world.settled.is_alive()
        world.tell((spawner.HELLO, 1, "1-a", [], 0))
        world.settled.join(20)
        assert not world.settled.is_alive()
    finally:
        world.close()


def test_what_never_ends_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LEFT_OVER", 0.1)
    world = World(tmp_path)
    try:
        world.tell((spawner.HELLO, 1, "1-a", LEFT, 1))
        world.daemon.settle()
        assert "left_over" in str(world.daemon.drain())
    finally:
        world.close()
