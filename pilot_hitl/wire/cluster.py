"""Messages between the agent of a pilot of many nodes and the members on its other nodes.

The promises stand in ``docs/specs/members.md``. What concerns attempts is in :mod:`pilot_hitl.wire.node`; it travels
in the same frames.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire.codec import Codec
from pilot_hitl.wire.messages import Message
from pilot_hitl.wire.node import FromNode, ToNode

# --- member -> agent --------------------------------------------------------------------------------------------------


class MemberHello(Message, tag=100, frozen=True):
    """A node is ready for work, with nothing running on it.

    Attributes:
        node: index of the node in the job.
        inventory: what it offers.
        address: by which other nodes reach it.
        machine: tells machines apart; nodes with an equal one share their CPUs, so nothing is bound there.
        pid, started: of the member.
        life: how often this member began anew; the agent drops what an earlier life said.
        number: of this hello.
    """

    node: int
    inventory: NodeInventory
    address: str
    machine: str
    pid: int
    started: int
    life: int
    number: int


class Ping(Message, tag=101, frozen=True):
    """Ask for the lease to be extended; ``number`` counts up."""

    number: int


class MemberReply(Message, tag=102, frozen=True):
    """Answer to :class:`MemberQuery`, a JSON object."""

    token: int
    payload: str


class MemberBye(Message, tag=103, frozen=True):
    """The node ends: everything on it has ended, and what was to be said of it stands before this."""

    reason: str = ""


# --- agent -> member --------------------------------------------------------------------------------------------------


class MemberWelcome(Message, tag=110, frozen=True):
    """The node is in. Its lease began when the hello with this number was sent.

    Attributes:
        term: of the agent.
        number: of the hello.
        pinned: whether tasks are bound to cores.
    """

    term: int
    number: int
    pinned: bool


class Pong(Message, tag=111, frozen=True):
    """The lease lasts its length from the moment at which the ping with this number was sent."""

    number: int


class MemberQuery(Message, tag=112, frozen=True):
    """Ask for something to look at: ``processes``."""

    token: int
    what: str


class MemberLeave(Message, tag=113, frozen=True):
    """The pilot ends, or the node is not wanted: end everything within ``grace`` seconds, and go."""

    reason: str
    grace: float = 5.0


class MemberAnew(Message, tag=114, frozen=True):
    """The agent knows nothing of this node any more: drop what runs there and say hello again."""

    reason: str


FromMember = MemberHello | Ping | MemberReply | MemberBye | FromNode
ToMember = MemberWelcome | Pong | MemberQuery | MemberLeave | MemberAnew | ToNode

TO_MEMBER: Codec[ToMember] = Codec(ToMember)
FROM_MEMBER: Codec[FromMember] = Codec(FromMember)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who is agent: the JSON in ``agents/<term>`` of a pilot's folder.

    Attributes:
        term: number of the agent's office; the highest there is counts.
        node, host, pid: whose it is.
        endpoint: where members reach it.
        job: of the batch system, with the number of its restarts: claims of another one are void.
    """

    term: int
    node: int
    host: str
    pid: int
    endpoint: str
    job: str
