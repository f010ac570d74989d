"""What a worker hands back while calls wait behind others."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.values import dumps
from pilot_hitl_agent.node import frames, worker
from pilot_hitl_agent.node.frames import Back, Call, Code, Done, FromWorker, Leaving
from pilot_hitl_agent.node.process_state import ProcessState


class Watched:
    """A lock that looks at the worker each time it is let go."""

    def __init__(self, owner: worker.Worker, seen: list[str]) -> None:
        self._lock = threading.Lock()
        self._owner = owner
        self._seen = seen

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        ended = {done.task for done in self._owner._done}
        waiting = [call.task for call in self._owner._waiting]
        # Whoever takes the lock now could hand these back: something before them must be running and not be told of.
        if waiting and waiting[0] - 1 in ended:
            self._seen.append(f"{waiting} wait behind {waiting[0] - 1}, which has ended")
        self._lock.release()


def test_what_waits_is_always_behind_a_call_that_runs(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = worker.Settings(host="here", blobs=str(tmp_path / "blobs"), work=str(tmp_path))
    made = worker.Worker(theirs, mmap.mmap(-1, frames.PAGE_SIZE), settings)
    seen: list[str] = []
    vars(made)["_lock"] = Watched(made, seen)
    code = Code(1, b"digest", dumps(abs, blobs), "abs", "")
    calls = [Call(task, 1, 0, 1, dumps(((-task,), {}), blobs), []) for task in range(1, 50)]
    ours.send(msgspec.msgpack.encode([code, *calls]))
    ours.shutdown(socket.SHUT_WR)
    made.serve()
    told: list[Any] = []
    theirs.close()
    while packet := frames.receive(ours, bytearray(frames.ROOM)):
        told += msgspec.msgpack.decode(packet, type=list[FromWorker])
    ours.close()
    assert not seen
    ended = [item.task for item in told if isinstance(item, Done)]
    back = [task for item in told if isinstance(item, Back) for task in item.tasks]
    assert sorted(ended + back) == list(range(1, 50))
    assert ended[0] == 1


def _kept(_path: str) -> str:
    return os.environ.get("LEFT", "")


class Unfit(ProcessState):
    """A process in which something cannot be put back after the second call."""

    calls = 0

    def put_back(self) -> str:
        self.calls += 1
        return "" if self.calls < 2 else "the niceness cannot be put back"


def test_a_worker_that_cannot_go_on_says_so_and_runs_nothing_more(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = worker.Settings(host="here", blobs=str(tmp_path / "blobs"), work=str(tmp_path))
    made = worker.Worker(theirs, mmap.mmap(-1, frames.PAGE_SIZE), settings, state=Unfit())
    code = Code(1, b"digest", dumps(_kept, blobs), "kept", "")
    calls = [Call(task, 1, 0, 1, dumps((("",), {}), blobs), []) for task in range(1, 6)]
    ours.send(msgspec.msgpack.encode([code, *calls]))
    made.serve()  # returns although nobody closed the other side
    told: list[Any] = []
    theirs.close()
    while packet := frames.receive(ours, bytearray(frames.ROOM)):
        told += msgspec.msgpack.decode(packet, type=list[FromWorker])
    ours.close()
    assert [item.task for item in told if isinstance(item, Done)] == [1, 2]
    assert told[-1] == Leaving("the niceness cannot be put back")


@pytest.mark.parametrize(
    ("client", "base", "given", "found"),
    [
        (["/s", "/lib.zip", "/site"], "", "", ["/s", "/lib.zip", "/site", "/more"]),
        (["/s", "/p", "/lib.zip", "/site"], "/p", "/p", ["/s", "/p", "/lib.zip", "/site", "/more"]),
        (["/s", "/p", "/lib.zip", "/site"], "/p", "/n:/m", ["/s", "/n", "/m", "/lib.zip", "/site", "/more"]),
        (["/s", "/lib.zip", "/site"], "", "/n", ["/s", "/n", "/lib.zip", "/site", "/more"]),
        (["/s", "/p", "/lib.zip"], "/p", "", ["/s", "/lib.zip", "/more"]),
        (["/s", "/lib.zip"], "", "rel:", ["/s", "/w/rel", "/w", "/lib.zip", "/more"]),
        (["/lib.zip", "/site"], "", "/n", ["/n", "/lib.zip", "/site", "/more"]),
    ],
)
def test_the_import_path_is_that_of_a_script_with_this_pythonpath(
    client: list[str], base: str, given: str, found: list[str]
) -> None:
    settings = worker.Settings(host="", blobs="", work="/w", path=client, pythonpath=base)
    assert worker.import_path(settings, given, ["", "/lib.zip", "/more"])[: len(found)] == found
