"""Signals for the tree of a process reach it at every moment of its life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from pilot_hitl_agent.node import proctree
from pilot_hitl_agent.node.spawner import Family, Process

TOKEN = 7
PATIENCE = 5.0


def forked(before: Callable[[], object] = lambda: None) -> int:
    """Fork as the fork server does: the child leads a session of its own only a moment after the fork."""
    pid = os.fork()
    if pid:
        return pid
    try:
        before()
        os.setsid()
        while True:
            signal.pause()
    finally:
        os._exit(3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_signal_at_the_start(monkeypatch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """Its group is not there yet; or is there only when each process of the tree is looked at; or is there."""
    reading, writing = os.pipe()
    pid = forked(lambda: os.read(reading, 1))
    send_group = proctree.send_group

    def lead() -> None:
        os.write(writing, b"x")
        while os.getpgid(pid) != pid:
            os.sched_yield()

    def between(group: int, sent: int) -> bool:
        found = send_group(group, sent)
        if os.getpgid(pid) != pid:
            lead()
        return found

    family = Family("test")
    process = Process(TOKEN, "worker", pid, 0.0)
    family.add(process)
    try:
        if when == "after":
            lead()
        if when == "between":
            monkeypatch.setattr(proctree, "send_group", between)
        family.kill(TOKEN, number)
        assert ended(pid) == -number
    finally:
        os.close(writing)
        os.close(reading)
        family.abandon()


def ended(pid: int) -> int | None:
    """Wait until a child has ended; None when it does not."""
    end = time.monotonic() + PATIENCE
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(found[1])


def test_a_process_of_the_group_gets_a_signal_with_a_handler_once() -> None:
    reading, writing = os.pipe()

    def handle() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os.write(writing, b"x"))

    pid = forked(handle)
    while os.getpgid(pid) != pid:
        os.sched_yield()
    family = Family("test")
    family.add(Process(TOKEN, "worker", pid, 0.0))
    family.kill(TOKEN, signal.SIGTERM)
    assert os.read(reading, 1) == b"x"
    family.kill(TOKEN, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    os.close(writing)
    assert os.read(reading, 10) == b""
    os.close(reading)
    family.abandon()


LOOKS_AFTER_A_SPAWNER = """
import marshal, os, signal, sys
from pilot_hitl_agent.node import packets, proctree, spawner

spawner._become_subreaper()
family = spawner.Family("above")
token = {**os.environ, spawner.TOKEN_VARIABLE: "above:1"}


def serve(link):
    # In this process's stead the fork becomes a spawner, below which another one may run.
    os.environ.update(token)
    below = os.fork()
    if not below:
        link.setblocking(False)
        os.dup2(link.fileno(), 30)
        argv = [sys.executable, "-I", "-S", spawner.PROGRAM, "--serve", "30"]
        os.execve(sys.executable, argv, token)
    return below


ours, theirs = packets.socketpair()
pid = serve(theirs)
family.add(spawner.Process(1, "spawner", pid, 0.0))
depth, above = int(sys.argv[1]), pid
ours.setblocking(True)
records = [(spawner.ENVIRONMENT, 1, {"PATH": os.environ["PATH"]})]
ours.send(marshal.dumps(records))
fds, end = (), ours
for level in range(depth - 1):
    mine, theirs = packets.socketpair()
    argv = [sys.executable, "-I", "-S", spawner.PROGRAM, "--serve", "3"]
    record = (spawner.SPAWN, 5, "spawner", argv, 1, {}, "/", (), os.devnull, os.devnull, 0)
    packets.send(end, marshal.dumps([record]), (theirs.fileno(),))
    mine.setblocking(True)
    end = mine
    end.send(marshal.dumps(records))
record = (spawner.SPAWN, 9, "task", ["/bin/sleep", "6011"], 1, {}, "/", (), os.devnull, os.devnull, 0)
end.send(marshal.dumps([record]))


def task():
    for each in proctree.descendants(pid):
        with open(f"/proc/{each}/cmdline", "rb") as file:
            if b"6011" in file.read():
                return each
    return 0


while not (running := task()):
    os.sched_yield()
os.kill(pid, signal.SIGKILL)
while not [each for each in family.reap() if each.token == 1]:
    os.sched_yield()
# A zombie that nobody has reaped would be there as well.
print("gone" if not os.path.exists(f"/proc/{running}") else "there")
"""


@pytest.mark.parametrize("depth", [1, 2])
def test_a_spawner_ends_when_what_it_had_started_is_gone(depth: int) -> None:
    """Its attempts run again when its end is told: none may run twice at a time."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKS_AFTER_A_SPAWNER, str(depth)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "gone\n", done.stderr
