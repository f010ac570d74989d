"""What somebody who can only connect, or a disk that is full, can do to a hub: nothing that its sessions notice."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl.cli._tool import connect

HUB = """
import resource
import sys
from pathlib import Path
if files := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))
from pilot_hitl.hub.server import Hub
hub = Hub(Path(sys.argv[1]), stay=True)
print(hub.door.open("127.0.0.1"), flush=True)
hub.run()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOT_HITL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@contextlib.contextmanager
def hub(home: Path, files: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A hub that listens on TCP with so many descriptors at most, and its port."""
    process = subprocess.Popen([sys.executable, "-c", HUB, str(home), str(files)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def twice(x: int) -> int:
    return 2 * x


def limit_of_task() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def test_silent_connections_do_not_end_it(home: Path) -> None:
    with hub(home, 240) as (process, port), contextlib.ExitStack() as held:
        with ph.Session("works") as session:
            session.submit_pilot(ph.PilotDescription(cores=1))
            assert session.call(limit_of_task).result(60) == (120, 240), "tasks have the limits that were given"
            for _ in range(400):
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_connection(("127.0.0.1", port), 2))
            assert [f.result(60) for f in session.map(twice, range(50))] == [2 * x for x in range(50)]
            with connect(home, timeout=20.0) as tool:  # another connection comes in
                status = tool.query("status")
            assert isinstance(status, dict)
            assert status["pid"] == process.pid
            assert status["tcp_pauses"]
            assert process.poll() is None
            held.close()
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2):
                    break
                time.sleep(0.1)
            else:
                pytest.fail("it does not listen again")
            assert session.call(twice, 21).result(60) == 42
        assert process.poll() is None


def test_who_says_nothing_is_let_go(home: Path) -> None:
    with hub(home) as (_process, port), socket.create_connection(("127.0.0.1", port), 5) as silent:
        silent.settimeout(60)
        while silent.recv(4096):
            pass  # its greeting
    assert os.path.exists(home)
