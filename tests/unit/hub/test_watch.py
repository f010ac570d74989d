"""Noticing ends of processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

from pilot_hitl.hub.watch import Watch
from pilot_hitl.wire.processes import start_time


def test_an_end_calls_back_once_and_a_child_is_reaped() -> None:
    watch, calls = Watch(), []
    child = subprocess.Popen(["sleep", "100"])
    descriptor = watch.add(child.pid, lambda: calls.append(child.pid), start_time(child.pid))
    assert watch.descriptors == [descriptor]
    assert select.select([descriptor], [], [], 0)[0] == []
    child.send_signal(signal.SIGKILL)
    assert select.select([descriptor], [], [], 10)[0] == [descriptor]
    watch.fired(descriptor)
    watch.fired(descriptor)
    assert calls == [child.pid]
    assert watch.descriptors == []
    assert not Path(f"/proc/{child.pid}").exists()
    child.returncode = -9


def test_a_process_that_is_gone_or_another_is_not_watched() -> None:
    watch = Watch()
    child = subprocess.Popen(["true"])
    child.wait()
    assert watch.add(child.pid, lambda: None) == -1
    assert watch.add(os.getpid(), lambda: None, start_time(os.getpid()) + 1) == -1
    descriptor = watch.add(os.getpid(), lambda: None, start_time(os.getpid()))
    watch.remove(descriptor)
    watch.close()
    assert watch.descriptors == []


def test_facts_of_processes() -> None:
    assert start_time(os.getpid()) > 0
    assert start_time(1 << 30) == 0
