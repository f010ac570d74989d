"""``pilot-hitl task``: what the tasks of a session do, and why one waits."""

from __future__ import annotations

from typing import Annotated

import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import JsonOption, SessionOption, home, session_places, the_session
from pilot_hitl.cli._show import Row, note, put, put_json, put_object, put_rows
from pilot_hitl.cli._tool import NoHub, connect
from pilot_hitl.errors import UnknownSession
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.ids import parse_task, task_name
from pilot_hitl.model.states import State
from pilot_hitl.report.tasks import task_record, task_records, why_task_reused

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Tasks of a session.")

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Like task.1.000017 (or 1.17).")]
_COLUMNS = ("task", "name", "state", "condition", "pilot", "node", "cores", "epoch", "run", "began", "ended", "reused")


@app.command("list")
def list_tasks(
    *,
    session: SessionOption = "",
    state: Annotated[str, typer.Option("--state", help="Only these, e.g. RUNNING.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Leave out this many first.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List tasks."""
    wanted = state.upper()
    if wanted and wanted not in State.__members__:
        raise typer.BadParameter(f"{state!r} is no state; there are: {', '.join(State.__members__)}")
    name = the_session(session)
    listed: Json
    try:
        with connect(home(), name) as tool:
            listed = tool.query("tasks", session=name, state=wanted or None, limit=limit, offset=offset or None)
    except (NoHub, UnknownSession):
        # No hub has it open, so its file says all.
        listed = [dict(record) for record in task_records(session_places(name).folder, wanted, limit, offset)]
    if as_json:
        put_json(listed)
        return
    rows: list[Row] = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    put_rows(rows, _COLUMNS, "No tasks.")
    if len(rows) == limit:
        note(f"There may be more: --offset {offset + limit}, or a higher --limit.")


@app.command()
def show(task: TaskArgument, *, session: SessionOption = "", as_json: JsonOption = False) -> None:
    """Show one task, with the end of what it wrote."""
    try:
        _ask("task", task, session, as_json)
    except (NoHub, UnknownSession):
        # No hub has it open, so its file says all.
        _put(task_record(session_places(the_session(session)).folder, _number(task)), as_json)


@app.command()
def explain(task: TaskArgument, *, session: SessionOption = "", as_json: JsonOption = False) -> None:
    """Say what a task waits for: resource, tier, dependency, condition or walltime."""
    try:
        _ask("explain", task, session, as_json)
    except (NoHub, UnknownSession):
        # No hub has it open, so its file says all.
        record = task_record(session_places(the_session(session)).folder, _number(task))
        _put({**record, "explanation": _explained(record, the_session(session))}, as_json)


def _explained(record: dict[str, Json], session: str) -> str:
    """Return why a task is where it is in a session that no hub has open."""
    state = State[str(record["state"])]
    if state in (State.HELD, State.HELD_FAILED):
        return "it ran, and counts once somebody answers what it assumes: pilot-hitl inbox list shows the questions"
    if not state.final:
        return f"it has not ended, and nobody has its session open: run its script again (session {session})"
    failure = record.get("failure")
    why = f" ({failure['message']})" if isinstance(failure, dict) else ""
    return f"it ended: {state.name}{why}"


@app.command("why-reused")
def why_reused(task: TaskArgument, *, session: SessionOption = "", as_json: JsonOption = False) -> None:
    """Say why a task took over a result of an earlier run, or why it did not."""
    number, name = _number(task), the_session(session)
    found: Json
    try:
        with connect(home(), name) as tool:
            found = tool.query("why-reused", session=name, task=task_name(number))
    except (NoHub, UnknownSession):
        # No hub has it open, so its file says all.
        found = {"task": task_name(number), "why": why_task_reused(session_places(name).folder, number)}
    if as_json or not isinstance(found, dict):
        put_json(found)
    else:
        put(f"{found['task']}: {found['why']}")


@app.command()
def cancel(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Like task.1.000017 (or 1.17).")],
    *,
    session: SessionOption = "",
    reason: Annotated[str, typer.Option("--reason", help="For the record.")] = "canceled with pilot-hitl task cancel",
    as_json: JsonOption = False,
) -> None:
    """Cancel tasks; on return the hub has it on disk."""
    numbers = sorted({_number(task) for task in tasks})
    name = the_session(session)
    with connect(home(), name) as tool:
        for number in numbers:
            tool.query("task", session=name, task=task_name(number))  # refuses a task that does not exist
        tool.cancel(runs_of(numbers), reason)
    names: list[Json] = [task_name(number) for number in numbers]
    if as_json:
        put_json({"session": name, "canceled": names})
        return
    put(f"cancel of {', '.join(map(str, names))} is on its way; what has ended already stays as it ended")


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Return sorted, different numbers as ``(first, count)`` runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _ask(what: str, task: str, session: str, as_json: bool) -> None:
    number = _number(task)
    name = the_session(session)
    with connect(home(), name) as tool:
        found = tool.query(what, session=name, task=task_name(number))
    _put(found, as_json)


def _put(found: Json, as_json: bool) -> None:
    if as_json:
        put_json(found)
    elif isinstance(found, dict):
        put_object(found)
    else:
        put(str(found))


def _number(task: str) -> int:
    try:
        return parse_task(task)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
