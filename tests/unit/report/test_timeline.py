"""The timeline paints what was measured: as much as ran, where it ran, and nothing where no pilot was."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.ledger import Account
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.report import page, summarise
from pilot_hitl.report.books import Piece
from pilot_hitl.report.summary import BUSY
from pilot_hitl.report.timeline import PLACES, timeline_of
from tests.unit.report.files import READY, File, span

SPAN = 120.0
LENGTHS = st.sampled_from([0.0001, 0.01, 0.09, 0.11, 1.0, 20.0])
KINDS = st.sampled_from(["idle", "run", "runs", "reserved_idle", "gone"])


def _pieces(stretches: list[tuple[float, str]]) -> list[Piece]:
    """Stretches of one core, one after the other; ``gone``: there was no pilot."""
    pieces, at = [], 0.0
    for number, (length, kind) in enumerate(stretches):
        rows = {
            "idle": {"idle": length},
            "reserved_idle": {"reserved_idle": length},
            "run": {"overhead": length * 0.25, "needed": length * 0.75},
            "runs": {"overhead": length * 0.5, "idle": length * 0.3, "needed": length * 0.2},
        }.get(kind)
        if rows is not None:
            row = "needed" if "needed" in rows else kind
            task = number + 1 if kind == "run" else 0
            pieces.append(Piece(1, 0, (0,), at, at + length, rows, row, 0, task))
        at += length
    return pieces


@given(st.lists(st.tuples(LENGTHS, KINDS), min_size=1, max_size=60))
def test_what_is_painted_is_what_was_measured(stretches: list[tuple[float, str]]) -> None:
    pieces = _pieces(stretches)
    lines = timeline_of(pieces, 0.0, SPAN)
    if not pieces:
        assert not lines
        return
    bars = lines[0].bars
    ran = sum(piece.rows.get("needed", 0.0) for piece in pieces)
    assert sum((bar.ended - bar.began) * bar.share for bar in bars if bar.row in BUSY) == pytest.approx(ran)
    assert all(before.ended <= after.began + 1e-9 for before, after in pairwise(bars))
    for piece in pieces:
        if piece.row in BUSY or piece.ended - piece.began < SPAN / PLACES:
            continue
        busy = [bar for bar in bars if bar.row in BUSY]
        over = [bar for bar in busy if bar.began < piece.ended - 1e-9 and bar.ended > piece.began + 1e-9]
        assert not over, "idle long enough to be seen is not painted as busy"
    gone, at = [], 0.0
    for length, kind in stretches:
        gone += [(at, at + length)] if kind == "gone" and length >= SPAN / PLACES else []
        at += length
    for since, until in gone:
        assert not [one for one in lines[0].alive if one[0] < until - 1e-9 and one[1] > since + 1e-9]
        assert not [bar for bar in bars if bar.began < until - 1e-9 and bar.ended > since + 1e-9]


def test_a_short_run_before_a_long_wait_is_not_the_wait(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=101.0)
    file.spans(span([0], READY, 1.001, Account.NEEDED, task=5, epoch=1, run=1), span([0], 1.001, 100.0), at=100.0)
    report = summarise(file.close())
    busy = [bar for bar in report.timeline[0].bars if bar.row == "needed"]
    assert sum((bar.ended - bar.began) * bar.share for bar in busy) == pytest.approx(report.ledger["needed"], abs=1e-6)
    assert max(bar.ended - bar.began for bar in busy) < 0.1


def test_three_hundred_questions_shade_once(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=101.0)
    file.spans(span([0], READY, 100.0), at=100.0)
    for number in range(1, 301):
        file.gate(number, opened=number / 10, answered=60 + number / 10, state=CheckpointState.ANSWERED)
    html = page(summarise(file.close()))
    assert html.count('class="band"') == 1
    assert "300 questions" in html
    marks = [float(x) for x in re.findall(r'<line class="mark[^"]*" x1="([0-9.]+)"', html)]
    assert len(marks) < 130
    assert min(after - before for before, after in pairwise(marks)) >= 7.9


def test_the_time_says_what_cores_times_time_is(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=11.0)
    file.spans(span([0, 1], READY, 10.0), at=10.0)
    report = summarise(file.close())
    assert f"on {report.cores} cores<" in page(report), "there it is the product of what is shown"
    (tmp_path / "second").mkdir()
    file = File(tmp_path / "second")
    file.pilot(ended=11.0)
    file.pilot(2, ended=40.0)
    file.spans(span([0, 1], READY, 10.0), at=10.0)
    file.spans(span([0], 30.0, 39.0), pilot=2, at=39.0, began=30.0, job=29.0)
    report = summarise(file.close())
    assert f"{report.ledger['total']:.2f} core-seconds" in page(report)
