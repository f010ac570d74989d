"""Starting the hub from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pilot_hitl._hubprocess import elsewhere, find, log_path
from pilot_hitl.cli._tool import NoHub, Tool, connect, hub_runs
from pilot_hitl.errors import HubUnreachable
from pilot_hitl.wire.modes import own_file
from pilot_hitl.wire.places import HOME_VARIABLE, private_folder

PATIENCE = 20.0
"""Seconds that a new hub has to listen."""
ATTEMPTS = 3
_T = TypeVar("_T")


def ensure_hub(home: Path, *arguments: str) -> bool:
    """Start this home's hub when none runs; on return one listens. Return whether it was started now.

    ``arguments`` go to ``python -m pilot_hitl.hub``, which reads the home from its environment.

    Raises:
        HubUnreachable: it ended at once or does not answer; the message holds its last words.
        PermissionError: the home is open to others.
    """
    if elsewhere(home) is not None or hub_runs(home):
        return False
    private_folder(private_folder(home) / "hub")
    log = log_path(home)
    size = log.stat().st_size if log.exists() else 0
    process = _spawn(home, log, arguments)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        # Its socket is looked at, not its lock: looking at a lock takes it for a moment, and the hub may want it then.
        if _listens(home):
            # Nothing is asked: a hub ends with its last client, so this must not be the first that it hears of.
            return True
        if process.poll():
            raise HubUnreachable(f"the hub ended at once (exit code {process.returncode}): {_tail(log, size)}")
        if process.returncode == 0:
            # Somebody else's hub came first, or it found the lock taken for a moment: then it is needed after all.
            process = process if hub_runs(home) else _spawn(home, log, arguments)
        # Only this once, while a process comes up: there is nothing yet that could send an event.
        time.sleep(0.02)
    raise HubUnreachable(f"the hub does not listen after {PATIENCE:g} s: {_tail(log, size)}")


def through_hub(home: Path, session: str, act: Callable[[Tool], _T], *, timeout: float, role: str = "tool") -> _T:
    """Return what ``act`` returns, with a connection to the hub, which is started when none runs.

    A hub that ends at this very moment, with its last session, is started anew.

    Raises:
        HubUnreachable, PilotHitlError: whatever :func:`ensure_hub` and ``act`` raise.
    """
    for _ in range(ATTEMPTS):
        ensure_hub(home)
        try:
            with connect(home, session, timeout, role) as tool:
                return act(tool)
        except NoHub:
            continue
    raise HubUnreachable(f"the hub of {home} ended {ATTEMPTS} times before it answered; see {log_path(home)}")


def _spawn(home: Path, log: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    handle = own_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(handle, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pilot_hitl.hub", *arguments],
            env={**os.environ, HOME_VARIABLE: str(home)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _listens(home: Path) -> bool:
    found = find(home)
    if found is not None:
        found.close()
    return found is not None


def _tail(log: Path, start: int) -> str:
    """What the hub wrote last since ``start``, in one line."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 2000))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()} (see {log})" if lines else f"see {log}"
