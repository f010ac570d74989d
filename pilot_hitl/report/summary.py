"""The report's figures, as typed structs."""

from __future__ import annotations

import msgspec

ROWS = (
    "services",
    "needed",
    "speculative_committed",
    "speculative_discarded",
    "speculative_undecided",
    "backfill",
    "lost",
    "reserved_idle",
    "idle",
    "overhead",
)
"""The rows of the ledger. Their sum is cores times (end minus start) of the pilots."""
BUSY = frozenset(ROWS[:7])
"""Rows in which a process of a task ran on the core."""
USEFUL = frozenset({"services", "needed", "speculative_committed", "backfill"})
"""Rows whose work somebody wanted."""


class PilotLedger(msgspec.Struct, kw_only=True):
    """Where the core-seconds of one pilot went.

    Attributes:
        pilot: its number; ``state`` and ``message`` as the hub knows them.
        cores: of the last life of its agent.
        began, ended: seconds since 1970: when its first process began and its last ended.
        lives: how many agents it had; ``agents_lost`` of them ended without a last word, and ``agents_lost_core_s`` of
            the row *lost* is what ran in vain because of that: their successors began it anew.
        ledger: row → core-seconds.
        total: cores times (ended minus began), of all lives.
        error_core_s: how far the sum of the rows is from ``total``, and what could not be known.
        uncertain_core_s: core-seconds of agents that were killed whose row is a guess.
        faults, fault_s: contradicting timestamps.
    """

    pilot: int
    state: str
    message: str
    cores: int
    began: float
    ended: float
    lives: int
    agents_lost: int
    agents_lost_core_s: float
    ledger: dict[str, float]
    total: float
    error_core_s: float
    uncertain_core_s: float
    faults: int
    fault_s: float


class Gate(msgspec.Struct, kw_only=True):
    """What one question took, and what it cost.

    Attributes:
        generation: of a question that was asked again: each version of it has its own entry.
        changed: why it was asked again; empty for the first version.
        opened, closed: seconds since 1970; None while it is not.
        took_s: from one to the other, or up to now.
        by, channel: who answered and how; empty when nobody did.
        reserved_idle_core_s, idle_core_s: what stood idle while it was open.
        speculative_committed_core_s, …: what ran under an answer to it, before or after the answer came.
        waited_core_s: of what was committed, the part that ran before the answer: with blocking it would have waited.
        saved_s: estimate of the makespan that speculation saved: the smaller of ``took_s`` and ``waited_core_s`` spread
            over all cores.
    """

    number: int
    name: str
    iteration: int | None
    question: str
    generation: int
    changed: str
    state: str
    answer: str
    opened: float | None
    closed: float | None
    took_s: float
    by: str
    channel: str
    comment: str
    reserved_idle_core_s: float
    idle_core_s: float
    speculative_committed_core_s: float
    speculative_discarded_core_s: float
    speculative_undecided_core_s: float
    waited_core_s: float
    saved_s: float


class Person(msgspec.Struct, kw_only=True):
    """How long one person took: number of answers; median, total and longest time in seconds."""

    name: str
    answers: int
    median_s: float
    total_s: float
    longest_s: float


class Bar(msgspec.Struct, frozen=True, array_like=True):
    """A piece of the timeline of one core: ``(began, ended, row, busy share)``; ``task`` 0 for several or none."""

    began: float
    ended: float
    row: str
    share: float
    task: int


class CoreLine(msgspec.Struct, kw_only=True):
    """The timeline of one core, and from when to when it was there: the time before and after is nobody's."""

    pilot: int
    node: int
    core: int
    bars: list[Bar]
    alive: list[tuple[float, float]]


class Report(msgspec.Struct, kw_only=True):
    """What happened in a session, from its own records.

    Attributes:
        session, file: which.
        made_at: when this was worked out, seconds since 1970.
        live: pilots run still: what goes on is counted up to now and may change its row.
        began, ended: of all pilots together; ``span_s`` between them.
        cores: most cores of all pilots together.
        ledger: row → core-seconds, and ``total``: cores times (end minus start), which their sum must be.
        ledger_error_core_s: how far it is not; ``ledger_error`` the same as a share of the total.
        agents_lost, agents_lost_core_s: as of each pilot, of all.
        memory: core-seconds that attempts held memory only (``suspended``, ``lent``); outside the sum.
        utilisation, useful_utilisation: share of the total that was busy, and busy with what somebody wanted.
        tasks, states: how many, and how many in each recorded state.
        timeline: by core; short pieces are joined.
    """

    session: str
    file: str
    made_at: float
    live: bool
    began: float
    ended: float
    span_s: float
    cores: int
    ledger: dict[str, float]
    ledger_error_core_s: float
    ledger_error: float
    uncertain_core_s: float
    faults: int
    fault_s: float
    agents_lost: int
    agents_lost_core_s: float
    memory: dict[str, float]
    utilisation: float
    useful_utilisation: float
    pilots: list[PilotLedger]
    gates: list[Gate]
    people: list[Person]
    tasks: int
    states: dict[str, int]
    timeline: list[CoreLine]
