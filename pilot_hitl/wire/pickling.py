"""Pickling by value what plain pickle cannot: functions and classes of a script."""

from __future__ import annotations

import io
import types
from collections import ChainMap
from typing import Any, cast

import cloudpickle

_NAMELESS = "<dynamic-code>"
"""What cloudpickle writes for the file of a code object, so that equal code packs alike wherever it lies."""


_reducers = cast("ChainMap[type, Any]", cloudpickle.Pickler.dispatch_table)


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Let code keep the name of its file, for tracebacks; what counts as equal code is said by fingerprints."""
    made, arguments = _reducers[types.CodeType](code)
    # A text of its own: which texts are one object in this process must not change the packed form.
    return made, tuple("".join(code.co_filename) if each == _NAMELESS else each for each in arguments)


# As long as cloudpickle's own: it is looked into for every object.
_WITH_FILES = ChainMap({**_reducers.maps[0], types.CodeType: _reduce_code}, *_reducers.maps[1:])


class ScriptPickler(cloudpickle.Pickler):
    """Pickles by value what plain pickle cannot. Code keeps the name of its file."""

    dispatch_table = _WITH_FILES


def dumps(value: object) -> bytes:
    """Return a value pickled with :class:`ScriptPickler`.

    Raises:
        Whatever pickling raises.
    """
    file = io.BytesIO()
    ScriptPickler(file, protocol=5).dump(value)
    return file.getvalue()
