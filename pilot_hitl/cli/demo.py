"""``pilot-hitl demo``: a whole study, here or on a cluster, with a person or a script in their place in the middle."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType
from typing import Annotated, NoReturn

import typer

import pilot_hitl as ph
from pilot_hitl.cli._show import put_json
from pilot_hitl.cli.demo_study import board as boards
from pilot_hitl.cli.demo_study import comparison, homes, reviewers
from pilot_hitl.cli.demo_study.comparison import BLOCK, Run, Setting
from pilot_hitl.cli.demo_study.homes import Home
from pilot_hitl.cli.demo_study.plan import SCALES
from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.gates import Checkpoint
from pilot_hitl.study.policies import DEFAULT, POLICIES
from pilot_hitl.wire.places import HOME_VARIABLE
from pilot_hitl.wire.places import home as default_home

app = typer.Typer(add_completion=False)

SESSION = "demo"
BLOCKING = "demo-blocking"
PATIENCE = 60.0
"""Seconds: a person who took longer is not asked to wait as long again for the blocking run."""


class Size(StrEnum):
    """How much is computed."""

    SMALL = "small"
    NORMAL = "normal"


@app.command()
def demo(  # noqa: PLR0913 - each is an option of the command line
    *,
    unattended: Annotated[bool, typer.Option("--unattended", help="A scripted reviewer answers.")] = False,
    reviewer_delay: Annotated[
        float, typer.Option("--reviewer-delay", min=0.0, metavar="S", help="Seconds that the scripted reviewer thinks.")
    ] = 10.0,
    answer: Annotated[
        str, typer.Option("--answer", help="What it answers: a region's name, 'predicted' or 'other'.")
    ] = reviewers.PREDICTED,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the whole study; equal seeds, equal numbers.")] = 1,
    cores: Annotated[
        int,
        typer.Option("--cores", min=0, help="Of the pilot, at least 2; 0 for all of this machine, or of its nodes."),
    ] = 0,
    size: Annotated[Size, typer.Option("--size", help="How much is computed.")] = Size.NORMAL,
    resource: Annotated[
        str, typer.Option("--resource", help="Where the pilot runs: local, slurm, or a platform.")
    ] = homes.LOCAL,
    nodes: Annotated[int, typer.Option("--nodes", min=0, help="Of the pilot, on a batch system.")] = 0,
    queue: Annotated[str, typer.Option("--queue", help="Of the pilot, on a batch system.")] = "",
    project: Annotated[str, typer.Option("--project", help="That the pilot is accounted to.")] = "",
    policy: Annotated[
        str, typer.Option("--policy", help=f"What cores do while the person thinks: {', '.join(POLICIES)}.")
    ] = DEFAULT,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Run the same study with policy block too, and compare.")
    ] = True,
    home: Annotated[
        str,
        typer.Option(
            "--home",
            metavar="PATH",
            help="Home of the sessions; default a new one, in the temporary folder or, on a batch system, in yours.",
        ),
    ] = "",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--remove",
            help="Whether the new home, with its sessions and reports, stays when the demo came to its end.",
        ),
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the demo that was run in this home.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Run a whole study: simulations, a surrogate that learns from them, a decision, and what follows from it.

    Where in its parameter plane does the Gray-Scott reaction make strong patterns that come to rest? Simulations survey
    the plane, a surrogate model is trained on them, a person chooses the region to refine, and refined simulations lead
    the surrogate to the answer. While the person thinks, the cores work on what the likely answers would need. Then the
    same study runs again with policy block, in which nothing runs ahead of the answer: equal numbers, later.

    What it leaves (sessions demo and demo-blocking) stays for a look: pilot-hitl --home PATH report demo.
    """
    _check(policy, cores, resume=resume, home=home)
    pilot = _pilot(resource, nodes, cores, queue, project)
    with _signals_raise(), homes.home(home, keep=keep, resource=resource) as place, boards.TerminalBoard() as board:
        setting = Setting(place.folder, pilot, SCALES[size.value], seed)
        both = compare and policy != BLOCK
        if both:
            board.say("warming up")
            comparison.warm_up(setting)
        reviewer = reviewers.ScriptedReviewer(reviewer_delay, answer, board) if unattended else _Person(board, place)
        first = comparison.run(setting, SESSION, policy, reviewer, board, fresh=not resume)
        delay = reviewer_delay if unattended else first.waited
        second = None
        if both and (unattended or delay <= PATIENCE):
            homes.hub_ended(place.folder)
            again = reviewers.ScriptedReviewer(delay, first.outcome.chosen, board)
            second = comparison.run(setting, BLOCKING, BLOCK, again, board, fresh=not resume)
        elif both:
            board.say(_too_long(delay, first))
        facts = comparison.facts(first, second)
        facts |= {"seed": seed, "size": size.value, "home": str(place.folder), "kept": place.kept}
    if as_json:
        boards.summary(first, second, board.console)
        put_json(facts)
    else:
        boards.summary(first, second, boards.stdout_console())
        if place.kept:
            _say_where(place, [run for run in (first, second) if run is not None])


