from __future__ import annotations

import os
import signal
import time
import zlib
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.outputs import NOWHERE, Range
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.staging import directives
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate
from pilot_hitl.wire.node import ChangeKind, Launch, Launches, NodeTemplate, Retract, Unchain
from tests.behaviour.node.harness import Node


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(path: Path) -> str:
    limit = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.005)
    return path.read_text().strip()


def test_output_is_captured_as_it_is(node: Node) -> None:
    result = node.result(node.run(node.executable("printf"), r"\377\000caf\303\251"))
    assert result.stdout == b"\xff\x00caf\xc3\xa9"
    assert result.exit_code == 0
    assert result.stderr_at == NOWHERE
    # Into the log only when it runs long enough for somebody to want to read it there.
    at = result.stdout_at
    assert at == NOWHERE or Path(at.path).read_bytes()[at.offset : at.offset + at.length] == result.stdout


def test_outputs_of_tasks_on_one_log_are_told_apart(node: Node) -> None:
    echo = node.executable("echo")
    tasks = [node.run(echo, str(number), core=number % 2) for number in range(20)]
    assert [node.result(task).stdout for task in tasks] == [b"%d\n" % number for number in range(20)]


def test_large_output_goes_by_reference_only(node: Node) -> None:
    result = node.result(node.run(node.executable("head"), "-c", "100000", "/dev/zero"))
    at = result.stdout_at
    assert (result.stdout, at.length) == (b"", 100_000)
    assert Path(at.path).read_bytes()[at.offset : at.offset + at.length] == bytes(100_000)
    assert at.checksum == zlib.crc32(bytes(100_000))


def test_a_bad_exit_says_what_was_last_on_standard_error(node: Node) -> None:
    task = node.run(node.executable("/bin/sh"), "-c", "echo out; echo gone wrong >&2; exit 7")
    failure = node.failure(task)
    assert (failure.cause, failure.exit_code, failure.detail, failure.host) == (Cause.EXIT, 7, "gone wrong\n", "here")
    assert node.result(task).stdout == b"out\n"


def test_death_by_signal_is_a_negative_exit_code(node: Node) -> None:
    failure = node.failure(node.run(node.executable("/bin/sh"), "-c", "kill -SEGV $$"))
    assert (failure.cause, failure.exit_code) == (Cause.EXIT, -signal.SIGSEGV)
    assert "SIGSEGV" in failure.message


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "./nothing"])
def test_a_missing_program_is_named(node: Node, name: str) -> None:
    failure = node.failure(node.run(node.executable(name)))
    assert failure.cause is Cause.NO_PROGRAM
    assert name in failure.message
    assert failure.host == "here"


def test_a_program_that_may_not_be_run(node: Node) -> None:
    program = node.folder / "data"
    program.write_text("x")
    failure = node.failure(node.run(node.executable(str(program))))
    assert failure.cause is Cause.NO_PROGRAM
    assert "Permission denied" in failure.message


def test_a_script_without_a_first_line_is_the_shells(node: Node) -> None:
    script = node.folder / "script"
    script.write_text('echo "$1 ran"\n')
    script.chmod(0o755)
    assert node.result(node.run(node.executable(str(script)), "it")).stdout == b"it ran\n"


def test_arguments_that_are_too_long(node: Node) -> None:
    failure = node.failure(node.run(node.executable("echo"), "x" * 200_000))
    assert failure.cause is Cause.SETUP
    assert "too long" in failure.message
    assert node.result(node.run(node.executable("echo"), "next")).stdout == b"next\n"


def test_path_of_the_template_counts(node: Node) -> None:
    tool = node.folder / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    found = node.executable("tool", environment={"PATH": f"{tool.parent}:/usr/bin:/bin"})
    assert node.result(node.run(found)).stdout == b"tool\n"
    assert node.failure(node.run(node.executable("tool"))).cause is Cause.NO_PROGRAM


def test_environment(node: Node) -> None:
    show = node.executable("/bin/sh", environment={"A": "1 é"})
    slots = (Slot(0, 0b11, (2, 3)),)
    script = 'echo "$A|$PILOT_HITL_TASK|$PILOT_HITL_ATTEMPT|$PILOT_HITL_SESSION|$CUDA_VISIBLE_DEVICES|$OMP_NUM_THREADS"'
    result = node.result(node.run(show, "-c", script, slots=slots))
    assert result.stdout.decode() == "1 é|task.1.000001|task.1.000001:1.0|study|2,3|2\n"
    mine = node.executable("/bin/sh", environment={"OMP_NUM_THREADS": "9"})
    assert node.result(node.run(mine, "-c", "echo $OMP_NUM_THREADS")).stdout == b"9\n"


