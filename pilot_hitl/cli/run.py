"""``pilot-hitl run``: run a user's script with the home and the session set."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pilot_hitl.cli._home import SESSION_VARIABLE, home
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.wire.places import HOME_VARIABLE

app = typer.Typer(add_completion=False)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "allow_extra_args": True}
)
def run(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python script of yours.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="For the script.")] = None,
    *,
    session: Annotated[str, typer.Option("--session", "-s", help="Session that the script means by default.")] = "",
) -> None:
    """Run a script. This process becomes the script, so its exit code is the script's (75: run me again)."""
    if session:
        try:
            check_session_name(session)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    replace_with([script, *(arguments or [])], home(), session)


def replace_with(command: Sequence[str], where: Path, session: str, *, as_it_is: bool = False) -> NoReturn:
    """Become a script (run by this Python) or, ``as_it_is``, a command; returns never.

    Raises:
        OSError: it cannot be run.
    """
    os.environ[HOME_VARIABLE] = str(where)
    if session:
        os.environ[SESSION_VARIABLE] = session
    sys.stdout.flush()
    sys.stderr.flush()
    if as_it_is:
        os.execvp(command[0], list(command))  # no shell is the point
    if not Path(command[0]).is_file():
        raise FileNotFoundError(f"there is no script {command[0]!r} here ({Path.cwd()})")
    os.execv(sys.executable, [sys.executable, *command])  # no shell is the point
