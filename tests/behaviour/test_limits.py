"""Limits that are said are held."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, further

WAIT = 60.0
LIMIT = 150
FIGURES = (
    rf"out of memory: it used more than the {LIMIT} MB that mem_per_rank asks for\n(.*\n)*it used \d+ MB when it was"
)


def eat(megabytes: int, seconds: float = 20.0) -> int:
    """Use memory for a while."""
    eaten = bytearray(megabytes << 20)
    eaten[::4096] = b"x" * len(eaten[::4096])
    time.sleep(seconds)
    return len(eaten)


def eat_in_children(children: int, megabytes: int) -> None:
    """Let children of a call use memory together."""
    line = "import sys, time; x = bytearray(int(sys.argv[1]) << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(20)"
    running = [subprocess.Popen([sys.executable, "-c", line, str(megabytes)]) for _ in range(children)]
    for each in running:
        each.wait()


def look_at_a_file(path: str, megabytes: int) -> int:
    """Read much through a mapping, and again through the page cache; own next to nothing."""
    with open(path, "wb") as file:
        file.writelines(b"x" * (1 << 20) for _ in range(megabytes))
    with open(path, "rb") as read, mmap.mmap(read.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        found = sum(mapped[at] for at in range(0, len(mapped), 4096))
        read.read(1 << 20)
        time.sleep(1)
    return found


def share(megabytes: int, children: int) -> int:
    """Let forked children look at what their parent has."""
    eaten = bytearray(megabytes << 20)
    eaten[::4096] = b"x" * len(eaten[::4096])
    pids = []
    for _ in range(children):
        if not (pid := os.fork()):
            time.sleep(1)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return len(eaten)


def keep(megabytes: int) -> int:
    """Leave memory in the worker, as a careless library does."""
    kept = sys.__dict__.setdefault("kept", [])
    kept.append(bytearray(megabytes << 20))
    kept[-1][::4096] = b"x" * len(kept[-1][::4096])
    time.sleep(0.5)
    return os.getpid()


EAT = "import sys, time; x = bytearray(%d << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(20)"


def _python(line: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable=sys.executable, arguments=["-c", line], mem_per_rank=LIMIT, **more)


def _shell(line: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", line], mem_per_rank=LIMIT, **more)


GREEDY = {
    "program": lambda: _python(EAT % (2 * LIMIT)),
    "below a shell": lambda: _shell(f'"{sys.executable}" -c "{EAT % (2 * LIMIT)}"; echo went on'),
    "with pre_exec": lambda: _python(EAT % (2 * LIMIT), pre_exec=["export A=b"]),
    "children together": lambda: _shell(f'"{sys.executable}" -c "{EAT % (LIMIT * 2 // 3)}" & ' * 3 + "wait"),
    "left its session": lambda: _shell(f'setsid "{sys.executable}" -c "{EAT % (2 * LIMIT)}"; echo went on'),
    "one rank of two": lambda: _shell(
        f'test "$PILOT_HITL_RANK" = 0 || exec "{sys.executable}" -c "{EAT % (2 * LIMIT)}"; sleep 20',
        ranks=2,
        launcher="fork",
    ),
}


@pytest.mark.parametrize("kind", further(2, sorted(GREEDY)))
def test_a_program_that_takes_more_is_ended_by_name(study: Study, kind: str) -> None:
    with study.session(cores=3) as session:
        neighbour = session.submit(_python("import time; time.sleep(2); print('fine')"))
        with pytest.raises(ph.OutOfMemory, match=FIGURES) as caught:
            session.submit(GREEDY[kind]()).result(WAIT)
        assert isinstance(caught.value, ph.TaskFailed)
        assert neighbour.result(WAIT).stdout == "fine\n"


def test_a_call_that_takes_more_is_the_only_one_to_fail(study: Study) -> None:
    with study.session(cores=2) as session:
        small = session.options(mem_per_rank=LIMIT)
        neighbours = small.map(eat, [1] * 6, [0.3] * 6)
        greedy = small.call(eat, 2 * LIMIT)
        after = small.map(eat, [1] * 6, [0.1] * 6)
        with pytest.raises(ph.OutOfMemory, match=FIGURES):
            greedy.result(WAIT)
        with pytest.raises(ph.OutOfMemory, match=FIGURES):
            small.call(eat_in_children, 3, LIMIT * 2 // 3).result(WAIT)
        assert neighbours.results(WAIT) == after.results(WAIT) == [1 << 20] * 6
        assert session.call(eat, 2 * LIMIT, 0.5).result(WAIT) == 2 * LIMIT << 20, "no limit was asked for"


def test_what_is_not_its_own_is_not_counted(study: Study) -> None:
    with study.session(cores=2) as session:
        small = session.options(mem_per_rank=LIMIT)
        file = small.call(look_at_a_file, str(study.folder / "large"), 3 * LIMIT)
        shared = small.call(share, LIMIT // 2, 4)
        assert file.result(WAIT) == ord("x") * (3 * LIMIT << 8)
        assert shared.result(WAIT) == LIMIT // 2 << 20
        (study.folder / "large").unlink()


@pytest.mark.long
def test_what_earlier_calls_left_in_a_worker_is_not_the_next_ones(study: Study) -> None:
    with study.session(cores=1) as session:
        small = session.options(mem_per_rank=LIMIT)
        # Each is far below the limit; together they would not be, if they met in one worker.
        assert len(small.map(keep, [LIMIT * 2 // 3] * 4).results(WAIT)) == 4
        # Nor is what a call without a limit left there.
        assert session.call(keep, 2 * LIMIT).result(WAIT)
        assert small.call(keep, LIMIT // 3).result(WAIT)


def _act(path: str, megabytes: int) -> int:
    append(path, "acted")
    return keep(megabytes)


def test_what_acts_outside_is_not_begun_again_for_what_earlier_calls_left(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        small = session.options(mem_per_rank=LIMIT, effects="outside")
        for _ in range(3):
            small.call(_act, log, LIMIT * 2 // 3).result(WAIT)
    assert study.lines("log") == ["acted"] * 3


def test_retries_are_for_it_as_for_any_failure(study: Study) -> None:
    log = str(study.folder / "log")
    line = f"echo x >> {log}; exec '{sys.executable}' -c \"{EAT % (2 * LIMIT)}\""
    with study.session() as session, pytest.raises(ph.OutOfMemory):
        session.submit(_shell(line, retries=2)).result(WAIT)
    assert len(study.lines("log")) == 3


def _leak(log: str, turns: int) -> str:
    append(log, "x")
    if len(Path(log).read_text().splitlines()) < turns:
        eat(2 * LIMIT)
    return "at last"


def test_a_retry_may_succeed(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        assert session.options(mem_per_rank=LIMIT, retries=3).call(_leak, log, 3).result(WAIT) == "at last"


class Greedy:
    """A handler that takes what it is asked to."""

    def handle(self, batch: list[int]) -> list[int]:
        return [eat(each, 1.0 if each else 0.0) for each in batch]


@pytest.mark.one_node("the figure is that of the largest node")
def test_what_asks_for_more_than_there_is_is_refused_with_figures(study: Study) -> None:
    with study.session(cores=0) as session:
        study.pilot(session, memory=500)
        with pytest.raises(ph.CannotFit, match=r"600 MB a rank.* 500 MB"):
            session.options(mem_per_rank=600).call(max, 1, 2).result(WAIT)


def test_a_signal_is_no_lack_of_memory(study: Study) -> None:
    with study.session() as session:
        killed = session.submit(_shell("kill -9 $$"))
        with pytest.raises(ph.TaskFailed, match="SIGKILL") as caught:
            killed.result(WAIT)
        assert not isinstance(caught.value, ph.OutOfMemory)
        assert caught.value.exit_code == -signal.SIGKILL
