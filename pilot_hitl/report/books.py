"""From the spans of a session to rows of the ledger, and the account of each pilot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from pilot_hitl.model.ledger import Account
from pilot_hitl.model.states import Truth
from pilot_hitl.report.records import LifeRecord, PilotRecord, Records, SpanRecord
from pilot_hitl.report.summary import BUSY, ROWS, PilotLedger

INTERVAL = 2.0
"""Seconds for which an agent of up to 64 cores keeps news to itself; what it did last is unknown when it is killed."""
MANY = 64
LONGEST = 30.0
TEARDOWN = 60.0
"""A pilot that ended at most so long after its agent's last word ended because of it."""
SAME = 0.05
"""Seconds by which two readings of the start of one process may differ."""
_TIERS = {Account.SERVICE: "services", Account.NEEDED: "needed", Account.BACKFILL: "backfill", Account.LOST: "lost"}
_BY_TRUTH = {
    Truth.TRUE: "speculative_committed",
    Truth.FALSE: "speculative_discarded",
    Truth.UNDECIDED: "speculative_undecided",
}
_WHAT = {"idle": "idle", "reserved": "reserved_idle", "overhead": "overhead"}


class Piece(msgspec.Struct, frozen=True):
    """A stretch of some cores with all its seconds by row; ``row`` is that of its busy ones, else of the most."""

    pilot: int
    node: int
    cores: tuple[int, ...]
    began: float
    ended: float
    rows: dict[str, float]
    row: str
    condition: int
    task: int

    def within(self, since: float, until: float) -> float:
        """Return which share of it lies between two moments."""
        if self.ended <= self.began:
            return 1.0 if since <= self.began < until else 0.0
        return max(0.0, min(until, self.ended) - max(since, self.began)) / (self.ended - self.began)

    def core_seconds(self, row: str) -> float:
        """Return what it adds to a row."""
        return self.rows.get(row, 0.0) * len(self.cores)


class Life(msgspec.Struct, frozen=True):
    """The time of one agent: ``began`` and ``ended`` meet those of its neighbours in the same job.

    Attributes:
        head, tail: seconds before the agent began, and after it said that it ends.
        lost: it was killed, so what it did last is lost.
        unsure: seconds at the end of which nothing was told.
    """

    record: LifeRecord
    began: float
    ended: float
    head: float
    tail: float
    lost: bool
    unsure: float


class Books(msgspec.Struct):
    """The accounts of a session."""

    pieces: list[Piece]
    memory: dict[str, float]
    pilots: list[PilotLedger]


def row_of(span: SpanRecord, truths: dict[int, Truth]) -> str:
    """Return the row of a span's busy seconds."""
    if span.account is Account.SPECULATIVE:
        truth = truths.get(span.condition, Truth.UNDECIDED)
        if truth is Truth.TRUE and not _counts(span):
            return "lost"
        return _BY_TRUTH[truth]
    if span.account in (Account.NEEDED, Account.BACKFILL) and not _counts(span):
        return "lost"
    return _TIERS.get(span.account, "idle")


def _counts(span: SpanRecord) -> bool:
    """Return whether the attempt of a span is the one that decided its task; several at once succeeded all."""
    if span.failed:
        return span.decided is True
    return span.decided is not False


def keep_books(records: Records, now: float) -> Books:
    """Work out the accounts of all pilots. ``now`` ends what goes on."""
    lives = lives_of(records, now)
    pieces: list[Piece] = []
    memory = {"suspended": 0.0, "lent": 0.0}
    for span in records.spans:
        if span.account.in_sum:
            pieces.append(_piece(span, row_of(span, records.truths)))
        else:
            memory[span.account.name.lower()] += span.busy * len(span.cores)
    vain: defaultdict[int, float] = defaultdict(float)
    for number, found in lives.items():
        for life in found:
            pieces.extend(_outer(life))
            ongoing = _ongoing(life, records.truths)
            pieces.extend(ongoing)
            vain[number] += sum(piece.core_seconds("lost") for piece in ongoing if life.lost)
    by_pilot: defaultdict[int, dict[str, float]] = defaultdict(lambda: dict.fromkeys(ROWS, 0.0))
    for piece in pieces:
        sums = by_pilot[piece.pilot]
        for row, seconds in piece.rows.items():
            sums[row] += seconds * len(piece.cores)
    known = {pilot.number: pilot for pilot in records.pilots}
    pilots = [
        _account(known.get(number), found, by_pilot[number], vain[number]) for number, found in sorted(lives.items())
    ]
    pieces.sort(key=lambda piece: piece.began)
    return Books(pieces, memory, pilots)


