"""What a person sees of the demo: progress while it runs, the question, and the summary at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import pilot_hitl as ph
from pilot_hitl.cli.demo_study import pictures, study
from pilot_hitl.cli.demo_study.comparison import Run
from pilot_hitl.cli.demo_study.ranking import Survey
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
        self.console.print(Text(f"{time.monotonic() - self._began:6.1f} s  {text}"), soft_wrap=True)

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
        self.console.print(Panel(_question(survey), title="a person decides", expand=False))
        # In no frame and on one line each, so that a command can be copied.
        self.console.print(Text(how), soft_wrap=True)

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


def _question(survey: Survey) -> Group:
    return Group(
        Text(study.QUESTION + "\n"),
        _rows(study.table(survey)),
        Text("\n" + pictures.surface(survey) + "\n"),
        Text(study.thumbnails(survey)),
    )


def _rows(rows: list[dict[str, object]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(str(value) for value in row.values()))
    return shown


def summary(first: Run, second: Run | None, console: Console) -> None:
    """Write what was found and what it took; with a second run both side by side."""
    console.print(Panel(Text("\n".join(_found(first.outcome))), title="what was found", expand=False))
    title = "what it took" if second is None else "what it took, with and without speculation"
    console.print(Panel(side_by_side(first, second), title=title, expand=False))


def _found(outcome: Outcome) -> list[str]:
    finding, peak = outcome.finding, outcome.finding.peak
    expected, seen = f"{peak.strength:.4f} ± {peak.deviation:.4f}", f"{finding.measured:.4f} ± {finding.spread:.4f}"
    verdict = "it was right" if finding.agrees else "it was wrong"
    return [
        f"Region {peak.region}: {peak.patterns} of {peak.simulations} refined simulations make a pattern.",
        f"The strongest pattern at rest is at F = {peak.feed:.5f}, k = {peak.kill:.5f}.",
        f"The surrogate expected strength {expected} there, simulations",
        f"gave {seen}: {verdict}. Now it says {finding.strength:.4f} ± {finding.deviation:.4f}.",
        f"The wavelength is {finding.wavelength:.1f} cells.",
        "",
        pictures.picture(finding.thumbnail, 48),
    ]


def side_by_side(first: Run, second: Run | None) -> Table:
    """Return the measures of one run, or of two beside each other."""
    runs = [first] if second is None else [first, second]
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for run in runs:
        shown.add_column(f"policy {run.policy}", justify="right")
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("makespan", lambda run: f"{run.makespan:.1f} s"),
        ("of it, question to answer", lambda run: f"{run.waited:.1f} s"),
        ("answer to continuation", lambda run: f"{run.tasks.continuation_ms:.0f} ms"),
        ("answer to result", lambda run: f"{max(0.0, run.outcome.done_at - run.outcome.answer.at):.2f} s"),
        ("utilisation", lambda run: f"{run.report.utilisation:.1%}"),
        ("useful utilisation", lambda run: f"{run.report.useful_utilisation:.1%}"),
        ("speculative, committed", lambda run: _speculative(run, "speculative_committed", run.tasks.committed)),
        ("speculative, discarded", lambda run: _speculative(run, "speculative_discarded", run.tasks.begun)),
        ("tasks done", lambda run: str(run.tasks.done)),
        ("results", lambda run: run.sha[:12]),
    ]
    for title, value in rows:
        shown.add_row(title, *(value(run) for run in runs))
    if second is not None:
        shown.add_row("", "equal ✓" if first.sha == second.sha else "NOT EQUAL")
        earlier = second.makespan - first.makespan
        shown.add_row("earlier by" if earlier >= 0 else "later by", f"{abs(earlier):.1f} s")
    return shown


def _speculative(run: Run, row: str, tasks: int) -> str:
    return f"{tasks} tasks, {run.report.ledger.get(row, 0.0):.1f} core-s"


def stdout_console() -> Console:
    """Return where the summary goes when nobody asked for JSON."""
    return Console(file=sys.stdout, highlight=False)
