"""Makes the report of a session."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pilot_hitl.report.books import busy, keep_books, most_cores
from pilot_hitl.report.questions import gates_of, people_of
from pilot_hitl.report.records import read
from pilot_hitl.report.summary import ROWS, USEFUL, Report
from pilot_hitl.report.timeline import timeline_of


def summarise(where: str | os.PathLike[str], now: float | None = None, *, brief: bool = False) -> Report:
    """Return the report of a session, given as its folder or its file.

    Nothing is written, and no hub is needed. Of a session that runs, everything up to two seconds ago is measured, and
    what goes on since then is counted on what it was then. A session that never had a pilot has an empty ledger.

    Args:
        where: ``Session.folder``, or the file ``session.sqlite`` in it.
        now: seconds since 1970 up to which what goes on is counted; default now.
        brief: the sums alone, much faster of a long session: no timeline, and of a question not what stood idle while
            it was open nor what it saved.

    Raises:
        SessionError: there is no session, or it cannot be read.
    """
    records = read(Path(where), sums=brief)
    moment = time.time() if now is None else now
    books = keep_books(records, moment)
    pilots = books.pilots
    sums = {row: sum(pilot.ledger[row] for pilot in pilots) for row in ROWS}
    total = sum(pilot.total for pilot in pilots)
    error = sum(pilot.error_core_s for pilot in pilots)
    began = min((pilot.began for pilot in pilots), default=0.0)
    ended = max((pilot.ended for pilot in pilots), default=0.0)
    cores = most_cores(pilots)
    gates = gates_of(records, [] if brief else books.pieces, cores, moment)
    return Report(
        session=records.name,
        file=records.file,
        made_at=moment,
        live=records.live and any(not pilot.state.final for pilot in records.pilots),
        began=began,
        ended=ended,
        span_s=ended - began,
        cores=cores,
        ledger={**sums, "total": total},
        ledger_error_core_s=error,
        ledger_error=error / total if total else 0.0,
        uncertain_core_s=sum(pilot.uncertain_core_s for pilot in pilots),
        faults=sum(pilot.faults for pilot in pilots),
        fault_s=sum(pilot.fault_s for pilot in pilots),
        agents_lost=sum(pilot.agents_lost for pilot in pilots),
        agents_lost_core_s=sum(pilot.agents_lost_core_s for pilot in pilots),
        memory=books.memory,
        utilisation=busy(sums) / total if total else 0.0,
        useful_utilisation=sum(sums[row] for row in USEFUL) / total if total else 0.0,
        pilots=pilots,
        gates=gates,
        people=people_of(gates),
        tasks=records.tasks,
        states=records.states,
        timeline=[] if brief else timeline_of(books.pieces, began, ended),
    )
