"""How much a hub reads before it sends and writes what follows from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pilot_hitl.hub.server import BYTES_A_TURN, Hub
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.sockets import dealer


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    umask = os.umask(0o077)
    made = Hub(tmp_path / "home", stay=True)
    try:
        yield made
    finally:
        made._close()
        os.umask(umask)


def test_what_is_behind_is_read_in_parts(hub: Hub) -> None:
    sizes = [*[1] * 50, *[BYTES_A_TURN // 2 + 1] * 5, BYTES_A_TURN, 2 * BYTES_A_TURN, 1]
    with zmq.Context() as context, dealer(context, keyring(hub.home), b"peer") as peer:
        peer.connect(hub.endpoint)
        for size in sizes:
            peer.send(b"\xc1" * size)  # no message, so it is counted and dropped
        assert hub._doorkeeper.socket.poll(10_000)
        hub._doorkeeper.answer()
        at = 0
        while at < len(sizes):
            assert hub._router.poll(10_000), "what was not read in one turn is there in the next"
            whole = hub._drain()
            taken, at = sizes[at : hub.dropped], hub.dropped
            assert sum(taken[:-1]) < BYTES_A_TURN
            assert whole or sum(taken) >= BYTES_A_TURN
        assert hub._drain()
