"""Classes that travel by value: which of two are the same class.

A class of ``__main__`` has no name by which another process could import it, so it travels by value. What arrives is
the same class as one that is already there when both are of the same *make*: their name, bases, methods, fields and
plain attributes are equal. So results are of the script's own classes, in the run that computed them and in a later
one that finds them stored; and what was computed in one worker is known in another.

What a class holds that may change (lists, dictionaries, other objects) is not part of its make, nor is what its methods
read from outside. Of classes that a function makes, and that no name leads to, those that hold such things are each a
class of its own: two of them may hold different ones.
"""

from __future__ import annotations

import functools
import sys
import types
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import cloudpickle
import msgspec

from pilot_hitl.wire.raised import stack_level

by_value: Any = sys.modules[cloudpickle.dumps.__module__]
_ATOMS = frozenset({int, float, complex, str, bytes, bool, type(None), type(Ellipsis)})
_SKIPPED = frozenset(
    {
        "__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__qualname__",
        "__abstractmethods__", "_abc_impl", "__signature__", "__annotations_cache__", "__hash__", "__match_args__",
        "__classcell__", "__parameters__", "__orig_bases__", "__slotnames__",
    }
)  # fmt: skip
_MADE = 20
"""Hexadecimal digits of an identity that tell the make; what follows tells classes of one make apart."""


class ClassChangedWarning(UserWarning):
    """A value that was computed earlier is of a class of the script that has changed since.

    It is of the class as it was then, so ``isinstance`` with the present class is false. Give the task another key, or
    open the session with ``fresh=True``, to compute it again.
    """


class _Known:
    """What this process knows of its classes."""

    makes: weakref.WeakKeyDictionary[type, str]
    """Of classes that were not made here by loading them."""
    certain: weakref.WeakKeyDictionary[type, bool]
    """Whether two classes of the same make are equal in all that they hold."""
    loaded: weakref.WeakSet[type]
    warned: set[str]


class State:
    """What classes that were loaded hold, in a process that runs functions of a script.

    Attributes:
        given: how often one was given its attributes.
        turns: what they hold differs from function to function, so that each has to give them its own before it runs.
    """

    given = 0
    turns = False


_Known.makes = weakref.WeakKeyDictionary()
_Known.certain = weakref.WeakKeyDictionary()
_Known.loaded = weakref.WeakSet()
_Known.warned = set()


def reduce_class(cls: type) -> tuple[Any, ...]:
    """Return how a class is made again from its value, or found where it is known."""
    identity = identify(cls)
    if isinstance(cls, msgspec.StructMeta):
        make, arguments, state = _reduce_struct(cls, identity)
    else:
        make, arguments, state, *_ = by_value._dynamic_class_reduce(cls)
    return found_or_made, (cls.__module__, cls.__qualname__, make, arguments), state, None, None, set_state


def identify(cls: type) -> str:
    """Return the identity of a class that travels by value, which cloudpickle uses then."""
    known: str | None = by_value._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
    if known is not None:
        return known
    make, number = make_of(cls), 0
    if not _Known.certain.get(cls, False) and _attribute(sys.modules.get(cls.__module__), cls.__qualname__) is not cls:
        make = uuid.uuid4().hex[:_MADE]
    with by_value._DYNAMIC_CLASS_TRACKER_LOCK:
        # Two classes of one make, as a function leaves them, are two classes.
        while (other := by_value._DYNAMIC_CLASS_TRACKER_BY_ID.get(f"{make}.{number}")) is not None and other is not cls:
            number += 1
        return _track(f"{make}.{number}", cls)


def _track(identity: str, cls: type) -> str:
    by_value._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls] = identity
    by_value._DYNAMIC_CLASS_TRACKER_BY_ID[identity] = cls
    return identity


