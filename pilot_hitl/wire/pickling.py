"""Pickling by value what plain pickle cannot: functions and classes of a script."""

from __future__ import annotations

import functools
import io
import sys
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


def _reduce_cached(function: Any) -> Any:
    """Pack a function with a cache of :mod:`functools` by name if it has one, else with what it caches."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is function and module is not None and module.__name__ not in {"__main__", "__mp_main__"}:
        return str(function.__qualname__)
    rest = {key: value for key, value in vars(function).items() if key not in _COPIED}
    return _cached, (function.__wrapped__, *function.cache_parameters().values()), rest or None


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


_COPIED = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters", "cache_info", "cache_clear"}
CACHED = type(functools.lru_cache(abs))
"""Type of functions with a cache."""

# As long as cloudpickle's own: it is looked into for every object.
_REDUCERS = ChainMap({**_reducers.maps[0], types.CodeType: _reduce_code, CACHED: _reduce_cached}, *_reducers.maps[1:])


class ScriptPickler(cloudpickle.Pickler):
    """Pickles by value what plain pickle cannot. Code keeps the name of its file."""

    dispatch_table = _REDUCERS


def dumps(value: object) -> bytes:
    """Return a value pickled with :class:`ScriptPickler`.

    Raises:
        Whatever pickling raises.
    """
    file = io.BytesIO()
    ScriptPickler(file, protocol=5).dump(value)
    return file.getvalue()
