"""What a run took over of earlier ones, and why a task did or did not: asked of the hub, which knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pilot_hitl import errors
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.reuse import Tally

if TYPE_CHECKING:
    from pilot_hitl._client import Client

PATIENCE, HASTE = 20.0, 2.0
"""Seconds that a script which leaves waits for the count: at its end, and when it was interrupted or failed."""


def tally(client: Client, *, wait: bool) -> Tally:
    """Return what this run took over so far; nothing when the session held nothing, or the hub does not say."""
    if not client.resumed:
        return Tally()
    try:
        return msgspec.convert(client.query("reuse", {"session": client.name}, PATIENCE if wait else HASTE), Tally)
    except (TimeoutError, errors.PilotHitlError, msgspec.ValidationError):
        return Tally()  # it is only a line for people


def why(client: Client, task: int) -> str:
    """Return in one sentence why a task took over a result of an earlier run, or why it did not.

    Raises:
        SessionError: the session has no such task.
    """
    if client.staged(task):
        return f"{task_name(task)} is declared in a with block and sent at the block's end"
    return str(client.query("why-reused", {"session": client.name, "task": task_name(task)})["why"])
