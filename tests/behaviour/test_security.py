"""Who can say what to a hub, and what happens to nonsense."""

from __future__ import annotations

import contextlib
import enum
import os
import random
import secrets
import socket
import stat
import subprocess
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

import pilot_hitl as ph
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import VERSION, encode
from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.places import runtime_folder
from pilot_hitl.wire.sockets import dealer
from tests.behaviour.studies import Study, wait_for

Sockets = Callable[[Keyring | None], "zmq.Socket[bytes]"]


@pytest.fixture
def sockets(study: Study) -> Iterator[Sockets]:
    """Sockets to the study's hub, with its keys, others, or none."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def connected(keys: Keyring | None) -> zmq.Socket[bytes]:
        found = context.socket(zmq.DEALER) if keys is None else dealer(context, keys, secrets.token_bytes(8))
        made.append(found)
        found.setsockopt(zmq.LINGER, 0)
        found.connect(f"ipc://{_path(study)}")
        return found

    yield connected
    for each in made:
        each.close()
    context.term()


def _path(study: Study) -> str:
    return str(runtime_folder(study.home) / "hub.sock")


def _works(session: ph.Session, x: int) -> None:
    assert session.call(abs, -x).result(20) == x


@pytest.mark.only_local("pilots on other hosts are reached by TCP: tests/slurm looks at that")
def test_nothing_listens_on_the_network(study: Study) -> None:
    with study.session() as session:
        _works(session, 1)
        ours = {int(process["pid"]) for process in study.processes()} | {os.getpid()}
        assert len(ours) >= 4
        inodes = set()
        for pid in ours:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = str(link.readlink()) if link.is_symlink() else ""
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                assert line.split()[9] not in inodes, f"{table}: {line}"
        assert stat.S_IMODE(Path(_path(study)).parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((study.home / "hub" / "keys.json").stat().st_mode) == 0o600


def test_a_stranger_gets_nothing(study: Study, sockets: Sockets) -> None:
    with study.session() as session:
        keys = keyring(study.home)
        public, secret = (key.decode() for key in zmq.curve_keypair())
        other = Keyring(hub_public=keys.hub_public, hub_secret=keys.hub_secret, peer_public=public, peer_secret=secret)
        strangers = [sockets(other), sockets(None)]
        for stranger in strangers:
            stranger.send(encode([m.Hello(session="study", namespace="", role="tool")]))
            stranger.send(encode([m.Query(1, "status", "{}")]))
        _works(session, 2)
        assert all(stranger.poll(300) == 0 for stranger in strangers)
        # The right key is answered.
        friend = sockets(keys)
        friend.send(encode([m.Hello(session="", namespace="", role="tool")]))
        assert friend.poll(10_000)


def test_random_bytes_change_nothing(study: Study) -> None:
    source = random.Random(7)
    starts = [
        b"",
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE" + bytes(48),
        b"GET / ",
    ]
    with study.session() as session:
        _works(session, 1)
        for index in range(60):
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.connect(_path(study))
            try:
                link.sendall(starts[index % len(starts)] + source.randbytes(source.randrange(5000)))
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                link.close()
        _works(session, 2)


def test_frames_that_are_no_messages_are_dropped_and_counted(study: Study, sockets: Sockets) -> None:
    source = random.Random(8)
    with study.session() as session:
        _works(session, 1)
        before = session.query("status")["dropped_frames"]
        friend = sockets(keyring(study.home))
        hello = encode([m.Hello(session="study", namespace="x", role="observer")])
        bad = [
            b"",
            bytes([VERSION]),
            bytes([VERSION + 1]) + hello[1:],
            hello[:-1],
            hello + b"\0",
            bytes([VERSION]) + msgspec.msgpack.encode([[999, 1, 2]]),
            bytes([VERSION]) + msgspec.msgpack.encode({"a": 1}),
            bytes([VERSION]) + b"\x91" * 5000,
            bytes([VERSION]) + b"\xdd\xff\xff\xff\xff",
            *(bytes([VERSION]) + source.randbytes(source.randrange(1, 2000)) for _ in range(200)),
        ]
        for frame in bad:
            friend.send(frame)
        friend.send_multipart([hello, hello])
        wait_for(lambda: session.query("status")["dropped_frames"] >= before + len(bad) + 1, "all are counted")
        _works(session, 2)


def _any(kind: Any, source: random.Random) -> Any:
    """A random value of a type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _any(source.choice(parts), source)
    if origin is typing.Literal:
        return source.choice(parts)
    if origin is list:
        return [_any(parts[0], source) for _ in range(source.randrange(3))]
    if origin is tuple:
        # Often empty: a type may hold others of its own kind.
        kinds = [parts[0]] * source.choice((0, 0, 0, 1, 2)) if parts[-1] is ... else parts
        return tuple(_any(each, source) for each in kinds)
    if origin is dict:
        return {_any(parts[0], source): _any(parts[1], source) for _ in range(source.randrange(3))}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return source.choice(list(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{field: _any(hints[field], source) for field in kind.__struct_fields__})
    simple: dict[Any, list[Any]] = {
        int: [0, 1, 2, -1, 5, 1 << 32 | 1, (1 << 32) + 7, 1 << 40, -(1 << 63), (1 << 63) - 1, (1 << 64) - 1],
        float: [0.0, 1.0, -1.0, 1e300, float("inf"), float("nan")],
        str: ["", "a", "{}", "null", "[1]", "status", "explain", "tasks", '{"task": 1}', "study", "\0", "ü" * 50],
        bytes: [b"", b"\0", b"\x90", b"\x91\xc4\x01a", secrets.token_bytes(16), secrets.token_bytes(40)],
        bool: [True, False],
        type(None): [None],
    }
    return source.choice(simple.get(kind, [None]))


def test_nonsense_from_the_owner_does_not_stop_the_hub(study: Study, sockets: Sockets) -> None:
    """Well-formed messages with any content, from a peer that has the key."""
    source = random.Random(int(os.environ.get("PILOT_HITL_TEST_SEED", "9")))
    kinds = [kind for kind in typing.get_args(m.ToHub) if kind not in (m.SubmitPilot, m.AgentHello, m.Hello, m.Bye)]
    with study.session() as session:
        _works(session, 1)
        hub = next(process["pid"] for process in study.processes() if process["kind"] == "hub")
        for role in ("owner", "tool", "observer", "task"):
            friend = sockets(keyring(study.home))
            friend.send(encode([m.Hello(session="garbage", namespace=role, role=role)]))
            for _ in range(300):
                with contextlib.suppress(msgspec.MsgspecError, OverflowError, ValueError):
                    friend.send(encode([_any(source.choice(kinds), source)]))
            friend.send(encode([m.Bye("stop", "")]))
            assert friend.poll(20_000)
        _works(session, 2)
        assert psutil.pid_exists(hub), "it is the same hub"
        assert [process["pid"] for process in study.processes() if process["kind"] == "hub"] == [hub]


def test_a_client_that_was_dead_before_its_greeting_was_read_keeps_no_session_open(
    study: Study, sockets: Sockets
) -> None:
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    with study.session(cores=0):
        friend = sockets(keyring(study.home))
        friend.send(encode([m.Hello(session="other", pid=dead.pid, started=1, host=socket.gethostname())]))
        wait_for((study.home / "sessions" / "other" / "session.sqlite").exists, "the hub read it")
    assert study.wait_left() == [], "the hub ended with the last session that somebody has open"
