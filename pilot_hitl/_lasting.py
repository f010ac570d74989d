"""What surely stands in a module after its import, seen without running it: constants, displays of them, functions.

Whoever finds something else there knows that somebody else than the module put it there. What is not sure is left out:
what is bound more than once or under a condition, bound by functions, or changed in place, and modules that bind names
by text.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pilot_hitl._codes import attribute_names, nested
from pilot_hitl.wire.ownership import MAINS

Space = dict[str, object]
"""Values by name; the code of functions in their place."""
_UNKNOWN: Any = object()
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_SILENT = frozenset({"EXTENDED_ARG", "CACHE", "NOP", "RESUME", "PRECALL"})
_CONSTANTS = frozenset({"LOAD_CONST", "LOAD_SMALL_INT"})
_BINDS_BY_TEXT = frozenset({"globals", "vars", "locals", "exec"})
_READING_METHODS = frozenset({"get", "items", "keys", "values", "copy", "index", "count", "isdisjoint", "union"})
_READS = frozenset({"GET_ITER", "CONTAINS_OP", "COMPARE_OP", "LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE"})
_ENDS = frozenset({"BINARY_OP", "POP_TOP", "FORMAT_VALUE", "FORMAT_SIMPLE", "BUILD_STRING"})
_NAMED = frozenset({"LOAD_NAME", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD"})
_SIMPLE = frozenset({*_CONSTANTS, "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF"})
_MADE_BY_CLASS = "__qualname__"


class Lasting(NamedTuple):
    """What surely stands in a module.

    Attributes:
        names: the module's globals.
        classes: attributes of its classes, by qualified name.
    """

    names: Space
    classes: dict[str, Space]


class Changes(NamedTuple):
    """What code may change, wherever that stands.

    Attributes:
        attributes: names that it binds as attributes.
        insides: names of what it may change in place, or hands on to somebody who may.
        depths: names of what it may change the parts of in place.
    """

    attributes: frozenset[str]
    insides: frozenset[str]
    depths: frozenset[str]

    def reach(self, name: str, value: object) -> bool:
        """Return whether a value with this name may be changed in place."""
        if name in self.insides:
            return _is_container(value)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return name in self.depths and any(map(_is_container, parts))


def lasting(code: types.CodeType) -> Lasting:
    """Return what surely stands in a module with this code."""
    changes = changes_of(code)
    names = frozenset(attribute_names(code))
    classes: dict[str, list[Space]] = {}
    if "setattr" not in names:
        for each in _classes(code):
            sure = _sure(each, changes.attributes, changes)
            classes.setdefault(each.co_qualname, []).append(
                {name: value for name, value in sure.items() if name[:2] != "__"}
            )
    by_text = not _BINDS_BY_TEXT.isdisjoint(names) or {"setattr", "modules"} <= names or _imports_all(code)
    return Lasting(
        {} if by_text else _sure(code, frozenset(_global_stores(code)), changes),
        {name: found[0] for name, found in classes.items() if len(found) == 1},
    )


def changes_of(code: types.CodeType) -> Changes:
    """Return what code, and code nested in it, may change."""
    attributes, insides, depths = set(), set(), set()
    for each in nested(code):
        instructions = [one for one in dis.get_instructions(each) if one.opname not in _SILENT]
        for at, one in enumerate(instructions):
            if one.opname in {"STORE_ATTR", "DELETE_ATTR"}:
                attributes.add(one.argval)
            elif one.opname in _NAMED:
                following = instructions[at + 1 : at + 8]
                if not _only_reads(following):
                    insides.add(one.argval)
                if not _only_reads_parts(following):
                    depths.add(one.argval)
    return Changes(frozenset(attributes), frozenset(insides), frozenset(depths))


def is_same(value: object, constant: object) -> bool:
    """Return whether a value is still what a constant, a display of constants, or the code of a function, made.

    Decorators and metaclasses make another function of one: only what is the script's own counts as another one.
    """
    if value is constant:
        return True
    if isinstance(constant, types.CodeType):
        return not isinstance(value, types.FunctionType) or value.__globals__.get("__name__") not in MAINS
    if type(value) is not type(constant):
        return False
    if isinstance(value, dict) and isinstance(constant, dict):
        return len(value) == len(constant) and _all_same(value.items(), constant.items())
    if isinstance(value, list | tuple) and isinstance(constant, list | tuple):
        return len(value) == len(constant) and _all_same(value, constant)
    if isinstance(value, set | frozenset):
        return value == constant
    return repr(value) == repr(constant)


def _global_stores(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that functions in the code of a module bind."""
    for each in nested(code):
        if each is not code:
            yield from (one.argval for one in dis.get_instructions(each) if one.opname == "STORE_GLOBAL")


def _all_same(values: Iterable[object], constants: Iterable[object]) -> bool:
    return all(map(is_same, values, constants))