def test_affinity(tmp_path: Path) -> None:
    pinned = Node(tmp_path / "pinned", pinned=True)
    try:
        last = len(pinned.settings.inventory.cores) - 1
        result = pinned.result(
            pinned.run(pinned.executable("grep"), "Cpus_allowed_list", "/proc/self/status", core=last)
        )
        assert result.stdout.split()[-1] == str(pinned.settings.inventory.cores[last]).encode()
    finally:
        pinned.close()


def test_sandboxes(node: Node) -> None:
    shell = node.executable("/bin/sh")
    wrote = node.result(node.run(shell, "-c", "echo data > file; pwd"))
    assert wrote.stdout.decode().strip() == wrote.sandbox
    assert (Path(wrote.sandbox) / "file").read_text() == "data\n"
    for _ in range(3):
        empty = node.result(node.run(shell, "-c", "ls -A; pwd"))
        assert empty.stdout.decode().strip() == empty.sandbox
    assert (Path(wrote.sandbox) / "file").exists()


def test_an_asked_sandbox_is_made(node: Node) -> None:
    asked = node.folder / "deep" / "er"
    result = node.result(node.run(node.executable("/bin/sh"), "-c", "pwd > where", sandbox=str(asked)))
    assert result.sandbox == str(asked)
    assert (asked / "where").read_text().strip() == str(asked)


def test_a_sandbox_that_cannot_be_made_fails_that_task_only(node: Node) -> None:
    (node.folder / "file").write_text("")
    failure = node.failure(node.run(node.executable("true"), sandbox=str(node.folder / "file" / "x")))
    assert failure.cause is Cause.SETUP
    assert node.finished(node.run(node.executable("true"))).failure is None


def test_speculative_attempts_run_apart_and_are_published(node: Node) -> None:
    asked = node.folder / "asked"
    outputs = directives("output_staging", ["file > copy"], folder=node.settings.work)
    template = ExecutableTemplate(executable="/bin/sh", name="sh", stdout="out.txt", output_staging=outputs)
    number = node.template(template)
    task = node.run(number, "-c", "echo x > file; echo said", sandbox=str(asked), condition=9)
    result = node.result(task)
    assert result.sandbox != str(asked)
    assert not asked.exists()
    assert result.stdout == b"said\n"
    node.daemon.publish((task, 1, 0), result.sandbox, template, str(asked))
    node.until(lambda: bool(node.published))
    assert node.published[0].ok, node.published[0]
    assert node.published[0].sandbox == str(asked)
    assert (asked / "file").read_text() == "x\n"
    assert (asked / "out.txt").read_text() == "said\n"
    assert Path(node.published[0].outputs[0]).read_text() == "x\n"


def test_files_of_its_own(node: Node) -> None:
    task = node.run(node.executable("/bin/sh", stdout="out", stderr="err"), "-c", "echo 1; echo 2 >&2")
    result = node.result(task)
    assert (result.stdout, result.stderr) == (b"1\n", b"2\n")
    assert result.stdout_at == Range(f"{result.sandbox}/out", 0, 2, zlib.crc32(b"1\n"))
    both = node.result(node.run(node.executable("/bin/sh", stdout="o", stderr="o"), "-c", "echo 1; echo 2 >&2"))
    assert both.stdout == b"1\n2\n"


def test_pre_and_post_exec(node: Node) -> None:
    shell = node.executable("/bin/sh", pre_exec=["export A='x y'", "# nothing"], post_exec=["echo after"])
    task = node.run(shell, "-c", 'echo "$A $1"; exit 4', "sh", "a  b")
    assert node.result(task).stdout == b"x y a  b\nafter\n"
    assert node.failure(task).exit_code == 4


@pytest.mark.parametrize("line", ["false", "echo 'never closed", "cd /no/such/folder"])
def test_a_failing_pre_exec_line_is_named(node: Node, line: str) -> None:
    failure = node.failure(node.run(node.executable("touch", pre_exec=["true", line]), "ran"))
    assert failure.cause is Cause.SETUP
    assert "pre_exec line 2" in failure.message
    assert line in failure.message
    assert "pilot-hitl-" not in failure.detail


