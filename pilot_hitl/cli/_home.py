"""What the commands know without a hub: the home, its sessions, and which of them is meant."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pilot_hitl.errors import SessionError, UnknownSession
from pilot_hitl.inbox import requests, spool
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.wire import places
from pilot_hitl.wire.places import SessionPlaces

SESSION_VARIABLE = "PILOT_HITL_SESSION"
"""The session that commands mean when none is named."""

SessionOption = Annotated[
    str,
    typer.Option("--session", "-s", help="Name of the session.", envvar=SESSION_VARIABLE, show_default="the only one"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def home() -> Path:
    """Return the home that the commands work on."""
    return places.home()


def session_names() -> list[str]:
    """Return the sessions that have a folder in the home, sorted."""
    try:
        entries = list((home() / "sessions").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def session_places(name: str) -> SessionPlaces:
    """Return the places of a session that exists.

    Raises:
        UnknownSession: there is none of this name.
    """
    try:
        check_session_name(name)
    except ValueError as error:
        raise UnknownSession(str(error)) from error
    found = SessionPlaces(home(), name)
    if not found.folder.is_dir():
        known = ", ".join(session_names()) or "none"
        raise UnknownSession(f"there is no session {name!r} in {home()}; there are: {known}")
    return found


def the_session(name: str) -> str:
    """Return the session that is meant: the named one, else the only one.

    Raises:
        UnknownSession: it does not exist.
        SessionError: none is named and there are several.
    """
    if name:
        return session_places(name).name
    names = session_names()
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnknownSession(f"there is no session in {home()}")
    raise SessionError(f"there are several sessions: name one with --session ({', '.join(names)})")


def summary(name: str) -> dict[str, Json]:
    """Return what can be known of a session without a hub.

    Raises:
        UnknownSession: there is none of this name.
    """
    where = session_places(name)
    waiting = spool.waiting(where)
    facts: dict[str, Json] = {
        "name": name,
        "folder": str(where.folder),
        "open_requests": len(requests.published(where)),
        "queued_answers": len(waiting),
        "updated_at": _updated(where),
    }
    facts.update(_stored(where.database))
    return facts


def ago(seconds: float) -> str:
    """Return how long ago a moment (seconds since 1970) was, roughly."""
    passed = max(0.0, time.time() - seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed / size:.0f} {unit}"
    return f"{passed:.0f} s"


def _updated(where: SessionPlaces) -> float:
    found = [path.stat().st_mtime for path in (where.database, where.folder) if path.exists()]
    return max(found, default=0.0)


def _stored(database: Path) -> dict[str, Json]:
    """What the store's own reader says of a database; nothing when there is no database."""
    if not database.exists():
        return {}
    try:
        reader: Callable[[Path], dict[str, Json]] = importlib.import_module("pilot_hitl.hub.store").read_summary
    except (ImportError, AttributeError):
        return {"database_bytes": os.path.getsize(database)}
    return reader(database)
