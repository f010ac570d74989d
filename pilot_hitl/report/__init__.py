"""Floor 4: what happened in a session, from its own records: the ledger of its cores, its gates, its people.

::

    from pilot_hitl.report import summarise

    report = summarise(session.folder)       # while it runs or after; no hub is asked
    report.ledger["idle"], report.ledger_error_core_s, report.utilisation
    Path("report.html").write_text(page(report))
"""

from __future__ import annotations

from pilot_hitl.report.making import summarise
from pilot_hitl.report.page import page
from pilot_hitl.report.summary import BUSY, ROWS, USEFUL, Gate, Person, PilotLedger, Report

__all__ = ["BUSY", "ROWS", "USEFUL", "Gate", "Person", "PilotLedger", "Report", "page", "summarise"]
