"""What a function's fingerprint covers, piece by piece: only to say later which of them changed."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator

from pilot_hitl._codes import global_reads
from pilot_hitl._fingerprint import NotFingerprintable, fingerprint
from pilot_hitl._modules import ModuleVersions
from pilot_hitl.errors import PayloadError
from pilot_hitl.wire.imports import imported
from pilot_hitl.wire.ownership import Script

PART_BYTES = 6
"""Of each fingerprint: what differs is only named by it."""
MAX_PARTS = 200


def parts_of(function: object, modules: ModuleVersions) -> dict[str, bytes]:
    """Return short fingerprints of a function's own code and of all of the script's that it reaches, by name."""
    found: dict[str, bytes] = {}
    inside: set[str] = set()
    for name, value in _reached(function, modules):
        if len(found) >= MAX_PARTS:
            break
        if isinstance(value, types.CodeType):
            inside.update(imported(value, name))
            continue
        try:
            found.setdefault(name, fingerprint(value, modules)[:PART_BYTES])
        except NotFingerprintable:
            continue
    try:
        for name, version in modules.closure(sorted(inside)).items():
            found.setdefault(f"module {name}", version.entry.digest[:PART_BYTES])
    except PayloadError:
        pass  # which is said where the function is packed
    return found


def _reached(function: object, modules: ModuleVersions) -> Iterator[tuple[str, object]]:
    """Yield ``(name, value)`` of what a function is made of and of what it reads, and of the functions among that.

    Their code comes too, with the package in which it imports.
    """
    script = modules.script
    todo: list[tuple[str, object]] = [("", function)]
    seen: set[int] = set()
    while todo:
        name, value = todo.pop()
        if isinstance(value, functools.partial):
            yield f"arguments of the partial {name}".rstrip(), (value.args, value.keywords)
            todo.append((name, value.func))
        elif isinstance(value, types.MethodType):
            if not isinstance(value.__self__, type):
                yield f"object of the method {value.__func__.__qualname__}", value.__self__
            todo.append((name, value.__func__))
        elif not isinstance(value, types.FunctionType):
            if name:
                yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            if name and not script.owns(value.__module__ or ""):
                continue
            yield f"{value.__qualname__}()", (value.__code__, value.__defaults__, value.__kwdefaults__)
            yield str(value.__globals__.get("__package__") or ""), value.__code__
            todo.extend(_read_by(value, script))


def _read_by(function: types.FunctionType, script: Script) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # it is not bound yet
    known = function.__globals__
    for name in sorted(set(global_reads(function.__code__)) & known.keys()):
        value = known[name]
        if isinstance(value, types.ModuleType) and script.owns(value.__name__):
            used = set(function.__code__.co_names) & vars(value).keys()
            yield from ((f"{name}.{each}", vars(value)[each]) for each in sorted(used))
        elif not isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            yield name, value
