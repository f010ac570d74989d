"""How figures of a report are written, for the terminal and the page alike."""

from __future__ import annotations

_NAMES = {
    "services": "services",
    "needed": "needed",
    "speculative_committed": "speculative, committed",
    "speculative_discarded": "speculative, discarded",
    "speculative_undecided": "speculative, undecided",
    "backfill": "backfill",
    "lost": "lost",
    "reserved_idle": "reserved, idle",
    "idle": "idle",
    "overhead": "overhead",
}
MEANING = {
    "services": "replicas of services ran",
    "needed": "tasks that count in any case ran",
    "speculative_committed": "began before the answer, and the answer made it count",
    "speculative_discarded": "began before the answer, and the answer was another",
    "speculative_undecided": "began before an answer that is still to come",
    "backfill": "low-priority tasks that count ran",
    "lost": "preempted, canceled, or tried again: nothing used it",
    "reserved_idle": "free, but kept for what follows an answer",
    "idle": "free, and nothing to do",
    "overhead": "starting and ending: pilots, processes, and the ways between them",
}


def row_name(row: str) -> str:
    """Return a row of the ledger as people read it."""
    return _NAMES.get(row, row)


def seconds(value: float) -> str:
    """Return seconds (or core-seconds) with as many digits as matter."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def share(part: float, whole: float) -> str:
    """Return a share in percent; empty when there is no whole."""
    return f"{part / whole:.1%}" if whole else ""


def duration(value: float) -> str:
    """Return how long something took."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs" if value else "0 s"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 120:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
