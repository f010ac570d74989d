"""What goes into the node core beside the agent's messages, and what comes out of it."""

from __future__ import annotations

import enum

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.node import Change, Launch

EXECUTABLE = -1


class TemplateFacts(msgspec.Struct, frozen=True, gc=False):
    """What the core must know of a template.

    Attributes:
        template: its id.
        group: calls with an equal value can be run by the same worker; :data:`EXECUTABLE` for executables.
        timeout, grace: seconds.
        ahead: whether others may be sent behind it while it runs, and it behind them (it is not to be suspended, and
            does not act outside).
    """

    template: int
    group: int = EXECUTABLE
    timeout: float = 0.0
    grace: float = 5.0
    ahead: bool = True


class Ended(msgspec.Struct, frozen=True, gc=False):
    """An attempt ended.

    Attributes:
        natural: it came to its own end; False when the process was killed or died.
        unpublished: as in ``Report``.
    """

    task: int
    payload: bytes = b""
    failure: Failure | None = None
    began: float = 0.0
    ended: float = 0.0
    natural: bool = True
    unpublished: str = ""


class Results(msgspec.Struct, frozen=True, gc=False):
    """Attempts of one lane ended, in order."""

    lane: int
    ended: list[Ended]


class HandedBack(msgspec.Struct, frozen=True, gc=False):
    """What was sent ahead will not be run by the lane's worker or spawner. ``stuck``: it is busy with a long one."""

    lane: int
    tasks: list[int]
    stuck: bool = False


class Died(msgspec.Struct, frozen=True, gc=False):
    """A lane's worker died.

    Attributes:
        culprit: the call that ran; 0 when none did.
        failure: what that call gets, unless the core ended it itself.
        payload: what that call wrote.
    """

    lane: int
    culprit: int
    failure: Failure
    began: float = 0.0
    ended: float = 0.0
    payload: bytes = b""


class Exceeded(msgspec.Struct, frozen=True, gc=False):
    """The attempt that runs took more than it asked for: it is killed, and ``failure`` is why."""

    task: int
    failure: Failure


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time passed."""


class Send(enum.IntEnum):
    """What to send to an attempt's whole tree; the values are the signals' numbers."""

    KILL = 9
    TERM = 15
    CONT = 18
    STOP = 19


class Start(msgspec.Struct, frozen=True, gc=False):
    """Start an attempt on a lane that runs nothing."""

    lane: int
    launch: Launch
    slots: tuple[Slot, ...]


class Push(msgspec.Struct, frozen=True, gc=False):
    """Send calls to the lane's worker, or executables to its spawner, behind what it has."""

    lane: int
    launches: list[Launch]


class Recall(msgspec.Struct, frozen=True, gc=False):
    """Take back what the lane's worker has not read or its spawner not begun, and say so with :class:`HandedBack`.

    Nothing is said when there is nothing.
    """

    lane: int


class Signal(msgspec.Struct, frozen=True, gc=False):
    """Signal the tree of the attempt that runs on a lane."""

    lane: int
    task: int
    send: Send


class Conclude(msgspec.Struct, frozen=True, gc=False):
    """The leading part of the gang that runs on a lane ended: what its launcher started here is over."""

    lane: int
    task: int


class Release(msgspec.Struct, frozen=True, gc=False):
    """A lane is over; its worker, if it has one, is idle."""

    lane: int


class Late(msgspec.Struct, frozen=True, gc=False):
    """An attempt is still there although it was killed :data:`~.core.BOUND` seconds ago: find out why, and say so."""

    lane: int
    task: int
    reason: Failure


class Settle(msgspec.Struct, frozen=True, gc=False):
    """A condition was decided: adopt the idle workers tagged with it, or end them."""

    condition: int
    truth: bool


class Tell(msgspec.Struct, frozen=True, gc=False):
    """Report a change to the agent."""

    change: Change


Instruction = Start | Push | Recall | Signal | Conclude | Release | Late | Settle | Tell


def must(holds: object, what: str) -> None:
    """Check an invariant.

    Raises:
        AssertionError: it does not hold.
    """
    if not holds:
        raise AssertionError(what)
