"""The accounts of the ledger: what a core was busy with."""

from __future__ import annotations

import enum


class Account(enum.IntEnum):
    """What the busy seconds of a span are booked on; the first four are the tiers, by the same numbers."""

    SERVICE = 0
    NEEDED = 1
    SPECULATIVE = 2
    """It began while its condition was undecided; the condition says later what it was good for."""
    BACKFILL = 3
    LOST = 4
    """Nothing used it: it was given back, preempted or canceled, or its pilot ended."""
    NOTHING = 5
    """There are no busy seconds."""
    SUSPENDED = 6
    """Memory of a stopped attempt; its cores are booked elsewhere, so this is outside the sum."""
    LENT = 7
    """A running attempt that waits and lends its cores; outside the sum as well."""

    @property
    def in_sum(self) -> bool:
        """Whether its seconds are seconds of a core."""
        return self < Account.SUSPENDED
