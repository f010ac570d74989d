"""The report as one page: HTML with its style and plots inside, nothing loaded from anywhere, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median

from pilot_hitl.report import plots
from pilot_hitl.report.summary import ROWS, Gate, Report
from pilot_hitl.report.words import MEANING, duration, row_name, seconds, share

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
LONGEST = 240
"""Characters of a question, an answer or a comment that are shown."""
_MARKS = dict.fromkeys(
    [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "�"
)
"""What other people wrote is shown here: control characters, and marks that turn the direction of text, are not."""


def page(report: Report) -> str:
    """Return the page of a report."""
    parts = [_head(report), _figures(report), _ledger(report), _timeline(report), _questions(report), _people(report)]
    parts += [_pilots(report), _foot(report)]
    title = f"{_text(report.session)} · pilot-hitl report"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    when = f"{_when(report.began)} to {_when(report.ended)}" if report.pilots else "no pilot kept accounts"
    state = "still running; figures up to now" if report.live else "ended"
    title = f'<p class="eyebrow">pilot-hitl report</p>\n<h1>{_text(report.session)}</h1>'
    return f"<header>\n{title}\n<p>{when} · {state}</p>\n</header>"


def _figures(report: Report) -> str:
    took = [gate.took_s for gate in report.gates if gate.state == "ANSWERED"]
    shown = [
        ("Utilisation", f"{report.utilisation:.1%}", "of the core-seconds were busy"),
        ("Useful", f"{report.useful_utilisation:.1%}", "busy with what counts"),
        ("Time", duration(report.span_s), _on_cores(report)),
        ("Tasks", f"{report.tasks:,}", _states(report)),
    ]
    if report.agents_lost:
        core_s = f"{report.agents_lost_core_s:.2f} core-seconds"
        shown.append(("Lost agents", str(report.agents_lost), f"{core_s} ran in vain because of that"))
    if report.gates:
        said = f"{len(took)} answered" + (f", median {duration(median(took))}" if took else "")
        shown.append(("Questions", str(len(report.gates)), said))
        saved = sum(gate.saved_s for gate in report.gates)
        shown.append(("Saved", f"≈ {duration(saved)}", "against waiting for each answer"))
    items = "".join(
        f"<div><dt>{name}</dt><dd>{_text(value)}<small>{_text(more)}</small></dd></div>" for name, value, more in shown
    )
    return f'<dl class="figures">{items}</dl>'


def _on_cores(report: Report) -> str:
    """Return how many cores there were, and what that makes, where it is not the product of the two."""
    most, total = _count(report.cores, "core"), report.ledger["total"]
    if abs(total - report.cores * report.span_s) < 0.005 * max(total, 1.0):
        return f"on {most}"
    return f"on up to {most}, each while its pilot was there: {seconds(total)} core-seconds"


def _ledger(report: Report) -> str:
    if not report.pilots:
        return _section("Where the core-seconds went", "<p>No pilot of this session kept accounts.</p>")
    total = report.ledger["total"]
    rows = "".join(
        f'<tr><th scope="row"><span class="key" style="background:var(--{row})"></span>{row_name(row)}'
        f'<span class="meaning">{MEANING[row]}</span></th>'
        f'<td class="number">{seconds(report.ledger[row])}</td>'
        f'<td class="number">{share(report.ledger[row], total)}</td></tr>'
        for row in ROWS
    )
    memory = "".join(
        f'<tr><th scope="row">{kind}<span class="meaning">held memory, but no cores: outside the sum</span></th>'
        f'<td class="number">{seconds(value)}</td><td class="number"></td></tr>'
        for kind, value in report.memory.items()
        if value
    )
    faults = f", {_count(report.faults, 'fault')}" if report.faults else ""
    table = (
        "<table><caption>Core-seconds by what they went to</caption>"
        '<thead><tr><th scope="col">row</th><th scope="col" class="number">core-s</th>'
        '<th scope="col" class="number">share</th></tr></thead>'
        f'<tbody>{rows}{memory}</tbody><tfoot><tr><th scope="row">cores &times; time</th>'
        f'<td class="number">{seconds(total)}</td><td class="number">100%</td></tr></tfoot></table>'
        f'<p class="note">The rows are measured one by one; their sum differs from cores &times; time by '
        f"{report.ledger_error_core_s:.4f} core-seconds ({report.ledger_error:.4%}){faults}.</p>"
    )
    return _section("Where the core-seconds went", plots.stacked_bar(report) + table)


def _timeline(report: Report) -> str:
    if not report.timeline:
        return ""
    shown = {bar.row for line in report.timeline for bar in line.bars} | {"idle"}
    legend = "".join(
        f'<li><span class="key" style="background:var(--{row})"></span>{row_name(row)}</li>'
        for row in ROWS
        if row in shown
    )
    note = "Lower where a core was busy only part of the time, blank where its pilot was not there."
    if any(gate.opened for gate in report.gates):
        note += " Numbers mark when a question was opened (dashed line) and answered (solid line)."
    notes = f'<p class="note">{note}</p>'
    return _section("What each core did", notes + plots.timeline(report) + f'<ul class="legend">{legend}</ul>')


def _questions(report: Report) -> str:
    if not report.gates:
        return ""
    longest = max(gate.took_s for gate in report.gates)
    heads = ("Question", "Answer", "Took", "Idle meanwhile", "Speculated", "Blocking would have cost")
    body = "".join(_question(gate, longest, heads) for gate in report.gates)
    note = (
        "Idle meanwhile: cores that stood idle while the question was open, reserved ones included. Blocking would "
        "have cost: work that ran before the answer and counted, and the time that it would have added, spread over "
        "all cores and at most the time that the answer took; an estimate."
    )
    return _section(
        "Questions to people", _table("In order of asking", heads, body, "questions") + f'<p class="note">{note}</p>'
    )


def _question(gate: Gate, longest: float, heads: Sequence[str]) -> str:
    number = f"{gate.number}@{gate.generation}" if gate.generation > 1 else f"{gate.number}"
    name = f"{number} · {_text(gate.name)}" + (f" #{gate.iteration}" if gate.iteration else "")
    asked = f'<p class="quote">{_text(_short(gate.question))}</p>' if gate.question else ""
    asked += f'<p class="note">asked again: {_text(gate.changed)}</p>' if gate.changed else ""
    by = f"by {_text(gate.by)}, {_text(gate.channel)}" if gate.by else ""
    comment = f'<p class="quote">“{_text(_short(gate.comment))}”</p>' if gate.comment else ""
    answer = f"{_text(_short(gate.answer))} " if gate.answer else ""
    idle = gate.idle_core_s + gate.reserved_idle_core_s
    state = gate.state.lower().replace("_", " ")
    cells = (
        f'{answer}<span class="pill">{state}</span><span class="meaning">{by}</span>{comment}',
        f"{duration(gate.took_s)}{plots.meter(gate.took_s, longest)}" if gate.opened else "not opened",
        f'{seconds(idle)} core-s<span class="meaning">{seconds(gate.reserved_idle_core_s)} of them reserved</span>',
        _speculated(gate),
        f'{seconds(gate.waited_core_s)} core-s<span class="meaning">≈ {duration(gate.saved_s)} longer</span>',
    )
    tds = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads[1:], cells, strict=True))
    return f'<tr><th scope="row">{name}{asked}</th>{tds}</tr>'


def _speculated(gate: Gate) -> str:
    parts = [
        (gate.speculative_committed_core_s, "committed"),
        (gate.speculative_discarded_core_s, "discarded"),
        (gate.speculative_undecided_core_s, "undecided"),
    ]
    said = [f"{seconds(value)} core-s {what}" for value, what in parts if value > 0.0]
    return "<br>".join(said) or "nothing"


def _people(report: Report) -> str:
    if not report.people:
        return ""
    heads = ("Person", "Answers", "Median", "Longest", "Total")
    body = "".join(
        f'<tr><th scope="row">{_text(it.name)}</th><td data-label="Answers">{it.answers}</td>'
        f'<td data-label="Median">{duration(it.median_s)}</td><td data-label="Longest">{duration(it.longest_s)}</td>'
        f'<td data-label="Total">{duration(it.total_s)}</td></tr>'
        for it in report.people
    )
    return _section("Who answered", _table("From the opening of a question to its answer", heads, body))


def _pilots(report: Report) -> str:
    heads = ("Pilot", "State", "Cores", "Time", "Lives of its agent", "Error")
    body = "".join(
        f'<tr><th scope="row">{it.pilot}</th><td data-label="State">{it.state.lower()} '
        f'<span class="meaning">{_text(it.message)}</span></td><td data-label="Cores">{it.cores}</td>'
        f'<td data-label="Time">{duration(it.ended - it.began)}</td><td data-label="Lives">{it.lives}</td>'
        f'<td data-label="Error">{it.error_core_s:.4f} core-s</td></tr>'
        for it in report.pilots
    )
    return _section("Pilots", _table("Who kept the accounts", heads, body)) if report.pilots else ""


def _foot(report: Report) -> str:
    return (
        f"<footer><p>Made {_when(report.made_at)} by pilot-hitl from {_text(report.file)}. Each core's time comes from "
        "its own timestamps: what ran, from the process that ran it; what did not, from the agent.</p></footer>"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _table(caption: str, heads: Iterable[str], body: str, kind: str = "") -> str:
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    head = f"<caption>{caption}</caption><thead><tr>{columns}</tr></thead>"
    return f'<table class="cards {kind}">{head}<tbody>{body}</tbody></table>'


def _states(report: Report) -> str:
    return ", ".join(f"{count:,} {state.lower()}" for state, count in sorted(report.states.items())) or "none ended"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _short(text: str) -> str:
    """Return a text that does not fill a page by itself."""
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + "…"


def _text(text: str) -> str:
    """Return what somebody wrote, harmless in a page."""
    return escape(text.translate(_MARKS).encode("utf-8", "replace").decode())


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
