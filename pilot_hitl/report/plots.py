"""The plots of the page, as SVG that stretches with the page; all text is HTML beside it, so that it stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pilot_hitl.model.ids import task_name
from pilot_hitl.report.summary import ROWS, Bar, CoreLine, Gate, Report
from pilot_hitl.report.words import duration, row_name, seconds, share

WIDE = 1000.0
"""Width of the coordinates of every plot."""
HIGHEST = 18
TOTAL_HEIGHT = 520
LEAST_HEIGHT = 3
"""Pixels: of one core's line at most, of all together, and of one at least."""
TITLED = 3.0
"""Bars so wide (of 1000) carry a title that says what they are."""
CLOSE = 6.0
"""Percent of the width: flags that are closer would cover each other on a phone."""
MANY_MARKS, APART = 60, 8.0
"""Above so many moments they are marked faintly, and only so far (of 1000) from each other."""
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def stacked_bar(report: Report) -> str:
    """Return the ledger as one bar."""
    total = report.ledger["total"] or 1.0
    parts, at = [], 0.0
    for row in ROWS:
        wide = report.ledger[row] / total * WIDE
        if wide > 0.0:
            title = f"{row_name(row)}: {seconds(report.ledger[row])} core-seconds, {share(report.ledger[row], total)}"
            parts.append(_rectangle(at, 0, wide, 10, row, title))
        at += wide
    said = "; ".join(f"{row_name(row)} {share(report.ledger[row], total)}" for row in ROWS if report.ledger[row] > 0.0)
    return f'<div class="stack">{_svg(10, f"Where the core-seconds went: {said}", "".join(parts))}</div>'


def meter(value: float, most: float) -> str:
    """Return a small bar for a table; what it shows stands beside it as a number."""
    wide = min(WIDE, max(4.0, value / most * WIDE)) if most > 0.0 else 0.0
    shape = f'<rect x="0" y="0" width="{wide:.1f}" height="10"/>'
    frame = f'viewBox="0 0 {WIDE:g} 10" preserveAspectRatio="none" aria-hidden="true"'
    return f'<div class="meter"><svg {frame}>{shape}</svg></div>'


def timeline(report: Report) -> str:
    """Return what each core did over time, with the questions marked."""
    lines = report.timeline
    began, span = report.began, max(report.span_s, 1e-9)
    high = max(LEAST_HEIGHT, min(HIGHEST, TOTAL_HEIGHT // max(1, len(lines))))
    drawn = "".join(_line(line, index * 10.0, began, span) for index, line in enumerate(lines))
    tall = 10.0 * len(lines)
    gates = [gate for gate in report.gates if gate.opened is not None]
    drawn += _bands(gates, began, span, tall, report.made_at)
    label = f"Timeline of {len(lines)} cores over {duration(report.span_s)}, with {len(gates)} questions marked"
    plot = _svg(tall, label, drawn, style=f"height:{high * len(lines)}px")
    names = "".join(
        f'<div style="height:{high}px">{_name(line, lines, high, index)}</div>' for index, line in enumerate(lines)
    )
    return (
        '<div class="timeline">'
        f'<div></div><div class="flags" aria-hidden="true">{_flags(gates, began, span)}</div>'
        f'<div class="names">{names}</div><div class="lanes">{plot}</div>'
        f'<div></div><div class="axis" aria-hidden="true">{_axis(span)}</div>'
        "</div>"
    )


def _svg(tall: float, label: str, content: str, style: str = "") -> str:
    shown = f' style="{style}"' if style else ""
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDE:g} {tall:g}" '
        f'preserveAspectRatio="none"{shown}>{content}</svg>'
    )


def _rectangle(x: float, y: float, wide: float, high: float, row: str, title: str, share: float = 1.0) -> str:
    y, high = y + high * (1.0 - share), high * share  # so that the area is the time
    inner = f"<title>{escape(title)}</title>" if title else ""
    end = f">{inner}</rect>" if inner else "/>"
    return f'<rect x="{x:.2f}" y="{y:.4g}" width="{wide:.2f}" height="{high:.3g}" style="fill:var(--{row})"{end}'


def _line(line: CoreLine, top: float, began: float, span: float) -> str:
    parts = [
        _rectangle((since - began) / span * WIDE, top + 0.6, max((until - since) / span * WIDE, 0.2), 8.8, "idle", "")
        for since, until in line.alive
    ]
    for bar in line.bars:
        x, wide = (bar.began - began) / span * WIDE, (bar.ended - bar.began) / span * WIDE
        if bar.row == "idle":
            continue
        title = _title(bar, began) if wide >= TITLED else ""
        parts.append(_rectangle(x, top + 0.6, max(wide, 0.2), 8.8, bar.row, title, bar.share))
    return "".join(parts)


