"""The spawner at the root of a node, with a small program in the place of the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl_agent.node import proctree

AGENT = """
import os, sys, time, json, itertools
from pathlib import Path
from pilot_hitl_agent.node.daemon import inherited_link
from pilot_hitl_agent.node.link import Link, Greeting, Exit, Unspawned, Closed
import select
folder = Path(sys.argv[1])
link = Link(inherited_link(), itertools.count(time.time_ns()).__next__)
environment = link.environment(dict(os.environ))
def say(text):
    with (folder / "said").open("a") as file:
        file.write(text + "\\n")
say(f"agent {os.getpid()}")
def spawn(*argv, lane=0):
    token = link.spawn(argv, environment, {}, "/", (), ("/dev/null", "/dev/null"), "label", lane)
    link.flush()
    return token
while True:
    select.select([link], [], [], 0.02)
    for news in link.receive():
        if isinstance(news, Greeting):
            say(f"greeting {news.restarts} {[each[1:3] for each in news.running]}")
        elif isinstance(news, Exit):
            say(f"exit {news.status}")
        elif isinstance(news, Closed):
            from pilot_hitl_agent.node.proctree import kill_marked
            kill_marked(os.environ["PILOT_HITL_MARK"])
            sys.exit(3)
    for order in sorted(folder.glob("do.*")):
        what = order.read_text().split()
        order.unlink()
        if what[0] == "spawn":
            spawn(*what[1:])
        elif what[0] == "queue":
            spawn(*what[1:], lane=1)
        elif what[0] == "exit":
            sys.exit(int(what[1]))
"""


class Root:
    """A root spawner and orders for the program in the agent's place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"test-root-{os.getpid()}-{folder.name}"
        (folder / "agent.py").write_text(AGENT)
        config = {"mark": self.mark, "agent_command": [sys.executable, str(folder / "agent.py"), str(folder)]}
        (folder / "config.json").write_text(json.dumps(config))
        self.orders = 0
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pilot_hitl_agent.node.spawner", str(self.folder / "config.json")]
        return subprocess.Popen(command)

    def do(self, order: str) -> None:
        self.orders += 1
        partial = self.folder / f"new.{self.orders}"
        partial.write_text(order)
        partial.rename(self.folder / f"do.{self.orders:04d}")

    def said(self, start: str, count: int = 1) -> list[str]:
        limit = time.monotonic() + 30
        while True:
            path = self.folder / "said"
            lines = path.read_text().splitlines() if path.exists() else []
            found = [line for line in lines if line.startswith(start)]
            if len(found) >= count:
                return found
            assert time.monotonic() < limit, lines
            time.sleep(0.005)

    def agent(self, number: int = 1) -> int:
        return int(self.said("agent", number)[-1].split()[1])

    def marked(self) -> list[int]:
        found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return [pid for pid in found if proctree.variable_of(pid, "PILOT_HITL_MARK") == self.mark]

    def gone(self) -> bool:
        limit = time.monotonic() + 10
        while self.marked():
            if time.monotonic() > limit:
                return False
            time.sleep(0.005)
        return True


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    proctree.kill_marked(made.mark)


def test_a_clean_end_of_the_agent_leaves_nothing(root: Root) -> None:
    root.agent()
    root.do("spawn /bin/sleep 1000")
    root.do("spawn /bin/sh -c sleep${IFS}1000&setsid${IFS}sleep${IFS}1000&")
    root.do("exit 0")
    assert root.process.wait(20) == 0
    assert root.gone()


def test_what_waits_for_a_dead_agent_never_begins(root: Root) -> None:
    first = root.agent()
    mark = root.folder / "mark"
    root.do("queue /bin/sleep 0.5")
    root.do(f"queue /bin/touch {mark}")
    root.do("spawn /bin/false")
    root.said("exit 1")
    os.kill(first, signal.SIGKILL)
    root.agent(2)
    assert "label" in root.said("greeting", 2)[-1]
    root.said("exit 0")
    root.do(f"queue /bin/touch {root.folder / 'other'}")
    root.said("exit 0", 2)
    assert (root.folder / "other").exists()
    assert not mark.exists()
    root.do("exit 0")
    assert root.process.wait(20) == 0


def test_a_dead_agent_is_started_again_and_hears_what_runs(root: Root) -> None:
    first = root.agent()
    root.do("spawn /bin/sleep 1000")
    root.do("spawn /bin/false")
    root.said("exit 1")
    os.kill(first, signal.SIGKILL)
    assert root.agent(2) != first
    greeting = root.said("greeting", 2)[-1]
    assert greeting.startswith("greeting 1 [('label', ")
    root.do("exit 0")
    assert root.process.wait(20) == 0
    assert root.gone()


def test_ends_that_come_while_there_is_no_agent_are_kept(root: Root) -> None:
    first = root.agent()
    root.do("spawn /bin/sleep 0.3")
    root.said("agent")
    time.sleep(0.1)
    os.kill(first, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(first, signal.SIGKILL)
    root.agent(2)
    root.do("exit 0")
    assert root.process.wait(20) == 0


def test_an_agent_that_keeps_dying_ends_the_node(root: Root) -> None:
    for number in range(1, 7):
        root.agent(number)
        root.do("exit 1")
    assert root.process.wait(20) == 1
    assert root.gone()


def test_a_killed_spawner_takes_the_agent_and_the_tasks_along(root: Root) -> None:
    root.agent()
    root.do("spawn /bin/sleep 1000")
    time.sleep(0.2)
    root.process.kill()
    assert root.gone()


def test_a_new_spawner_ends_what_an_old_one_left(root: Root) -> None:
    first = root.agent()
    root.do("spawn /bin/sleep 1000")
    time.sleep(0.2)
    left = [pid for pid in root.marked() if pid not in (first, root.process.pid)]
    os.kill(first, signal.SIGSTOP)
    root.process.kill()
    root.process.wait()
    (root.folder / "said").unlink()
    root.process = root.start()
    assert root.agent() != first
    assert left
    assert not set(left) & set(root.marked())
    assert first not in root.marked()


def test_sigterm_is_passed_on_to_the_agent(root: Root) -> None:
    first = root.agent()
    root.process.terminate()
    assert root.agent(2) != first, "it dies of it, and not of its own will"
    root.do("exit 0")
    assert root.process.wait(20) == 0


def test_the_spawner_is_small(root: Root) -> None:
    root.agent()
    modules = Path(f"/proc/{root.process.pid}/cmdline").read_bytes().split(b"\0")
    assert b"-S" in modules
    status = Path(f"/proc/{root.process.pid}/status").read_text()
    assert "Threads:\t1" in status
