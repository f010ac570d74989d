"""Which attempt the code that asks belongs to."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.ids import parse_task, task_name

if TYPE_CHECKING:
    from mpi4py import MPI

TASK_VARIABLE = "PILOT_HITL_TASK"
ATTEMPT_VARIABLE = "PILOT_HITL_ATTEMPT"
RANK_VARIABLE = "PILOT_HITL_RANK"
RANKS_VARIABLE = "PILOT_HITL_RANKS"
SESSION_VARIABLE = "PILOT_HITL_SESSION"
PILOT_VARIABLE = "PILOT_HITL_PILOT"
ADDRESS_VARIABLE = "PILOT_HITL_ADDRESS"
EXECUTOR_VARIABLE = "PILOT_HITL_EXECUTOR"
"""Names the executor whose calls alone run in a worker: what its initializer did is seen by nobody else."""
"""IP address at which other nodes of the pilot reach the one that this process runs on; unset where it has no other."""


class CurrentAttempt(msgspec.Struct, frozen=True):
    """One attempt, seen from inside."""

    task: int
    epoch: int
    run: int

    @property
    def name(self) -> str:
        """How people see the task."""
        return task_name(self.task)


call: tuple[int, int, int] | None = None
"""In a function worker: ``(task, epoch, run)`` of the call that runs. One at a time, so it needs no thread's own."""


folder = ""
"""In a function worker whose call runs ahead of a decision, in a folder of its own: the one in which it would run if it
were needed. What it submits is to find and leave files there."""


comm: MPI.Intracomm | None = None
"""In a rank of an MPI group: the communicator of its calls."""


class Here(msgspec.Struct, frozen=True):
    """Where this process runs: that decides which way it goes to a replica.

    Attributes:
        host: name of the host.
        session, pilot: the pilot whose process this is; empty and 0 outside of any.
    """

    host: str
    session: str = ""
    pilot: int = 0


def current_place() -> Here:
    """Return where this process runs."""
    pilot = os.environ.get(PILOT_VARIABLE, "")
    session = os.environ.get(SESSION_VARIABLE, "") if pilot.isdigit() else ""
    return Here(socket.gethostname(), session, int(pilot) if session else 0)


def current_attempt() -> CurrentAttempt | None:
    """Return the attempt that this code runs in, None outside of any.

    Holds in a call's own threads, in executables, and in processes that either started.
    """
    if call is not None:
        return CurrentAttempt(*call)
    text = os.environ.get(ATTEMPT_VARIABLE, "")
    name, _, numbers = text.rpartition(":")
    epoch, _, run = numbers.partition(".")
    if not name or not epoch.isdigit() or not run.isdigit():
        return None
    try:
        return CurrentAttempt(parse_task(name), int(epoch), int(run))
    except ValueError:
        return None


def attempt_text(name: str, epoch: int, run: int) -> str:
    """Return the value of ``PILOT_HITL_ATTEMPT``: ``task.1.000017:<epoch>.<run>``."""
    return f"{name}:{epoch}.{run}"
