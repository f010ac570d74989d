r"""Regular expressions of forms, by an engine that never tries again: its time grows with the text and no faster.

The syntax is RE2's: no lookahead, no lookbehind, no references back; ``\d``, ``\w`` and ``\s`` mean ASCII, as JSON
Schema has it, and ``$`` is the end of the text.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import Any

_MEMORY = 4 << 20
"""Bytes that one expression may take when it is compiled and searched with."""
_LONGEST = 10_000
"""Characters of an expression."""
_UNICODE = re.compile(r"(?<!\\)((?:\\\\)*)\\u(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{4}))")


class Pattern:
    """A compiled expression; ``size`` is the number of its instructions, each of which may look at each character."""

    def __init__(self, text: str) -> None:
        """Compile it.

        Raises:
            ValueError: it is no expression, or none that can be searched for in bounded time; says why and what to do.
        """
        re2 = importlib.import_module("re2")  # it has no type stubs
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MEMORY
        options.never_capture = True
        if len(text) > _LONGEST:
            raise ValueError(f"a pattern of {len(text):,} characters is too long: {_LONGEST:,} are enough for one")
        try:
            self._compiled: Any = re2.compile(_UNICODE.sub(r"\1\\x{\2\3}", text), options=options)
        except (re2.error, UnicodeEncodeError) as error:
            raise ValueError(
                f"pattern {_begin(text)!r} cannot be searched for in bounded time: {_why(error)}"
            ) from error
        self.size: int = self._compiled.programsize

    def found(self, text: str) -> bool:
        """Return whether a part of the text matches."""
        return self._compiled.search(text) is not None


@lru_cache(maxsize=256)
def compiled(text: str) -> Pattern:
    """Return an expression, compiled once.

    Raises:
        ValueError: see :class:`Pattern`.
    """
    return Pattern(text)


def _why(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(error)
    if words.startswith(("invalid perl operator", "invalid escape sequence")):
        words += "; write it without lookahead, lookbehind and references back, or let your script check that part"
    elif "too large" in words or "repetition" in words:
        words += "; repeat less in it, or use minLength and maxLength"
    return words


def _begin(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