def found_or_made(module: str, name: str, make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    """Return the class of this name when it is of the same make, else one that was loaded before, else a new one."""
    identity: str = arguments[-2]
    space = sys.modules.get(module)
    # Where functions of the script run, its ``__main__`` is another kind of module, and holds what was loaded.
    own = _attribute(space, name) if type(space) is types.ModuleType else None
    known: type | None = by_value._DYNAMIC_CLASS_TRACKER_BY_ID.get(identity)
    if isinstance(own, type) and own is not known and own not in _Known.loaded:
        if make_of(own) == identity[:_MADE]:
            with by_value._DYNAMIC_CLASS_TRACKER_LOCK:
                by_value._DYNAMIC_CLASS_TRACKER_BY_ID[identity] = own
                by_value._DYNAMIC_CLASS_TRACKER_BY_CLASS.setdefault(own, identity)
            return own
        if known is None:
            _warn_changed(module, name)
    if known is not None:
        return known
    made = make(*arguments)
    _Known.loaded.add(made)
    return made


def set_state(cls: type, state: Any) -> None:
    """Give a class that was loaded its attributes; one that is this process's own has them."""
    if cls in _Known.loaded:
        State.given += 1
        by_value._class_setstate(cls, state)


def _warn_changed(module: str, name: str) -> None:
    if name in _Known.warned:
        return
    _Known.warned.add(name)
    what = name if module == "__main__" else f"{module}.{name}"
    warnings.warn(
        f"a value that was computed earlier is of the class {what} as it was then; {what} has changed since, so the "
        "value is not of the present class. Give the task another key, or open the session with fresh=True, to compute "
        "it again",
        ClassChangedWarning,
        stack_level(),
    )


def _attribute(space: object, name: str) -> object:
    for part in name.split("."):
        space = getattr(space, part, None)
    return space


def _reduce_struct(cls: Any, identity: str) -> tuple[Any, ...]:
    """Return what makes a class of msgspec: its fields cannot be added to a class that is there."""
    fields, space = struct_fields(cls), dict(vars(cls))
    own = space.pop("__annotations__", {})
    plain = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__annotations__": own,
        "__doc__": cls.__doc__,
    }
    more = {name: value for name, value in space.items() if name not in cls.__struct_fields__ and name not in _SKIPPED}
    more = {name: value for name, value in more.items() if not isinstance(value, _DESCRIPTORS) and name != "__slots__"}
    # What msgspec looks for when it makes the class must be there by then.
    plain |= {name: more.pop(name) for name in list(more) if name.startswith("__")}
    defaults = {name: fields[name] for name in own if name in fields}
    names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    settings = struct_settings(cls) | {
        "kw_only": any(name not in cls.__match_args__ for name in own if name in names),
        "rename": {name: names[name] for name in own if names.get(name, name) != name} or None,
    }
    return _make_struct, (type(cls), cls.__name__, cls.__bases__, plain, defaults, settings, identity, None), (more, {})


def _make_struct(
    kind: Any,
    name: str,
    bases: tuple[type, ...],
    space: dict[str, Any],
    defaults: dict[str, tuple[bool, Any]],
    settings: dict[str, Any],
    identity: str,
    _more: None,
) -> type:
    for field, (made, default) in defaults.items():
        space[field] = msgspec.field(default_factory=default) if made else default
    made_class: type = kind(name, bases, space, **settings)
    found: type = by_value._lookup_class_or_track(identity, made_class)
    return found


def struct_fields(cls: Any) -> dict[str, tuple[bool, Any]]:
    """Return the defaults of a class of msgspec, by field: whether it is made each time, and it or what makes it."""
    names = cls.__struct_fields__[len(cls.__struct_fields__) - len(cls.__struct_defaults__) :]
    pairs = zip(names, cls.__struct_defaults__, strict=True)
    return {
        name: (hasattr(default, "factory"), getattr(default, "factory", default))
        for name, default in pairs
        if default is not msgspec.NODEFAULT
    }


def struct_settings(cls: Any) -> dict[str, Any]:
    """Return how a class of msgspec was made, as keywords of its class statement."""
    config = cls.__struct_config__
    return {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}


_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


# --- the make of a class ----------------------------------------------------------------------------------------------


