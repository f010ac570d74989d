"""Canonical JSON: equal values have equal bytes."""

from __future__ import annotations

import json
import numbers
from typing import TypeAlias

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
"""A JSON value."""


def canonical(value: Json) -> str:
    """Return the canonical text of a JSON value: sorted keys, no spaces, ``1.0`` written as ``1``.

    Numbers and truth values of numpy are those that they equal. Two values are *equal* in this project when their
    canonical texts are.

    Raises:
        TypeError: the value is not JSON.
        ValueError: it holds NaN or an infinity.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> Json:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"JSON object keys are text, not {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return _scalar(value)


def _scalar(value: object) -> Json:
    """Return the JSON value that a scalar of numpy equals.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _plain(float(value))
    if type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")


def cut(text: str, limit: int = 200) -> str:
    """Return a text as a sentence or a cell can hold it: its beginning and how long it is, when it is long."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def not_json(error: Exception) -> str:
    """Return why something is no JSON value, given what was raised when it was written as one."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
