"""Functions of which it is certain that they change nothing of their process: after these nobody needs to look."""

from __future__ import annotations

import builtins
import dis
import itertools
import math
import operator
import time
import types
from collections.abc import Callable
from typing import Any

ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
"""Types of arguments that have no code of the user."""
_MODULES = (math, operator, itertools, time)
_BUILTINS = frozenset(
    {
        "abs", "all", "any", "bin", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float",
        "format", "frozenset", "hash", "hex", "int", "isinstance", "iter", "len", "list", "map", "max", "min", "next",
        "oct", "ord", "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple",
        "zip",
    }
)  # fmt: skip
_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
_REFUSED = frozenset({"IMPORT_NAME", "IMPORT_FROM", "IMPORT_STAR", "STORE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"})
_ASYNC = 0x80 | 0x100 | 0x200


def changes_nothing(target: Callable[..., Any]) -> bool:
    """Return whether it is certain that a call with plain arguments leaves its process as it was."""
    return _harmless(target, set())


def _harmless(value: Any, seen: set[int]) -> bool:
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return _is_known(owner) or (owner is builtins and value.__name__ in _BUILTINS)
    if type(value) is not types.FunctionType:
        return False
    if id(value) in seen:
        return True
    seen.add(id(value))
    if value.__closure__ or not all(type(each) in ATOMS for each in value.__defaults__ or ()):
        return False
    return not value.__kwdefaults__ and _code_is_harmless(value.__code__, value.__globals__, seen)


def _code_is_harmless(code: types.CodeType, known: dict[str, Any], seen: set[int]) -> bool:
    if code.co_flags & _ASYNC:
        return False
    for each in dis.get_instructions(code):
        name = each.argval
        if each.opname in _REFUSED or (each.opname in _ATTRIBUTES and str(name).startswith("_")):
            return False
        if each.opname in _READS and not _name_is_harmless(name, known, seen):
            return False
    return all(_code_is_harmless(each, known, seen) for each in code.co_consts if isinstance(each, types.CodeType))


def _name_is_harmless(name: str, known: dict[str, Any], seen: set[int]) -> bool:
    if name not in known:
        found = getattr(builtins, name, None)
        return name in _BUILTINS or (isinstance(found, type) and issubclass(found, Exception))
    value = known[name]
    # Globals may be bound to something else later, but only by code that is looked at after it ran.
    return type(value) in ATOMS or _is_known(value) or _harmless(value, seen)


def _is_known(module: object) -> bool:
    return any(module is each for each in _MODULES)
