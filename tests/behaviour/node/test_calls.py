from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.templates import FunctionTemplate
from pilot_hitl.wire.node import ChangeKind, Launch, Launches, NodeCondition, Retract, Unchain
from pilot_hitl.wire.outputs import Written, outputs_of
from pilot_hitl.wire.values import dumps, loads
from tests.behaviour.node.harness import Node


def double(x: Any) -> Any:
    return x * 2


def pid_of(*_: Any) -> int:
    return os.getpid()


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("never packed")


def warm(node: Node, template: int, count: int = 3, **fields: Any) -> None:
    """Run a few calls, so that the node knows how short they are."""
    for _ in range(count):
        node.finished(node.call(template, *fields.pop("args", (0,)), **fields))


def launches(node: Node, template: int, bodies: list[bytes], first: int = 1000, **fields: Any) -> list[int]:
    made = [
        Launch(first + number, 1, 0, template, 1, (1, 0), 0, (), body, **fields) for number, body in enumerate(bodies)
    ]
    node.send(Launches(made))
    return [launch.task for launch in made]


def test_values_come_back(node: Node) -> None:
    template = node.function(double)
    values: list[Any] = [1, "é", b"\xff", [1], 2.5]
    for value in values:
        assert node.value(node.call(template, value)) == value * 2


def test_a_worker_stays_warm(node: Node) -> None:
    template = node.function(pid_of)
    assert len({node.value(node.call(template)) for _ in range(5)}) == 1
    assert node.value(node.call(template, core=1)) != node.value(node.call(template, core=0))


def test_closures_and_lambdas(node: Node) -> None:
    base = 40
    assert node.value(node.call(node.function(lambda x: x + base), 2)) == 42


def test_async_functions(node: Node) -> None:
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.01)
        return x + 1

    assert node.value(node.call(node.function(later), 1)) == 2


def test_large_values_both_ways(node: Node) -> None:
    array = np.arange(500_000)
    result = node.value(node.call(node.function(double), array))
    assert np.array_equal(result, array * 2)
    assert result.flags.writeable


def test_packets_above_the_sockets_limit(node: Node) -> None:
    inputs = [(number, dumps(bytes(60_000), node.blobs)) for number in range(40)]
    task = node.call(node.function(double), 4, inputs=inputs)
    assert node.value(task) == 8


def test_values_of_dependencies(node: Node) -> None:
    class Later:
        pass

    later = Later()
    body = dumps(((later, later), {}), node.blobs, lambda item: 77 if isinstance(item, Later) else None)
    template = node.function(lambda a, b: (a is b, a))
    task = node.launch(template, body, inputs=[(77, dumps([5], node.blobs))])
    assert node.value(task) == (True, [5])


def test_exceptions_travel(node: Node) -> None:
    def fails(x: int) -> None:
        raise ValueError(f"bad {x}")

    change = node.finished(node.call(node.function(fails), 3))
    assert change.failure is not None
    assert (change.failure.cause, change.failure.message, change.failure.host) == (
        Cause.EXCEPTION, "ValueError: bad 3", "here",
    )  # fmt: skip
    assert "in fails" in change.failure.detail
    assert "worker.py" not in change.failure.detail
    error = loads(change.payload, node.blobs)
    assert isinstance(error, ValueError)
    assert error.args == ("bad 3",)


def test_an_exception_that_cannot_be_packed(node: Node) -> None:
    def fails() -> None:
        raise UnpicklableError("x")

    change = node.finished(node.call(node.function(fails)))
    assert change.failure is not None
    assert change.failure.cause is Cause.EXCEPTION
    assert change.payload == b""


def test_leaving_python_ends_the_call_only(node: Node) -> None:
    template = node.function(exec)
    pid = node.value(node.call(node.function(pid_of)))
    for code in ("raise SystemExit(3)", "raise KeyboardInterrupt", "raise BaseException('x')"):
        assert node.failure(node.call(template, code)).cause is Cause.EXCEPTION, code
        assert node.value(node.call(node.function(pid_of))) == pid, code


def test_what_cannot_be_packed_or_loaded(node: Node) -> None:
    assert node.failure(node.call(node.function(lambda: (yield)))).cause is Cause.PAYLOAD
    double_ = node.function(double)
    assert node.failure(node.launch(double_, b"\0garbage")).cause is Cause.PAYLOAD
    assert node.failure(node.launch(double_, b"")).cause is Cause.PAYLOAD
    assert node.value(node.call(double_, 1)) == 2


