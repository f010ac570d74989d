"""Logging in a function worker, as the script configured its root logger. Loaded only when it did."""

from __future__ import annotations

import logging
import sys


class StderrHandler(logging.Handler):
    """Writes to whatever is standard error now: a call may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as ``logging.basicConfig`` would."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except (OSError, ValueError, AttributeError, TypeError):
            # Closed, replaced by something else, or arguments that do not fit the message.
            self.handleError(record)


_handler = StderrHandler()
_handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))


def set_level(level: int) -> None:
    """Let the root logger be as the script's: see ``FunctionTemplate.logging``."""
    root = logging.getLogger()
    root.setLevel(abs(level) or logging.WARNING)
    if level > 0 and _handler not in root.handlers:
        root.addHandler(_handler)
    elif level <= 0:
        root.removeHandler(_handler)
