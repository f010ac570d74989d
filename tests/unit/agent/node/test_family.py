"""Signals for the tree of a process reach it at every moment of its life."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from pilot_hitl_agent.node import spawner
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
    send_group = spawner._send_group

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
            monkeypatch.setattr(spawner, "_send_group", between)
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
