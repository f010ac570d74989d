"""The timeline of the cores: pieces by core, short ones joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pilot_hitl.report.books import Piece
from pilot_hitl.report.summary import BUSY, Bar, CoreLine

PLACES = 1200
"""A line is told apart in so many places; what is shorter is joined with its neighbour."""


def timeline_of(pieces: Sequence[Piece], began: float, ended: float) -> list[CoreLine]:
    """Return what each core did between two moments, by pilot, node and core."""
    cores: defaultdict[tuple[int, int, int], list[Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.node >= 0 and piece.ended > piece.began:
            for core in piece.cores:
                cores[piece.pilot, piece.node, core].append(piece)
    for piece in pieces:
        if piece.node < 0 and piece.ended > piece.began:
            for (pilot, _node, _core), mine in cores.items():
                if pilot == piece.pilot:
                    mine.append(piece)
    least = (ended - began) / PLACES
    lines = []
    for (pilot, node, core), mine in sorted(cores.items(), key=lambda item: item[0]):
        mine.sort(key=lambda piece: piece.began)
        lines.append(CoreLine(pilot=pilot, node=node, core=core, bars=_bars(mine, least)))
    return lines


def _bars(pieces: Sequence[Piece], least: float) -> list[Bar]:
    bars: list[Bar] = []
    together: list[Piece] = []
    for piece in pieces:
        together.append(piece)
        if piece.ended - together[0].began >= least:
            bars.extend(_joined(together))
            together = []
    if together:
        bars.extend(_joined(together))
    return bars


def _joined(pieces: Sequence[Piece]) -> list[Bar]:
    """Return one bar for what is too short to be seen alone; a busy piece shows its overhead in front."""
    if len(pieces) == 1:
        return _alone(pieces[0])
    sums: defaultdict[str, float] = defaultdict(float)
    for piece in pieces:
        for row, seconds in piece.rows.items():
            sums[row] += seconds
    busy = {row: seconds for row, seconds in sums.items() if row in BUSY and seconds > 0.0}
    row = max(busy or sums, key=lambda name: sums[name])
    began, ended = pieces[0].began, max(piece.ended for piece in pieces)
    share = sum(busy.values()) / (ended - began) if busy and ended > began else 1.0
    task = pieces[0].task if len({piece.task for piece in pieces}) == 1 else 0
    return [Bar(began, ended, row, min(1.0, share), task)]


def _alone(piece: Piece) -> list[Bar]:
    busy = piece.rows.get(piece.row, 0.0)
    if piece.task and piece.row in BUSY and busy > 0.0:
        middle = max(piece.began, piece.ended - busy)
        bars = [Bar(middle, piece.ended, piece.row, 1.0, piece.task)]
        if middle - piece.began > 0.0:
            bars.insert(0, Bar(piece.began, middle, "overhead", 1.0, 0))
        return bars
    share = busy / (piece.ended - piece.began) if piece.row in BUSY else 1.0
    return [Bar(piece.began, piece.ended, piece.row, min(1.0, share), piece.task)]
