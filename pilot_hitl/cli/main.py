"""The command ``pilot-hitl``.

To add a command, write a module with a :class:`typer.Typer` named ``app`` and one line in :data:`COMMANDS`. The module
is imported only when its command is used, so a slow import costs only its own command.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.errors import PilotHitlError
from pilot_hitl.wire.places import HOME_VARIABLE

DEBUG_VARIABLE = "PILOT_HITL_DEBUG"
"""Set to 1, errors are raised with their traceback."""


class Entry(NamedTuple):
    """Where a command is, and what the help says of it. ``extra`` names one that it needs beyond the core."""

    module: str
    help: str
    extra: str = ""


COMMANDS: dict[str, Entry] = {
    "demo": Entry("pilot_hitl.cli.demo", "Run a whole study here, with a decision in the middle."),
    "run": Entry("pilot_hitl.cli.run", "Run a script of yours with the home and session set."),
    "session": Entry("pilot_hitl.cli.sessions", "Studies: list, show, resume, rm."),
    "pilot": Entry("pilot_hitl.cli.pilots", "Allocations: submit, list, cancel."),
    "platforms": Entry("pilot_hitl.cli.platforms", "Machines that pilots can be submitted to: list, show."),
    "task": Entry("pilot_hitl.cli.tasks", "Tasks: list, show, explain, cancel."),
    "service": Entry("pilot_hitl.cli.services", "Services: list, show, stop, request."),
    "inbox": Entry("pilot_hitl.cli.inbox", "Questions to people: list, show, answer, audit."),
    "report": Entry("pilot_hitl.cli.report", "Where every core-second went, and what each question cost."),
    "hub": Entry("pilot_hitl.cli.hub", "The store and router of your sessions: start, status, stop."),
    "doctor": Entry("pilot_hitl.cli.doctor", "Check this machine and say what is missing."),
    "bench": Entry("pilot_hitl.cli.bench", "Measure what the runtime costs here, beside its limits."),
}
"""Every command: a module with one command becomes the command, one with several becomes a group."""

# Typer keeps its own copy of click or uses the real one, by version; this is the right class either way.
_ClickError: Any = typer.BadParameter.__mro__[2]


class LazyGroup(CommandGroup):
    """A group that imports a command's module when the command is used, and reports errors in one line."""

    _names_only = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base's signature
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the base's signature
        """Return a command; for the help text only its name and summary, without importing it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if self._names_only:
            return TyperCommand(cmd_name, help=entry.help, callback=_nothing)
        command = typer.main.get_command(importlib.import_module(entry.module).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help without importing any command."""
        self._names_only = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._names_only = False

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and leave with its exit code: 0 ok, 1 error, 2 usage."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except (_ClickError, typer.Abort, KeyboardInterrupt, PilotHitlError, OSError, ValueError) as error:
            if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
                raise
            sys.exit(_report(error))
        sys.exit(code if isinstance(code, int) else 0)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"{version('pilot-hitl')}\n")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    name="pilot-hitl",
    help="A pilot-job runtime in which a person's decision is a service endpoint and no core waits for it.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    *,
    home: Annotated[
        str, typer.Option("--home", help="Folder of the sessions; default $PILOT_HITL_HOME or ~/.pilot-hitl.")
    ] = "",
    version: Annotated[  # noqa: ARG001 - its callback does it, before a command is asked for
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    if home:
        os.environ[HOME_VARIABLE] = os.path.abspath(os.path.expanduser(home))  # text to text


def main() -> NoReturn:
    """Run the command line of this process; never returns."""
    typer.main.get_command(app).main(prog_name="pilot-hitl")
    raise AssertionError("the group leaves by itself")


def _nothing() -> None:
    pass


def _report(error: BaseException) -> int:
    """Write an error on stderr in one line and return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        usage: Any = error
        usage.show()
        return 2
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        _line("stopped")
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, BrokenPipeError):
        # Whoever read us has gone (`… | head`): nothing to say, and the interpreter must not flush into it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if isinstance(error, _ClickError):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "pilot-hitl"
        _line(f"{error.format_message()} (see: {path} --help)")
        return int(error.exit_code)
    _line(str(error) or type(error).__name__)
    return 1


def _line(text: str) -> None:
    from pilot_hitl.cli._show import clean

    sys.stdout.flush()
    sys.stderr.write(f"pilot-hitl: {clean(' '.join(text.split()))}\n")
