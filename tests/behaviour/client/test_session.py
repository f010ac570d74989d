"""The public face on the real hub, a real pilot, and real deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import further

FORKS = """
s = ph.Session("a"); s.submit_pilot(P); pid = os.fork()
if not pid:
    try: s.call(add, 1)
    except ph.SessionClosed: os._exit(7)
assert os.waitpid(pid, 0)[1] >> 8 == 7
s.call(add, 1).result(20)
"""
PILOT = ph.PilotDescription(resource="local", cores=2)


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise ValueError("no")


def die() -> None:
    os._exit(3)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ph-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        _until(lambda: not _processes(folder))


@pytest.fixture
def session(home: Path) -> Iterator[ph.Session]:
    with ph.Session("study", home=home) as session:
        session.submit_pilot(PILOT)
        yield session


def test_values_errors_and_dependencies(session: ph.Session) -> None:
    one = session.call(add, 1)
    assert session.call(sum, [one, one, 3]).result(20) == 7
    assert session.map(add, range(500)).results(20) == list(range(1, 501))
    bad = session.call(fail)
    with pytest.raises(ValueError, match="no") as caught:
        bad.result(20)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ph.DependencyFailed) as dependent:
        session.call(add, bad).result(20)
    assert dependent.value.__cause__ is caught.value
    with pytest.raises(ph.WorkerDied):
        session.call(die).result(20)
    with pytest.raises(ph.TaskTimeout):
        session.options(timeout=0.2).call(slow, 20).result(20)


def test_executables(session: ph.Session, tmp_path: Path) -> None:
    done = session.submit(
        ph.TaskDescription(executable="/bin/sh", arguments=["-c", "echo hello; pwd"], sandbox=str(tmp_path))
    ).result(20)
    assert done.stdout.splitlines() == ["hello", str(tmp_path)]
    with pytest.raises(ph.TaskFailed) as caught:
        session.submit(ph.TaskDescription(executable="/bin/sh", arguments=["-c", "echo bad >&2; exit 4"])).result(20)
    assert (caught.value.exit_code, caught.value.stderr) == (4, "bad\n")


def test_a_running_task_is_canceled(session: ph.Session) -> None:
    future = session.call(slow, 60)
    session.call(add, 1).result(20)
    assert future.cancel()
    with pytest.raises(ph.TaskCanceled):
        future.result(20)
    assert future.cancelled()


def test_await(session: ph.Session) -> None:
    async def work() -> list[Any]:
        return await asyncio.gather(*(session.call(add, index) for index in range(20)))

    assert asyncio.run(work()) == list(range(1, 21))


def test_a_decision(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", question="Good?", choices=["accept", "refine"])
    accept, refine = gate.branch("accept", probability=0.8), gate.branch("refine", probability=0.2)
    yes, no = accept.map(add, range(4)), refine.call(add, 10)
    joined = session.call(sum, yes)
    chosen = gate.select({"accept": joined, "refine": no})
    with pytest.raises(ph.AnswerRefused):
        gate.respond("maybe")
    gate.respond("accept", "fine")
    assert (gate.result(5), gate.answer().comment) == ("accept", "fine")
    assert yes.results(20) == [1, 2, 3, 4]
    assert joined.result(20) == chosen.result(20) == 10
    with pytest.raises(ph.Discarded):
        no.result(20)
    with pytest.raises(ph.AnswerRefused) as caught:
        gate.respond("refine")
    assert caught.value.code == "already-answered"


def test_a_second_run_finds_what_the_first_did(home: Path) -> None:
    for run in range(2):
        with ph.Session("study", home=home) as session:
            if run == 0:
                session.submit_pilot(PILOT)
            else:
                assert session.resumed == 12
            # Without a pilot the second run could compute nothing.
            total = session.call(sum, session.map(add, range(10)))
            assert total.result(20) == 55
            gate = session.checkpoint("go", choices=["yes", "no"], show=["# Go?", total])
            if run == 0:
                gate.respond("yes")
            assert gate.result(20) == "yes"
            assert session.call(add, total).result(20) == 56


def test_a_killed_hub_is_started_again(session: ph.Session) -> None:
    running = session.map(slow, [0.5] * 4)
    session.call(add, 1).result(20)
    welcome = session._client._link.welcome
    assert welcome is not None
    os.kill(welcome.hub_pid, signal.SIGKILL)
    after = session.call(add, 2)
    gate = session.checkpoint("still", choices=["yes"])
    assert after.result(30) == 3
    assert running.results(30) == [0.5] * 4
    gate.respond("yes")
    session.flush(20)


def test_a_forgotten_sessions_pilot_may_end_later_than_its_namesake_begins(home: Path) -> None:
    with ph.Session("study", home=home, on_exit="detach") as before:
        before.submit_pilot(PILOT).wait_ready(30)
        root = int(next((before.folder / "pilots").glob("*/root")).read_text().split()[0])
    os.kill(root, signal.SIGSTOP)
    try:
        with ph.Session("study", home=home, fresh=True) as session:
            pilot = session.submit_pilot(PILOT)
            assert session.call(add, 1).result(30) == 2
        assert pilot.state is ph.PilotState.DONE, "the hub was told of the end of the later pilot"
    finally:
        with suppress(ProcessLookupError):
            os.kill(root, signal.SIGCONT)
    assert _until(lambda: not _processes(str(home)))


def test_a_session_is_one_scripts_own(home: Path) -> None:
    with ph.Session("study", home=home):
        with pytest.raises(ph.SessionBusy, match="namespace"):
            ph.Session("study", home=home)
        with ph.Session("study", home=home, namespace="another") as other:
            assert other.incarnation == 2


def test_a_cell_that_is_run_again_finds_its_session(home: Path) -> None:
    """The same thread, and no with block: the earlier handle is closed, what it had is resumed."""
    before = ph.Session("study", home=home)
    old = before.checkpoint("gate", choices=["a"])
    old.respond("a")
    unended: ph.TaskFuture[int] = before.call(max, 1, 2)
    with ph.Session("study", home=home) as again:
        assert before.closed
        with pytest.raises(ph.SessionClosed):
            unended.result(0)
        assert again.checkpoint("gate", choices=["a"]).result(10) == "a"
        with ThreadPoolExecutor(1) as pool, pytest.raises(ph.SessionBusy, match="this script"):
            pool.submit(ph.Session, "study", home=home).result()
        assert not again.closed
    before.close()


def test_many_scripts_start_one_hub(home: Path) -> None:
    code = "s = ph.Session('s' + sys.argv[1]); print(s._client._link.welcome.hub_pid, flush=True); sys.stdin.read()"
    scripts = [_script(code, home, str(index)) for index in range(4)]
    pids = {script.stdout.readline() for script in scripts if script.stdout}
    rest = [script.communicate()[0] for script in scripts]
    assert len(pids) == 1, (pids, rest, (home / "hub" / "hub.log").read_text())


@pytest.mark.parametrize(
    ("code", "status"),
    further(
        3,
        [
            ("s = ph.Session('a'); s.submit_pilot(P).wait_ready(20); s.call(slow, 60); os.kill(os.getpid(), 9)", -9),
            (FORKS, 0),
            ("s = ph.Session('a'); s.submit_pilot(P).wait_ready(20); s.call(slow, 60); sys.exit(3)", 3),
            ("s = ph.Session('a'); s.submit_pilot(P); print(s.call(add, 1).result(20))", 0),
            ("with ph.Session('a') as s:\n    s.submit_pilot(P); f = s.call(slow, 60); time.sleep(.3); 1 / 0", 1),
            (
                "with ph.Session('a') as s:\n    s.submit_pilot(P); os.kill(os.getpid(), 2); s.call(slow, 60).result()",
                -2,
            ),
        ],
    ),
)
def test_however_a_script_ends_nothing_is_left(home: Path, code: str, status: int) -> None:
    script = _script(code, home)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == status, output
    assert _until(lambda: not _processes(str(home))), _processes(str(home))


def test_inside_a_task(session: ph.Session) -> None:
    def inner() -> int:
        total: int = ph.current_session().call(add, 41).result(20)
        return total

    assert session.call(inner).result(30) == 42


def test_a_home_that_cannot_be_used(home: Path) -> None:
    home.chmod(0o755)
    with pytest.raises(ph.HubUnreachable, match="chmod 700"):
        ph.Session("study", home=home)
    home.chmod(0o700)


def test_a_hub_that_cannot_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = home / "python"
    broken.write_text("#!/bin/sh\necho broken install >&2; exit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(ph.HubUnreachable, match="broken install"):
        ph.Session("study", home=home)


def _script(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    head = """
        import os, sys, time
        import pilot_hitl as ph
        P = ph.PilotDescription(resource="local", cores=1)
        def add(a, b=1): return a + b
        def slow(seconds): time.sleep(seconds); return seconds
    """
    path = home / f"script{time.monotonic_ns()}.py"
    path.write_text(textwrap.dedent(head) + code + "\n")
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PILOT_HITL_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _processes(home: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if home in line]


def _until(condition: Callable[[], bool], timeout: float = 10) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
