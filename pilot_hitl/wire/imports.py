"""The modules that code imports, seen without running it."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator

_IMPORT = dis.opmap["IMPORT_NAME"]
_BY_TEXT = frozenset({"import_module", "__import__", "find_spec"})
"""Where one of these is named, a text may be the name of a module."""

_RUNS = frozenset({"import_module", "__import__"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_NAMED = frozenset({*_GLOBALS, "LOAD_ATTR", "LOAD_METHOD", "LOAD_DEREF"})
_NO_VALUE = frozenset({"EXTENDED_ARG", "PUSH_NULL", "NOP", "CACHE"})
_CALLS = frozenset({"PRECALL", "CALL", "CALL_KW"})
_STORE = "STORE_FAST"
_PLAIN = frozenset({*_GLOBALS, "LOAD_CONST", "LOAD_FAST"})


def imported(code: types.CodeType, package: str) -> Iterator[str]:
    """Yield absolute names that code in ``package`` (or code nested in it) may import.

    A name may be that of a module's attribute, or of nothing: ``from a import b`` yields ``a`` and ``a.b``.
    """
    by_text = not _BY_TEXT.isdisjoint(code.co_names)
    constants: list[object] = []
    # Most code imports nothing, and to take instructions apart is slow.
    for instruction in dis.get_instructions(code) if _IMPORT in code.co_code[::2] else ():
        if instruction.opname in {"LOAD_CONST", "LOAD_SMALL_INT"}:
            constants.append(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            level, names = [*constants, 0, None][-4:-2] if len(constants) > 1 else (0, None)
            yield from _absolute(str(instruction.argval), level, names, package)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from imported(constant, package)
        elif by_text and isinstance(constant, str) and _is_name(constant):
            yield from _absolute(constant.lstrip("."), len(constant) - len(constant.lstrip(".")), None, package)


def imported_by_text(code: types.CodeType, more: frozenset[str] = frozenset()) -> Iterator[tuple[bool, str]]:
    """Yield for each import by a text what names the module: ``(True, text)``, ``(False, global)``, or ``(False, "")``.

    The last stands for a name that is computed. ``more``: other names by which the code calls what imports.
    """
    runs = _RUNS | more
    if not runs.isdisjoint(code.co_names):
        instructions = [each for each in dis.get_instructions(code) if each.opname not in _NO_VALUE]
        for at, instruction in enumerate(instructions):
            if instruction.argval in runs and instruction.opname in _NAMED:
                yield _named_by(code, instructions, instructions[at + 1 :])
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from imported_by_text(constant, more)


def _named_by(
    code: types.CodeType, instructions: list[dis.Instruction], following: list[dis.Instruction]
) -> tuple[bool, str]:
    call = next((at for at, each in enumerate(following) if each.opname in _CALLS), 0)
    values = [each for each in following[:call] if each.opname != "KW_NAMES"]
    if not values or following[call].argval != len(values) or not all(each.opname in _PLAIN for each in values):
        return False, ""
    first = values[0]
    if first.opname == "LOAD_FAST" and first.argval not in code.co_varnames[: code.co_argcount]:
        stored = [at for at, each in enumerate(instructions) if (each.opname, each.argval) == (_STORE, first.argval)]
        first = instructions[stored[0] - 1] if len(stored) == 1 else first
    if first.opname == "LOAD_CONST" and isinstance(first.argval, str):
        return True, first.argval
    return False, str(first.argval) if first.opname in _GLOBALS else ""


def _absolute(name: str, level: object, names: object, package: str) -> Iterator[str]:
    if isinstance(level, int) and level:
        base = package.rsplit(".", level - 1)[0] if level > 1 else package
        name = f"{base}.{name}" if name else base
    if not name:
        return
    yield name
    for each in names if isinstance(names, tuple) else ():
        if each != "*":
            yield f"{name}.{each}"


def _is_name(text: str) -> bool:
    return len(text) < 256 and all(part.isidentifier() for part in text.lstrip(".").split("."))