def test_a_function_whose_module_is_not_here(node: Node, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("def f(): return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        elsewhere = importlib.import_module("elsewhere")
        code = dumps(elsewhere.f, node.blobs)
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["elsewhere"]
    template = node.template(FunctionTemplate(digest=b"elsewhere", code=code, name="f"))
    failure = node.failure(node.call(template))
    assert failure.cause is Cause.PAYLOAD
    assert "elsewhere" in failure.message


def test_a_dead_worker_costs_only_the_call_that_ran(node: Node) -> None:
    def dies(how: int) -> int:
        if how == 1:
            os.write(2, b"last words\n")
            os._exit(3)
        if how == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return how

    template = node.function(dies)
    warm(node, template)
    head = node.call(template, 0)
    tasks = launches(node, template, [dumps(((how,), {}), node.blobs) for how in (5, 1, 6, 2, 7)])
    assert node.value(head) == 0
    assert [node.value(task) for task in (tasks[0], tasks[2], tasks[4])] == [5, 6, 7]
    first, second = node.failure(tasks[1]), node.failure(tasks[3])
    assert first.cause is second.cause is Cause.WORKER_DIED
    assert "exited with code 3" in first.message
    assert "last words" in first.detail
    assert "SIGSEGV" in second.message
    assert all(node.kinds(task).count("FINISHED") == 1 for task in tasks)


def test_a_killed_worker_is_replaced(node: Node) -> None:
    template = node.function(nap)
    task = node.call(template, 1000)
    node.until(lambda: any(each["task"] == task for each in node.daemon.processes()))
    os.kill(next(each["pid"] for each in node.daemon.processes() if each["task"] == task), signal.SIGKILL)
    failure = node.failure(task)
    assert failure.cause is Cause.WORKER_DIED
    assert "SIGKILL" in failure.message
    assert node.value(node.call(template, 0))


def test_a_killed_idle_worker_costs_nothing(node: Node) -> None:
    template = node.function(pid_of)
    pid = node.value(node.call(template))
    os.kill(pid, signal.SIGKILL)
    assert node.value(node.call(template)) != pid


def test_a_killed_nursery_is_replaced(node: Node) -> None:
    template = node.function(nap)
    task = node.call(template, 1000)
    node.until(lambda: any(each["task"] == task for each in node.daemon.processes()))
    spawners = [each["pid"] for each in node.daemon.processes() if each["kind"] == "spawner"]
    os.kill(next(pid for pid in spawners if pid != node.spawner.pid), signal.SIGKILL)
    assert node.failure(task).cause is Cause.SPAWNER_DIED
    assert node.value(node.call(template, 0))


def test_many_calls_in_order_of_rank(node: Node) -> None:
    template = node.function(double)
    warm(node, template)
    head = node.call(template, 0)
    tasks = launches(node, template, [dumps(((number,), {}), node.blobs) for number in range(500)])
    assert [node.value(task) for task in tasks] == [2 * number for number in range(500)]
    assert [change.task for change in node.changes if change.kind is ChangeKind.FINISHED][-500:] == tasks
    started = {change.task: change.after for change in node.changes if change.kind is ChangeKind.STARTED}
    assert [started[task] for task in tasks] == [head, *tasks[:-1]]


def test_nothing_waits_behind_a_long_call(node: Node) -> None:
    def wait(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    template = node.function(wait)
    warm(node, template, 5)
    warm(node, template, 1, core=1)
    head = node.call(template, 0)
    bodies = [dumps(((seconds,), {}), node.blobs) for seconds in (0, 0, 1000, 0, 0, 0, 0)]
    tasks = launches(node, template, bodies)
    # The other core takes over what was sent behind the long call.
    other = node.call(template, 0, core=1)
    for task in [head, other, *tasks[:2]]:
        assert node.value(task) == 0
    node.until(lambda: node.last(tasks[2], ChangeKind.STARTED))
    # What a worker had already gives it back a moment later, perhaps when this core has done what it had.
    while not all(node.last(task, ChangeKind.FINISHED) for task in tasks[3:]):
        assert node.value(node.call(template, 0, core=1)) == 0
    assert [node.value(task) for task in tasks[3:]] == [0] * 4
    assert not node.last(tasks[2], ChangeKind.FINISHED)
    node.end(tasks[2], grace=0.0)
    assert node.failure(tasks[2]).cause is Cause.CANCELED


def test_retract_gets_one_reply_each(node: Node) -> None:
    template = node.function(nap)
    long = node.call(template, 1000)
    tasks = launches(node, template, [dumps(((0.0,), {}), node.blobs)] * 5)
    node.send(Retract([*tasks, long]))
    assert [node.kinds(task) for task in tasks] == [["RETRACTED"]] * 5
    assert node.kinds(long) == ["STARTED"]
    node.end(long, grace=0.0)
    node.finished(long)


def test_retract_of_what_was_sent_ahead(node: Node) -> None:
    template = node.function(double)
    warm(node, template)
    node.call(template, 0)
    tasks = launches(node, template, [dumps(((number,), {}), node.blobs) for number in range(300)])
    node.send(Retract(tasks))
    node.until(lambda: all(node.kinds(task) for task in tasks))
    node.until(lambda: not node.daemon.busy)
    assert {tuple(node.kinds(task)) for task in tasks} <= {("RETRACTED",), ("STARTED", "FINISHED")}


def test_timeout_of_a_call(node: Node) -> None:
    assert node.failure(node.call(node.function(nap, timeout=1.0), 1000)).cause is Cause.TIMEOUT
    # The next one needs another worker, which counts: it has time enough.
    assert node.value(node.call(node.function(nap, timeout=60.0), 0))


def test_canceled_calls_take_their_children_along(node: Node) -> None:
    def with_child(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["setsid", "sleep", "1000"])
        Path(path).write_text(str(child.pid))
        time.sleep(1000)

    path = node.folder / "child"
    task = node.call(node.function(with_child), str(path))
    node.until(lambda: path.exists() and path.read_text())
    node.end(task, grace=5.0)
    assert node.failure(task).cause is Cause.CANCELED
    node.until(lambda: not Path(f"/proc/{path.read_text()}").exists())


def test_speculation_has_workers_of_its_own(node: Node) -> None:
    template = node.function(pid_of)
    plain = node.value(node.call(template))
    tagged = node.value(node.call(template, condition=5))
    # Idle and untagged, it may be given to speculation; then it is lost to everybody else until the answer.
    assert node.value(node.call(template, condition=5)) == tagged
    other = node.value(node.call(template))
    assert other != tagged
    assert node.value(node.call(template, condition=6)) != tagged
    node.send(NodeCondition(5, True))
    assert node.value(node.call(template)) in {plain, tagged, other}
    node.send(NodeCondition(6, False))


def test_discard_ends_what_runs_under_the_condition(node: Node) -> None:
    template = node.function(nap)
    running = node.call(template, 1000, condition=5)
    held = node.call(template, 1000, condition=5, core=None)
    other = node.call(template, 0.05, core=1, chain=2)
    node.send(NodeCondition(5, False))
    assert node.failure(running).cause is Cause.DISCARDED
    assert node.kinds(held) == ["RETRACTED"]
    assert node.value(other)


def test_calls_know_where_they_are(node: Node) -> None:
    def look() -> Any:
        from pilot_hitl.wire.current import current_attempt

        found = current_attempt()
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PILOT_HITL_SESSION", "EXTRA")
        return found and found.name, [os.environ.get(name) for name in names], str(Path.cwd())

    template = node.function(look, environment={"EXTRA": "x"})
    task = node.call(template, slots=(Slot(0, 0b11, (1,)),))
    assert node.value(task) == ("task.1.000001", ["2", "1", "study", "x"], node.settings.work)


def test_output_of_a_call_comes_with_its_end(node: Node) -> None:
    change = node.finished(node.call(node.function(lambda: print("said"))))
    # A call that takes long finds its output in the log.
    written = Written(outputs_of(change.payload))
    assert (written.stdout(), written.stderr()) == (b"said\n", b"")
    quiet = node.finished(node.call(node.function(lambda: 1)))
    assert outputs_of(quiet.payload) == []


def test_unchain_of_calls(node: Node) -> None:
    template = node.function(nap)
    task = node.call(template, 0.05)
    held = node.call(template, 0, core=None)
    node.send(Unchain([task]))
    node.finished(task)
    assert node.kinds(held) == []


@pytest.mark.long
def test_idle_workers_do_not_pile_up(node: Node) -> None:
    for number in range(12):
        template = node.function(pid_of, environment={"N": str(number)})
        node.value(node.call(template))
    node.until(lambda: sum(each["kind"] == "worker" for each in node.daemon.processes()) <= 5)
