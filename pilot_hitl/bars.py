"""How far many results are: a bar on a terminal, a line in a notebook that is written anew, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO
from uuid import uuid4

from pilot_hitl.futures import Waitable, as_completed, flatten

GAP = 0.1
"""Seconds between two changes of the bar: a stream of short results must not be slowed by it."""
NOTEBOOK_GAP = 0.5
FIRST_LINE, LAST_LINE, GROWTH = 10.0, 300.0, 1.5
"""Seconds until the first line in a log, and between the last ones; each wait is so many times the one before."""
Show = Callable[[int, int], None]
"""Called with how many ended, and how many of these badly."""


def progress(
    fs: Waitable | Iterable[Waitable], title: str = "", *, file: TextIO | None = None
) -> Generator[Future[Any], None, None]:
    """Yield futures as they end, as :func:`pilot_hitl.as_completed` does, and show how far they are.

    ::

        for done in ph.progress(sims, "simulations"):
            ...

    It is shown how many ended and how many of these badly: on a terminal by a bar, in a notebook by a line below the
    cell that is written anew, and otherwise, as in the log of a batch job, by a line every so often and one at the end.

    Args:
        fs: as of ``as_completed``.
        title: what they are.
        file: where it is written; default standard error.

    Raises:
        Undecided, PilotFailed: as ``as_completed``.
    """
    futures = list(dict.fromkeys(flatten(fs)))
    if not futures:
        return
    out = sys.stderr if file is None else file
    how = _notebook(title, len(futures)) if file is None else None
    if how is None:
        how = _bar(title, len(futures), out) if _is_terminal(out) else _log(title, len(futures), out)
    bad = 0
    with how as show:
        for ended, future in enumerate(as_completed(futures), 1):
            bad += future.cancelled() or future.exception() is not None
            show(ended, bad)
            yield future


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, ValueError):  # none at all, or closed
        return False


@contextmanager
def _bar(title: str, total: int, out: TextIO) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    next_look = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[bad]}"), console=Console(file=out), transient=True) as bar:
        shown = bar.add_task(title or "results", total=total, bad="")

        def show(ended: int, bad: int) -> None:
            nonlocal next_look
            now = time.monotonic()
            if now >= next_look or ended == total:
                bar.update(shown, completed=ended, bad=f"{bad} failed" if bad else "")
                next_look = now + GAP

        yield show


@contextmanager
def _lines(title: str, total: int, write: Callable[[str], None], gap: Callable[[float], float]) -> Iterator[Show]:
    """Show by ``write(text)``, after gaps that follow from the one before (first 0), and once more at the end."""
    began = time.monotonic()
    pause = gap(0.0)
    next_look, at = began + pause, (0, 0)

    def text() -> str:
        failed = f", {at[1]} failed" if at[1] else ""
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        return f"{title or 'results'}: {at[0]}/{total}{failed}, {minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def show(ended: int, bad: int) -> None:
        nonlocal next_look, pause, at
        at = (ended, bad)
        if ended < total and time.monotonic() >= next_look:
            write(text())
            pause = gap(pause)
            next_look = time.monotonic() + pause

    try:
        yield show
    finally:
        write(text())


def _log(title: str, total: int, out: TextIO) -> AbstractContextManager[Show]:
    def write(text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            out.write(f"{text}\n")
            out.flush()

    return _lines(title, total, write, lambda before: min(LAST_LINE, before * GROWTH) or FIRST_LINE)


def _notebook(title: str, total: int) -> AbstractContextManager[Show] | None:
    """Return how to show it below the cell that runs, None where there is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    identifier, shown = uuid4().hex, False

    def write(text: str) -> None:
        nonlocal shown
        shell.display_pub.publish({"text/plain": text}, transient={"display_id": identifier}, update=shown)
        shown = True

    write(f"{title or 'results'}: 0/{total}")
    return _lines(title, total, write, lambda _before: NOTEBOOK_GAP)


__all__ = ["progress"]
