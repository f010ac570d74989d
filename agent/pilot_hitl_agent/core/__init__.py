"""The scheduling core: pure, drawn from here by the agent, the simulator and the tests."""

from __future__ import annotations

from pilot_hitl_agent.core.core import SchedulingCore
from pilot_hitl_agent.core.events import (
    FINISHED,
    RESUMED,
    RETRACTED,
    STARTED,
    SUSPENDED,
    Bulk,
    Cancel,
    Changed,
    Condition,
    Drain,
    Event,
    Lend,
    NodeChange,
    NodeChanges,
    NodeDown,
    NodeUp,
    Reserve,
    Submit,
    Tick,
    Unreserve,
    WalltimeEnds,
)
from pilot_hitl_agent.core.explanation import Explanation, Holds
from pilot_hitl_agent.core.instructions import (
    Ahead,
    End,
    EndMode,
    Instruction,
    Note,
    Over,
    Placed,
    Restored,
    Retract,
    Return,
    Start,
    Unchain,
)
from pilot_hitl_agent.core.invariants import InvariantBroken

__all__ = [
    "FINISHED", "RESUMED", "RETRACTED", "STARTED", "SUSPENDED", "Ahead", "Bulk", "Cancel", "Changed", "Condition",
    "Drain", "End", "EndMode", "Event", "Explanation", "Holds", "Instruction", "InvariantBroken", "Lend", "NodeChange",
    "NodeChanges", "NodeDown", "NodeUp", "Note", "Over", "Placed", "Reserve", "Restored", "Retract", "Return",
    "SchedulingCore", "Start", "Submit", "Tick", "Unchain", "Unreserve", "WalltimeEnds",
]  # fmt: skip
