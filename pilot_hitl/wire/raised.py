"""Exceptions of the user's code, in words: for those who catch them where they are raised."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
SHOWN = 300
"""Characters of an exit code that is no number, in a message."""
_RUNNERS = ("pilot_hitl_agent", "pilot_hitl_services")
"""Packages that call the user's code and are never called by it."""


def attempt(
    work: Callable[[], T], kinds: type[BaseException] | tuple[type[BaseException], ...] = Exception
) -> tuple[T, None] | tuple[None, BaseException]:
    """Do something that is not ours and may do anything; return ``(what it returned, what it raised)``.

    Pickling, unpickling and handlers run code of the user: this is the boundary to it. In a replica ``kinds`` is
    BaseException: what would end the interpreter ends one request.
    """
    try:
        return work(), None
    except kinds as error:
        return None, error


async def attempt_await(
    work: Awaitable[T], kinds: type[BaseException] | tuple[type[BaseException], ...] = Exception
) -> tuple[T, None] | tuple[None, BaseException]:
    """Await something that is not ours, as :func:`attempt` does it."""
    try:
        return await work, None
    except kinds as error:
        return None, error


def told(error: BaseException, who: str) -> str:
    """Return in a sentence what ``who`` did by raising this."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else _said(repr, error.code, type(error.code).__qualname__)[:SHOWN]
        return f"{who} called sys.exit({code})"
    return f"{who} raised {summary(error)}"


def summary(error: BaseException) -> str:
    """Return the kind of an exception and what it says, whatever its ``__str__`` does."""
    kind = type(error)
    name = kind.__qualname__
    if "Cancelled" in name:
        # There are two of this name, and neither means that the task was canceled.
        name = f"{kind.__module__.removesuffix('.exceptions').removesuffix('._base')}.{name}"
    text = _said(str, error, "(its __str__ failed)")
    return f"{name}: {text}" if text else name


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code that Python gives a process for ``sys.exit``; None for other exceptions."""
    if not isinstance(error, SystemExit):
        return None
    if error.code is None:
        return 0
    return int(error.code) if isinstance(error.code, int) else 1


def traceback_of(error: BaseException, limit: int) -> str:
    """Return the end of the traceback as text, without frames of ours, up to ``limit`` characters."""
    shown = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    folders = _folders()
    todo = [shown]
    while todo:
        part = todo.pop()
        part.stack = _without_ours(part.stack, folders)
        todo += [each for each in (part.__cause__, part.__context__, *(part.exceptions or ())) if each is not None]
    return "".join(shown.format())[-limit:]


def stack_level() -> int:
    """Return the ``stacklevel`` with which a warning that the caller gives points to a line of the user."""
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep  # text, as it is in frames
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith((ours, "<frozen ")):
        frame, level = frame.f_back, level + 1
    return level


def _without_ours(stack: traceback.StackSummary, folders: tuple[tuple[str, ...], str]) -> traceback.StackSummary:
    """Leave out the frames of what runs the user's code, with all above them, and those of calls into this package."""
    runners, package = folders
    last = max((at for at, frame in enumerate(stack) if frame.filename.startswith(runners)), default=-1)
    theirs = [frame for frame in stack[last + 1 :] if not frame.filename.startswith(package)]
    return traceback.StackSummary.from_list(theirs or stack[last + 1 :])


def _folders() -> tuple[tuple[str, ...], str]:
    files = [getattr(sys.modules.get(name), "__file__", None) for name in _RUNNERS]
    runners = tuple(os.path.dirname(file) + os.sep for file in files if file)  # text, as it is in frames
    return runners, os.path.dirname(os.path.dirname(__file__)) + os.sep


def _said(how: Callable[[object], str], value: object, otherwise: str) -> str:
    text, _ = attempt(lambda: how(value), BaseException)
    return otherwise if text is None else text
