"""How far results are: on a terminal, in a notebook, in a log; and the futures come all the same."""

from __future__ import annotations

import io
import sys
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


def test_in_a_log_a_line_says_how_it_ended() -> None:
    out = io.StringIO()
    values = [ended(1)[0], ended(ValueError("no"))[0]]
    assert len(list(ph.progress(values, "sims", file=out))) == 2
    assert out.getvalue() == "sims: 2/2, 1 failed, 0:00:00\n"


def test_in_a_log_there_is_a_line_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(0, 1000, 4))  # each look at the clock is 4 s after the one before
    monkeypatch.setattr("pilot_hitl.bars.time.monotonic", lambda: float(next(moments)))
    out = io.StringIO()
    list(ph.progress(ended(*range(40)), file=out))
    lines = out.getvalue().splitlines()
    assert 3 < len(lines) < 20
    assert lines[-1].startswith("results: 40/40, 0:0")
    assert lines == sorted(lines, key=lambda line: int(line.split()[1].partition("/")[0])), "each once"


def test_a_log_that_is_closed_or_missing_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    out.close()
    assert len(list(ph.progress(ended(1, 2), file=out))) == 2
    monkeypatch.setattr(sys, "stderr", None)
    assert len(list(ph.progress(ended(1, 2)))) == 2


class Notebook:
    """What of a notebook's shell is used."""

    kernel = object()

    def __init__(self) -> None:
        self.display_pub = self
        self.shown: list[tuple[str, str, bool]] = []

    def get_ipython(self) -> Notebook:
        return self

    def publish(self, data: dict[str, str], transient: dict[str, str], update: bool) -> None:
        self.shown.append((data["text/plain"], transient["display_id"], update))


def test_in_a_notebook_one_line_is_written_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setattr(bars, "NOTEBOOK_GAP", 0.0)
    list(ph.progress(ended(1, 2, 3), "sims"))
    assert [text.rpartition(",")[0] or text for text, _, _ in notebook.shown] == [
        "sims: 0/3", "sims: 1/3", "sims: 2/3", "sims: 3/3",
    ]  # fmt: skip
    assert len({identifier for _, identifier, _ in notebook.shown}) == 1
    assert [update for _, _, update in notebook.shown] == [False, True, True, True]
    assert capsys.readouterr().err == ""


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
