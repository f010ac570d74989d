"""Messages between an agent and the daemon of one node.

On a one-node pilot both are in one process and these structs pass through a mailbox unencoded; on many nodes they
travel as frames like everything else. The promises stand in ``docs/specs/credit-and-retract.md``.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.messages import Message


class Share(msgspec.Struct, frozen=True, array_like=True):
    """The part of a gang that lies on one node.

    Attributes:
        node: index of the node in its pilot.
        name: of the host, as the batch system knows it.
        address: by which other nodes reach it; empty on a pilot of one node.
        slots: one a rank, in order of ranks.
        cpus: the CPU numbers of each slot; empty where nothing is bound.
    """

    node: int
    name: str
    address: str
    slots: tuple[Slot, ...]
    cpus: tuple[tuple[int, ...], ...] = ()


class Launch(msgspec.Struct, frozen=True, array_like=True):
    """One attempt for one node.

    Attributes:
        task, epoch, run: the attempt.
        template: known before through :class:`NodeTemplate`.
        chain: attempts with an equal value may follow each other on the same slots (shape and, while it is
            undecided, condition).
        rank: ``(tier, -priority)``; among what is held ahead, the smallest goes first, then order of arrival.
        condition: undecided condition that it runs under, 0 for none.
        slots: one per rank on this node; empty when it is *held ahead*: it starts on the slots that an attempt of the
            same chain frees.
        body: opaque to everything but the process that runs it.
        inputs: packed values of its dependencies.
        ranks: ranks of the whole task (over all nodes).
        layout: all parts of a task of several ranks, in order of ranks; empty for one rank. The first part *leads*: it
            starts the launcher, and its end carries the result.
    """

    task: int
    epoch: int
    run: int
    template: int
    chain: int
    rank: tuple[int, int]
    condition: int
    slots: tuple[Slot, ...]
    body: bytes
    inputs: list[tuple[int, bytes]] = []
    ranks: int = 1
    layout: tuple[Share, ...] = ()

    def leads(self, node: int) -> bool:
        """Return whether the part on this node leads."""
        return not self.layout or self.layout[0].node == node

    def first_rank(self, node: int) -> int:
        """Return the number of the first rank on this node."""
        before = 0
        for share in self.layout:
            if share.node == node:
                return before
            before += len(share.slots)
        return 0


class NodeTemplate(Message, tag=90, frozen=True):
    """As ``AgentTemplate``."""

    template: int
    blob: bytes


class Launches(Message, tag=91, frozen=True):
    """Start these, or hold them ahead, in this order."""

    launches: list[Launch]


class Retract(Message, tag=92, frozen=True):
    """Give these held-ahead attempts back. Each gets exactly one reply: RETRACTED, STARTED or FINISHED."""

    tasks: list[int]


class Unchain(Message, tag=93, frozen=True):
    """Let nothing follow these running attempts on their slots: a reservation or a gang wants them.

    No reply: an attempt that had already followed is reported as STARTED.
    """

    tasks: list[int]


EndMode = Literal["kill", "requeue", "suspend", "resume"]


class End(msgspec.Struct, frozen=True, array_like=True):
    """What to do to one running attempt. ``kill`` and ``requeue``: SIGTERM, ``grace`` seconds, SIGKILL of the tree."""

    task: int
    mode: EndMode
    grace: float
    reason: Failure


class Ends(Message, tag=94, frozen=True):
    """End, suspend or resume attempts. An attempt that is held ahead is given back as RETRACTED."""

    ends: list[End]


class NodeCondition(Message, tag=95, frozen=True):
    """A condition was decided: workers tagged with it are adopted (True) or ended (False)."""

    condition: int
    truth: bool


class NodeStop(Message, tag=96, frozen=True):
    """End everything on the node, within ``grace`` seconds, and report it."""

    grace: float = 5.0
    reason: str = ""


class ChangeKind(enum.IntEnum):
    """What happened to an attempt on a node."""

    STARTED = 1
    FINISHED = 2
    RETRACTED = 3
    SUSPENDED = 4
    RESUMED = 5


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Something happened to an attempt.

    Attributes:
        task, epoch, run: the attempt.
        kind: what.
        after: STARTED only: the attempt whose slots it took over, 0 when it got slots of its own.
        payload: FINISHED: packed value or ``ExecutableResult``.
        failure: FINISHED: why it did not succeed; None for success.
        began, ended: seconds since 1970, from the process that ran it.
        unpublished: FINISHED: as in ``Report``.
    """

    task: int
    epoch: int
    run: int
    kind: ChangeKind
    after: int = 0
    payload: bytes = b""
    failure: Failure | None = None
    began: float = 0.0
    ended: float = 0.0
    unpublished: str = ""


class Changes(Message, tag=97, frozen=True):
    """What happened on a node, in order. A STARTED that follows ``after`` comes behind that one's FINISHED."""

    node: int
    changes: list[Change]


class NodeLog(Message, tag=98, frozen=True):
    """Events worth keeping, each a JSON object (a dead worker, a missed preemption bound)."""

    node: int
    events: list[str]


class LeadEnded(Message, tag=99, frozen=True):
    """The leading part of these gangs has ended.

    A part whose ranks a launcher on the leading node started ends now, as FINISHED, without a failure of its own; all
    others ignore it.
    """

    tasks: list[int]


class NodePublished(Message, tag=89, frozen=True):
    """What a committed attempt left is in place, or could not be put there; fields as in ``Published``."""

    node: int
    task: int
    ok: bool
    message: str = ""
    outputs: tuple[str, ...] = ()
    sandbox: str = ""


class NodeRunApart(Message, tag=104, frozen=True):
    """Tasks that follow shall run below processes that run nothing else."""

    tasks: list[int]


ToNode = NodeTemplate | NodeRunApart | Launches | Retract | Unchain | Ends | NodeCondition | NodeStop | LeadEnded
FromNode = Changes | NodeLog | NodePublished
