"""The timeline of the cores: pieces by core, short ones joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pilot_hitl.report.books import Piece
from pilot_hitl.report.summary import BUSY, Bar, CoreLine

ORDER = {"idle": 0, "reserved_idle": 1, "overhead": 2}
"""What comes before a run, in this order."""
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
        lines.append(CoreLine(pilot=pilot, node=node, core=core, bars=_bars(mine, least), alive=_alive(mine, least)))
    return lines


def _alive(pieces: Sequence[Piece], least: float) -> list[tuple[float, float]]:
    """Return when a core was there; gaps that nobody would see are closed."""
    found: list[tuple[float, float]] = []
    for piece in pieces:
        if found and piece.began - found[-1][1] < least:
            found[-1] = (found[-1][0], max(found[-1][1], piece.ended))
        else:
            found.append((piece.began, piece.ended))
    return found


def _bars(pieces: Sequence[Piece], least: float) -> list[Bar]:
    """Join only what is too short to be seen: what is long enough stands alone, whatever comes before it."""
    bars: list[Bar] = []
    together: list[Piece] = []
    for piece in pieces:
        if together and (
            piece.ended - piece.began >= least
            or piece.began - together[-1].ended >= least
            or piece.ended - together[0].began >= 2 * least
        ):
            bars.extend(_joined(together))
            together = []
        if piece.ended - piece.began >= least:
            bars.extend(_alone(piece))
        else:
            together.append(piece)
    return [*bars, *_joined(together)]


def _joined(pieces: Sequence[Piece]) -> list[Bar]:
    """Return one bar for what is too short to be seen alone."""
    if not pieces:
        return []
    sums: defaultdict[str, float] = defaultdict(float)
    for piece in pieces:
        for row, seconds in piece.rows.items():
            sums[row] += seconds
    task = pieces[0].task if len({piece.task for piece in pieces}) == 1 else 0
    return [_mixed(pieces[0].began, max(piece.ended for piece in pieces), sums, task)]


def _alone(piece: Piece) -> list[Bar]:
    """Return what one piece is: the times of a single run one after the other, those of many as shares."""
    if not piece.task:
        return [_mixed(piece.began, piece.ended, piece.rows, 0)]
    bars, at = [], piece.began
    for row in sorted(piece.rows, key=lambda row: (row in BUSY, ORDER.get(row, 0))):
        if (seconds := piece.rows[row]) > 0.0:
            until = min(piece.ended, at + seconds)
            bars.append(Bar(at, until, row, 1.0, piece.task if row in BUSY else 0))
            at = until
    return bars


def _mixed(began: float, ended: float, rows: Mapping[str, float], task: int) -> Bar:
    """Return a bar of the busy row that took most, as high as its share of the time, else of the row that took most."""
    busy = {row: seconds for row, seconds in rows.items() if row in BUSY and seconds > 0.0}
    row = max(busy or rows, key=lambda name: rows[name])
    share = sum(busy.values()) / (ended - began) if busy and ended > began else 1.0
    return Bar(began, ended, row, min(1.0, share), task)
