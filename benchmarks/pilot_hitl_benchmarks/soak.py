"""One long session: whether it slows down or grows as it goes on, and what it takes to look at it afterwards.

Calls, executables and questions in ten equal parts. Of each part the rates, the CPU time and the memory of every kind
of process; then the command line looks at the session, while it is open and after it was closed, and it is opened
again.
Only the public face is used, so that the same file measures another version of the runtime.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec

import pilot_hitl as ph
from pilot_hitl_benchmarks.places import nothing, temporary_home
from pilot_hitl_benchmarks.processes import KINDS, cpu_seconds, of_home
from pilot_hitl_benchmarks.reports import HIGH, LOW, Sizes, Target

PARTS = 10
CHUNK = 20_000
"""Calls, executables or questions that are submitted at once, so that the client holds no more futures than these."""
QUESTIONS = 50
PROGRAM = "/bin/true"
NAME = "soak"
PATIENCE = 600.0
TIMES = 5
"""How often each look is taken; the least CPU time and the least time count."""
LOOKS = {
    "session list": ("session", "list", "--json"),
    "session show": ("session", "show", NAME, "--json"),
    "task list": ("task", "list", "--session", NAME, "--json"),
    "task list --state FAILED": ("task", "list", "--session", NAME, "--state", "FAILED", "--json"),
    "pilot list": ("pilot", "list", "--session", NAME, "--json"),
    "inbox list": ("inbox", "list", "--json"),
    "inbox list --all": ("inbox", "list", "--all", "--json"),
    "report": ("report", NAME, "--json"),
}
OF_HUB = ("pilot list",)
"""What only a hub can say."""
TOOL = "from pilot_hitl.cli.main import main; main()"
OPEN = """
import sys, time
began = time.monotonic()
import pilot_hitl as ph
with ph.Session(sys.argv[2], home=sys.argv[1]) as session:
    print(time.monotonic() - began, flush=True)
    sys.stdin.readline()
"""
AGAIN = """
import sys, time
import pilot_hitl as ph
from pilot_hitl_benchmarks.places import nothing
with ph.Session(sys.argv[2], home=sys.argv[1]) as session:
    session.submit_pilot(ph.PilotDescription(resource="local", cores=1)).wait_ready(60)
    began = time.monotonic()
    assert session.map(nothing, range(int(sys.argv[3]))).results(600) == list(range(int(sys.argv[3])))
    print(time.monotonic() - began, flush=True)
    sys.stdin.readline()
"""
Json: TypeAlias = dict[str, object]


class Soak(msgspec.Struct, frozen=True):
    """How much is done in all, and where it is done: ``keep`` is a folder that stays, empty for one that does not."""

    calls: int = 3_000_000
    executables: int = 200_000
    gates: int = 3_000
    cores: int = 2
    keep: str = ""

    def of_part(self, what: int, part: int) -> range:
        """Return the numbers of one part of ``what`` in all."""
        return range(what * part // PARTS, what * (part + 1) // PARTS)


class Part(msgspec.Struct):
    """A tenth: rates a second and CPU microseconds by kind of work, resident MB by kind of process."""

    rates: dict[str, float]
    cpu_us: dict[str, dict[str, float]]
    memory_mb: dict[str, float]


class Look(msgspec.Struct):
    """What one command took: seconds by the clock, and of CPU time its own and the hub's."""

    seconds: float
    cpu_s: float
    hub_cpu_s: float = 0.0