def lives_of(records: Records, now: float) -> dict[int, list[Life]]:
    """Return the lives of the agents by pilot, each with its beginning and end."""
    by_pilot: defaultdict[int, list[LifeRecord]] = defaultdict(list)
    for record in records.lives:
        by_pilot[record.pilot].append(record)
    known = {pilot.number: pilot for pilot in records.pilots}
    found: dict[int, list[Life]] = {}
    for number, mine in by_pilot.items():
        mine.sort(key=lambda record: record.began)
        after: list[LifeRecord | None] = [*mine[1:], None]
        before: list[LifeRecord | None] = [None, *mine[:-1]]
        found[number] = [
            _life(record, earlier, later, known.get(number), now if records.live else 0.0)
            for earlier, record, later in zip(before, mine, after, strict=True)
        ]
    return found


def _life(
    record: LifeRecord, before: LifeRecord | None, after: LifeRecord | None, pilot: PilotRecord | None, now: float
) -> Life:
    first = before is None or abs(before.job - record.job) > SAME
    began = min(record.job, record.began) if first else record.began
    ended, alive = record.at, False
    seen = pilot.ended if pilot is not None and pilot.state.final and after is None else 0.0
    if record.final:
        if 0.0 <= seen - record.at <= TEARDOWN:
            ended = seen
        return Life(record, began, ended, record.began - began, ended - record.at, lost=False, unsure=0.0)
    if after is not None:
        ended = max(record.at, after.began if abs(after.job - record.job) <= SAME else after.job)
    elif seen:
        ended = max(record.at, seen)
    elif pilot is not None and not pilot.state.final and now:
        ended, alive = max(record.at, now), True
    silent = min(LONGEST, INTERVAL * max(1.0, record.cores / MANY))
    unsure = 0.0 if alive else min(silent, ended - record.at)
    return Life(record, began, ended, record.began - began, 0.0, lost=not alive, unsure=unsure)


def _piece(span: SpanRecord, row: str) -> Piece:
    rows = {"overhead": span.overhead, "idle": span.idle, "reserved_idle": span.reserved}
    if span.account is not Account.NOTHING:
        rows[row] = rows.get(row, 0.0) + span.busy
    else:
        row = max(rows, key=lambda name: rows[name])
    return Piece(span.pilot, span.node, span.cores, span.began, span.ended, rows, row, span.condition, span.task)


def _outer(life: Life) -> list[Piece]:
    """Return the overhead before an agent began and after its last word, on all cores it had."""
    record = life.record
    cores = tuple(range(record.cores))
    pieces = []
    for began, took in ((life.began, life.head), (record.at, life.tail)):
        if took > 0.0:
            pieces.append(Piece(record.pilot, -1, cores, began, began + took, {"overhead": took}, "overhead", 0, 0))
    return pieces


def _ongoing(life: Life, truths: dict[int, Truth]) -> list[Piece]:
    """Return what an agent was at when it last said so, up to the end of its life."""
    record = life.record
    pieces = []
    for span in record.open if not record.final else ():
        ended = span.until or life.ended
        if ended <= span.since:
            continue
        row = _WHAT.get(span.what, "")
        account = Account(span.account) if span.account < Account.NOTHING else Account.LOST
        if not row:
            row = "lost" if life.lost else _TIERS.get(account, "")
        row = row or _BY_TRUTH[truths.get(span.condition, Truth.UNDECIDED)]
        rows = {row: ended - span.since}
        cores = tuple(span.cores)
        pieces.append(Piece(record.pilot, span.node, cores, span.since, ended, rows, row, span.condition, span.task))
    return pieces


def _account(pilot: PilotRecord | None, lives: Sequence[Life], sums: dict[str, float], vain: float) -> PilotLedger:
    total = sum(life.record.cores * (life.ended - life.began) for life in lives)
    uncertain = sum(life.record.cores * life.unsure for life in lives)
    return PilotLedger(
        pilot=lives[0].record.pilot,
        state=pilot.state.name if pilot else "?",
        message=pilot.message if pilot else "",
        cores=lives[-1].record.cores,
        began=lives[0].began,
        ended=lives[-1].ended,
        lives=len(lives),
        agents_lost=sum(life.lost for life in lives),
        agents_lost_core_s=vain,
        ledger=sums,
        total=total,
        error_core_s=abs(sum(sums.values()) - total) + uncertain,
        uncertain_core_s=uncertain,
        faults=sum(life.record.faults for life in lives),
        fault_s=sum(life.record.fault_s for life in lives),
    )


def most_cores(pilots: Iterable[PilotLedger]) -> int:
    """Return the most cores that all pilots had together at one moment."""
    changes = sorted(
        [(pilot.began, 1, pilot.cores) for pilot in pilots] + [(pilot.ended, 0, -pilot.cores) for pilot in pilots]
    )
    most = cores = 0
    for _at, _order, change in changes:
        cores += change
        most = max(most, cores)
    return most


def busy(sums: dict[str, float]) -> float:
    """Return the core-seconds in which a process of a task ran."""
    return sum(seconds for row, seconds in sums.items() if row in BUSY)


__all__ = ["Books", "Life", "Piece", "busy", "keep_books", "lives_of", "most_cores", "row_of"]
