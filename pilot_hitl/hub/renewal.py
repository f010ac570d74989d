"""When a pilot's successor is submitted. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot_hitl.hub.live import PilotRecord

SHARE = 0.1
"""Of the wall time."""
LEAST = 120.0
"""Seconds, where the wall time is long enough for that."""
MARGIN = 1.25
"""The queue may be that much longer than last time."""
MOST = 0.9
"""Share of the wall time: no successor is submitted earlier, however long the queue is."""


def due(started: float, ends: float, waited: float) -> float:
    """Return when the successor of a pilot is to be submitted.

    So early that it starts before the end if it waits as long as this one did: at least a tenth of the wall time, or
    two minutes (a quarter, where the whole is short).

    Args:
        started: when the job began, in seconds since 1970.
        ends: when its wall time ends.
        waited: seconds that it waited in the queue.
    """
    runtime = max(0.0, ends - started)
    lead = max(SHARE * runtime, min(LEAST, runtime / 4), MARGIN * waited)
    return ends - min(lead, MOST * runtime)


EARLY_ENDS = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "BOOT_FAIL")
"""Ends that are not the pilot's fault; after these it is renewed even if its time had not come."""


def at_end(pilot: PilotRecord, state: str) -> bool:
    """Return whether a pilot that ended so is renewed now, because nothing renewed it before."""
    return pilot.description.renew and not pilot.successor and not pilot.stopping and state in EARLY_ENDS
