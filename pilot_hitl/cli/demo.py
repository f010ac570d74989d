"""``pilot-hitl demo``: a whole study on this machine, with a person (or a script in their place) in the middle."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple, NoReturn

import typer

import pilot_hitl as ph
from pilot_hitl.cli._show import put_json
from pilot_hitl.cli._tool import hub_runs
from pilot_hitl.cli.demo_study import board as boards
from pilot_hitl.cli.demo_study import reviewers
from pilot_hitl.cli.demo_study.accounts import Account, account
from pilot_hitl.cli.demo_study.analysis import Survey, results_hash
from pilot_hitl.cli.demo_study.plan import SCALES
from pilot_hitl.cli.demo_study.study import Outcome, Study
from pilot_hitl.gates import Checkpoint
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire.places import HOME_VARIABLE, runtime_folder
from pilot_hitl.wire.places import home as default_home

app = typer.Typer(add_completion=False)

SESSION = "demo"
HUB_PATIENCE = 15.0
"""Seconds that the hub of a temporary home has to end, before its folder is left where it is."""


class Size(StrEnum):
    """How much is computed."""

    SMALL = "small"
    NORMAL = "normal"


class Home(NamedTuple):
    """Where the session lives. ``temporary`` homes are removed at the end."""

    folder: Path
    temporary: bool


@app.command()
def demo(  # noqa: PLR0913 - each is an option of the command line
    *,
    unattended: Annotated[bool, typer.Option("--unattended", help="A scripted reviewer answers.")] = False,
    reviewer_delay: Annotated[
        float, typer.Option("--reviewer-delay", min=0.0, metavar="S", help="Seconds that the scripted reviewer thinks.")
    ] = 12.0,
    answer: Annotated[
        str, typer.Option("--answer", help="What it answers: a region's name, 'predicted' or 'other'.")
    ] = reviewers.PREDICTED,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the whole study; equal seeds, equal numbers.")] = 1,
    cores: Annotated[int, typer.Option("--cores", min=0, help="Of the pilot; 0 for all of this machine.")] = 0,
    size: Annotated[Size, typer.Option("--size", help="How much is computed.")] = Size.NORMAL,
    resource: Annotated[str, typer.Option("--resource", help="Where the pilot runs.")] = "local",
    speculation: Annotated[
        bool, typer.Option("--speculation/--no-speculation", help="Whether work goes on while the person thinks.")
    ] = True,
    home: Annotated[
        str, typer.Option("--home", metavar="PATH", help="Home of the session; default a temporary one.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Do not remove the temporary home.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the demo that was run in this home.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Run a whole study: simulations, a reduction, a decision, and what follows from it.

    Where in its parameter plane does the Gray-Scott reaction make strong patterns that come to rest? 64 simulations
    survey the plane, a person chooses the region to refine, and the refined simulations with their fit give the answer.
    While the person thinks, the cores work on what the likely answers would need. The numbers do not depend on that:
    see results_sha256 with other delays and with --no-speculation.
    """
    if resume and not (home or os.environ.get(HOME_VARIABLE)):
        raise ph.DescriptionError("--resume: say --home too, because without it each demo has a new, temporary home")
    with _signals_raise(), _home(home, keep=keep) as place, boards.TerminalBoard() as board:
        reviewer = reviewers.ScriptedReviewer(reviewer_delay, answer, board) if unattended else _Person(board, place)
        began = time.monotonic()
        with ph.Session(SESSION, home=place.folder, fresh=not resume) as session:
            session.submit_pilot(ph.PilotDescription(resource=resource, cores=cores, runtime=60))
            board.say(f"session {session.folder}" + (f", {session.resumed} tasks resumed" if session.resumed else ""))
            outcome = Study(session, SCALES[size.value], seed, board, speculation).run(reviewer)
            makespan = time.monotonic() - began
            facts = _facts(outcome, account(session, outcome), makespan)
            facts |= {"seed": seed, "size": size.value, "speculation": speculation}
            facts |= {"folder": str(session.folder), "kept": not place.temporary}
    if as_json:
        boards.summary(outcome, {}, board.console)
        put_json(facts)
    else:
        boards.summary(outcome, facts, boards.stdout_console())


class _Person:
    """A person answers: at this terminal, where it is one, or from anywhere else."""

    def __init__(self, board: boards.TerminalBoard, place: Home) -> None:
        self._board = board
        self._place = place
        self._typing = reviewers.TerminalReviewer(board) if sys.stdin.isatty() else None

    def begin(self, gate: Checkpoint, survey: Survey) -> None:
        """Show the question and how to answer it."""
        gate.wait_number()
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


def _facts(outcome: Outcome, tasks: Account, makespan: float) -> dict[str, Json]:
    """What the summary and the JSON say, times in the units of their names."""
    fit, answered = outcome.finding.fit, outcome.answer.at
    candidates = zip(outcome.survey.candidates, outcome.survey.probabilities, strict=True)
    return {
        "answer": outcome.chosen,
        "predicted": outcome.predicted,
        "probabilities": {item.region.name: round(probability, 6) for item, probability in candidates},
        "tasks_done": tasks.done,
        "tasks_failed": tasks.failed,
        "speculative_committed": tasks.committed,
        "speculative_discarded": tasks.discarded,
        "speculative_discarded_ran": tasks.begun,
        "makespan_s": round(makespan, 3),
        "asked_to_answer_s": round(max(0.0, answered - outcome.asked_at), 3),
        "answer_to_continuation_ms": round(max(0.0, outcome.first_at - answered) * 1e3, 1),
        "answer_to_result_ms": round(max(0.0, outcome.done_at - answered) * 1e3, 1),
        "feed": round(fit.feed, 6),
        "kill": round(fit.kill, 6),
        "strength": round(outcome.finding.measured, 6),
        "results_sha256": results_hash(outcome.survey, outcome.finding),
    }


@contextmanager
def _home(wanted: str, *, keep: bool) -> Iterator[Home]:
    """Give the home that was asked for, or a temporary one that is removed, with its hub, unless it is kept."""
    given = wanted or os.environ.get(HOME_VARIABLE, "")
    if given:
        yield Home(Path(given).expanduser().absolute(), temporary=False)
        return
    folder = Path(tempfile.mkdtemp(prefix="pilot-hitl-demo-"))
    try:
        yield Home(folder, temporary=not keep)
    finally:
        if not keep:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a temporary home once its hub, which ends with its last session, has let go of it."""
    end = time.monotonic() + HUB_PATIENCE
    while hub_runs(folder):
        if time.monotonic() > end:
            sys.stderr.write(f"pilot-hitl: the hub of {folder} still runs, so the folder stays\n")
            return
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(runtime_folder(folder), ignore_errors=True)


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
