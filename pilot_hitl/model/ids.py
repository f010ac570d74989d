"""Typed identifiers.

A task id is one 64-bit integer, ``incarnation << 32 | number``. The *incarnation* numbers the clients that ever
opened the session, so a client can name its tasks without asking the hub, and two clients never collide.
"""

from __future__ import annotations

import re
from typing import NewType

TaskId = NewType("TaskId", int)
"""``incarnation << 32 | number``; unique within a session for ever."""
TemplateId = NewType("TemplateId", int)
"""Same layout as a task id; names what many tasks share (function or command, environment, …)."""
ConditionId = NewType("ConditionId", int)
"""Same layout as a task id; 0 is the condition that is always true."""
CheckpointId = NewType("CheckpointId", int)
"""A request to people; given by the hub, counted from 1 within a session."""
PilotId = NewType("PilotId", int)
"""Counted from 1 within a session; 0 means "any pilot"."""
NodeId = NewType("NodeId", int)
"""Counted from 0 within a pilot."""
ShapeId = NewType("ShapeId", int)
"""Index of an interned :class:`~pilot_hitl.model.resources.Shape` within one agent."""

ALWAYS = ConditionId(0)
ANY_PILOT = PilotId(0)
NUMBER_BITS = 32
NUMBER_MASK = (1 << NUMBER_BITS) - 1
RUN_BITS = 10
"""Each owner of a session numbers the runs of a task from ``(epoch - 1) << RUN_BITS``."""

_TASK = re.compile(r"^(?:task\.)?(\d+)\.(\d+)$")
_NAMES = re.compile(r"\btask\.\d+\.\d{6,}\b")
_SESSION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def make_id(incarnation: int, number: int) -> int:
    """Return the id of the ``number``-th thing that this incarnation named."""
    return incarnation << NUMBER_BITS | number


def incarnation_of(identifier: int) -> int:
    """Return the incarnation that made an id."""
    return identifier >> NUMBER_BITS


def task_name(task: int) -> str:
    """Return how people see a task id: ``task.<incarnation>.<number>``."""
    return f"task.{task >> NUMBER_BITS}.{task & NUMBER_MASK:06d}"


def try_number(run: int) -> int:
    """Return which try of its task a run is, from 1 on, as people count it: within one life of the hub."""
    return (run & ((1 << RUN_BITS) - 1)) + 1


def parse_task(text: str) -> TaskId:
    """Return the id behind ``task.2.000017`` (``task.`` and the zeros may be left out).

    Raises:
        ValueError: the text is not a task name.
    """
    if match := _TASK.match(text):
        return TaskId(make_id(int(match[1]), int(match[2])))
    raise ValueError(f"{text!r} is not a task name: write it like task.1.000017")


def without_ids(text: str) -> str:
    """Return a text in which each name of a task, which is another one in each run, is replaced by ``task``."""
    return _NAMES.sub("task", text) if "task." in text else text


def check_session_name(name: str) -> str:
    """Return the name when it may name a session (and so a folder).

    Raises:
        ValueError: it may not.
    """
    if _SESSION.match(name):
        return name
    raise ValueError(
        f"{name!r} cannot name a session: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
    )
