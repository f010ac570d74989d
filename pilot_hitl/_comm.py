"""The communicator of a call that runs on several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.errors import PilotHitlError
from pilot_hitl.wire import current

if TYPE_CHECKING:
    from mpi4py import MPI


def current_comm() -> MPI.Intracomm:
    """Return the communicator of the ranks that run the present call (``session.options(ranks=…)``).

    It is the same that a parameter named ``comm`` is given, and lasts until the call ends.

    Raises:
        PilotHitlError: this code runs in no call of several ranks.
    """
    if current.comm is None:
        raise PilotHitlError("current_comm(): only a call with session.options(ranks=…), more than one, has one")
    return current.comm
