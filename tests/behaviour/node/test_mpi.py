"""Calls of several ranks in warm MPI groups, on one node."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import Slot
from pilot_hitl.wire import current
from pilot_hitl.wire.node import ChangeKind, NodeCondition
from pilot_hitl_agent.node.rankframes import shared_memory
from tests.behaviour.node.harness import Node
from tests.behaviour.studies import further

if TYPE_CHECKING:
    from mpi4py import MPI

pytestmark = pytest.mark.requires("openmpi", "mpi4py")
TWO = (Slot(0, 1), Slot(0, 2))
THREE = (Slot(0, 1), Slot(0, 2), Slot(0, 4))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node", cores=4)
    yield made
    made.close()
    memory = shared_memory(made.mark)
    assert not list(memory.parent.glob(f"{memory.name}*"))


def total(comm: MPI.Intracomm, x: int) -> tuple[int, int, int]:
    return comm.allreduce(x + comm.rank), comm.rank, comm.size


def noted(comm: MPI.Intracomm, x: int, folder: str) -> tuple[int, int, int]:
    # Fails where this rank has begun this call before.
    os.close(os.open(f"{folder}/{x}.{comm.rank}", os.O_CREAT | os.O_EXCL))
    return total(comm, x)


def behind(x: int, comm: MPI.Intracomm) -> int:
    return x * comm.size


def by_name(x: int, *, comm: MPI.Intracomm) -> int:
    return x * comm.size


def asks(x: int) -> int:
    assert current.comm is not None
    return x * current.comm.size


def pids(comm: MPI.Intracomm) -> list[int]:
    return comm.gather(os.getpid()) or []


def surroundings(comm: MPI.Intracomm) -> list[dict[str, str]]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "PILOT_HITL_RANK", "STUDY")  # fmt: skip
    mine = {name: os.environ[name] for name in names if name in os.environ}
    attempt = current.current_attempt()
    assert attempt is not None
    mine["affinity"] = repr(sorted(os.sched_getaffinity(0)))
    mine["task"] = attempt.name
    return comm.gather(mine) or []


def fail_on(comm: MPI.Intracomm, which: int, hang: bool) -> None:
    if comm.rank == which:
        raise LookupError(f"no value on {which}")
    if hang:
        comm.barrier()
        time.sleep(60)


def fail_everywhere(comm: MPI.Intracomm) -> NoReturn:
    # Messages that nobody receives must not reach the next call.
    comm.isend("stale", dest=(comm.rank + 1) % comm.size)
    raise LookupError("no value")


def receive(comm: MPI.Intracomm, x: str) -> str:
    comm.isend(x, dest=(comm.rank + 1) % comm.size)
    got: str = comm.recv(source=(comm.rank - 1) % comm.size)
    return got


def die_on(comm: MPI.Intracomm, which: int, how: str) -> None:
    if comm.rank == which:
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), getattr(signal, how))
    comm.barrier()


def stay(comm: MPI.Intracomm, log: str) -> NoReturn:
    child = subprocess.Popen(["/bin/sleep", "600"])
    everybody = comm.allgather((os.getpid(), child.pid))
    if comm.rank == 0:
        Path(log).write_text(" ".join(f"{mine} {theirs}" for mine, theirs in everybody))
    while True:
        time.sleep(10)


def sorry(comm: MPI.Intracomm, log: str) -> str:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        # Whoever sees the file may interrupt before this has come back from writing it.
        Path(f"{log}.{comm.rank}").write_text("here")
        time.sleep(60)
    except KeyboardInterrupt:
        Path(f"{log}.{comm.rank}").write_text("saved")
    return "saved"


def call(node: Node, template: int, *args: Any, slots: tuple[Slot, ...] = TWO, held: bool = False, **more: Any) -> int:
    return node.call(template, *args, slots=() if held else slots, ranks=len(slots), **more)


def test_a_function_gets_the_communicator(node: Node) -> None:
    assert node.value(call(node, node.function(total), 5)) == (11, 0, 2)
    for function in (behind, by_name, asks):
        assert node.value(call(node, node.function(function), 5)) == 10
    assert node.value(call(node, node.function(total), 5, slots=THREE)) == (18, 0, 3)


def test_one_group_for_a_thousand_calls_that_costs_nothing_while_idle(node: Node) -> None:
    template, sums = node.function(pids), node.function(total)
    first = node.value(call(node, template))
    assert len(set(first)) == 2
    for each in range(900):
        assert node.value(call(node, sums, each))[0] == 2 * each + 1
    # Those that are held ahead follow on the same slots without another word of the agent.
    held = [call(node, sums, each, held=bool(each)) for each in range(100)]
    assert [node.value(task)[0] for task in held] == [2 * each + 1 for each in range(100)]
    follow = node.last(held[-1], ChangeKind.STARTED)
    assert follow is not None
    assert follow.after == held[-2]
    assert node.value(call(node, template)) == first
    used = [psutil.Process(pid).cpu_times() for pid in first]
    node.until(lambda: time.monotonic() > limit, 5) if (limit := time.monotonic() + 1.0) else None
    after = [psutil.Process(pid).cpu_times() for pid in first]
    assert sum(new.user + new.system - old.user - old.system for old, new in zip(used, after, strict=True)) < 0.1


def test_what_a_rank_is_told(node: Node) -> None:
    template = node.function(surroundings, environment={"STUDY": "a b"})
    slots = (Slot(0, 0b011, (2,), 10_000), Slot(0, 0b100, (0,), 10_000))
    task = call(node, template, slots=slots)
    zero, one = node.value(task)
    assert [zero["RANK"], one["RANK"]] == [zero["LOCAL_RANK"], one["LOCAL_RANK"]] == ["0", "1"]
    assert [zero["PILOT_HITL_RANK"], one["PILOT_HITL_RANK"]] == ["0", "1"]
    assert zero["WORLD_SIZE"] == one["WORLD_SIZE"] == "2"
    assert [zero["OMP_NUM_THREADS"], one["OMP_NUM_THREADS"]] == ["2", "1"]
    assert [zero["CUDA_VISIBLE_DEVICES"], one["CUDA_VISIBLE_DEVICES"]] == ["2", "0"]
    assert zero["MASTER_PORT"] == one["MASTER_PORT"]
    assert zero["MASTER_ADDR"] == "127.0.0.1"
    assert zero["STUDY"] == one["STUDY"] == "a b"
    assert zero["task"] == one["task"] == "task.1.000001"
    # Another environment takes another group, whose ranks see that one.
    assert "STUDY" not in node.value(call(node, node.function(surroundings), slots=slots))[0]


def test_ranks_are_bound_to_their_cores(tmp_path: Path) -> None:
    node = Node(tmp_path / "pinned", cores=2, pinned=True)
    try:
        cores = node.settings.inventory.cores
        bound = [each["affinity"] for each in node.value(call(node, node.function(surroundings)))]
        assert bound == [repr([core]) for core in cores]
    finally:
        node.close()


def test_an_exception_on_one_rank_fails_the_call_and_who_hangs_is_ended(node: Node) -> None:
    before = node.value(call(node, node.function(pids)))
    failure = node.failure(call(node, node.function(fail_on), 1, True))
    assert failure.cause is Cause.EXCEPTION
    assert (failure.message, failure.host) == ("LookupError: no value on 1 (rank 1 of 2)", "here")
    assert "--- rank 1 on here\nTraceback" in failure.detail
    assert "fail_on" in failure.detail
    assert "--- rank 0 on here came to no end" in failure.detail
    after = node.value(call(node, node.function(pids)))
    assert not set(before) & set(after)


def test_after_exceptions_everywhere_the_group_goes_on(node: Node) -> None:
    before = node.value(call(node, node.function(pids)))
    failure = node.failure(call(node, node.function(fail_everywhere)))
    assert "--- ranks 0, 1 on here" in failure.detail
    assert node.value(call(node, node.function(receive), "fresh")) == "fresh"
    assert node.value(call(node, node.function(pids))) == before


@pytest.mark.parametrize("how", further(1, ["SIGKILL", "SIGSEGV", "exit"]))
def test_a_rank_that_dies_is_named_and_the_group_built_again(node: Node, how: str) -> None:
    before = node.value(call(node, node.function(pids)))
    failure = node.failure(call(node, node.function(die_on), 1, how))
    assert failure.cause is Cause.WORKER_DIED
    assert failure.message.startswith("rank 1 of 2 ")
    assert failure.note == f"rank 1 was process {before[1]}"
    if how != "exit":
        assert how in failure.message
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    after = node.value(call(node, node.function(pids)))
    assert not set(before) & set(after)


def test_a_group_that_died_while_idle_costs_no_call(node: Node) -> None:
    before = node.value(call(node, node.function(pids)))
    os.kill(before[1], signal.SIGKILL)
    node.until(lambda: not [pid for pid in before if psutil.pid_exists(pid)])
    assert not set(before) & set(node.value(call(node, node.function(pids))))
    # Also when nobody has noticed yet.
    again = node.value(call(node, node.function(pids)))
    task_of = node.function(pids)
    os.kill(again[0], signal.SIGKILL)
    os.kill(again[1], signal.SIGKILL)
    assert not set(again) & set(node.value(call(node, task_of)))


def test_whoever_is_killed_whenever_every_call_ends_and_begins_once(node: Node, tmp_path: Path) -> None:
    template, sums = node.function(pids), node.function(noted)
    chance = random.Random(4)
    lost = 0
    for turn in range(6):
        ranks = [psutil.Process(pid) for pid in node.value(call(node, template))]
        victim = chance.choice([*ranks, *(parent for parent in [ranks[0].parent()] if parent is not None)])
        folder = tmp_path / f"turn{turn}"
        folder.mkdir()
        tasks = [call(node, sums, each, str(folder), held=bool(each)) for each in range(20)]
        for _ in range(chance.randrange(8)):
            node.turn(0.01)
        victim.kill()
        for each, task in enumerate(tasks):
            change = node.finished(task)
            if change.failure is None:
                assert node.value(task)[0] == 2 * each + 1
            else:
                assert change.failure.cause is Cause.WORKER_DIED, (turn, change.failure)
                lost += 1
    assert lost <= 6
    # What MPI leaves behind when it is killed lies where it is removed, which the fixture looks at.
    memory = shared_memory(node.mark)
    (folder,) = memory.parent.glob(f"{memory.name}*")
    assert list(folder.glob("*_segment.*"))


def test_what_is_ended_is_gone_with_all_its_children(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = call(node, node.function(stay), str(log))
    node.until(lambda: log.exists() and len(log.read_text().split()) == 4)
    node.end(task, grace=0.2)
    assert node.failure(task).cause is Cause.CANCELED
    everybody = [int(pid) for pid in log.read_text().split()]
    node.until(lambda: not [pid for pid in everybody if psutil.pid_exists(pid)])
    assert node.value(call(node, node.function(total), 1))[2] == 2


def test_grace_is_for_saving(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = call(node, node.function(sorry), str(log))
    node.until(lambda: all(Path(f"{log}.{rank}").exists() for rank in (0, 1)))
    node.end(task, grace=20.0)
    assert node.value(task) == "saved"
    assert [Path(f"{log}.{rank}").read_text() for rank in (0, 1)] == ["saved", "saved"]


def test_a_timeout_ends_all_ranks(node: Node, tmp_path: Path) -> None:
    node.value(call(node, node.function(total), 1))
    task = call(node, node.function(stay, timeout=1.0, grace=0.1), str(tmp_path / "log"))
    assert node.failure(task).cause is Cause.TIMEOUT


def test_suspended_ranks_go_on(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = call(node, node.function(stay, on_preempt="suspend"), str(log))
    node.until(lambda: log.exists() and len(log.read_text().split()) == 4)
    ranks = [int(pid) for pid in log.read_text().split()][::2]
    node.end(task, "suspend")
    node.until(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in ranks))
    node.end(task, "resume")
    node.until(lambda: all(psutil.Process(pid).status() != psutil.STATUS_STOPPED for pid in ranks))
    node.end(task, grace=0.0)
    assert node.failure(task).cause is Cause.CANCELED


def test_what_a_discarded_branch_left_in_memory_is_seen_by_nobody(node: Node) -> None:
    template = node.function(pids)
    speculative = node.value(call(node, template, condition=7))
    node.send(NodeCondition(7, False))
    node.until(lambda: not [pid for pid in speculative if psutil.pid_exists(pid)])
    assert not set(speculative) & set(node.value(call(node, template)))


def test_without_mpi4py_the_remedy_is_named(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [entry for entry in sys.path if entry and "site-packages" not in entry]
    monkeypatch.setattr(sys, "path", elsewhere)
    node.settings.path = []
    failure = node.failure(call(node, 1 if node.function(total) else 0, 1))
    assert failure.cause is Cause.SETUP
    assert "pip install 'pilot-hitl[mpi]'" in failure.message
    assert "on here" in failure.message


def test_without_a_launcher_the_remedy_is_named(tmp_path: Path) -> None:
    node = Node(tmp_path / "bare", environment={**os.environ, "PATH": str(tmp_path)})
    try:
        failure = node.failure(call(node, node.function(total), 1))
        assert failure.cause is Cause.SETUP
        assert "need an MPI launcher" in failure.message
        assert "on here" in failure.message
        assert "PATH" in failure.message
    finally:
        node.close()


def test_a_launcher_that_fails_is_quoted(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "mpirun"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'mpirun (Open MPI) 4';; *) echo no licence >&2; exit 3;; esac\n"
    )
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    node = Node(tmp_path / "broken", environment={**os.environ, "PATH": path})
    try:
        failure = node.failure(call(node, node.function(total), 1))
        assert "exited with code 3" in failure.message
        assert "no licence" in failure.detail
    finally:
        node.close()
