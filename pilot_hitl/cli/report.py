"""``pilot-hitl report``: where every core-second of a session went, and what its questions cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from pilot_hitl.cli._home import JsonOption, home, session_places
from pilot_hitl.cli._show import Row, note, put, put_json, put_rows
from pilot_hitl.errors import SessionError
from pilot_hitl.model.canonical import Json
from pilot_hitl.report import ROWS, Report, page, summarise
from pilot_hitl.report.words import duration, row_name, seconds, share

app = typer.Typer(add_completion=False)
_GATES = ("gate", "state", "answer", "by", "channel", "took", "idle while open", "committed", "discarded", "saved")


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.")],
    *,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page with plots.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say where every core-second went, how long each answer took, and what it cost.

    It is read from the session's file: no hub is needed, and a session that runs is not disturbed.
    """
    where = session_places(name)
    if not where.database.exists():
        raise SessionError(f"session {name!r} has no records in {home()}: run its script first")
    found = summarise(where.folder)
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
        note(f"{html} is written; it needs no server: open it in a browser")
    if as_json:
        facts: Json = msgspec.to_builtins(found)
        put_json(facts)
    elif html is None:
        _show(found)


def _show(found: Report) -> None:
    put(f"session {found.session}: {found.tasks} tasks, {found.cores} cores, {found.span_s:.2f} s" + _still(found))
    if not found.pilots:
        note("No pilot of it kept accounts: it had none, or an older release ran it.")
    else:
        put()
        put_rows(ledger_rows(found), ("row", "core_s", "share"), "")
        put()
        put(f"utilisation {found.utilisation:.1%}, useful {found.useful_utilisation:.1%}")
        if found.agents_lost:
            put(in_vain(found.agents_lost, found.agents_lost_core_s))
        put(f"error {found.ledger_error_core_s:.4f} core-seconds ({found.ledger_error:.4%}), {found.faults} faults")
    if found.gates:
        put()
        put_rows(gate_rows(found), _GATES, "")
    if found.people:
        put()
        rows: list[Row] = [
            {"person": it.name, "answers": it.answers, "median": duration(it.median_s), "total": duration(it.total_s)}
            for it in found.people
        ]
        put_rows(rows, ("person", "answers", "median", "total"), "")


def in_vain(agents: int, core_s: float) -> str:
    """Return in words what agents cost that ended without a last word."""
    which = "an agent was" if agents == 1 else f"{agents} agents were"
    return f"{which} lost: {core_s:.2f} core-seconds of the row lost ran in vain because of that"


def ledger_rows(found: Report) -> list[Row]:
    """Return the ledger as rows of a table."""
    total = found.ledger["total"]
    rows: list[Row] = [
        {
            "row": row_name(row),
            "core_s": seconds(found.ledger[row]),
            "share": share(found.ledger[row], total),
        }
        for row in (*ROWS, "total")
    ]
    rows += [
        {"row": f"({kind}, memory only)", "core_s": f"{seconds:.2f}", "share": ""}
        for kind, seconds in found.memory.items()
        if seconds
    ]
    return rows


def gate_rows(found: Report) -> list[Row]:
    """Return the questions as rows of a table."""
    return [
        {
            "gate": f"{gate.number}{f'@{gate.generation}' if gate.generation > 1 else ''} {gate.name}"
            + (f" #{gate.iteration}" if gate.iteration else ""),
            "state": gate.state,
            "answer": gate.answer[:40],
            "asked again": gate.changed,
            "by": gate.by,
            "channel": gate.channel,
            "took": duration(gate.took_s),
            "idle while open": f"{gate.idle_core_s + gate.reserved_idle_core_s:.2f} core-s",
            "committed": f"{gate.speculative_committed_core_s:.2f} core-s",
            "discarded": f"{gate.speculative_discarded_core_s:.2f} core-s",
            "saved": f"about {duration(gate.saved_s)}",
        }
        for gate in found.gates
    ]


def _still(found: Report) -> str:
    return " so far" if found.live else ""
