"""Processes of a test cluster: started in the foreground, found again by what they carry, ended for sure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian puts daemons, too."""


class ClusterError(Exception):
    """The cluster does not do what it should; carries what its logs say."""


class Daemon:
    """One process that stays in the foreground and writes to a log; it may be started again."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = [*command]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that was started last.

        Raises:
            ClusterError: it does not run.
        """
        if self._process is None or not self.alive:
            raise ClusterError(f"{self.name} does not run: {self.said()}")
        return self._process.pid

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.alive:
            return
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                start_new_session=True,
            )

    def end(self, number: signal.Signals = signal.SIGKILL, patience: float = 10.0) -> None:
        """Send it a signal and wait for its end; killed when that takes longer than ``patience`` seconds."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(patience)

    def said(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:]) if self.log.exists() else "no log"


def until(condition: Callable[[], object], what: str, timeout: float = 20.0, why: Callable[[], str] = str) -> None:
    """Wait until the condition is true.

    Raises:
        ClusterError: it is not within ``timeout`` seconds; ends with what ``why`` returns.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(f"not within {timeout:g} s: {what}. {why()}")
        time.sleep(0.05)


def processes() -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """Yield every process that runs, with its environment; those that cannot be seen are left out."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()


def of_cluster(base: Path) -> list[psutil.Process]:
    """Return what runs for the cluster in that folder: daemons, steps, jobs, clients; not this process's own line."""
    conf = str(base / "etc" / "slurm.conf")
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process, environment in processes():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in mine and (environment.get("SLURM_CONF") == conf or _is_step(process, base)):
                found.append(process)
    return found


def _is_step(process: psutil.Process, base: Path) -> bool:
    """Tell whether this is a step's daemon of the cluster; its title lies over its environment."""
    if process.name() != "slurmstepd":
        return False
    return any(Path(file.path).is_relative_to(base) for file in process.open_files())


def kill(base: Path, patience: float = 10.0) -> None:
    """Kill whatever runs for the cluster in that folder, and wait until it is gone.

    Raises:
        ClusterError: something cannot be killed.
    """
    end = time.monotonic() + patience
    while left := of_cluster(base):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
        if time.monotonic() > end:
            raise ClusterError(f"cannot be killed: {left}")
