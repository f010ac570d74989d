"""``pilot-hitl session``: studies, with or without a hub."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import JsonOption, home, session_names, session_places, summary
from pilot_hitl.cli._show import Row, put, put_json, put_object, put_rows
from pilot_hitl.cli._start import through_hub
from pilot_hitl.cli._tool import NoHub, closed_sessions, connect
from pilot_hitl.cli.run import replace_with
from pilot_hitl.errors import SessionBusy, SessionError
from pilot_hitl.model.canonical import Json
from pilot_hitl.report import summarise

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Studies.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.")]
_COLUMNS = ("name", "state", "tasks", "states", "recorded", "open_requests", "queued_answers", "updated_at")


@app.command("list")
def list_sessions(*, as_json: JsonOption = False) -> None:
    """List the sessions of this home."""
    rows = [_known(name) for name in session_names()]
    with contextlib.suppress(NoHub), connect(home()) as tool:
        rows = _merged(rows, tool.query("sessions"))
    if as_json:
        put_json([dict(row) for row in rows])
        return
    put_rows(rows, _COLUMNS, f"No sessions in {home()}.")


@app.command()
def show(name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Show one session."""
    facts = summary(name)
    closed = closed_sessions(home())
    if closed is not None and name not in closed:
        with connect(home(), name) as tool:
            found = tool.query("session", session=name)
        facts.update(found if isinstance(found, dict) else {})
    facts.update(_accounts(name))
    if as_json:
        put_json(facts)
        return
    put_object(facts)


def _accounts(name: str) -> dict[str, Json]:
    """Return what the report of a session says in short; nothing where there is no file."""
    where = session_places(name)
    if not where.database.exists():
        return {}
    report = summarise(where.folder, brief=True)
    facts: dict[str, Json] = {}
    if report.pilots:
        facts["utilisation"] = round(report.utilisation, 4)
        facts["useful_utilisation"] = round(report.useful_utilisation, 4)
        facts["ledger"] = {row: round(value, 3) for row, value in report.ledger.items() if value}
        facts["ledger_error_core_s"] = round(report.ledger_error_core_s, 6)
    if report.gates:
        facts["gates"] = [
            {"gate": it.name, "state": it.state, "answer": it.answer, "by": it.by, "took_s": round(it.took_s, 3)}
            for it in report.gates
        ]
    return facts


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def resume(
    name: NameArgument,
    script: Annotated[
        list[str] | None, typer.Argument(metavar="[SCRIPT [ARGS]...]", help="Run this script in it.")
    ] = None,
) -> None:
    """Open a session again: its hub takes waiting answers in and goes on with its tasks.

    Then runs SCRIPT, or the script that the session knows, if any.
    """
    session_places(name)
    found = through_hub(home(), name, lambda tool: tool.query("session", session=name), timeout=30.0, role="observer")
    facts = found if isinstance(found, dict) else {}
    if script:
        replace_with(script, home(), name)
    command, directory = facts.get("command"), facts.get("directory")
    if isinstance(command, list) and command and isinstance(directory, str):
        put(f"in {directory}: {' '.join(map(str, command))}")
        os.chdir(directory)
        replace_with([str(word) for word in command], home(), name, as_it_is=True)
    put_object(facts, title=f"session {name} is open; run its script again to go on with it")


@app.command()
def rm(
    name: NameArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a session and everything in its folder, for good."""
    where = session_places(name)
    _refuse_open(name)
    facts = summary(name)
    if not yes:
        if not sys.stdin.isatty():
            raise SessionError(f"removing {where.folder} cannot be undone: say --yes")
        typer.confirm(f"Remove {where.folder} with {facts.get('tasks', '?')} tasks for good?", abort=True)
    try:
        where.remove()
    except NotADirectoryError as error:
        raise SessionError(str(error)) from error
    if as_json:
        put_json({"removed": name})
        return
    put(f"removed {name}")


def _refuse_open(name: str) -> None:
    """Raise SessionBusy when a hub holds the session, or may."""
    closed = closed_sessions(home())
    if closed is not None and name not in closed:
        raise SessionBusy(f"the hub holds session {name!r}: end its script, or run pilot-hitl hub stop first")


def _known(name: str) -> Row:
    try:
        return summary(name)
    except SessionError as error:
        return {"name": name, "state": "unreadable", "message": str(error)}


def _merged(rows: list[Row], told: Json) -> list[Row]:
    """Add what the hub says of its open sessions to what the folders say."""
    merged: dict[str, Row] = {str(row["name"]): row for row in rows}
    for row in told if isinstance(told, list) else []:
        if isinstance(row, dict):
            name = str(row.get("name", row.get("session", "")))
            merged[name] = {**merged.get(name, {}), **row, "name": name}
    return list(merged.values())
