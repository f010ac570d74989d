"""How the ledger of an agent gets into the session's file. What it means is worked out by ``pilot_hitl.report``."""

from __future__ import annotations

import msgspec

from pilot_hitl.hub.store import Store
from pilot_hitl.wire.messages import Spans

_encode = msgspec.msgpack.Encoder().encode


def keep(store: Store, pilot: int, spans: Spans) -> None:
    """Add spans to the next commit; what was kept before is not kept twice."""
    facts = (spans.job, spans.began, spans.at, int(spans.final), spans.cores, spans.faults, spans.fault_s)
    store.put("life", pilot, spans.binding, *facts, _encode(spans.open))
    for number, span in enumerate(spans.spans):
        cores = ",".join(map(str, span.cores))
        times = (span.began, span.ended, span.busy, span.overhead, span.idle, span.reserved)
        booked = (span.account, span.condition, span.attempts, span.task, span.epoch, span.run, int(span.failed))
        store.put("span", pilot, spans.binding, spans.sequence, number, span.node, cores, *times, *booked)


def last_word(store: Store, pilot: int) -> float:
    """Return when a pilot that ended unseen was last known to run: to its own agent, or to the hub before this one."""
    told = next(iter(store.rows("SELECT max(at) FROM life WHERE pilot=?", (pilot,))))[0]
    return max(float(told or 0.0), float(store.meta("left") or 0.0))
