"""Who answers the gate of the demo: a script after a delay, or whoever types at this terminal.

Both answer through the public face, as an inbox would; a person may also answer from elsewhere, and the first valid
answer counts.
"""

from __future__ import annotations

import os
import select
import sys
import threading

from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.cli.demo_study.study import Board
from pilot_hitl.errors import AnswerRefused, DescriptionError, SessionError
from pilot_hitl.gates import Checkpoint

PREDICTED = "predicted"
OTHER = "other"


def answer_named(wanted: str, survey: Survey) -> str:
    """Return the choice that is meant: a choice's name, ``predicted`` or ``other`` (the second in line).

    Raises:
        DescriptionError: there is no such choice.
    """
    names = [item.region.name for item in survey.candidates]
    if wanted in (PREDICTED, ""):
        return names[0]
    if wanted == OTHER:
        return names[1]
    if wanted.upper() in names:
        return wanted.upper()
    raise DescriptionError(
        f"--answer: {wanted!r} is no choice; this survey offers {', '.join(names)}, predicted, other"
    )


class ScriptedReviewer:
    """Answers by itself, some seconds after it is asked."""

    def __init__(self, delay: float, wanted: str, board: Board) -> None:
        """``delay`` in seconds; ``wanted`` as :func:`answer_named` takes it."""
        self._delay = delay
        self._wanted = wanted
        self._board = board
        self._timer: threading.Timer | None = None

    def begin(self, gate: Checkpoint, survey: Survey) -> None:
        """Answer after the delay, unless an earlier run was answered.

        Raises:
            DescriptionError: the answer that it shall give is no choice.
        """
        value = answer_named(self._wanted, survey)
        gate.wait_number()
        if gate.done():
            return
        self._timer = threading.Timer(self._delay, self._answer, (gate, value))
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Do not answer any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _answer(self, gate: Checkpoint, value: str) -> None:
        try:
            gate.respond(value, comment=f"scripted, {self._delay:g} s after the question")
        except (AnswerRefused, SessionError) as error:
            # Somebody else was faster, or the session was closed meanwhile: either way there is nothing left to do.
            self._board.say(f"the scripted answer did not count: {error}")


class TerminalReviewer:
    """Takes the answer from this terminal's keyboard."""

    def __init__(self, board: Board) -> None:
        """Make it; it reads from :meth:`begin` to :meth:`end`."""
        self._board = board
        self._wake_read, self._wake_write = os.pipe()

    def begin(self, gate: Checkpoint, survey: Survey) -> None:
        """Read lines until one of them is an answer."""
        del survey
        threading.Thread(target=self._read, args=(gate,), name="terminal-reviewer", daemon=True).start()

    def end(self) -> None:
        """Stop reading; may be called again."""
        if self._wake_write >= 0:
            os.close(self._wake_write)
            self._wake_write = -1

    def _read(self, gate: Checkpoint) -> None:
        try:
            while True:
                # The pipe is closed when the answer came from elsewhere: a plain readline() would wait for ever.
                ready, _, _ = select.select([sys.stdin, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                line = sys.stdin.readline()
                if not line:
                    return
                if line.strip() and self._answered(gate, line.strip()):
                    return
        finally:
            os.close(self._wake_read)

    def _answered(self, gate: Checkpoint, text: str) -> bool:
        try:
            gate.respond(text.upper(), comment="typed at the demo's terminal")
        except AnswerRefused as error:
            self._board.say(f"{error}")
            return error.code not in ("", "invalid")
        except SessionError:
            return True
        return True
