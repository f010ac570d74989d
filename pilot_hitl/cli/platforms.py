"""``pilot-hitl platforms``: what is known of machines."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import JsonOption, home
from pilot_hitl.cli._show import Row, put, put_json, put_rows
from pilot_hitl.launch import platforms

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Machines that pilots can be submitted to."
)

_COLUMNS = ("name", "system", "queue", "cores_per_node", "gpus_per_node", "requires", "description")


@app.command("list")
def list_platforms(*, as_json: JsonOption = False) -> None:
    """List platforms: ours, your own, and RADICAL-Pilot's when it is installed."""
    rows: list[Row] = [
        {"name": platforms.LOCAL[0], "system": "fork", "description": "This machine", "source": "built in"},
        *(msgspec.to_builtins(platform) for platform in platforms.every(home())),
    ]
    if as_json:
        put_json([dict(row) for row in rows])
        return
    shown: list[Row] = [{name: row.get(name) or "" for name in _COLUMNS} for row in rows]
    put_rows(shown, _COLUMNS, "No platforms.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PLATFORM", help="As in PilotDescription.resource.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show everything that is known of a platform, and where it comes from."""
    platform = platforms.find(name, home())
    facts = msgspec.to_builtins(platform)
    if as_json:
        put_json(facts)
        return
    for key, value in facts.items():
        if value or value == 0:
            put(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