def test_pre_exec_may_bring_the_program(node: Node) -> None:
    tool = node.folder / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    found = node.executable("tool", pre_exec=[f"export PATH={tool.parent}:$PATH"])
    assert node.result(node.run(found)).stdout == b"tool\n"
    missing = node.failure(node.run(node.executable("tool", pre_exec=["true"])))
    assert missing.cause is Cause.NO_PROGRAM


def test_staging(node: Node) -> None:
    work = Path(node.settings.work)
    (work / "in put").write_text("data")
    template = node.executable(
        "/bin/sh",
        input_staging=[
            {"source": "in put", "target": "copied", "action": "copy"},
            {"source": "client:///in put", "target": "links/", "action": "link"},
        ],
        output_staging=[{"source": "result", "target": "client:///out/result", "action": "move"}],
    )
    result = node.result(node.run(template, "-c", "cat copied 'links/in put' > result"))
    assert (work / "out" / "result").read_text() == "datadata"
    assert result.outputs == [str(work / "out" / "result")]
    missing = node.failure(node.run(node.executable("true", input_staging=[{"source": "gone", "target": "x"}])))
    assert missing.cause is Cause.SETUP
    assert "gone" in missing.message


def test_timeout(node: Node) -> None:
    began = time.monotonic()
    failure = node.failure(node.run(node.executable("sleep", timeout=0.2), "60"))
    assert failure.cause is Cause.TIMEOUT
    assert "0.2 s" in failure.message
    assert time.monotonic() - began < 20


def test_what_ignores_sigterm_is_killed_after_its_grace(node: Node) -> None:
    task = node.run(node.executable("/bin/sh"), "-c", "trap '' TERM; echo x > ready; while :; do sleep 1; done")
    wait_for(node.folder / "pilot/tasks/task.1.000001.1.0/ready")
    node.end(task, grace=0.1)
    assert node.failure(task).cause is Cause.CANCELED


def test_children_die_with_a_canceled_task(node: Node) -> None:
    pids = node.folder / "pids"
    script = f"""
    sleep 1000 & echo $! >> {pids}.tmp
    setsid sleep 1000 & echo $! >> {pids}.tmp
    (setsid sh -c 'sleep 1000 & echo $! >> {pids}.tmp; exit' &) ; sleep 0.2
    mv {pids}.tmp {pids}; wait"""
    task = node.run(node.executable("/bin/sh"), "-c", script)
    numbers = [int(pid) for pid in wait_for(pids).split()]
    assert len(numbers) == 3
    node.end(task, grace=5.0)
    assert node.failure(task).cause is Cause.CANCELED
    assert not [pid for pid in numbers if alive(pid)]


def test_daemons_die_with_the_task_that_left_them(node: Node) -> None:
    pids = node.folder / "pids"
    script = f"setsid sh -c 'echo $$ >> {pids}.tmp; setsid sleep 1000' & sleep 0.1; mv {pids}.tmp {pids}"
    task = node.run(node.executable("/bin/sh"), "-c", script)
    assert node.finished(task).failure is None
    assert not [pid for pid in map(int, pids.read_text().split()) if alive(pid)]
    assert len(node.marked()) <= 2


def test_suspend_and_resume(node: Node) -> None:
    task = node.run(node.executable("/bin/sh"), "-c", "echo $$ > pid; sleep 2; echo done")
    pid = int(wait_for(node.folder / "pilot/tasks/task.1.000001.1.0/pid"))
    node.end(task, "suspend")
    assert node.kinds(task) == ["STARTED", "SUSPENDED"]
    stat = Path(f"/proc/{pid}/stat")
    # D: the shell was between fork and exec, and waits for a child that is stopped.
    node.until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "TD")
    node.end(task, "resume")
    assert node.result(task).stdout == b"done\n"
    assert node.kinds(task) == ["STARTED", "SUSPENDED", "RESUMED", "FINISHED"]


def test_a_suspended_task_can_be_ended(node: Node) -> None:
    task = node.run(node.executable("sleep"), "1000")
    node.end(task, "suspend")
    node.end(task, grace=20.0)
    began = time.monotonic()
    assert node.failure(task).cause is Cause.CANCELED
    assert time.monotonic() - began < 10