def make_of(cls: type) -> str:
    """Return what a class is made of, as text of a fixed length; the same for equal classes in every process."""
    known = _Known.makes.get(cls)
    if known is None:
        lines = [cls.__module__, cls.__qualname__, *map(_name, cls.__bases__), _name(type(cls))]
        space = vars(cls)
        if isinstance(enumerated := space.get("_member_map_"), dict):
            lines += [f"{name} = {_plain(member._value_)}" for name, member in enumerated.items()]
        lines += [line for name in sorted(set(space) - _SKIPPED) for line in _of_member(name, space[name])]
        if isinstance(cls, msgspec.StructMeta):
            fields = struct_fields(cls).items()
            lines += [f"{name} {made} {_plain(default)}" for name, (made, default) in fields]
            lines += [f"{name} {value!r}" for name, value in struct_settings(cls).items()]
        lines += map(make_of, (base for base in cls.__bases__ if travels(base)))
        _Known.certain[cls] = all(_is_certain(cls, name, member) for name, member in space.items())
        known = _Known.makes[cls] = blake2b(
            "\n".join(lines).encode(errors="replace"), digest_size=_MADE // 2
        ).hexdigest()
    return known


def travels(cls: type) -> bool:
    """Return whether a class travels by value."""
    return cls.__module__ != "builtins" and not by_value._should_pickle_by_reference(cls)


def _of_member(name: str, member: object) -> Iterable[str]:
    if name == "__annotations__" and isinstance(member, dict):
        return [f"{name}: {_kind(each)}" for name, each in member.items()]
    if name == "__dataclass_params__":
        return [f"{name} {member!r}"]
    if name == "__dataclass_fields__" and isinstance(member, dict):
        return [
            f"{name} {_plain(each.default)} {_name(each.default_factory)} {each.init} {each.kw_only}"
            for name, each in member.items()
        ]
    inner = getattr(member, "__func__", None) or getattr(member, "func", None) or getattr(member, "__wrapped__", member)
    functions = (member.fget, member.fset, member.fdel) if isinstance(member, property) else (inner,)
    lines = [f"{name} {type(member).__name__}"]
    for function in functions:
        if isinstance(function, types.FunctionType):
            lines += [*_of_code(function.__code__), _plain(function.__defaults__), _plain(function.__kwdefaults__)]
            lines += map(_plain, _cells(function))
        elif not isinstance(function, functools.partial):
            lines.append(_plain(function))
    return lines


def _cells(function: types.FunctionType) -> list[object]:
    return [getattr(cell, "cell_contents", None) for cell in function.__closure__ or ()]


def _is_certain(cls: type, name: str, member: object) -> bool:
    """Return whether all that an attribute holds is part of the make."""
    if name in _SKIPPED or name in _SAID:
        return True
    if isinstance(member, property):
        return all(_is_certain(cls, name, each) for each in (member.fget, member.fset, member.fdel))
    inner = getattr(member, "__func__", None) or getattr(member, "func", None) or member
    if isinstance(inner, types.FunctionType):
        values = (*_cells(inner), inner.__defaults__, *(inner.__kwdefaults__ or {}).values())
        return all(each is cls or _is_plain(each) for each in values)
    return isinstance(member, (*_DESCRIPTORS, types.BuiltinFunctionType)) or _is_plain(member)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_plain, value))
    return type(value) in _ATOMS or (isinstance(value, type) and not travels(value))


_SAID = frozenset({"__annotations__", "__dataclass_params__", "_member_map_", "_member_names_", "_value2member_map_"})
"""What can be changed in place, but is part of the make."""


def _of_code(code: types.CodeType) -> list[str]:
    lines = [code.co_name, code.co_code.hex(), repr((code.co_names, code.co_varnames, code.co_freevars))]
    for constant in code.co_consts:
        lines += _of_code(constant) if isinstance(constant, types.CodeType) else [_plain(constant)]
    return lines


def _plain(value: object) -> str:
    """Return a value that cannot change as text; of any other its kind."""
    kind = type(value)
    if kind in _ATOMS:
        return repr(value)
    if isinstance(value, tuple):
        return f"{_name(kind)}({', '.join(map(_plain, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    return _kind(value) if isinstance(value, type) else f"a {_name(kind)}"


def _kind(value: object) -> str:
    """Return an annotation as text."""
    if isinstance(value, str):
        return value
    return _name(value) if isinstance(value, type) else f"{type(value).__name__} {_name(value)}"


def _name(value: object) -> str:
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    return f"{module}.{name}" if name else type(value).__qualname__
