"""What a node knows of the attempts of executables that it runs."""

from __future__ import annotations

from collections import deque

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate
from pilot_hitl.wire.node import Launch
from pilot_hitl_agent.node.events import Ended
from pilot_hitl_agent.node.gangs import Part
from pilot_hitl_agent.node.link import Link, Stream
from pilot_hitl_agent.node.wrapping import Wrap


class Plan(msgspec.Struct, gc=False):
    """What is worked out once per template.

    Attributes:
        program: absolute path, or relative to the sandbox; empty until it is looked up.
        environment: number of its environment.
        wrapped: whether something stands around it: the stager, or the shell of its lines.
        shell: whether its program turned out to be a script without a first line, which is the shell's.
    """

    template: ExecutableTemplate
    environment: int
    wrapped: bool
    sets_threads: bool
    program: str = ""
    shell: bool = False


class Group(msgspec.Struct):
    """The processes of one running attempt on this node.

    Attributes:
        tokens: of those that run.
        ranks: tokens of the ranks that this node started itself, in their order.
        failed: which of these failed first, counted from 0; -1 for none, and where that is not known.
        log: number of its log.
        status: of the first process that failed, else 0.
        spoiled: why it never became what was asked for.
        part: of a gang that a launcher starts; None: this node starts its ranks itself.
        argv: what the launcher is to start.
        wrap: what stands around it.
        out, err: what was written, as the spawner told it.
    """

    lane: int
    launch: Launch
    slots: tuple[Slot, ...]
    plan: Plan
    body: ExecutableBody
    link: Link
    sandbox: str
    own: bool
    log: int
    files: tuple[str, str]
    tokens: set[int]
    ranks: list[int] = []
    failed: int = -1
    status: int = 0
    spoiled: Failure | None = None
    signalled: bool = False
    shell: bool = False
    began: float = 0.0
    ended: float = 0.0
    out: Stream = b""
    err: Stream = b""
    part: Part | None = None
    argv: list[str] = []
    wrap: Wrap | None = None


class Line(msgspec.Struct):
    """What runs on a lane and what its spawner runs next, in order.

    Attributes:
        order: tasks.
        groups: those that have not ended.
        ended: those that ended before what is ahead of them: they are told in order.
    """

    link: Link
    slots: tuple[Slot, ...]
    log: int
    order: deque[int]
    groups: dict[int, Group]
    ended: dict[int, Ended]
