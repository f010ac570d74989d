"""Whether a packed function is still what it was: what must be the same objects for that.

Classes of the script are looked into like functions: an attribute that was set anew, or a global that a method reads,
makes another packed form.
"""

from __future__ import annotations

import builtins
import enum
import functools
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pilot_hitl._codes import global_reads
from pilot_hitl._fingerprint import ATOMS
from pilot_hitl.wire.classes import travels
from pilot_hitl.wire.pickling import CACHED

_CONSTANT = (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)


class _Named(NamedTuple):
    x: int


_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    type(vars(_Named)["x"]),
)
_UNSEEN = frozenset(
    {"_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_field_defaults", "model_config"}
)
"""Attributes of classes that can be changed in place, and that nobody but the class's own machinery changes."""
_LATE = ("__slotnames__", "__signature__", "__annotations__")
"""Attributes that Python, and others, put at a class when they first need them."""
_MADE_BY = frozenset({"enum", "dataclasses", "typing"})
"""What comes from these modules does not change."""
Watch = list[tuple[Any, str, object]]
"""``(function, attribute, value)`` or ``(names, name, value)`` that must still be the same objects; an empty name
stands for how many names there are.

None instead of the function means the packed one itself, which must not be kept alive by this.
"""
_GONE = object()


def by_reference(function: types.FunctionType) -> bool:
    """Return whether a function travels by name."""
    module = sys.modules.get(function.__module__ or "")
    if module is None or function.__module__ in {"__main__", "__mp_main__"}:
        return False
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _count(space: Mapping[str, object]) -> int:
    """Return how many attributes a class has that its author may have given it."""
    return len(space) - sum(name in space for name in _LATE)


def unchanged(watch: Watch, function: Any) -> bool:
    """Return whether all that is watched for a function is as it was."""
    for watched, name, value in watch:
        owner = function if watched is None else watched
        if type(owner) is dict or type(owner) is types.MappingProxyType:
            if not name:
                if _count(owner) != value:
                    return False
                continue
            now = owner.get(name, _GONE)
        else:
            now = getattr(owner, name, _GONE)
        if now is not value:
            return False
    return True


class Watcher:
    """Collects what must stay the same for one function.

    Attributes:
        watch: what was collected.
        classes: classes that travel by value and that were met.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.watch: Watch = []
        self.classes: list[type] = []
        self._seen: set[int] = set()

    def look(self, value: Any) -> bool:
        """Collect what a value is made of; return False when it can be changed in place."""
        kind = type(value)
        if kind in ATOMS or isinstance(value, _CONSTANT) or value is Ellipsis:
            return True
        if isinstance(value, type):
            return not travels(value) or self._class(value)
        if kind in {tuple, frozenset}:
            return self._all(value)
        if kind.__module__ in _MADE_BY or isinstance(value, enum.Enum):
            return True
        if isinstance(value, types.FunctionType):
            return self._function(value)
        self.look(type(value))
        for name in ("func", "__func__", "__wrapped__"):
            if isinstance(inner := getattr(value, name, None), types.FunctionType):
                self.look(inner)
        return False

    def _all(self, values: Iterable[object]) -> bool:
        good = [self.look(each) for each in values]  # at each, whatever the one before is
        return all(good)

    def _function(self, function: types.FunctionType) -> bool:
        if by_reference(function) or id(function) in self._seen:
            return True
        self._seen.add(id(function))
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self.watch.append((function, name, getattr(function, name)))
        good = [self.look(function.__defaults__ or ()), self.look(tuple((function.__kwdefaults__ or {}).values()))]
        for cell in function.__closure__ or ():
            content = getattr(cell, "cell_contents", _GONE)
            self.watch.append((cell, "cell_contents", content))
            good.append(content is _GONE or self.look(content))
        known = function.__globals__
        for name in set(global_reads(function.__code__)):
            if name in known or not hasattr(builtins, name):
                self.watch.append((known, name, known.get(name, _GONE)))
                good.append(name not in known or self.look(known[name]))
        return all(good)

    def _class(self, cls: type) -> bool:
        if id(cls) in self._seen:
            return True
        self._seen.add(id(cls))
        self.classes.append(cls)
        space: Any = vars(cls)
        self.watch.append((space, "", _count(space)))
        good = [self.look(base) for base in (type(cls), *cls.__bases__)]
        for name, value in list(space.items()):
            if name in _UNSEEN or name in _LATE or name.startswith("__pydantic_"):
                continue
            self.watch.append((space, name, value))
            good.append(self._member(name, value))
        return all(good)

    def _member(self, name: str, value: Any) -> bool:
        if isinstance(value, staticmethod | classmethod):
            return self.look(value.__func__)
        if isinstance(value, property):
            return self._all((value.fget, value.fset, value.fdel))
        if isinstance(value, functools.cached_property):
            return self.look(value.func)
        if type(value) is CACHED:
            return self.look(value.__wrapped__)
        # What a class keeps under such names is of those who made it: fields, annotations, parameters.
        return isinstance(value, _DESCRIPTORS) or self.look(value) or name[:1] == "_" == name[-1:]
