"""``pilot-hitl pilot``: allocations of a session."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import SESSION_VARIABLE, JsonOption, SessionOption, home, the_session
from pilot_hitl.cli._show import Row, note, put, put_json, put_rows
from pilot_hitl.cli._start import through_hub
from pilot_hitl.cli._tool import connect
from pilot_hitl.errors import PilotFailed
from pilot_hitl.launch import local, platforms, slurm
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.model.states import PilotState
from pilot_hitl.wire.places import SessionPlaces

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Allocations of a session.")

_COLUMNS = (
    "session", "pilot", "name", "resource", "job", "state", "nodes", "cores", "gpus", "runtime", "began", "message",
)  # fmt: skip
_DRY_NUMBER = 1


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
    renew: Annotated[bool, typer.Option("--renew", help="Submit a successor before the wall time ends.")] = False,
    lease: Annotated[float, typer.Option("--lease", help="Seconds that a node goes on without its agent.")] = 10.0,
    requeue: Annotated[bool, typer.Option("--requeue", help="Let the batch system start it again.")] = False,
    job_name: Annotated[str, typer.Option("--job-name")] = "",
    module: Annotated[list[str] | None, typer.Option("--module", help="Module to load first; may be repeated.")] = None,
    pre_launch: Annotated[
        list[str] | None, typer.Option("--pre-launch", help="Shell line to run first; may be repeated.")
    ] = None,
    system_arg: Annotated[
        list[str] | None, typer.Option("--system-arg", help="Further option of sbatch; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="So many equal pilots, as one job array.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be submitted.")] = False,
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
        renew=renew,
        lease=lease,
        requeue=requeue,
        job_name=job_name,
        modules=module or [],
        pre_launch=pre_launch or [],
        system_args=system_arg or [],
    )
    try:
        check_session_name(session)
        description.verify()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if dry_run:
        _dry_run(description, session, count, as_json=as_json)
        return
    updates = through_hub(home(), session, lambda tool: tool.submit_pilots([description] * count), timeout=60.0)
    for update in updates:
        if update.state in (PilotState.FAILED, PilotState.CANCELED):
            raise PilotFailed(f"pilot {update.pilot} of {session} is {update.state.name}: {update.message}")
    facts: list[dict[str, Json]] = [
        {"session": session, "pilot": update.pilot, "state": update.state.name, "message": update.message}
        for update in updates
    ]
    if as_json:
        put_json(facts[0] if count == 1 else list(facts))
        return
    for update in updates:
        put(f"pilot {update.pilot} of {session}: {update.state.name} {update.message}".rstrip())


def _dry_run(description: PilotDescription, session: str, count: int, *, as_json: bool) -> None:
    """Show the batch script and the command; needs neither a hub nor the batch system."""
    if description.resource in platforms.LOCAL:
        raise typer.BadParameter("--dry-run shows a batch script, and resource='local' has none")
    platform = platforms.find(description.resource, home())
    places = SessionPlaces(home(), session)
    job = slurm.Job(
        description=description,
        platform=platform,
        session=session,
        mark=places.mark,
        pilots=tuple(range(_DRY_NUMBER, _DRY_NUMBER + count)),
        folder=str(places.folder / "pilots"),
        python=sys.executable,
        spawner=local.spawner_file(),
    )
    refused = slurm.refusal(description, platform)
    if refused:
        raise PilotFailed(refused)
    command = shlex.join(slurm.command(job))
    if as_json:
        put_json({"command": command, "script": slurm.script(job), "platform": platform.name})
        return
    note(f"Would write this as {job.folder}/{_DRY_NUMBER}/batch.sh and run: {command}")
    put(slurm.script(job).rstrip())


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
