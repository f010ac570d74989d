"""The modules that code imports, seen without running it."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator

_IMPORT = dis.opmap["IMPORT_NAME"]
_BY_TEXT = frozenset({"import_module", "__import__", "find_spec"})
"""Where one of these is named, a text may be the name of a module."""


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
