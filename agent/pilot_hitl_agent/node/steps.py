"""What the stager and the shell of a task's lines say that they did: the attempt's report.

Each appends lines to it: ``staged`` and ``put`` (all directives before, and after, the program are done), ``out PATH``
(an output), ``failed TEXT`` (a directive), ``pre N``, ``run``, ``ran CODE``, ``post N``, ``end`` (what the shell comes
to), ``stuck CODE`` (the line that it came to last failed), ``over CODE`` (what the stager waited for ended),
``missing`` and ``unrun ERRNO`` (the program cannot be run).
Paths and texts are in hexadecimal digits. That the next word is missing says that a line left the shell.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from pilot_hitl.model.templates import ExecutableTemplate

_CAME = ("pre", "run", "post", "end")


class Fault(msgspec.Struct, frozen=True):
    """Why a task failed that is not the program's own end.

    Attributes:
        kind: a step of ours failed, or the program cannot be run.
        message: which step and why; empty when all that is known of a program is that it is not there.
        code: exit code that it failed with, 0 for none.
        number: error number of a program that cannot be run, 0 when it is not known.
        sure: 2 when it was said, 1 when it follows from what was not said any more, 0 when nothing was said at all.
    """

    kind: Literal["step", "program"]
    message: str
    code: int = 0
    number: int = 0
    sure: int = 2


class Steps(msgspec.Struct, frozen=True):
    """What a report says.

    Attributes:
        fault: None when the program ran, however it ended, and so did all that is around it.
        outputs: absolute paths that output staging made.
        code: how the program ended, where that is known better than from its shell.
        ran: whether the program was started.
        came: how many lines it came to.
    """

    fault: Fault | None = None
    outputs: list[str] = []
    code: int | None = None
    ran: bool = False
    came: int = 0


class Reports:
    """The folder of the attempts' reports."""

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, which is made with the first one."""
        self._folder = folder
        self._ready = False

    def path(self, name: str) -> str:
        """Return where the report of an attempt goes.

        Raises:
            OSError: the folder cannot be made.
        """
        if not self._ready:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._ready = True
        return f"{self._folder}/{name}"

    def close(self) -> None:
        """Remove the folder when it is empty."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def take(path: str, *beside: str) -> list[str]:
    """Return the lines of a report, and remove it with other files."""
    lines: list[str] = []
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # once a task: a Path costs ten times
            lines = file.read().splitlines()
    except OSError:
        # Nothing was done yet.
        pass
    for each in (path, *beside):
        with contextlib.suppress(OSError):
            os.unlink(each)  # as above
    return lines


def read(template: ExecutableTemplate, lines: Sequence[str], status: int, *, staged: bool, lined: bool) -> Steps:
    """Return what a report says.

    Args:
        template: whose lines and directives they are.
        lines: of the report.
        status: exit code of the process that wrote it, negative for a signal.
        staged: the stager was to bring something in.
        lined: a shell was to run lines.
    """
    words = [line.partition(" ")[::2] for line in lines]
    outputs = [_text(rest) for word, rest in words if word == "out"]
    ran = _number(words, "ran")
    over = _number(words, "over")
    code = over if ran is None else ran
    fault = _told(template, words)
    if fault is None and lined and not code:
        fault = _left(template, words, status if over is None else over)
    if fault is None and staged and not any(word == "staged" for word, _ in words):
        fault = Fault("step", f"staging its inputs was cut short: it {_ended(status)}", max(status, 0))
    if fault is not None and fault.kind == "step" and code:
        # The program failed first; what could not be done after it follows from that.
        fault = None
    began = any(word == "run" for word, _ in words) or (over is not None and not lined)
    return Steps(fault, outputs, code, began, len([word for word, _ in words if word in _CAME]))


def first(found: Sequence[Steps], status: int, failed: int = -1) -> Steps:
    """Return what counts of what several ranks say, given how the first of them to fail ended.

    ``failed``: which one that was, -1 when that is not known. The others were ended because of it, wherever they were.
    """

    def weight(at: int) -> tuple[int, bool, int]:
        # All have the same lines: who came farthest was not ended by another one's failure before.
        fault = found[at].fault
        return (-1 if fault is None else fault.sure), at == failed, found[at].came

    best = found[max(range(len(found)), key=weight)] if any(each.fault for each in found) else Steps()
    if status and (best.fault is None or best.fault.sure < 2) and any(each.ran for each in found):
        # Ranks that were still in their lines were ended because of that one.
        return Steps(ran=True)
    return best


def _told(template: ExecutableTemplate, words: Sequence[tuple[str, str]]) -> Fault | None:
    at = ("", "")
    for word, rest in words:
        if word in ("pre", "post"):
            at = (word, rest)
        elif word == "stuck":
            return Fault("step", f"{_line(template, at)} failed with exit code {rest}", _whole(rest))
        elif word == "failed":
            return Fault("step", f"{_text(rest)}")
        elif word == "missing":
            return Fault("program", "")
        elif word == "unrun":
            return Fault("program", "it cannot be run", number=_whole(rest))
    return None


def _left(template: ExecutableTemplate, words: Sequence[tuple[str, str]], status: int) -> Fault | None:
    """Return which line left the shell, if one did."""
    steps = [each for each in words if each[0] in _CAME]
    last = steps[-1] if steps else ("", "")
    if last[0] in ("pre", "post"):
        said = "left the shell with" if status >= 0 else "did not end: the shell"
        how = f"exit code {status}" if status >= 0 else f"was ended by signal {-status}"
        hint = "" if last[0] == "post" else ", so the program never ran"
        return Fault("step", f"{_line(template, last)} {said} {how}{hint}", max(status, 0), sure=1)
    if not last[0] and not any(word == "failed" for word, _ in words):
        return Fault("step", f"the shell of its lines {_ended(status)} before the first", max(status, 0), sure=0)
    return None


def _line(template: ExecutableTemplate, at: tuple[str, str]) -> str:
    field, text = ("pre_exec", template.pre_exec) if at[0] == "pre" else ("post_exec", template.post_exec)
    number = _whole(at[1])
    return f"{field} line {number} ({text[number - 1] if 0 < number <= len(text) else '?'})"


def _number(words: Sequence[tuple[str, str]], which: str) -> int | None:
    return next((_whole(rest) for word, rest in words if word == which), None)


def _whole(text: str) -> int:
    # Cut off where the disk was full, or written by somebody who found the file.
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 12 else 0


def _ended(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"


def _text(word: str) -> str:
    try:
        return bytes.fromhex(word).decode("utf-8", "backslashreplace")
    except ValueError:
        # As above.
        return word
