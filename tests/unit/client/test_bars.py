"""The bar while a script waits: there on a terminal, nowhere else, and the futures come all the same."""

from __future__ import annotations

import io
from concurrent.futures import Future

import pytest

import pilot_hitl as ph
from pilot_hitl import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ended(*values: int | Exception) -> list[Future[int]]:
    futures: list[Future[int]] = []
    for value in values:
        future: Future[int] = Future()
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)
        futures.append(future)
    return futures


def test_on_a_terminal_there_is_a_bar_that_counts_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bars, "GAP", 0.0)
    out = Terminal()
    futures = ended(1, ValueError("no"), 3)
    assert set(ph.progress(futures, "sims", file=out)) == set(futures)
    assert "sims" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert "1 failed" in out.getvalue()


def test_elsewhere_nothing_is_written() -> None:
    out = io.StringIO()
    assert sorted(future.result() for future in ph.progress(ended(1, 2), file=out)) == [1, 2]
    assert out.getvalue() == ""


def test_nothing_to_wait_for() -> None:
    assert list(ph.progress([], file=Terminal())) == []


def test_a_loop_that_is_left_early_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    waiting: Future[int] = Future()
    for _future in (found := ph.progress([*ended(1), waiting], file=out)):
        break
    found.close()
    # The cursor is shown again.
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
