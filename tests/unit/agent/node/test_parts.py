"""The small parts of a node: logs, sandboxes, frames, settings, who asks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from pilot_hitl.model.outputs import Range
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire import current
from pilot_hitl.wire.outputs import read_range
from pilot_hitl_agent.node import proctree
from pilot_hitl_agent.node.logs import Logs, read_file, tail_of
from pilot_hitl_agent.node.sandboxes import Sandboxes
from pilot_hitl_agent.node.settings import NodeSettings


def test_logs_are_reused_smallest_first(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs")
    assert [logs.take(), logs.take(), logs.take()] == [0, 1, 2]
    logs.free(2)
    logs.free(0)
    assert [logs.take(), logs.take(), logs.take()] == [0, 2, 3]
    out, err = logs.paths(3)
    assert out != err
    Path(out).write_bytes(b"0123456789")
    assert logs.read(Range(out, 2, 3, zlib.crc32(b"234"))) == b"234"
    assert logs.read(Range(out, 2, 3, zlib.crc32(b"567"))) == b""
    assert logs.read(Range(out, 0, 70_000)) == b""
    assert logs.read(Range(err, 0, 5)) == b""
    assert tail_of(out) == b"0123456789"
    assert tail_of(out, 4) == b"456789"
    logs.close()


def test_own_files_are_read_when_small(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read_file(str(path)) == (b"", Range(str(path)))
    path.write_bytes(b"abc")
    assert read_file(str(path)) == (b"abc", Range(str(path), 0, 3, zlib.crc32(b"abc")))
    path.write_bytes(bytes(70_000))
    content, at = read_file(str(path))
    assert (content, at.length) == (b"", 70_000)
    assert read_range(at, "stdout") == bytes(70_000)
    path.write_bytes(b"y" * 70_000)
    with pytest.raises(OSError, match="holds something else there now"):
        read_range(at, "stdout")


@pytest.mark.parametrize("old", [False, True])
def test_only_empty_sandboxes_are_reused(tmp_path: Path, old: bool) -> None:
    boxes = Sandboxes(tmp_path / "tasks")
    first, second, third = (boxes.path("task.1.000001", 1, run) for run in range(3))
    boxes.make(first)
    if old:
        os.utime(first, (1, 1))
    boxes.leave(first)
    boxes.make(second)
    assert not Path(first).exists()
    (Path(second) / "file").write_text("x")
    boxes.leave(second)
    boxes.make(third)
    assert (Path(second) / "file").exists()
    assert list(Path(third).iterdir()) == []
    boxes.leave(third)
    boxes.close()
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [Path(second).name]


def test_a_sandbox_of_an_attempt_that_was_given_back_is_its_own_again(tmp_path: Path) -> None:
    boxes = Sandboxes(tmp_path / "tasks")
    first, second, third = (boxes.path(name, 1, 0) for name in "abc")
    boxes.make(first)
    boxes.make(second)
    boxes.leave(first)
    boxes.leave(second)
    boxes.make(first)
    boxes.make(third)
    assert Path(first).is_dir()
    assert Path(third).is_dir()
    assert not Path(second).exists()


def test_a_sandbox_that_somebody_removed(tmp_path: Path) -> None:
    boxes = Sandboxes(tmp_path / "tasks")
    first, second = boxes.path("a", 1, 0), boxes.path("b", 1, 0)
    boxes.make(first)
    boxes.leave(first)
    Path(first).rmdir()
    boxes.make(second)
    assert Path(second).is_dir()
    Path(second).rmdir()
    Path(second).parent.rmdir()
    boxes.leave(second)
    boxes.make(second)
    assert Path(second).is_dir()


def test_base_environment_and_cpus() -> None:
    inventory = NodeInventory(name="n", cores=[4, 5, 6], pinned=True)
    facts = NodeSettings(
        node=0, inventory=inventory, session="s", pilot=2, home="/h", mark="m", session_folder="/s", pilot_folder="/p",
        blobs="/b", work="/w", environment={"A": "1", "PILOT_HITL_TASK": "outer", "PILOT_HITL_TOKEN": "x"},
    )  # fmt: skip
    variables = facts.base_environment()
    assert variables["A"] == "1"
    assert "PILOT_HITL_TASK" not in variables
    assert "PILOT_HITL_TOKEN" not in variables
    assert variables["PILOT_HITL_MARK"] == "m"
    assert variables["PATH"]
    assert facts.cpus(0b101) == (4, 6)
    assert facts.cpus(0b1000) == ()
    assert facts.spawner_count == 2


def test_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(current.ATTEMPT_VARIABLE, raising=False)
    assert not current.current_attempt()
    monkeypatch.setenv(current.ATTEMPT_VARIABLE, current.attempt_text("task.2.000017", 3, 1))
    found = current.current_attempt()
    assert found == current.CurrentAttempt(2 << 32 | 17, 3, 1)
    assert found.name == "task.2.000017"
    for bad in ("x", "task.1.2:3", "nothing:1.2", "task.1.2:a.b"):
        monkeypatch.setenv(current.ATTEMPT_VARIABLE, bad)
        assert current.current_attempt() is None
    monkeypatch.setattr(current, "call", (5, 1, 0))
    assert current.current_attempt() == current.CurrentAttempt(5, 1, 0)


HOLDS_A_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
memory = bytearray(b"x") * (400 << 20)  # takes its time to be given back, and files are closed only then
print("there", flush=True)
time.sleep(1000)
"""


def test_what_kill_marked_killed_holds_nothing_any_more(tmp_path: Path) -> None:
    mark = f"test-mark-{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, "-c", HOLDS_A_LOCK, str(tmp_path / "lock")]
    with (
        subprocess.Popen(command, env={**os.environ, "PILOT_HITL_MARK": mark}, stdout=subprocess.PIPE) as child,
        open(tmp_path / "lock", "a") as lock,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        assert proctree.kill_marked(mark) == 1
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_kill_marked_finds_and_spares() -> None:
    mark = f"test-mark-{os.getpid()}-{time.time_ns()}"
    children = [
        subprocess.Popen(["sleep", "1000"], env={**os.environ, "PILOT_HITL_MARK": value})
        for value in (mark, mark, mark + "0")
    ]
    while any(proctree.variable_of(child.pid, "PILOT_HITL_MARK") is None for child in children):
        time.sleep(0.001)
    try:
        proctree.kill_marked(mark, frozenset({children[1].pid}))
        assert children[0].wait(10) == -9
        assert children[1].poll() is None
        assert children[2].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