def _title(bar: Bar, began: float) -> str:
    what = f"{task_name(bar.task)}, {row_name(bar.row)}" if bar.task else row_name(bar.row)
    return f"{what}, {seconds(bar.began - began)} to {seconds(bar.ended - began)} s"


def _bands(gates: Sequence[Gate], began: float, span: float, tall: float, now: float) -> str:
    """Shade when a question was open, once however many were, and mark openings and answers that can be told apart."""
    open_ = [
        (gate.opened, min(now, began + span) if gate.closed is None else gate.closed, gate)
        for gate in gates
        if gate.opened
    ]
    stretches: list[tuple[float, float, list[Gate]]] = []
    for opened, closed, gate in sorted(open_, key=lambda item: item[:2]):
        if stretches and opened <= stretches[-1][1]:
            since, until, those = stretches[-1]
            stretches[-1] = (since, max(until, closed), [*those, gate])
        else:
            stretches.append((opened, closed, [gate]))
    parts = [_stretch(since, until, those, began, span, tall) for since, until, those in stretches]
    moments = [(gate.opened, " opened") for gate in gates if gate.opened is not None]
    moments += [(gate.closed, "") for gate in gates if gate.closed is not None]
    many, last = " many" if len(moments) > MANY_MARKS else "", -APART
    for moment, kind in sorted(moments):
        x = (moment - began) / span * WIDE
        if x - last >= (APART if many else 0.0):
            parts.append(f'<line class="mark{kind}{many}" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{tall:g}"/>')
            last = x
    return "".join(parts)


def _stretch(since: float, until: float, gates: Sequence[Gate], began: float, span: float, tall: float) -> str:
    left, wide = (since - began) / span * WIDE, max(0.0, (until - since) / span * WIDE)
    what = f"{gates[0].name}: open for {duration(gates[0].took_s)}"
    if len(gates) > 1:
        what = f"{len(gates)} questions from {gates[0].name} on: one or more open for {duration(until - since)}"
    title = f"<title>{escape(what)}</title>"
    return f'<rect class="band" x="{left:.2f}" y="0" width="{wide:.2f}" height="{tall:g}">{title}</rect>'


def _flags(gates: Sequence[Gate], began: float, span: float) -> str:
    """Return the numbers over the timeline; those that would cover each other share one flag."""
    flags: list[tuple[float, list[int]]] = []
    close = CLOSE if len(gates) <= MANY_MARKS // 2 else 2 * CLOSE  # with their longer texts
    for gate in sorted(gates, key=lambda gate: gate.opened or 0.0):
        left = ((gate.opened or 0.0) - began) / span * 100
        if not 0.0 <= left <= 100.0:
            continue
        # The first one stands right of its place, not around it.
        if flags and left - flags[-1][0] < (1.5 * close if flags[-1][0] < CLOSE else close):
            flags[-1][1].append(gate.number)
        else:
            flags.append((left, [gate.number]))
    return "".join(_flag(left, numbers) for left, numbers in flags)


def _flag(left: float, numbers: Sequence[int]) -> str:
    side = ' class="early"' if left < CLOSE else ' class="late"' if left > 100 - CLOSE else ""
    text = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}+{len(numbers) - 1}"
    return f'<span{side} style="left:{left:.2f}%">{text}</span>'


def _name(line: CoreLine, lines: Sequence[CoreLine], high: int, index: int) -> str:
    every = max(1, -(-12 // high))
    if index % every:
        return ""
    several = len({each.pilot for each in lines}) > 1
    nodes = len({each.node for each in lines if each.pilot == line.pilot}) > 1
    name = f"core {line.core}"
    if nodes:
        name = f"node {line.node} {name}"
    return f"pilot {line.pilot} {name}" if several else name


def _axis(span: float) -> str:
    step = next((step for step in _STEPS if span / step <= 8), 86400.0 * max(1, int(span / 86400 / 8)))
    ticks = [step * index for index in range(int(span / step) + 1)]
    if len(ticks) > 1 and span - ticks[-1] < step * 0.45:
        ticks.pop()
    ticks.append(span)
    parts = []
    for index, tick in enumerate(ticks):
        minor = ' class="minor"' if index % 3 and index != len(ticks) - 1 else ""
        text = (duration(tick) if index == len(ticks) - 1 else _tick(tick)) if index else "0"
        parts.append(f'<span{minor} style="left:{tick / span * 100:.2f}%">{text}</span>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:g} s" if value < 60 else duration(value)