def sized(sizes: Sizes, keep: str = "") -> Soak:
    """Return how much is done for so many calls: an executable for every 15, a question for every 1,000."""
    calls = sizes.tasks_or(Soak().calls)
    return Soak(calls, calls // 15, calls // 1000, sizes.cores, keep)


def run(soak: Soak) -> Json:
    """Do it all, and return the figures as plain data."""
    with _home(soak.keep) as home:
        with ph.Session(NAME, home=home) as session:
            session.submit_pilot(ph.PilotDescription(resource="local", cores=soak.cores)).wait_ready(60)
            parts = [_part(session, home, soak, number) for number in range(PARTS)]
            opened = {name: _looked(home, arguments) for name, arguments in LOOKS.items()}
        _gone(home)
        closed = {name: _looked(home, arguments) for name, arguments in LOOKS.items() if name not in OF_HUB}
        opening = [_opened(home, OPEN, NAME) for _ in range(TIMES)]
        closed["open"] = Look(*(min(each) for each in zip(*opening, strict=True)))
        closed["run again"] = Look(*_opened(home, AGAIN, NAME, str(min(soak.calls, CHUNK))))
        size = sum(path.stat().st_size for path in (home / "sessions" / NAME).glob("session.sqlite*"))
    return {
        "name": "soak",
        "sizes": {"tasks": soak.calls + soak.executables, "gates": soak.gates, "cores": soak.cores},
        "targets": [{**msgspec.to_builtins(target), "met": target.met} for target in _targets(parts)],
        "parts": msgspec.to_builtins(parts),
        "looks_while_open": msgspec.to_builtins(opened),
        "looks_when_closed": msgspec.to_builtins(closed),
        "store_bytes": size,
    }


def _targets(parts: Sequence[Part]) -> list[Target]:
    first, last = parts[0], parts[-1]
    targets = [
        Target(f"{what} a second, last part to first", "ratio", HIGH, 0.95, 1.0, last.rates[what] / rate)
        for what, rate in first.rates.items()
    ]
    for kind in ("hub", "client"):
        grown = last.memory_mb[kind] / first.memory_mb[kind]
        targets.append(Target(f"memory of the {kind}, last part to first", "ratio", LOW, 1.2, 1.05, grown))
    return targets


# --- working ----------------------------------------------------------------------------------------------------------


def _part(session: ph.Session, home: Path, soak: Soak, number: int) -> Part:
    calls = soak.of_part(soak.calls, number)
    half = len(calls) // 2
    work: dict[str, tuple[Callable[[ph.Session, range], None], range]] = {
        "map": (_map, calls[:half]),
        "calls": (_calls, calls[half:]),
        "executables": (_executables, soak.of_part(soak.executables, number)),
        "gates": (_gates, soak.of_part(soak.gates, number)),
    }
    part = Part({}, {}, {})
    for what, (do, numbers) in work.items():
        if not numbers:
            continue
        size = QUESTIONS if what == "gates" else CHUNK
        before, began = cpu_seconds(home), time.perf_counter()
        for at in range(0, len(numbers), size):
            do(session, numbers[at : at + size])
        part.rates[what] = len(numbers) / (time.perf_counter() - began)
        after = cpu_seconds(home)
        part.cpu_us[what] = {kind: (after[kind] - before[kind]) / len(numbers) * 1e6 for kind in KINDS}
    part.memory_mb = _memory(home)
    return part


def _map(session: ph.Session, numbers: range) -> None:
    for _ in session.map(nothing, numbers).results(PATIENCE):
        pass


def _calls(session: ph.Session, numbers: range) -> None:
    for future in [session.call(nothing, number) for number in numbers]:
        future.result(PATIENCE)


def _executables(session: ph.Session, numbers: range) -> None:
    described = [ph.TaskDescription(executable=PROGRAM, arguments=[str(number)]) for number in numbers]
    for future in session.submit(described):
        future.result(PATIENCE)


def _gates(session: ph.Session, numbers: range) -> None:
    asked = [
        session.checkpoint("good-enough", question="Is it good enough?", choices=["accept", "refine"], iteration=number)
        for number in numbers
    ]
    for each in asked:
        each.respond("accept")
    for each in asked:
        each.result(PATIENCE)


def _memory(home: Path) -> dict[str, float]:
    """Return what is resident, in MB, by kind of process."""
    found = dict.fromkeys(KINDS, 0.0)
    for pid, kind in {**of_home(home), os.getpid(): "client"}.items():
        found[kind] += _resident(pid)
    return found


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS:"))


# --- looking at it ----------------------------------------------------------------------------------------------------


def _looked(home: Path, arguments: Sequence[str]) -> Look:
    """Return the least that a command took in some tries."""
    best = Look(PATIENCE, PATIENCE, PATIENCE)
    for _ in range(TIMES):
        before, began = cpu_seconds(home)["hub"], time.perf_counter()
        command = [sys.executable, "-c", TOOL, "--home", str(home), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=home)  # never the modules of a folder
        _pid, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"pilot-hitl {' '.join(arguments)} ended with {process.returncode}")
        hub = cpu_seconds(home)["hub"] - before
        best.seconds = min(best.seconds, seconds)
        best.cpu_s = min(best.cpu_s, used.ru_utime + used.ru_stime)
        best.hub_cpu_s = min(best.hub_cpu_s, hub)
    return best


def _opened(home: Path, script: str, *arguments: str) -> tuple[float, float, float]:
    """Open the session in a process of its own; return the seconds it took, and of CPU time its own and the hub's."""
    command = [sys.executable, "-c", script, str(home), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process without its pipes")
    took = float(process.stdout.readline())
    hub = cpu_seconds(home)["hub"]
    process.stdin.close()
    process.stdout.close()
    _pid, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    _gone(home)
    return took, used.ru_utime + used.ru_stime, hub


def _gone(home: Path) -> None:
    """Return when no process of a home is left."""
    until = time.monotonic() + PATIENCE
    while of_home(home) and time.monotonic() < until:
        time.sleep(0.05)


@contextmanager
def _home(keep: str) -> Iterator[Path]:
    if not keep:
        with temporary_home() as home:
            yield home
        return
    folder = Path(keep).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield Path(tempfile.mkdtemp(prefix="soak-", dir=folder))