class _Person:
    """A person answers: at this terminal, where it is one, or from anywhere else."""

    def __init__(self, board: boards.TerminalBoard, place: Home) -> None:
        self._board = board
        self._place = place
        self._typing = reviewers.TerminalReviewer(board) if sys.stdin.isatty() else None

    def begin(self, gate: Checkpoint, survey: Survey) -> None:
        """Show the question and how to answer it, unless an earlier run was answered already."""
        gate.wait_number()
        if gate.done():
            return
        home = "" if self._place.folder == default_home() else f"--home {shlex.quote(str(self._place.folder))} "
        choice = survey.candidates[0].region.name
        how = f"Answer from any terminal:\n    pilot-hitl {home}inbox answer {gate.id} {choice}"
        if self._typing is not None:
            how += "\nor type the region here."
        self._board.ask(survey, how, typed=self._typing is not None)
        if self._typing is not None:
            self._typing.begin(gate, survey)

    def end(self) -> None:
        """The answer is there, or nobody waits for it."""
        if self._typing is not None:
            self._typing.end()


def _say_where(place: Home, runs: list[Run]) -> None:
    pages = "\n".join(f"    {run.folder / comparison.PAGE}" for run in runs)
    sys.stdout.write(
        f"Where the core-seconds went, for a browser:\n{pages}\n"
        f"or here: pilot-hitl --home {shlex.quote(str(place.folder))} report {SESSION}\n"
    )


def _check(policy: str, cores: int, *, resume: bool, home: str) -> None:
    """Refuse what cannot be meant, before anything is made."""
    if resume and not (home or os.environ.get(HOME_VARIABLE)):
        raise ph.DescriptionError("--resume: say --home too, because without it each demo has a new, temporary home")
    if policy not in POLICIES:
        raise ph.DescriptionError(f"--policy: {policy!r} is none of {', '.join(POLICIES)}")
    if cores == 1:
        raise ph.DescriptionError("--cores: the surrogate keeps one core and simulations need another: give at least 2")


def _pilot(resource: str, nodes: int, cores: int, queue: str, project: str) -> ph.PilotDescription:
    """Return what both runs ask for.

    Raises:
        DescriptionError: a pilot on this machine cannot have that.
    """
    if resource != homes.LOCAL:
        # Without cores, whole nodes.
        nodes = nodes or (0 if cores else 1)
        return ph.PilotDescription(resource=resource, nodes=nodes, cores=cores, queue=queue, project=project)
    for option, value in (("--nodes", nodes), ("--queue", queue), ("--project", project)):
        if value:
            raise ph.DescriptionError(f"{option}: a pilot on this machine has none; say --resource slurm too")
    return ph.PilotDescription(resource=resource, cores=cores or max(2, _cpus()))


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _too_long(delay: float, first: Run) -> str:
    return (
        f"no comparison: blocking would stand idle for the same {delay:.0f} s; see it with "
        f"pilot-hitl demo --unattended --reviewer-delay 10 --answer {first.outcome.chosen}"
    )


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that they leave as little behind as Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
