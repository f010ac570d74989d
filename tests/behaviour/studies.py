"""A home of its own for a test, sessions in it, and proof that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from pilot_hitl.wire.places import home_hash, runtime_folder
from tests.behaviour.warmtool import commands
from tests.slurm.cluster import Cluster

PATIENCE = 20.0
"""Seconds that processes which were told to end may take."""
JOB_PATIENCE = 60.0
"""The same for the jobs of a batch system."""


class Study:
    """One test's home. ``folder`` is for the test's own files."""

    def __init__(self, base: Path, backend: str, cluster: Cluster | None = None) -> None:
        self.base = base
        self.cluster = cluster
        self.backend = backend
        self.spread = True
        self.home = base / "home"
        self.folder = base / "work"
        self.temporary = base / "tmp"
        self.runtime = base / "run"
        for folder in (self.folder, self.temporary, self.runtime):
            folder.mkdir(mode=0o700)
        self.environment = {
            "PILOT_HITL_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.temporary),
        }
        if cluster is not None:
            self.environment["SLURM_CONF"] = str(cluster.conf)
        self.opened: list[ph.Session] = []
        self.scripts: list[subprocess.Popen[str]] = []

    # --- in this process ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self, name: str = "study", *, cores: int = 2, noop: bool = False, **more: Any) -> Iterator[ph.Session]:
        """A session with a pilot (none when ``cores`` is 0)."""
        with ph.Session(name, **more) as session:
            self.opened.append(session)
            if cores:
                self.pilot(session, cores=cores, noop=noop)
            yield session

    def pilot(self, session: ph.Session, *, cores: int = 2, **more: Any) -> ph.Pilot:
        if self.cluster is not None and self.spread:
            # As many cores as on this machine, but on several nodes, so that a test is one of nodes as well.
            more.setdefault("nodes", max(1, min(cores, self.cluster.shape.nodes)))
        return session.submit_pilot(ph.PilotDescription(resource=self.backend, cores=cores, runtime=10, **more))

    def lines(self, name: str) -> list[str]:
        """The lines of a file that tasks append to."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    # --- other processes ----------------------------------------------------------------------------------------

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a script that can ``import pilot_hitl as ph``; FOLDER and BACKEND are known to it."""
        known = f"FOLDER, BACKEND = {str(self.folder)!r}, {self.backend!r}"
        head = f"import os, sys, time\nimport pilot_hitl as ph\n{known}\n"
        name = f"script{len(list(self.folder.glob('script*.py')))}.py"
        text = head + textwrap.dedent(script)
        same = [path for path in self.folder.glob("script*.py") if path.read_text() == text]
        path = same[0] if same else self.folder / name
        if not same:  # another process may be reading it
            path.write_text(text)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path), *arguments],
            env={**os.environ, **self.environment, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.scripts.append(process)
        return process

    def run(self, script: str, *arguments: str, timeout: float = 60.0, code: int = 0, **environment: str) -> str:
        """Run a script to its end and return what it printed."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == code, f"exit code {process.returncode}: {out}\n{err}"
        return out

    def tool(self, *arguments: str, code: int | None = 0, **environment: str) -> str:
        """Run the command line and return what it printed."""
        done = commands().run(arguments, {**os.environ, **self.environment, **environment}, 60)
        assert code is None or done.code == code, f"exit code {done.code}: {done.out}\n{done.err}"
        return done.out + (done.err if code != 0 else "")

    def inbox(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.tool("inbox", "list", "--json"))
        return found

    def processes(self) -> list[dict[str, Any]]:
        """What ``hub status`` knows: ``kind`` and ``pid`` at least."""
        found: list[dict[str, Any]] = json.loads(self.tool("hub", "status", "--json"))["processes"]
        return found

    # --- the end ------------------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """What should not be there any more once every session is closed."""
        found = [f"process {process}" for process in self.strays()]
        # Not rglob, which raises when a folder is removed while it looks.
        for top in (self.runtime, self.temporary):
            for folder, folders, files in os.walk(top):
                found += [f"file {os.path.join(folder, name)}" for name in (*folders, *files)]
        if runtime_folder(self.home).exists():
            found.append(f"folder {runtime_folder(self.home)}")
        if self.cluster is not None and not found:
            found = [f"job {job}" for job in self.cluster.jobs()]
        return found

    def strays(self) -> list[str]:
        """Processes of this home: hubs, pilots, and whatever tasks started."""
        found = []
        mark = home_hash(self.home)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = process.cmdline()
                variables = process.environ()
                if str(self.home) in words or variables.get("PILOT_HITL_MARK", "").startswith(mark):
                    found.append(f"{process.pid} {' '.join(words)[:160]}")
        return found

    def finish(self) -> list[str]:
        """End what the test left open and return what is still there after a while."""
        for session in self.opened:
            if not session.closed:
                session.close(on_exit="stop")
        for process in self.scripts:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return self.wait_left()

    def wait_left(self, patience: float = 0.0) -> list[str]:
        """Wait until nothing is left, and return what is there after a while."""
        patience = patience or (PATIENCE if self.cluster is None else JOB_PATIENCE)
        end = time.monotonic() + patience
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.05)
        return left


def further(keep: int, values: Iterable[Any], *, ids: Iterable[str] | None = None) -> list[Any]:
    """Values of a parameter: the first ones always, those that tell the same story once more with the long tests."""
    made = []
    names = list(ids or [])
    for index, value in enumerate(values):
        several = value if isinstance(value, tuple) else (value,)
        marks = [pytest.mark.long] if index >= keep else []
        made.append(pytest.param(*several, marks=marks, id=names[index] if names else None))
    return made


def append(path: str, line: object) -> None:
    """For tasks: write one line, whole."""
    with open(path, "a") as file:  # as a user would
        file.write(f"{line}\n")


def wait_for(condition: Any, what: str, timeout: float = 30.0) -> Any:
    """Wait until ``condition()`` is true, and return it."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return found
