"""What somebody who can only connect, or a disk that is full, can do to a hub: nothing that its sessions notice."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl._hubprocess import RemoteHub
from pilot_hitl.cli._tool import connect
from pilot_hitl.wire.places import MARK_VARIABLE, runtime_folder

GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
"""How a peer begins."""
HUB = """
import resource
import sys
from pathlib import Path
if files := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))
from pilot_hitl.hub.server import Hub
hub = Hub(Path(sys.argv[1]), stay=True)
import signal
def page_limit(number, _frame):
    for session in hub.sessions.values():
        pages = session.store._database.execute("PRAGMA page_count").fetchone()[0]
        limit = pages if number == signal.SIGUSR1 else 1 << 30
        session.store._database.execute(f"PRAGMA max_page_count={limit}")
signal.signal(signal.SIGUSR1, page_limit)
signal.signal(signal.SIGUSR2, page_limit)
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
    with hub(home, 240) as (process, port), contextlib.ExitStack() as held, ph.Session("works") as session:
        session.submit_pilot(ph.PilotDescription(cores=1))
        assert session.call(limit_of_task).result(60) == (120, 240), "tasks have the limits that were given"
        for words in (b"", GREETING):
            # However busy it is: it does not get a turn meanwhile.
            process.send_signal(signal.SIGSTOP)
            for _ in range(400):
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_connection(("127.0.0.1", port), 2)).sendall(words)
            process.send_signal(signal.SIGCONT)
            assert [f.result(60) for f in session.map(twice, range(50))] == [2 * x for x in range(50)]
            with connect(home, timeout=20.0) as tool:  # another connection comes in
                status = tool.query("status")
            assert isinstance(status, dict)
            assert status["pid"] == process.pid
            assert status["tcp_turned_away"]
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < 200
        assert process.poll() is None


def is_greeted(port: int) -> bool:
    """Whether the hub answers who comes in over TCP, before or after it is tried again."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
            peer.sendall(GREETING)
            peer.settimeout(5)
            if peer.recv(1) == b"\xff":
                return True
        time.sleep(0.05)
    return False


def doorman_of(hub: int) -> int:
    """The process that takes connections for a hub."""
    children = Path(f"/proc/{hub}/task/{hub}/children").read_text().split()
    (found,) = [int(pid) for pid in children if b"doorman.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def test_who_takes_connections_for_it_is_started_again_and_ends_with_it(home: Path) -> None:
    with hub(home) as (process, port):
        assert is_greeted(port)
        before = doorman_of(process.pid)
        os.kill(before, signal.SIGKILL)
        assert is_greeted(port), "on the same port"
        after = doorman_of(process.pid)
        assert after != before
        ended = os.pidfd_open(after)
        process.kill()
        assert select.select([ended], [], [], 30)[0], "however the hub ends"
        os.close(ended)


def test_a_session_on_another_host_goes_on_through_all_that(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(home) as (process, port), ph.Session("near") as near, contextlib.ExitStack() as held:
        near.submit_pilot(ph.PilotDescription(cores=1))
        assert near.call(twice, 1).result(60) == 2
        # To what follows this is a process of a pilot, and the hub's host another one.
        monkeypatch.setenv(MARK_VARIABLE, "abc/near/1/0")
        monkeypatch.setattr("_socket.gethostname", lambda: "node1.elsewhere")
        with ph.Session("near", namespace="far") as far:
            assert isinstance(far._client._link._process, RemoteHub)
            assert far.call(len, os.urandom(5_000_000)).result(60) == 5_000_000
            for _ in range(300):
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_connection(("127.0.0.1", port), 2)).sendall(GREETING)
            assert [f.result(60) for f in far.map(twice, range(200))] == [2 * x for x in range(200)]
            with connect(home, timeout=20.0) as tool:
                status = tool.query("status")
            assert isinstance(status, dict)
            assert status["tcp_known"] == 2, "this tool comes from there as well"
            os.kill(doorman_of(process.pid), signal.SIGKILL)
            assert far.call(len, os.urandom(5_000_000)).result(60) == 5_000_000


def test_who_says_nothing_is_let_go(home: Path) -> None:
    with hub(home) as (_process, port), socket.create_connection(("127.0.0.1", port), 5) as silent:
        silent.settimeout(60)
        while silent.recv(4096):
            pass  # its greeting
    assert os.path.exists(home)


def full_disk(process: subprocess.Popen[str], *, full: bool) -> None:
    """Let SQLite find that the files of the hub's sessions cannot grow, as on a full disk, or can again."""
    process.send_signal(signal.SIGUSR1 if full else signal.SIGUSR2)


def fill(session: ph.Session) -> ph.TaskFuture[bytes]:
    """Make more results than the pages of the file still hold; return one that is not on disk."""
    for _ in range(100):
        future = session.call(os.urandom, 30_000)
        try:
            future.result(3)
        except TimeoutError:
            return future
    pytest.fail("the disk was never full")


def test_a_full_disk_is_told_and_ends_nothing(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with hub(home) as (process, _port), ph.Session("full") as session:
        session.submit_pilot(ph.PilotDescription(cores=1))
        assert session.call(twice, 1).result(60) == 2
        full_disk(process, full=True)
        waiting = fill(session)
        assert "is full" in session.explain(waiting)
        with pytest.raises(TimeoutError, match="is full"):
            session.flush(1.0)
        with connect(home, timeout=20.0) as tool:
            status = tool.query("status")
        assert isinstance(status, dict)
        assert "is full" in str(status["sessions"])
        again = session.call(twice, 3)
        full_disk(process, full=False)
        assert len(waiting.result(60)) == 30_000
        assert again.result(60) == 6
        session.flush(30.0)
        assert process.poll() is None
        said = capfd.readouterr().err
        assert said.count("results wait: the disk of") >= 1
        assert said.count("session full: results wait") <= 2, "its log says it once"


def test_a_session_that_closes_on_a_full_disk_leaves_the_hub_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pilot_hitl._client.LEAVE_TIMEOUT", 2.0)
    with hub(home) as (process, _port):
        with ph.Session("other") as other:
            other.submit_pilot(ph.PilotDescription(cores=1))
            assert other.call(twice, 1).result(60) == 2
            with contextlib.suppress(ph.errors.HubUnreachable), ph.Session("full") as session:
                session.submit_pilot(ph.PilotDescription(cores=1))
                assert session.call(twice, 1).result(60) == 2
                full_disk(process, full=True)
                fill(session)
            assert process.poll() is None
            full_disk(process, full=False)
            assert other.call(twice, 4).result(60) == 8
        with ph.Session("full") as session:
            assert session.call(twice, 1).result is not None
        runtime = runtime_folder(home)
    assert process.returncode == 0
    assert not runtime.exists()
    assert "Traceback" not in capfd.readouterr().err
