"""What code reads and binds, seen without running it."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from functools import partial
from importlib.util import resolve_name

from pilot_hitl.wire.raised import attempt

Uses = dict[str, set[tuple[str, ...]]]
"""Variables with how each is used: the attributes that are read of it, of these, and so on.

``("b", "c")`` for ``a.b.c``, and ``()`` where the variable itself goes anywhere.
"""
_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_LOCAL_READS = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF"})
_WHILE_IMPORTING = frozenset({"EXTENDED_ARG", "CACHE", "NOP", "SWAP", "POP_TOP", "COPY"})
_IMPORT = dis.opmap["IMPORT_NAME"]
_ATTRIBUTE_READS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield code, and all code in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)


def global_reads(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that a code object, or code nested in it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_READS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_reads(constant)


def global_uses(code: types.CodeType, *, stores: bool = True) -> Uses:
    """Return the globals that a code object, or code nested in it, reads, with how each is used.

    ``stores``: to bind an attribute of one is a use as well.
    """
    return _uses(code, _GLOBAL_READS, stores)


def local_uses(code: types.CodeType) -> Uses:
    """Return the variables and cells that a code object, or code nested in it, reads, as :func:`global_uses`."""
    return _uses(code, _LOCAL_READS, stores=False)


def _uses(code: types.CodeType, reads: frozenset[str], stores: bool) -> Uses:
    uses: Uses = {}
    name: str = ""
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue
        if name and instruction.opname in _ATTRIBUTE_READS:
            chain.append(instruction.argval)
            continue
        if name and (stores or instruction.opname != "STORE_ATTR"):
            uses.setdefault(name, set()).add(tuple(chain))
        name, chain = "", []
        if instruction.opname in reads:
            name = instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for each, found in _uses(constant, reads, stores).items():
                uses.setdefault(each, set()).update(found)
    return uses


def imported_uses(code: types.CodeType, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what code, or code nested in it, reads of modules that it imports itself: a module, and what of it."""
    # Most code imports nothing, and to take instructions apart is slow.
    bound = list(_imports(code, package)) if _IMPORT in code.co_code[::2] else []
    uses = local_uses(code) if bound else {}
    for variable, module, chain in bound:
        for more in uses.get(variable, {()}):
            yield module, chain + more
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from imported_uses(constant, package)


def _imports(code: types.CodeType, package: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the variables that code binds by importing: each with a module, and what of it was taken."""
    before: list[object] = [0, None]
    chain: tuple[str, ...] = ()
    module, several = "", False
    for each in dis.get_instructions(code):
        if each.opname in {"LOAD_CONST", "LOAD_SMALL_INT"}:
            before = [before[-1], each.argval]
        elif each.opname == "IMPORT_NAME":
            level, names = before
            several = bool(names)
            dots = "." * level if isinstance(level, int) else ""
            found, _ = attempt(partial(resolve_name, dots + each.argval, package or None))
            module = found or ""  # a relative one may lead out of its package
            module, chain = module if several else module.partition(".")[0], ()
        elif each.opname == "IMPORT_FROM":
            chain = (each.argval,) if several else (*chain, each.argval)
        elif each.opname in {"STORE_FAST", "STORE_DEREF"} and module:
            yield each.argval, module, chain
            module = module if several else ""
        elif each.opname not in _WHILE_IMPORTING:
            module = ""


def attribute_stores(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code object, or code nested in it, binds as attributes."""
    for part in nested(code):
        yield from (each.argval for each in dis.get_instructions(part) if each.opname == "STORE_ATTR")


def attribute_names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code object, or code nested in it, may read as attributes."""
    for part in nested(code):
        yield from part.co_names


def rebinds(code: types.CodeType, names: tuple[str, ...]) -> bool:
    """Return whether a code object, or code nested in it, binds one of the cells of these names anew."""
    if not names:
        return False
    stores = any(each.opname == "STORE_DEREF" and each.argval in names for each in dis.get_instructions(code))
    return stores or any(rebinds(each, names) for each in code.co_consts if isinstance(each, types.CodeType))
