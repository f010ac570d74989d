"""Work of every kind in one session, while something breaks; and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

import pilot_hitl as ph
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State
from pilot_hitl.wire.cluster import Claim
from pilot_hitl.wire.places import SessionPlaces
from tests.slurm.cluster import Cluster
from tests.slurm.daemons import processes, until

LEASE = 3.0
SESSION = "loss"
LOST = {Cause.NODE_LOST, Cause.PILOT_ENDED}
CALLS, OUTSIDE, GUESSES = 60, 4, 6
WORK = [
    ("outside", OUTSIDE, 6.0),
    ("guess", GUESSES, 0.3),
    ("loser", GUESSES, 0.3),
    ("call", 10, 5.0),
    ("program", 6, 2.0),
]
"""What there is from the beginning: kind, how many, seconds."""


def call(log: str, x: int, seconds: float) -> tuple[int, str]:
    """Write down that it ran, and return that with the value: what counts must be one of the runs."""
    run = f"{x} {os.uname().nodename}-{os.getpid()}-{time.time_ns()}"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{run}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return 3 * x, run


class Load:
    """Calls, programs, results that are held behind an open checkpoint, and programs that act outside."""

    def __init__(self, base: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self._home = base / "home"
        self.places = SessionPlaces(self._home, SESSION)
        self._folder = base / "work"
        self._log = str(self._folder / "calls")
        self._work: list[tuple[str, int, float]] = []
        self._next = 0
        self._outside: dict[int, ph.TaskFuture[Any]] = {}
        self._open()

    def _open(self) -> None:
        self.session = ph.Session(SESSION)
        self._gate = self.session.checkpoint("gate", choices=["yes", "no"])
        self._calls: dict[int, ph.TaskFuture[Any]] = {}
        self._programs: dict[int, ph.TaskFuture[Any]] = {}
        self._held: dict[int, ph.TaskFuture[Any]] = {}
        self._losers: list[ph.TaskFuture[Any]] = []
        self._submitted = 0

    # --- work ---------------------------------------------------------------------------------------------------

    def pilot(self, **more: Any) -> ph.Pilot:
        """Submit a pilot of all four nodes."""
        facts: dict[str, Any] = {"nodes": 4, "exclusive": True, "lease": LEASE, "runtime": 10, **more}
        return self.session.submit_pilot(ph.PilotDescription(resource="slurm", **facts))

    def begin(self, **more: Any) -> ph.Pilot:
        """Submit a pilot and the work, and wait until all of it is on its way."""
        pilot = self.pilot(**more)
        for kind, count, seconds in WORK:
            for _ in range(count):
                self._submit(kind, seconds)
        for _ in range(CALLS):
            self.one_more()
        pilot.wait_ready(60)
        until(lambda: len(self._lines("outside")) == OUTSIDE, "what acts outside runs", 40, self.why)
        until(lambda: self.states()["HELD"] >= 2, "results are held", 40, self.why)
        return pilot

    def one_more(self) -> None:
        """Submit a short call, and now and then a program."""
        self._submit("call", 0.2)
        if self._next % 8 == 0:
            self._submit("program", 0.5)

    def again(self) -> None:
        """Do as a script that is run again, but for what acts outside and was lost: that is for people to decide."""
        if not self.session.closed:
            self.session.close()
        self._open()
        lost = {x for x, future in self._outside.items() if isinstance(future.exception(0), ph.TaskLost)}
        self._outside = {x: self._outside[x] for x in lost}
        for kind, x, seconds in self._work:
            if x not in lost:
                self._start(kind, x, seconds)

    def _submit(self, kind: str, seconds: float) -> None:
        self._next += 1
        self._work.append((kind, self._next, seconds))
        self._start(kind, self._next, seconds)

    def _start(self, kind: str, x: int, seconds: float) -> None:
        self._submitted += 1
        if kind == "outside":
            self._outside[x] = self._program("outside", x, seconds, effects="outside")
        elif kind == "program":
            self._programs[x] = self._program("programs", x, seconds)
        elif kind == "call":
            self._calls[x] = self.session.call(call, self._log, x, seconds)
        elif kind == "guess":
            branch = self._gate.branch("yes", probability=0.9)
            self._held[x] = branch.call(call, self._log, x, seconds)
        else:
            self._losers.append(self._gate.branch("no", probability=0.1).call(call, self._log, x, seconds))

    def submit_calls(self, count: int, seconds: float) -> None:
        """Submit calls that take so long."""
        for _ in range(count):
            self._submit("call", seconds)

    def stream(self, seconds: float) -> None:
        """Go on submitting for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.one_more()
            time.sleep(0.2)

    def stream_until(self, condition: Callable[[], object], what: str, timeout: float) -> float:
        """Go on submitting until something is true; return the seconds that took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + timeout, f"not within {timeout:g} s: {what}. {self.why()}"
            self.one_more()
            time.sleep(0.2)
        return time.monotonic() - began

    def _program(self, log: str, x: int, seconds: float, **more: Any) -> ph.TaskFuture[Any]:
        line = f"echo $0 >> {self._folder}/{log}; sleep {seconds}; echo $0"
        return self.session.submit(
            ph.TaskDescription(executable="/bin/sh", arguments=["-c", line, str(x)], grace=0.5, **more)
        )

    def _lines(self, name: str) -> list[str]:
        path = self._folder / name
        return path.read_text().splitlines() if path.exists() else []

    # --- what is -------------------------------------------------------------------------------------------------

    def states(self) -> Counter[str]:
        """How many tasks are in which state, as the hub says."""
        return Counter(self.session.query("session")["states"])

    def agent(self, pilot: int = 1) -> Claim:
        """Who is agent."""
        folder = self.places.pilot(pilot) / "agents"
        terms = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        return msgspec.json.decode((folder / str(terms[-1])).read_bytes(), type=Claim)

    def marked(self, node: str) -> list[str]:
        """Our processes on a node."""
        found = []
        for process in self.cluster.processes_on(node, self.places.mark):
            with contextlib.suppress(psutil.Error):
                found.append(f"{node}: {process.pid} {' '.join(process.cmdline())[:120]}")
        return found

    def kill(self, node: str) -> list[int]:
        """Kill all our processes on a node; return those that there were."""
        found = self.cluster.processes_on(node, self.places.mark)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return [process.pid for process in found]

    def ran(self) -> list[str]:
        """What calls wrote when they began, each run of them once."""
        return sorted(self._lines("calls"))

    def values(self, timeout: float) -> list[str]:
        """Wait for all calls and return which run of each counts."""
        end = time.monotonic() + timeout
        return sorted(self._result(future, end)[1] for future in self._calls.values())

    def hub_pid(self) -> int:
        """Process of the hub, 0 while there is none."""
        text = (self._home / "hub" / "hub.lock").read_text()
        return int(json.loads(text)["pid"]) if text else 0

    def why(self) -> str:
        """What is known, for who reads of a failure."""
        pilots = self.session.query("pilots")
        return f"{dict(self.states())} {pilots} {self.cluster.jobs()} {self.cluster.states()}"

    def call_before(self, count: int) -> ph.TaskFuture[Any]:
        """Return a call that was submitted so many calls ago."""
        return self._calls[sorted(self._calls)[-count]]

    # --- what must be true -----------------------------------------------------------------------------------------

    def finish(self, timeout: float) -> Counter[Cause]:
        """Answer, wait for all results, see that they are right; return how tasks that act outside ended."""
        self._gate.respond("yes")
        end = time.monotonic() + timeout
        tokens = {}
        for x, future in (self._calls | self._held).items():
            value, tokens[x] = self._result(future, end)
            assert value == 3 * x, (value, x)
        for x, future in self._programs.items():
            assert self._result(future, end).stdout == f"{x}\n"
        for loser in self._losers:
            assert isinstance(loser.exception(max(0.1, end - time.monotonic())), ph.Discarded)
        runs = Counter(self._lines("outside"))
        for x, future in self._outside.items():
            error = future.exception(max(0.1, end - time.monotonic()))
            assert error is None or isinstance(error, ph.TaskLost), error
            assert runs[str(x)] <= 1, "what acts outside never runs twice"
            assert runs[str(x)] == 1 or error is not None
        ran = set(self._lines("calls"))
        assert set(tokens.values()) <= ran, "a result is that of one of the runs"
        assert {int(run.split()[0]) for run in ran} >= set(tokens)
        self.session.flush()
        ended = self._check_records()
        assert set(ended) <= {Cause.NONE} | LOST, ended
        return ended

    def _result(self, future: ph.TaskFuture[Any], end: float) -> Any:
        try:
            return future.result(max(0.1, end - time.monotonic()))
        except TimeoutError:
            raise AssertionError(f"no result of {future}: {self.why()}") from None

    def _check_records(self) -> Counter[Cause]:
        """The file of the session says the same: one outcome a task, and each final; return causes, NONE for DONE."""
        with contextlib.closing(sqlite3.connect(f"file:{self.places.database}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT task, state, failure FROM outcome").fetchall()
        present = max(task for task, _, _ in rows) >> 32
        rows = [row for row in rows if row[0] >> 32 == present]
        assert len({task for task, _, _ in rows}) == len(rows) == self._submitted, (len(rows), self._submitted)
        states = Counter(State(state) for _, state, _ in rows)
        assert states[State.DISCARDED] + states[State.HELD] <= len(self._losers) + len(self._held), states
        assert set(states) <= {State.DONE, State.FAILED, State.DISCARDED, State.HELD}, states
        listed = Counter(record["state"] for record in self.listed() if f".{present}." in record["task"])
        failed = states[State.FAILED]
        assert listed["FAILED"] == failed
        assert listed["DISCARDED"] == len(self._losers), listed
        assert listed["DONE"] == self._submitted - failed - len(self._losers), listed
        causes = Counter({Cause.NONE: len(self._outside) - failed})
        for _, state, failure in rows:
            if state == State.FAILED:
                causes[msgspec.msgpack.decode(failure, type=Failure).cause] += 1
        return +causes

    def listed(self) -> list[dict[str, Any]]:
        """What ``task list --json`` says."""
        words = [sys.executable, "-m", "pilot_hitl", "task", "list", "--session", SESSION, "--json", "-n", "100000"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@contextlib.contextmanager
def load(cluster: Cluster, monkeypatch: Any) -> Iterator[Load]:
    """A session on a cluster that is idle, and is mended at the end: nothing of it may run on a reachable node then."""
    base = Path(tempfile.mkdtemp(prefix="phl"))  # short: socket paths are
    for folder in ("work", "run", "tmp"):
        (base / folder).mkdir(mode=0o700)
    monkeypatch.setenv("PILOT_HITL_HOME", str(base / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "run"))
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    kept = os.environ.get("PILOT_HITL_KEEP")
    try:
        made = Load(base, cluster)
        try:
            yield made
        finally:
            if not made.session.closed:
                made.session.close()
        until(lambda: not any(map(made.marked, cluster.names)), "nothing of it runs", 60, lambda: _left(made))
    finally:
        cluster.cancel_all()
        for process, variables in processes():
            if variables.get("PILOT_HITL_HOME") == str(base / "home") and process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        cluster.mend()
        if not kept:
            shutil.rmtree(base, ignore_errors=True)


def _left(made: Load) -> str:
    return "\n".join(line for node in made.cluster.names for line in made.marked(node))
