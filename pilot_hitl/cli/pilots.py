"""``pilot-hitl pilot``: allocations of a session."""

from __future__ import annotations

from typing import Annotated

import typer

from pilot_hitl.cli._home import SESSION_VARIABLE, JsonOption, SessionOption, home, the_session
from pilot_hitl.cli._show import Row, put, put_json, put_rows
from pilot_hitl.cli._start import through_hub
from pilot_hitl.cli._tool import connect
from pilot_hitl.errors import PilotFailed
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.model.states import PilotState

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Allocations of a session.")

_COLUMNS = ("session", "pilot", "name", "resource", "state", "nodes", "cores", "gpus", "runtime", "began", "message")


@app.command()
def submit(  # noqa: PLR0913 - every option is an argument: that is how Typer works
    *,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Name of the session; made when new.", envvar=SESSION_VARIABLE)
    ],
    resource: Annotated[str, typer.Option("--resource", "-r", help="local, slurm, or a platform.")] = "local",
    nodes: Annotated[int, typer.Option("--nodes", "-N")] = 0,
    cores: Annotated[int, typer.Option("--cores", help="0 for all of the machine (local).")] = 0,
    gpus: Annotated[int, typer.Option("--gpus")] = 0,
    memory: Annotated[int, typer.Option("--memory", help="MB.")] = 0,
    runtime: Annotated[float, typer.Option("--runtime", "-t", help="Minutes.")] = 60.0,
    queue: Annotated[str, typer.Option("--queue", "-q")] = "",
    project: Annotated[str, typer.Option("--project", "-A")] = "",
    qos: Annotated[str, typer.Option("--qos")] = "",
    reservation: Annotated[str, typer.Option("--reservation")] = "",
    constraint: Annotated[str, typer.Option("--constraint", "-C")] = "",
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Whole nodes.")] = False,
    name: Annotated[str, typer.Option("--name", help="Usable in TaskDescription.pilot.")] = "",
    site: Annotated[str, typer.Option("--site", help="Usable in TaskDescription.site.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask for an allocation; starts the hub when none runs."""
    description = PilotDescription(
        resource=resource,
        nodes=nodes,
        cores=cores,
        gpus=gpus,
        memory=memory,
        runtime=runtime,
        queue=queue,
        project=project,
        qos=qos,
        reservation=reservation,
        constraint=constraint,
        exclusive=exclusive,
        name=name,
        site=site,
    )
    try:
        check_session_name(session)
        description.verify()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    update = through_hub(home(), session, lambda tool: tool.submit_pilot(description), timeout=60.0)
    if update.state in (PilotState.FAILED, PilotState.CANCELED):
        raise PilotFailed(f"pilot {update.pilot} of {session} {update.state.name}: {update.message}")
    facts: dict[str, Json] = {
        "session": session,
        "pilot": update.pilot,
        "state": update.state.name,
        "message": update.message,
    }
    if as_json:
        put_json(facts)
        return
    put(f"pilot {update.pilot} of {session}: {update.state.name} {update.message}".rstrip())


@app.command("list")
def list_pilots(
    *,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Only this session.", envvar=SESSION_VARIABLE, show_default="all")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List pilots."""
    name = the_session(session) if session else ""
    with connect(home(), name) as tool:
        found = tool.query("pilots", session=name or None)
    if as_json:
        put_json(found)
        return
    rows: list[Row] = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    put_rows(rows, _COLUMNS, "No pilots.")


@app.command()
def cancel(
    pilot: Annotated[str, typer.Argument(metavar="PILOT", help="Number or name.")],
    *,
    session: SessionOption = "",
    reason: Annotated[str, typer.Option("--reason", help="For the record.")] = "ended with pilot-hitl pilot cancel",
    as_json: JsonOption = False,
) -> None:
    """End a pilot; its unfinished tasks go to other pilots."""
    name = the_session(session)
    with connect(home(), name) as tool:
        number = _number(tool.query("pilots", session=name), pilot, name)
        tool.cancel_pilot(number, reason)
    if as_json:
        put_json({"session": name, "pilot": number, "canceled": True})
        return
    put(f"pilot {number} of {name} is being ended")


def _number(found: Json, wanted: str, session: str) -> int:
    """The number of the pilot that is meant."""
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    for row in rows:
        number = row.get("pilot", row.get("id"))
        if isinstance(number, int) and wanted in (str(number), row.get("name")):
            return number
    known = ", ".join(str(row.get("pilot", row.get("id"))) for row in rows) or "none"
    raise typer.BadParameter(f"{session} has no pilot {wanted!r}; there are: {known}")