def _imports_all(code: types.CodeType) -> bool:
    instructions = dis.get_instructions(code)
    return any(each.opname == "IMPORT_STAR" or each.argrepr == "INTRINSIC_IMPORT_STAR" for each in instructions)


def _classes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the bodies of classes that stand in a module, and in these; not those that functions make."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType) and _MADE_BY_CLASS in constant.co_names:
            yield constant
            yield from _classes(constant)


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list | set)


def _sure(code: types.CodeType, bound: frozenset[str], changes: Changes) -> Space:
    return {
        name: values[0]
        for name, values in _bindings(code).items()
        if len(values) == 1 and values[0] is not _UNKNOWN and name not in bound and not changes.reach(name, values[0])
    }


def _bindings(code: types.CodeType) -> dict[str, list[object]]:
    """Return what the code of a module or class binds, each name with all that it is bound to."""
    found: dict[str, list[object]] = {}
    stack: list[object] = []
    skipped = 0  # what stands before this may be jumped over
    for each in dis.get_instructions(code):
        if each.is_jump_target:
            stack.clear()
        if each.opname in _SILENT:
            continue
        if each.opcode in _JUMPS:
            skipped = max(skipped, int(each.argval))
            stack.clear()
        elif each.opname in {"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL"}:
            value = stack.pop() if stack and each.opname[0] == "S" else _UNKNOWN
            found.setdefault(each.argval, []).append(value if each.offset >= skipped else _UNKNOWN)
        elif each.opname in _CONSTANTS:
            stack.append(each.argval)
        elif (make := _MAKERS.get(each.opname)) is None or not make(stack, each.arg or 0):
            stack.clear()
    return found


def _take(stack: list[object], count: int) -> list[Any] | None:
    """Take so many values from a stack; None where not all are known."""
    if count > len(stack):
        return None
    values = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return values


def _build(make: Callable[[list[Any]], object], each: int = 1) -> Callable[[list[object], int], bool]:
    def build(stack: list[object], count: int) -> bool:
        if (values := _take(stack, count * each)) is None:
            return False
        stack.append(make(values))
        return True

    return build


def _build_with_keys(stack: list[object], count: int) -> bool:
    if (values := _take(stack, count + 1)) is None:
        return False
    stack.append(dict(zip(values[-1], values, strict=False)))
    return True


def _extend(stack: list[object], depth: int) -> bool:
    if depth != 1 or (values := _take(stack, 2)) is None:
        return False
    into, more = values
    if isinstance(into, list):
        into.extend(more)
    else:
        into.update(more)
    stack.append(into)
    return True


def _make_function(stack: list[object], _flags: int) -> bool:
    if not stack or not isinstance(stack[-1], types.CodeType):
        return False
    stack[:-1] = []  # defaults and the like
    return True


def _add_item(stack: list[object], depth: int) -> bool:
    if depth != 1 or (values := _take(stack, 3)) is None:
        return False
    into, key, value = values
    into[key] = value
    stack.append(into)
    return True


_MAKERS: Mapping[str, Callable[[list[object], int], bool]] = {
    "BUILD_LIST": _build(list),
    "BUILD_TUPLE": _build(tuple),
    "BUILD_SET": _build(set),
    "BUILD_MAP": _build(lambda values: dict(zip(values[::2], values[1::2], strict=True)), 2),
    "BUILD_CONST_KEY_MAP": _build_with_keys,
    "LIST_EXTEND": _extend,
    "SET_UPDATE": _extend,
    "DICT_UPDATE": _extend,
    "MAP_ADD": _add_item,
    "MAKE_FUNCTION": _make_function,
    "SET_FUNCTION_ATTRIBUTE": _make_function,
}


def _only_reads(following: list[dis.Instruction]) -> bool:
    """Return whether what was loaded just before is not changed in place, as far as it can be seen."""
    if not following:
        return False
    first = following[0]
    if first.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
        return first.argval in _READING_METHODS
    if first.opname in _SIMPLE and len(following) > 1:
        return _takes_a_part(following[1]) or following[1].opname in {"CONTAINS_OP", "COMPARE_OP"}
    return first.opname in _READS


def _only_reads_parts(following: list[dis.Instruction]) -> bool:
    """Return whether the parts of what was loaded just before are not changed in place either."""
    while len(following) > 1 and following[0].opname in _SIMPLE and _takes_a_part(following[1]):
        following = following[2:]
    if following and following[0].opname in _SIMPLE:
        following = following[1:]  # the other operand
    return bool(following) and (following[0].opname in _ENDS or following[0].opname in {"CONTAINS_OP", "COMPARE_OP"})


def _takes_a_part(instruction: dis.Instruction) -> bool:
    return instruction.opname == "BINARY_SUBSCR" or instruction.argrepr in {"[]", "NB_SUBSCR"}
