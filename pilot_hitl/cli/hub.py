"""``pilot-hitl hub``: the store and router of a user's sessions."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import JsonOption, home
from pilot_hitl.cli._show import Row, put, put_json, put_object, put_rows
from pilot_hitl.cli._start import ensure_hub
from pilot_hitl.cli._tool import NoHub, connect, hub_runs, lock_path
from pilot_hitl.errors import HubUnreachable
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.ids import task_name

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, help="The store and router of your sessions."
)


@app.command()
def start(*, as_json: JsonOption = False) -> None:
    """Start the hub, to stay until it is stopped; nothing happens when it runs."""
    made = ensure_hub(home(), "--stay")
    facts = _status()
    if as_json:
        put_json({**facts, "started": made})
        return
    put(f"the hub of {home()} {'was started' if made else 'runs already'} (pid {facts.get('pid')})")


@app.command()
def status(*, as_json: JsonOption = False) -> None:
    """Show whether the hub runs, and every process that belongs to it."""
    facts = _status()
    if as_json:
        put_json(facts)
        return
    if not facts["running"]:
        put(f"no hub runs for {home()}")
        return
    _put_status(facts)


def _put_status(facts: dict[str, Json]) -> None:
    """Write the hub's facts, then its processes and sessions as tables."""
    put_object({key: value for key, value in facts.items() if key not in ("processes", "sessions")})
    put("\nprocesses:")
    put_rows([_process(row) for row in _rows(facts["processes"])], ("kind", "pid", "host", "session", "task"), "none")
    put("\nsessions:")
    columns = ("session", "tasks", "states", "live", "pilots", "open_checkpoints", "clients", "epoch", "directory")
    put_rows([_session(row) for row in _rows(facts.get("sessions"))], columns, "none open")


def _rows(value: Json) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _session(row: Row) -> Row:
    """Return a session with how many pilots and clients it has; session show tells more."""
    return {**row, "pilots": len(_rows(row.get("pilots"))), "clients": len(_rows(row.get("clients")))}


def _process(row: Row) -> Row:
    """Return a process with its task's name: agents tell its number, 0 for none."""
    task = row.get("task")
    return {**row, "task": task_name(task) if isinstance(task, int) and task > 0 else ""}


@app.command()
def stop(
    *,
    force: Annotated[bool, typer.Option("--force", help="Kill it when it does not end; nothing accepted is lost.")] = (
        False
    ),
    timeout: Annotated[float, typer.Option("--timeout", min=0.0, help="Seconds to wait.")] = 15.0,
    as_json: JsonOption = False,
) -> None:
    """End the hub, and with it the scripts and local pilots that use it; run a script again to resume its session."""
    if not hub_runs(home()):
        _said("no hub runs", stopped=False, as_json=as_json)
        return
    pid, host = _whereabouts(force)
    if not pid:
        _said("no hub runs any more", stopped=False, as_json=as_json)
        return
    if host not in ("", socket.gethostname()):
        raise HubUnreachable(f"the hub runs on {host}, not here: run pilot-hitl hub stop there")
    _signal(pid, signal.SIGTERM)
    if not _gone(timeout):
        if not force:
            raise HubUnreachable(f"the hub (pid {pid}) did not end within {timeout:g} s: use --force to kill it")
        _signal(pid, signal.SIGKILL)
        if not _gone(5.0):
            raise HubUnreachable(f"the hub (pid {pid}) cannot be killed; is it in uninterruptible sleep?")
    _said(f"the hub (pid {pid}) was stopped", stopped=True, as_json=as_json)


def _status() -> dict[str, Json]:
    try:
        with connect(home()) as tool:
            found = tool.query("status")
    except NoHub:
        return {"running": False, "home": str(home()), "processes": []}
    facts = found if isinstance(found, dict) else {}
    return {"running": True, "home": str(home()), "processes": [], **facts}


def _whereabouts(force: bool) -> tuple[int, str]:
    """Pid and host of the hub: from itself, or from what it wrote into its lock file; pid 0 when it just ended."""
    try:
        facts = _status()
    except HubUnreachable:
        if not force:
            raise
        facts = _locked(lock_path(home()))
    if facts.get("running") is False:
        return 0, ""
    pid, host = facts.get("pid"), facts.get("host", "")
    if not isinstance(pid, int) or pid <= 1:
        raise HubUnreachable(f"the pid of the hub is not known; see {lock_path(home())}")
    return pid, host if isinstance(host, str) else ""


def _locked(path: Path) -> dict[str, Json]:
    """What a lock file says: a JSON object, or only a pid."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if isinstance(found, dict):
        return found
    return {"pid": found} if isinstance(found, int) else {}


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise HubUnreachable(f"the hub (pid {pid}) belongs to another user") from error


def _gone(timeout: float) -> bool:
    """Wait until the lock is free: it is let go with the process, whoever its parent is."""
    end = time.monotonic() + timeout
    while hub_runs(home()):
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)
    return True


def _said(text: str, *, stopped: bool, as_json: bool) -> None:
    if as_json:
        put_json({"stopped": stopped})
        return
    put(text)
