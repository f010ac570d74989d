"""Why an attempt ended badly, as data: what travels on the wire and lies in the store."""

from __future__ import annotations

import enum

import msgspec


class Cause(enum.IntEnum):
    """The typed cause of an end that is not success."""

    NONE = 0
    EXIT = 1
    """The executable returned a non-zero exit code, or died of a signal."""
    EXCEPTION = 2
    """The function raised."""
    TIMEOUT = 3
    """The task's own ``timeout`` passed."""
    NO_PROGRAM = 4
    """The executable, its working directory or a file it needs does not exist or may not be run."""
    WORKER_DIED = 5
    """The process that ran the function ended while it ran."""
    CANCELED = 6
    """Somebody asked for it."""
    PREEMPTED = 7
    """Its cores were needed for work of a higher tier."""
    PILOT_ENDED = 8
    """The pilot ended, or its agent lost track of the attempt."""
    NODE_LOST = 9
    UNFIT = 10
    """No pilot could ever hold it."""
    DEPENDENCY = 11
    """A task that it depends on did not succeed."""
    PAYLOAD = 12
    """Arguments, function or result could not be pickled or loaded."""
    DISCARDED = 13
    """The person decided otherwise."""
    SUPERSEDED = 14
    """The script was run again and submitted it anew."""
    SETUP = 15
    """``pre_exec``, ``post_exec``, staging or the sandbox failed."""
    WALLTIME = 16
    """It cannot end before the pilot does."""
    OUT_OF_MEMORY = 17
    """It used more memory than it asked for."""
    OOM_KILLED = 18
    """The kernel ran out of memory and killed it."""
    SPAWNER_DIED = 19
    """The process below which it ran died, and it was killed after it."""


RETRYABLE = frozenset(
    {
        Cause.EXIT,
        Cause.EXCEPTION,
        Cause.TIMEOUT,
        Cause.WORKER_DIED,
        Cause.SETUP,
        Cause.OUT_OF_MEMORY,
        Cause.OOM_KILLED,
    }
)
"""Causes that ``retries`` applies to."""
UNFINISHED = frozenset({Cause.PREEMPTED, Cause.PILOT_ENDED, Cause.NODE_LOST, Cause.WALLTIME, Cause.SPAWNER_DIED})
"""Causes after which the attempt counts as unfinished: the task is bound again without using up a retry."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """One bad end.

    Attributes:
        cause: the typed cause.
        message: one sentence for a person; it says the same of the same failure on every try, in every run and place.
        host: where it happened.
        exit_code: of an executable; negative is the signal that ended it.
        detail: remote traceback, or the tail of standard error.
        stdout: the end of standard output.
        stderr: of a call, the end of what it wrote to standard error.
        root: of DEPENDENCY, the task that failed first; 0 when it is not known.
        note: what is of this try alone, such as the number of a process.
    """

    cause: Cause
    message: str
    host: str = ""
    exit_code: int = 0
    detail: str = ""
    stdout: str = ""
    stderr: str = ""
    root: int = 0
    note: str = ""