def test_held_ahead_follows_on_the_slots(node: Node) -> None:
    echo = node.executable("echo")
    first = node.run(node.executable("sleep"), "0.2")
    low = node.run(echo, "low", core=None, rank=(2, 0))
    high = node.run(echo, "high", core=None, rank=(1, 0))
    other = node.run(echo, "other", core=None, chain=2)
    node.finished(low)
    order = [(change.task, change.kind.name, change.after) for change in node.changes]
    assert order == [
        (first, "STARTED", 0), (first, "FINISHED", 0), (high, "STARTED", first), (high, "FINISHED", 0),
        (low, "STARTED", high), (low, "FINISHED", 0),
    ]  # fmt: skip
    node.send(Retract([other, high]))
    assert node.kinds(other) == ["RETRACTED"]


def test_nothing_follows_after_unchain(node: Node) -> None:
    first = node.run(node.executable("sleep"), "0.1")
    held = node.run(node.executable("echo"), core=None)
    node.send(Unchain([first]))
    node.finished(first)
    assert node.kinds(held) == []


def test_ranks_without_mpi(node: Node) -> None:
    shell = node.executable("/bin/sh")
    slots = (Slot(0, 1), Slot(0, 2))
    result = node.result(node.run(shell, "-c", "echo $PILOT_HITL_RANK of $PILOT_HITL_RANKS", slots=slots, ranks=2))
    assert sorted(result.stdout.split(b"\n")) == [b"", b"0 of 2", b"1 of 2"]
    bad = node.run(shell, "-c", '[ "$PILOT_HITL_RANK" = 1 ] && exit 5; exec sleep 1000', slots=slots, ranks=2)
    assert node.failure(bad).exit_code == 5


def test_a_killed_fellow_spawner_ends_its_tasks_as_unfinished(node: Node) -> None:
    task = node.run(node.executable("sleep"), "1000", core=1)
    node.until(lambda: any(each["kind"] == "task" for each in node.daemon.processes()))
    spawners = [each["pid"] for each in node.daemon.processes() if each["kind"] == "spawner"]
    os.kill(next(pid for pid in spawners if pid != node.spawner.pid), signal.SIGKILL)
    assert node.failure(task).cause is Cause.SPAWNER_DIED
    assert node.result(node.run(node.executable("echo"), "on", core=1)).stdout == b"on\n"


def test_a_killed_root_spawner_ends_everything(node: Node) -> None:
    tasks = [node.run(node.executable("sleep"), "1000", core=core) for core in (0, 1)]
    node.until(lambda: sum(each["kind"] == "task" for each in node.daemon.processes()) == 2)
    node.spawner.kill()
    for task in tasks:
        assert node.failure(task).cause is Cause.PILOT_ENDED
    assert node.daemon.broken
    node.until(lambda: not node.marked())


def test_garbage_is_dropped(node: Node) -> None:
    node.send(NodeTemplate(77, b"garbage"))
    task = node.launch(77, b"")
    assert node.failure(task).cause is Cause.PAYLOAD
    echo = node.executable("echo")
    assert node.failure(node.launch(echo, b"\xc1garbage")).cause is Cause.PAYLOAD
    assert node.failure(node.launch(4242, b"")).cause is Cause.PAYLOAD
    assert node.result(node.run(echo, "fine")).stdout == b"fine\n"


def test_the_same_launch_twice_runs_once(node: Node) -> None:
    echo = node.executable("echo")
    launch = Launch(5, 1, 0, echo, 1, (1, 0), 0, (Slot(0, 1),), msgspec.msgpack.encode(ExecutableBody(["x"])))
    node.send(Launches([launch, launch]))
    node.finished(5)
    assert node.kinds(5) == ["STARTED", "FINISHED"]


def test_logs_that_cannot_be_written_fail_the_task(node: Node) -> None:
    node.folder.joinpath("pilot").mkdir()
    node.folder.joinpath("pilot/logs").write_text("in the way")
    failure = node.failure(node.run(node.executable("true")))
    assert failure.cause is Cause.SETUP
    assert "slot-0000" in failure.message or "stdout" in failure.message


def test_closing_ends_what_runs(node: Node) -> None:
    task = node.run(node.executable("sleep"), "1000")
    held = node.run(node.executable("sleep"), "1000", core=None)
    node.close()
    assert node.failure(task).cause is Cause.PILOT_ENDED
    assert node.last(held, ChangeKind.RETRACTED)
