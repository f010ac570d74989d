from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from pilot_hitl.cli import _show


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> _Terminal:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    return terminal


ROWS: list[dict[str, Any]] = [{"id": "a/1", "question": "x" * 100, "hidden": 1}, {"id": "b/2", "question": "short"}]


def test_columns_are_aligned_and_never_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put_rows(ROWS, ("id", "question", "absent"), "")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ID   QUESTION", f"a/1  {'x' * 100}", "b/2  short"]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_nothing_is_lost_on_any_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = _on_terminal(monkeypatch, columns)
    _show.put_rows(ROWS, ("id", "question"), "")
    assert terminal.getvalue().count("x") == 100
    assert "b/2" in terminal.getvalue()


def test_unknown_columns_are_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put_rows([{"one": 1, "two": None}, {"three": [1, 2]}], ("id", "name"), "")
    assert capsys.readouterr().out.splitlines()[0].split() == ["ONE", "THREE"]


def test_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put_rows([], ("id",), "Nothing here.")
    assert capsys.readouterr().out == "Nothing here.\n"


def test_a_terminal_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put("red \x1b[31m bell \a title \x1b]0;x\x07 back \u202e right\tok\nnew")
    out = capsys.readouterr().out
    assert not {"\x1b", "\a", "\u202e"} & set(out)
    assert "right\tok\nnew" in out


def test_half_characters_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put("\ud800")
    _show.put_json({"text": "\ud800 é"})
    assert '"\\ud800 \\u00e9"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("x", None, ""),
        ("x", True, "yes"),
        ("x", 1.5, "1.5"),
        ("choices", ["a", 1], "a, 1"),
        ("facts", {"a": [1]}, "a (1)"),
        ("count", 1_700_000_000, "1700000000"),
    ],
)
def test_cells(name: str, value: Any, text: str) -> None:
    assert _show.cell(name, value) == text


def test_times_are_dates() -> None:
    assert _show.cell("opened_at", 1.7e9).startswith("2023-11-1")
    assert _show.cell("deadline_at", None) == ""


def test_an_object_with_lists(capsys: pytest.CaptureFixture[str]) -> None:
    _show.put_object({"pid": 3, "empty": "", "processes": [{"kind": "hub", "pid": 3}]}, title="the hub")
    assert capsys.readouterr().out.split() == ["the", "hub", "pid", "3", "processes:", "KIND", "PID", "hub", "3"]
