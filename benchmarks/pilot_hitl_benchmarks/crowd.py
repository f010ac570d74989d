"""Many members that run nothing, in a few processes, for one real agent: everything of a member but its processes.

``python -m pilot_hitl_benchmarks.crowd CLAIM HOME FIRST COUNT`` is one of these processes.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import msgspec
import zmq

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.codec import encode
from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.places import SessionPlaces
from pilot_hitl.wire.sockets import dealer
from pilot_hitl_agent.cluster import membership as ms
from pilot_hitl_agent.noop import NoopNode

PROCESSES = 2
CORES = 16
"""Of each pretended node."""
LEASE = 10.0
PATIENCE = 60.0
READY = b"ready\n"
FRAMES_A_TURN = 100


class Stand:
    """One member."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, claim: wc.Claim, node: int) -> None:
        """Connect to the agent."""
        self.socket = dealer(context, keys, secrets.token_bytes(8))
        self.socket.connect(claim.endpoint)
        self.core = ms.Membership(node, LEASE, time.monotonic())
        self._claim = claim
        self._node = NoopNode(node)
        inventory = NodeInventory(name=f"crowd{node}", cores=list(range(CORES)), pinned=False)
        self._hello = wc.MemberHello(node, inventory, "127.0.0.1", f"crowd{node}", os.getpid(), 1, 0, 0)
        self._do(self.core.step(ms.Looked(claim.term, mine=False, beat=1), time.monotonic()))

    def timer(self, now: float) -> None:
        """Do what is due."""
        if now >= self.core.next_deadline():
            self._do(self.core.step(ms.Tick(), now))

    def readable(self) -> bool:
        """Take in what the agent says; return whether it is over."""
        orders: list[wn.ToNode] = []
        for _ in range(FRAMES_A_TURN):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            for message in wc.TO_MEMBER.decode(frame):
                if isinstance(message, wc.Pong):
                    self._do(self.core.step(ms.Ponged(message.number), time.monotonic()))
                elif isinstance(message, wc.MemberWelcome):
                    self._do(self.core.step(ms.Welcomed(message.term, message.number), time.monotonic()))
                elif isinstance(message, wc.MemberLeave):
                    self.socket.send(encode([wc.MemberBye(message.reason)]))
                    return True
                elif not isinstance(message, wc.MemberQuery | wc.MemberAnew):
                    orders.append(message)
        if orders:
            self._node.handle(orders)
            self.socket.send(encode(self._node.drain()))
        return False

    def _do(self, orders: list[ms.Instruction]) -> None:
        for order in orders:
            if isinstance(order, ms.Hello):
                self.socket.send(encode([msgspec.structs.replace(self._hello, number=order.number)]))
            elif isinstance(order, ms.Ping):
                self.socket.send(encode([wc.Ping(order.number)]))


class Crowd:
    """So many members more for the pilot of a session, between ``with`` and its end.

    Attributes:
        gathered: seconds until the agent had taken all of them in.
    """

    def __init__(self, home: Path, session: str, count: int) -> None:
        """Start nothing yet."""
        self._home = home
        self._folder = SessionPlaces(home, session).pilot(1)
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self.gathered = 0.0

    def __enter__(self) -> Self:
        claims = [path for path in (self._folder / "agents").iterdir() if path.name.isdigit()]
        claim = max(claims, key=lambda path: int(path.name))
        began = time.perf_counter()
        share = -(-self._count // PROCESSES)
        for first in range(1, self._count + 1, share or 1):
            command = [
                sys.executable, "-m", "pilot_hitl_benchmarks.crowd", str(claim), str(self._home), str(first),
                str(min(share, self._count + 1 - first)),
            ]  # fmt: skip
            self._processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in self._processes:
            if process.stdout is None or process.stdout.readline() != READY:
                raise RuntimeError("the members were not taken in; see the agent's log in the pilot's folder")
        self.gathered = time.perf_counter() - began
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main(arguments: list[str]) -> int:
    """Be some members until the agent sends them away."""
    claim = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=wc.Claim)
    keys, first, count = keyring(Path(arguments[1])), int(arguments[2]), int(arguments[3])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    poller = zmq.Poller()
    stands = {stand.socket: stand for stand in (Stand(context, keys, claim, first + at) for at in range(count))}
    for socket in stands:
        poller.register(socket, zmq.POLLIN)
    ready, limit, timers = False, time.monotonic() + PATIENCE, 0.0
    while stands:
        for socket, _mask in poller.poll(200):
            if stands[socket].readable():
                poller.unregister(socket)
                stands.pop(socket).socket.close(linger=200)
        now = time.monotonic()
        if now >= timers:
            timers = now + 0.2
            for stand in stands.values():
                stand.timer(now)
        if not ready and all(stand.core.busy for stand in stands.values()):
            ready = True
            sys.stdout.buffer.write(READY)
            sys.stdout.buffer.flush()
        if not ready and now > limit:
            return 1
    context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
