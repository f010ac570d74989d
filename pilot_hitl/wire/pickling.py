"""Pickling by value what plain pickle cannot: functions and classes of a script."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections import ChainMap
from typing import Any, cast

import cloudpickle

from pilot_hitl.wire.classes import reduce_class
from pilot_hitl.wire.imports import imported
from pilot_hitl.wire.ownership import MAINS

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
    if _importable(function):
        return str(function.__qualname__)
    rest = {key: value for key, value in vars(function).items() if key not in _COPIED}
    return _cached, (function.__wrapped__, *function.cache_parameters().values()), rest or None


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


_COPIED = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters", "cache_info", "cache_clear"}
CACHED = type(functools.lru_cache(abs))
"""Type of functions with a cache."""


def _reduce_cached_property(member: functools.cached_property[Any]) -> Any:
    return functools.cached_property, (member.func,), {"attrname": member.attrname, "__doc__": member.__doc__}


# As long as cloudpickle's own: it is looked into for every object.
_REDUCERS = ChainMap(
    {
        **_reducers.maps[0],
        types.CodeType: _reduce_code,
        CACHED: _reduce_cached,
        functools.cached_property: _reduce_cached_property,
    },
    *_reducers.maps[1:],
)
_DISPATCHER = cast("Any", functools.singledispatch(lambda _: None)).__code__
"""Code that all functions of :func:`functools.singledispatch` have in common."""


def is_dispatcher(function: object) -> bool:
    """Return whether a function was made by :func:`functools.singledispatch`."""
    return getattr(function, "__code__", None) is _DISPATCHER


def _dispatcher(default: Any) -> Any:
    return functools.singledispatch(default)


def _register(dispatcher: Any, implementations: dict[type, Any]) -> None:
    for kind, implementation in implementations.items():
        dispatcher.register(kind, implementation)


class ScriptPickler(cloudpickle.Pickler):
    """Pickles by value what plain pickle cannot. Code keeps the name of its file.

    Attributes:
        modules: names of modules that whoever loads the pickle imports, or that code in it may import.
    """

    dispatch_table = _REDUCERS

    def __init__(self, file: io.BytesIO, **more: Any) -> None:
        """Write into ``file``."""
        super().__init__(file, protocol=5, **more)
        self.modules: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Return how something is made again that plain pickle would find by its name."""
        kind = type(obj)
        if issubclass(kind, type):  # what it says it is may be something else
            return self._reduce_class(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif callable(obj):
            return self._reduce_callable(obj)
        return NotImplemented

    def _reduce_class(self, cls: type) -> Any:
        if cls in _BUILTIN_TYPES:
            return _by_value._class_reduce(cls)
        if _by_value._should_pickle_by_reference(cls):
            self.modules.add(cls.__module__)
            return NotImplemented
        return reduce_class(cls)

    def _reduce_function(self, function: types.FunctionType) -> Any:
        reduced = cast("Any", self)._function_reduce(function)
        if reduced is NotImplemented:
            self.modules.add(function.__module__)
            return reduced
        self.modules.update(_imported(function.__code__, str(function.__globals__.get("__package__") or "")))
        if is_dispatcher(function):
            registry = dict(cast("Any", function).registry)
            default = registry.pop(object)
            return _dispatcher, (default,), registry, None, None, _register
        return reduced

    def _reduce_callable(self, value: Any) -> Any:
        """Pack what stands for a function by value where it would be looked for by a name that nobody can import."""
        module = getattr(value, "__module__", None)
        if isinstance(module, str):
            self.modules.add(module)
        kind: Any = type(value)
        if kind.__module__ == "numpy" and str(getattr(value, "__name__", "")).endswith(" (vectorized)"):
            raise pickle.PicklingError(
                "what numpy.frompyfunc() returned does not tell its function: make it inside the function that uses "
                "it, or use numpy.vectorize()"
            )
        if module not in MAINS or kind is CACHED or not (hasattr(value, "__wrapped__") or hasattr(value, "py_func")):
            return NotImplemented
        if not isinstance(value.__reduce_ex__(5), str):
            return NotImplemented
        if kind.__flags__ & _PYTHON_CLASS and hasattr(value, "__dict__"):
            return _bare, (kind,), dict(vars(value)), None, None, _fill
        name = getattr(value, "__qualname__", kind.__qualname__)
        raise pickle.PicklingError(
            f"{name} (a {kind.__module__}.{kind.__qualname__}) is looked for by its name, and nobody can import the "
            "script: define it in a module beside the script, and import it from there"
        )


_by_value: Any = sys.modules["cloudpickle.cloudpickle"]
_BUILTIN_TYPES = {type(None), type(Ellipsis), type(NotImplemented), *_by_value._BUILTIN_TYPE_NAMES}
_PYTHON_CLASS = 1 << 9
"""Flag of classes that a class statement made."""


@functools.lru_cache(4096)
def _imported(code: types.CodeType, package: str) -> frozenset[str]:
    return frozenset(imported(code, package))


def _bare(kind: type) -> Any:
    return object.__new__(kind)


def _fill(value: Any, state: dict[str, Any]) -> None:
    vars(value).update(state)


def _importable(value: Any) -> bool:
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value and module is not None and module.__name__ not in MAINS


def dumps(value: object, modules: set[str] | None = None) -> bytes:
    """Return a value pickled with :class:`ScriptPickler`; ``modules`` gets the names that the pickler met.

    Raises:
        Whatever pickling raises.
    """
    file = io.BytesIO()
    pickler = ScriptPickler(file)
    pickler.dump(value)
    if modules is not None:
        modules |= pickler.modules
    return file.getvalue()
