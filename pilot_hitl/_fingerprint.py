"""Fingerprints: what a value, or a function with all that it uses, *is*, independent of process and address.

Equal fingerprints on two runs of a script mean "the same work". A fingerprint covers a function's bytecode, constants,
defaults and closure, and the globals it reads; functions and classes of the script's own modules are followed, those
of installed packages are known by name (lambdas and closures have none that tells, so they are always followed).
Bytecode differs between Python versions, so fingerprints do too.
"""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any

ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
"""Exact types whose ``repr`` says everything, and nothing about the process."""
DIGEST_BYTES = 16
_OURS = frozenset({"pilot_hitl", "pilot_hitl_agent", "pilot_hitl_services"})
_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_NOT_OF_A_CLASS = frozenset(
    {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__qualname__"}
)
FutureKey = Callable[[object], bytes | None]
"""The resume key of a future (empty when it has none); None for anything that is not a future."""


class NotFingerprintable(Exception):
    """The value is not known by its content."""


def no_futures(_value: object) -> bytes | None:
    """Say that nothing is a future."""
    return None


class Script:
    """Which modules belong to the script itself, so that their code counts.

    All that are neither the interpreter's nor of an installed package: ``__main__``, what lies beside it, and what the
    script finds through ``PYTHONPATH`` or an editable install. To count too much costs a run, to count too little
    would reuse what is stale.
    """

    def __init__(self) -> None:
        """Look at the interpreter's folders now."""
        self._installed = tuple(
            sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")
        )
        self._known: dict[str, bool] = {}

    def owns(self, module: str) -> bool:
        """Return whether the code of the module of this name counts."""
        known = self._known.get(module)
        if known is None:
            known = self._known[module] = self._look(module)
        return known

    def _look(self, module: str) -> bool:
        if module in {"__main__", "__mp_main__", ""}:
            return True
        if module.partition(".")[0] in _OURS:
            return False
        file = getattr(sys.modules.get(module), "__file__", None)
        if not isinstance(file, str) or file.startswith(self._installed):
            return False
        return not {"site-packages", "dist-packages"} & set(Path(file).parts)


def global_reads(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that a code object, or code nested in it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_READS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_reads(constant)


def rebinds(code: types.CodeType, names: tuple[str, ...]) -> bool:
    """Return whether a code object, or code nested in it, binds one of the cells of these names anew."""
    if not names:
        return False
    stores = any(each.opname == "STORE_DEREF" and each.argval in names for each in dis.get_instructions(code))
    return stores or any(rebinds(each, names) for each in code.co_consts if isinstance(each, types.CodeType))


def _attribute_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _attribute_names(constant)
    return names


def fingerprint(value: object, script: Script, future_key: FutureKey = no_futures) -> bytes:
    """Return 16 bytes that are the same for equal values in every process.

    Sets and dictionaries count without order; numpy arrays by dtype, shape and content; futures by their resume key;
    functions and classes as the module says; other objects by type and by what pickling would save of them.

    Raises:
        NotFingerprintable: the value, or something in it, is not known by its content. The message names it.
    """
    writer = _Writer(script, future_key)
    try:
        writer.add(value)
    except RecursionError as error:
        raise NotFingerprintable("it is nested too deeply") from error
    return writer.state.digest()


class _Writer:
    """Feeds one hash with an unambiguous, tagged form of values."""

    def __init__(self, script: Script, future_key: FutureKey) -> None:
        self.state = blake2b(digest_size=DIGEST_BYTES)
        self._script = script
        self._future_key = future_key
        self._open: dict[int, int] = {}  # containers on the way to here, so that cycles end
        self._followed: dict[int, tuple[int, object]] = {}  # functions and classes, kept alive for their id

    def _put(self, tag: bytes, content: bytes | memoryview = b"") -> None:
        self.state.update(b"%b%d:" % (tag, len(content)))
        self.state.update(content)

    def add(self, value: Any) -> None:
        """Feed a value."""
        kind = type(value)
        if kind in ATOMS:
            # Hexadecimal, because the decimal form of a very long integer is refused by Python.
            self._put(kind.__name__.encode(), b"%x" % value if kind is int else repr(value).encode())
            return
        key = self._future_key(value)
        if key is not None:
            if not key:
                raise NotFingerprintable(f"{value!r} is not resumable itself")
            self._put(b"future", key)
        elif isinstance(value, types.FunctionType | type | types.CodeType | types.ModuleType):
            self._follow(value)
        elif id(value) in self._open:
            self._put(b"cycle", b"%d" % self._open[id(value)])
        else:
            self._open[id(value)] = len(self._open)
            try:
                self._add_container(value, kind)
            finally:
                del self._open[id(value)]

    def _add_container(self, value: Any, kind: type) -> None:
        if kind is tuple or kind is list:
            self._put(kind.__name__.encode(), b"%d" % len(value))
            for item in value:
                self.add(item)
        elif kind is dict:
            self._add_mapping(value)
        elif kind is set or kind is frozenset:
            self._put(b"set", b"".join(sorted(self._apart(item) for item in value)))
        elif kind is bytearray:
            self._put(b"bytearray", bytes(value))
        elif kind is types.MethodType:
            self._put(b"method")
            self.add(value.__func__)
            self.add(value.__self__)
        elif kind is functools.partial:
            self._put(b"partial")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType | types.MethodDescriptorType):
            self._add_builtin(value)
        elif (numpy := sys.modules.get("numpy")) is not None and kind is numpy.ndarray:
            self._add_array(value)
        else:
            self._add_object(value)

    def _apart(self, value: object) -> bytes:
        writer = _Writer(self._script, self._future_key)
        writer.add(value)
        return writer.state.digest()

    def _add_mapping(self, value: dict[Any, Any]) -> None:
        self._put(b"dict", b"%d" % len(value))
        if all(type(key) is str for key in value):
            for key in sorted(value):
                self.add(key)
                self.add(value[key])
        else:
            for digest, item in sorted(((self._apart(key), item) for key, item in value.items()), key=itemgetter(0)):
                self._put(b"key", digest)
                self.add(item)

    def _add_array(self, value: Any) -> None:
        if value.dtype.hasobject:
            self._put(b"objects", repr(value.shape).encode())
            self.add(value.tolist())
        else:
            self._put(b"array", f"{value.dtype.str}{value.dtype.descr}{value.shape}".encode())
            self._put(b"data", value.tobytes())

    def _add_builtin(self, value: Any) -> None:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self._put(b"bound", value.__name__.encode())
            self.add(owner)
        else:
            module = getattr(value, "__module__", None) or getattr(value, "__objclass__", type(None)).__module__
            self._put(b"builtin", f"{module}.{value.__qualname__}".encode())

    def _add_object(self, value: Any) -> None:
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # boundary: anybody's __reduce__
            raise NotFingerprintable(f"an object of type {_name(type(value))} cannot be looked into") from error
        if isinstance(reduced, str):
            self._put(b"global", f"{type(value).__module__}.{reduced}".encode())
            return
        self._put(b"object", b"%d" % len(reduced))
        for index, part in enumerate(reduced):
            if index in {3, 4} and part is not None:
                self.add(list(part))
            else:
                self.add(part)

    def _follow(self, value: Any) -> None:
        seen = self._followed.get(id(value))
        if seen is not None:
            self._put(b"seen", b"%d" % seen[0])
            return
        self._followed[id(value)] = (len(self._followed), value)
        if isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, types.ModuleType):
            self._put(b"module", value.__name__.encode())
        elif "<" not in value.__qualname__ and not self._script.owns(value.__module__ or ""):
            self._put(b"named", _name(value).encode())
        elif isinstance(value, type):
            self._add_class(value)
        else:
            self._add_function(value)

    def _add_code(self, code: types.CodeType) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self._put(b"code", code.co_code)
        self._put(b"shape", repr((counts, names)).encode())
        self._put(b"handlers", code.co_exceptiontable)
        for constant in code.co_consts:
            if constant is Ellipsis or type(constant) is complex:
                self._put(b"constant", repr(constant).encode())
            else:
                self.add(constant)

    def _add_function(self, function: types.FunctionType) -> None:
        self._put(b"function")
        self.add(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self._put(b"empty")
        known = function.__globals__
        for name in sorted(set(global_reads(function.__code__))):
            if name in known:
                self._put(b"reads", name.encode())
                self._add_global(known[name], function.__code__)

    def _add_global(self, value: object, code: types.CodeType) -> None:
        self.add(value)
        if isinstance(value, types.ModuleType) and self._script.owns(value.__name__):
            for name in sorted(_attribute_names(code) & set(vars(value))):
                self._put(b"attribute", name.encode())
                self.add(vars(value)[name])

    def _add_class(self, cls: type) -> None:
        self._put(b"class", cls.__qualname__.encode())
        self.add(cls.__bases__)
        for name in sorted(set(vars(cls)) - _NOT_OF_A_CLASS):
            self._put(b"attribute", name.encode())
            self._add_member(vars(cls)[name])

    def _add_member(self, member: Any) -> None:
        if isinstance(member, staticmethod | classmethod):
            self._put(type(member).__name__.encode())
            self.add(member.__func__)
        elif isinstance(member, property):
            self._put(b"property")
            self.add((member.fget, member.fset, member.fdel))
        elif isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType | types.WrapperDescriptorType):
            self._put(b"descriptor", member.__name__.encode())
        else:
            self.add(member)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
