"""What code reads and binds, seen without running it."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator

_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTE_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


def global_reads(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that a code object, or code nested in it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_READS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_reads(constant)


def global_uses(code: types.CodeType) -> dict[str, set[tuple[str, ...]]]:
    """Return the globals that a code object, or code nested in it, reads, with how each is used.

    A use is the attributes that are read of it, of these, and so on: ``("b", "c")`` for ``a.b.c``, and ``()`` where the
    global itself goes anywhere.
    """
    uses: dict[str, set[tuple[str, ...]]] = {}
    name: str = ""
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue
        if name and instruction.opname in _ATTRIBUTE_READS:
            chain.append(instruction.argval)
            continue
        if name:
            uses.setdefault(name, set()).add(tuple(chain))
        name, chain = "", []
        if instruction.opname in _GLOBAL_READS:
            name = instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for each, found in global_uses(constant).items():
                uses.setdefault(each, set()).update(found)
    return uses


def attribute_names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code object, or code nested in it, may read as attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from attribute_names(constant)


def rebinds(code: types.CodeType, names: tuple[str, ...]) -> bool:
    """Return whether a code object, or code nested in it, binds one of the cells of these names anew."""
    if not names:
        return False
    stores = any(each.opname == "STORE_DEREF" and each.argval in names for each in dis.get_instructions(code))
    return stores or any(rebinds(each, names) for each in code.co_consts if isinstance(each, types.CodeType))


def constants_of(code: types.CodeType) -> dict[str, list[object]]:
    """Return the constants that the code of a module binds to names, each with all that it is bound to."""
    found: dict[str, list[object]] = {}
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue
        if instruction.opname == "STORE_NAME":
            constant = before is not None and before.opname in {"LOAD_CONST", "LOAD_SMALL_INT"}
            found.setdefault(instruction.argval, []).append(before.argval if before and constant else Ellipsis)
        before = instruction
    return found


def global_stores(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that functions in the code of a module bind."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            stores = (each.argval for each in dis.get_instructions(constant) if each.opname == "STORE_GLOBAL")
            yield from stores
            yield from global_stores(constant)
