"""A bar on the terminal while a script waits for many results; nothing where no terminal is."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TextIO

from pilot_hitl.futures import Waitable, as_completed, flatten

GAP = 0.1
"""Seconds between two changes of the bar: a stream of short results must not be slowed by it."""


def progress(
    fs: Waitable | Iterable[Waitable], title: str = "", *, file: TextIO | None = None
) -> Generator[Future[Any], None, None]:
    """Yield futures as they end, as :func:`pilot_hitl.as_completed` does, with a bar on the terminal meanwhile.

    ::

        for done in ph.progress(sims, "simulations"):
            ...

    The bar counts how many ended and how many of these badly, and stands in ``file`` (standard error by default).
    Where that is no terminal nothing is written.

    Raises:
        Undecided: as ``as_completed``.
    """
    futures = list(dict.fromkeys(flatten(fs)))
    out = sys.stderr if file is None else file
    if not futures or not out.isatty():
        yield from as_completed(futures)
        return
    yield from _with_bar(futures, title, out)


def _with_bar(futures: list[Future[Any]], title: str, out: TextIO) -> Iterator[Future[Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[bad]}"), console=Console(file=out), transient=True) as bar:
        shown = bar.add_task(title or "results", total=len(futures), bad="")
        bad, next_look = 0, 0.0
        for ended, future in enumerate(as_completed(futures), 1):
            bad += future.cancelled() or future.exception() is not None
            now = time.monotonic()
            if now >= next_look or ended == len(futures):
                bar.update(shown, completed=ended, bad=f"{bad} failed" if bad else "")
                next_look = now + GAP
            yield future


__all__ = ["progress"]
