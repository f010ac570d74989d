"""What a person sees of the demo: progress while it runs, the question, and the summary at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import pilot_hitl as ph
from pilot_hitl.cli.demo_study import pictures, study
from pilot_hitl.cli.demo_study.analysis import Survey
from pilot_hitl.cli.demo_study.study import Outcome


class TerminalBoard:
    """Progress on stderr: moving bars on a terminal, a line a step anywhere else. A context manager."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self.console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Begin."""
        self._resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self.pause()

    def say(self, text: str) -> None:
        """Write a line, with the seconds since the beginning."""
        self.console.print(Text(f"{time.monotonic() - self._began:6.1f} s  {text}"))

    def follow(self, title: str, tasks: list[ph.TaskFuture[Any]]) -> None:
        """Show how many of these tasks have ended."""
        self.say(f"{title}: {len(tasks)} tasks")
        progress = self._progress
        if progress is None:
            return
        row = progress.add_task(title, total=len(tasks))

        def ended(_task: Future[Any]) -> None:
            progress.advance(row)

        for task in tasks:
            task.add_done_callback(ended)

    def pause(self) -> None:
        """Let the terminal be, because a person types."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def ask(self, survey: Survey, how: str, *, typed: bool) -> None:
        """Show the question and how it is answered; with ``typed`` here too, so that the bars stand still."""
        if typed:
            self.pause()
        self.console.print(Panel(_question(survey, how), title="a person decides", expand=False))

    def _resume(self) -> None:
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()


def _question(survey: Survey, how: str) -> Group:
    return Group(
        Text(study.QUESTION + "\n"),
        _rows(study.table(survey)),
        Text("\n" + pictures.surface(survey) + "\n"),
        Text(study.thumbnails(survey) + "\n"),
        Text(how),
    )


def _rows(rows: list[dict[str, object]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(str(value) for value in row.values()))
    return shown


def summary(outcome: Outcome, facts: Mapping[str, object], console: Console) -> None:
    """Write what was found and what it took."""
    finding, fit = outcome.finding, outcome.finding.fit
    both = f"{fit.strength:.4f} ± {fit.error:.4f}, by fresh simulations {finding.measured:.4f} ± {finding.spread:.4f}"
    found = [
        f"Region {fit.region}: {fit.patterns} of {fit.simulations} refined simulations make a pattern.",
        f"The strongest pattern at rest is at F = {fit.feed:.5f}, k = {fit.kill:.5f}.",
        f"Strength by the fit {both}: {'they agree' if finding.agrees else 'they do not agree'}.",
        f"A pattern in {finding.patterns:.0%} of those; wavelength {finding.wavelength:.1f} cells.",
        "",
        pictures.picture(finding.thumbnail, 48),
    ]
    parts: list[RenderableType] = [Text("\n".join(found))]
    if facts:
        parts += [Text(), _facts(facts)]
    console.print(Panel(Group(*parts), title="what was found", expand=False))


def _facts(facts: Mapping[str, object]) -> Table:
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        shown.add_row(name.replace("_", " "), str(value))
    return shown


def stdout_console() -> Console:
    """Return where the summary goes when nobody asked for JSON."""
    return Console(file=sys.stdout, highlight=False)
