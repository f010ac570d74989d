"""What a task wrote is its own: all of it, nothing of others, and an error where it is gone."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, further
from tests.behaviour.test_executables import shell

LARGE = 200_000


def python(text: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable=sys.executable, arguments=["-c", text], **more)


def many(letter: str, count: int = LARGE, where: str = "") -> ph.TaskDescription:
    return shell(f"head -c {count} /dev/zero | tr '\\0' {letter} {where}")


# --- executables ------------------------------------------------------------------------------------------------------

RUDE = {
    "redirection": ("echo one; echo two > /dev/stdout; echo why > /dev/stderr; echo three", "one\ntwo\nthree\n"),
    "tee": ("echo one; echo two | tee /dev/fd/5 5>&1; echo why | tee /dev/stderr > /dev/null", "one\ntwo\ntwo\n"),
    "awk": ("""awk 'BEGIN { print "one" > "/dev/stdout"; print "why" > "/dev/stderr" }'""", "one\n"),
    "descriptors": ("echo one > /proc/self/fd/1; echo two > /dev/fd/1; echo why >&2", "one\ntwo\n"),
    "truncate": ("echo one; truncate -s 0 /dev/stdout 2> /dev/null; echo two; echo why >&2", "one\ntwo\n"),
    "elsewhere": ("echo one; echo why >&2; exec > /dev/null 2>&1; echo two", "one\n"),
    "slowly elsewhere": ("echo one; echo why >&2; exec > /dev/null 2>&1; sleep 0.1; echo two", "one\n"),
    "daemon": ("echo one; echo why >&2; (setsid sh -c 'trap : TERM; sleep 100; echo late') & sleep 0.05", "one\n"),
}
RUDE_PYTHON = {
    "open": (
        "print(1, flush=True); open('/dev/stdout', 'w').write('2'); open('/dev/stderr', 'w').write('why')",
        "1\n2",
    ),
    "closed": ("import os; os.write(1, b'one'); os.write(2, b'why'); os.close(1); os.close(2)", "one"),
    "non-blocking": ("import os; os.set_blocking(1, False); os.write(1, b'one'); os.write(2, b'why')", "one"),
    "large pipe": (
        "import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(1, b'x' * 1000000); os.write(2, b'why')",
        "x" * 1_000_000,
    ),
    "binary": ("import os; os.write(1, bytes(range(128))); os.write(2, b'why')", bytes(range(128)).decode()),
}


@pytest.mark.parametrize("name", further(2, [*RUDE, *RUDE_PYTHON]))
def test_what_a_program_does_to_its_output_harms_nobody(study: Study, name: str) -> None:
    text, expected = RUDE.get(name) or RUDE_PYTHON[name]
    task = shell(text) if name in RUDE else python(text)
    with study.session(cores=1) as session:  # one core: all tasks use one slot
        before = session.submit([many("a"), many("b", where=">&2")])
        ph.wait(before)
        rude = session.submit(task)
        assert rude.result(60).stdout == expected
        assert rude.result().stderr.startswith("why")
        after = session.submit(shell("echo next; echo oops >&2")).result(60)
        assert (after.stdout, after.stderr) == ("next\n", "oops\n")
        ph.wait(session.submit([many("c"), many("d", where=">&2")]))
        assert before[0].result().stdout == "a" * LARGE
        assert before[1].result().stderr == "b" * LARGE


@pytest.mark.parametrize("count", further(2, [16_385, 1_048_577, 65_536, 65_535, 65_537, 16_384, 4095, 1, 0]))
def test_output_of_any_size_is_whole(study: Study, count: int) -> None:
    half = count // 2
    slowly = python(f"import os, time; os.write(1, b'x' * {half}); time.sleep(0.1); os.write(1, b'y' * {count - half})")
    with study.session(cores=1) as session:
        futures = session.submit([many("x", count), many("x", count, ">&2"), slowly])
        assert futures[0].result(60).stdout == "x" * count
        assert futures[1].result(60).stderr == "x" * count
        assert futures[2].result(60).stdout == "x" * half + "y" * (count - half)
        assert futures[2].stdout == futures[2].result().stdout


def test_megabytes_flow_while_others_run(study: Study) -> None:
    with study.session(cores=2) as session:
        loud = session.submit(many("x", 60_000_000))
        quiet = session.submit([shell(f"echo {number}; echo {number} >&2") for number in range(50)])
        assert [each.result(60).stdout for each in quiet] == [f"{number}\n" for number in range(50)]
        assert [each.stderr for each in quiet] == [f"{number}\n" for number in range(50)]
        text = loud.result(100).stdout
        assert (len(text), set(text)) == (60_000_000, {"x"})


def test_ranks_of_one_node_write_one_text(study: Study) -> None:
    text = "import os; os.write(1, b'r' * 40000); os.write(2, os.environ['PILOT_HITL_RANK'].encode() + b'\\n')"
    with study.session(cores=2) as session:
        done = session.submit(python(text, ranks=2)).result(60)
        assert done.stdout == "r" * 80_000
        assert sorted(done.stderr.split()) == ["0", "1"]
        with pytest.raises(ph.TaskFailed) as caught:
            session.submit(python("import sys; print('said'); sys.exit('why')", ranks=2)).result(60)
        assert "why" in caught.value.stderr
        assert "said" in caught.value.stdout


def changed(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "why"),
    further(1, [(b"other" * 200_000, "holds something else"), (b"", "too early"), (None, "cannot be opened")]),
)
def test_a_range_that_is_not_the_task_s_any_more_is_an_error(study: Study, content: bytes | None, why: str) -> None:
    with study.session(cores=1) as session:
        large = session.submit(many("x"))
        own = session.submit(many("y", where="> file; cat file"))
        named = session.submit(shell("yes | head -c 200000", stdout="out"))
        call = session.call(lambda: print("z" * 200_000))
        ph.wait([large, own, named, call])
        assert large.result().stdout == "x" * LARGE
        logs = list((session.folder / "pilots").glob("*/logs/**/*.out"))
        for path in [path for path in logs if path.stat().st_size] + [Path(named.result().sandbox, "out")]:
            changed(path, content)
        for future in (large, own, named, call):
            with pytest.raises(OSError, match=f"lost: .*{why}.*run the task again"):
                _ = future.stdout
        shown = json.loads(study.tool("task", "show", large.task, "-s", "study", "--json"))
        assert "lost" in shown["stdout_lost"]
        assert "stdout" not in shown


def test_output_of_a_stored_result_is_found_by_the_next_run(study: Study) -> None:
    script = """
    import logging

    def loud(text):
        print(text)
        print(text * 100_000)
        return 1

    with ph.Session("again") as session:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
        call = session.call(loud, "c")
        small = session.call(print, "small")
        task = session.submit(ph.TaskDescription(executable="sh", arguments=["-c", "yes | head -c 200000"]))
        ph.wait([call, small, task])
        print(len(call.stdout), small.stdout.strip(), len(task.stdout), session.resumed)
    """
    assert study.run(script).split() == ["100003", "small", "200000", "0"]
    assert study.run(script).split() == ["100003", "small", "200000", "3"]
    for path in (study.home / "sessions" / "again" / "pilots").glob("*/logs/**/*.out"):
        if path.stat().st_size:
            path.write_bytes(b"other" * 100_000)
    process = study.start(script)
    _, err = process.communicate(timeout=60)
    assert "stdout is lost" in err


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_s_output_is_told_by_its_name(study: Study) -> None:
    def talks(number: int) -> int:
        print("begin", number)
        os.write(1, b"raw %d\n" % number)
        subprocess.run(["echo", "child", str(number)], check=True)
        warnings.warn(f"warned {number}", stacklevel=1)
        print("end", number)
        time.sleep(0.02 * (number % 2))
        return number

    def lines(number: int) -> list[str]:
        return sorted([f"begin {number}", f"raw {number}", f"child {number}", f"end {number}"])

    with study.session(cores=2) as session:
        futures = [session.call(talks, number) for number in range(8)]
        with pytest.raises(InvalidStateError, match="has not ended"):
            _ = session.call(time.sleep, 0.5).stdout
        for number, future in enumerate(futures):
            assert future.result(60) == number
            assert sorted(future.stdout.splitlines()) == lines(number)
            assert f"warned {number}" in future.stderr
            shown = session.query("task", task=future.task)
            assert sorted(shown["stdout"].splitlines()) == lines(number)
        quiet = session.call(int, "7")
        assert (quiet.result(60), quiet.stdout, quiet.stderr) == (7, "", "")
        assert "end 5" in study.tool("task", "show", futures[5].task, "-s", "study")
    assert "end 5" in study.tool("task", "show", futures[5].task, "-s", "study")  # nobody has it open now


def test_many_short_calls_are_told_apart(study: Study) -> None:
    with study.session(cores=2) as session:
        futures = [session.call(lambda n: print(n) or (n % 3 and print(n, file=sys.stderr)), n) for n in range(300)]
        ph.wait(futures, 60)
        assert [each.stdout for each in futures] == [f"{n}\n" for n in range(300)]
        assert [each.stderr for each in futures] == [f"{n}\n" if n % 3 else "" for n in range(300)]


def closes() -> None:
    print("one")
    os.close(1)
    os.close(2)


def leads_elsewhere() -> None:
    print("one", flush=True)
    nowhere = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    print("two", flush=True)
    time.sleep(0.01)


def reopens() -> None:
    print("one", flush=True)
    Path("/dev/stdout").write_text("two\n")
    subprocess.run(["sh", "-c", "echo three > /dev/stdout"], check=True)


def does_not_block() -> None:
    os.set_blocking(1, False)
    print("one")
    time.sleep(0.01)


def replaces() -> None:
    print("one")
    sys.stdout = io.StringIO()
    print("two")


def writes_much() -> None:
    os.write(1, b"x" * 3_000_000)


def holds_on() -> None:
    import ctypes

    libc = ctypes.PyDLL(None)  # which keeps the interpreter for itself
    for _ in range(200):
        libc.write(1, b"x" * 1000, 1000)


@pytest.mark.parametrize(
    ("rude", "expected"),
    further(
        3,
        [
            (closes, "one\n"),
            (reopens, "one\ntwo\nthree\n"),
            (holds_on, "x" * 200_000),
            (leads_elsewhere, "one\n"),
            (does_not_block, "one\n"),
            (replaces, "one\n"),
            (writes_much, "x" * 3_000_000),
        ],
    ),
)
def test_what_a_call_does_to_its_output_harms_nobody(study: Study, rude: Callable[[], None], expected: str) -> None:
    def polite(text: str) -> None:
        os.write(1, text.encode())
        os.write(2, text.encode() * 100_000)

    with study.session(cores=1) as session:
        first = session.call(rude)
        then = [session.call(polite, str(number)) for number in range(3)]
        ph.wait([first, *then], 60)
        assert first.exception() is None
        assert first.stdout == expected
        assert [each.stdout for each in then] == ["0", "1", "2"]
        assert [each.stderr for each in then] == [str(number) * 100_000 for number in range(3)]


def test_what_a_failed_call_printed_is_told_with_its_error(study: Study) -> None:
    def fails() -> None:
        print("about to fail")
        print("trouble", file=sys.stderr)
        raise ValueError("why")

    def dies() -> None:
        print("about to die", flush=True)
        os.write(2, b"trouble")
        os._exit(3)

    with study.session(cores=1) as session:
        failed, died = session.call(fails), session.call(dies)
        error = failed.exception(60)
        assert isinstance(error, ValueError)
        notes = "\n".join(error.__notes__)
        assert "about to fail" in notes
        assert "trouble" in notes
        assert (failed.stdout, failed.stderr) == ("about to fail\n", "trouble\n")
        assert isinstance(died.exception(60), ph.WorkerDied)
        assert (died.stdout, died.stderr) == ("about to die\n", "trouble")
        program = session.submit(shell("echo said; echo why >&2; exit 3"))
        caught = program.exception(60)
        assert isinstance(caught, ph.TaskFailed)
        assert (caught.stdout, caught.stderr) == ("said\n", "why\n")
        assert (program.stdout, program.stderr) == ("said\n", "why\n")


def test_a_thread_or_process_that_outlives_its_call(study: Study) -> None:
    def leaves() -> None:
        print("mine")
        threading.Timer(0.3, print, ["a thread's"], {"flush": True}).start()
        subprocess.Popen(["sh", "-c", "sleep 0.3; echo a child\\'s"])

    with study.session(cores=1) as session:
        first = session.call(leaves)
        first.result(60)
        assert first.stdout == "mine\n"
        time.sleep(1)
        after = session.call(print, "next")
        after.result(60)
        assert after.stdout == "next\n"


def test_a_child_that_outlives_its_call_writes_into_no_other_call(study: Study) -> None:
    def leaves() -> None:
        print("mine")
        subprocess.Popen(["sh", "-c", "for i in 1 2 3 4 5; do sleep 0.1; echo late; echo late >&2; done"])

    def lasts(much: int) -> int:
        print("begin")
        time.sleep(0.4)
        os.write(1, b"x" * much)
        return os.getpid()

    with study.session(cores=1) as session:
        first = session.call(leaves)
        then = [session.call(lasts, 10), session.call(lasts, 300_000), session.call(lasts, 10)]
        ph.wait([first, *then], 60)
        assert first.stdout == "mine\n"
        assert [each.stdout for each in then] == ["begin\n" + "x" * n for n in (10, 300_000, 10)]
        assert [each.stderr for each in then] == ["", "", ""]
        assert then[0].result() == then[2].result()  # the worker is none the worse
        late = [path.read_text() for path in (session.folder / "pilots").glob("*/logs/**/*.out.late")]
        assert "late" in "".join(late)


@pytest.fixture
def configured_logging() -> Any:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)


@pytest.mark.usefixtures("configured_logging")
def test_logging_has_the_level_of_the_script(study: Study) -> None:
    def logs() -> None:
        logging.getLogger("mine").debug("not this")
        logging.getLogger("mine").info("but %s", "this")

    with study.session(cores=1) as session:
        future = session.call(logs)
        future.result(60)
        assert future.stderr == "INFO:mine:but this\n"


@pytest.mark.requires("openmpi", "mpi4py")
@pytest.mark.one_node("of a call that failed, the output of the ranks on the failing one's node is sure to be there")
def test_ranks_of_a_function_are_told_apart_by_call(study: Study) -> None:
    def talks(comm: Any, number: int) -> int:
        print(f"rank {comm.rank} of call {number}")
        Path("/dev/stderr").write_text(f"err {number}\n")
        os.write(1, b"x" * 100_000 if number == 1 else b"")
        comm.barrier()
        if number == 2:
            raise ValueError(number)
        if number == 3:
            os._exit(4)
        return number

    with study.session(cores=2) as session:
        futures = [session.options(ranks=2).call(talks, number) for number in range(4)]
        ph.wait(futures, 100)
        for number, future in enumerate(futures):
            lines = sorted(line.strip("x") for line in future.stdout.splitlines())
            assert [line for line in lines if line] == [f"rank 0 of call {number}", f"rank 1 of call {number}"]
            assert future.stdout.count("x") == (200_000 if number == 1 else 0)
            assert set(future.stderr.splitlines()) == {f"err {number}"}
        notes = "".join(getattr(futures[2].exception(), "__notes__", []))
        assert "rank 1 of call 2" in notes
