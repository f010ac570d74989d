"""Fingerprints: what a value, or a function with all that it uses, *is*, independent of process and address.

Equal fingerprints on two runs of a script mean "the same work". A fingerprint covers a function's bytecode, constants,
defaults and closure, and the globals it reads; functions and classes of the script's own modules are followed, those
of installed packages are known by name (lambdas and closures have none that tells, so they are always followed).
What stands for a function (a cache, a compiled one) is followed to it. A module of the script of which more is used
than attributes by name, as one that is imported inside a function, counts whole, with all that it imports.
Bytecode differs between Python versions, so fingerprints do too.
"""

from __future__ import annotations

import abc
import contextlib
import copyreg
import functools
import pickle
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from importlib import import_module
from importlib.util import resolve_name
from operator import itemgetter
from typing import Any

import msgspec

from pilot_hitl import _codes
from pilot_hitl._modules import ModuleVersions
from pilot_hitl.wire.classes import struct_fields, struct_settings
from pilot_hitl.wire.imports import imported, imported_by_text
from pilot_hitl.wire.ownership import MAINS
from pilot_hitl.wire.pickling import CACHED, is_dispatcher
from pilot_hitl.wire.raised import attempt

ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
"""Exact types whose ``repr`` says everything, and nothing about the process."""
DIGEST_BYTES = 16
# What says nothing of the class, or is put there when it is first used.
_NOT_OF_A_CLASS = frozenset(
    {
        "__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__", "__qualname__",
        "_abc_impl", "__signature__", "__slotnames__", "_value2member_map_",
    }
)  # fmt: skip
_OF_PYDANTIC = "__pydantic_"
_OF_A_FUNCTION = frozenset({"__name__", "__qualname__", "__annotations__"})
"""Of these a function's own code, and what it does, know nothing."""
_BY_NAME = frozenset({"globals", "eval", "exec"})
"""Where code names one of these, it may use anything of its module."""
_PARAMETERS = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)
FutureKey = Callable[[object], bytes | None]
"""The resume key of a future (empty when it has none); None for anything that is not a future."""


class NotFingerprintable(Exception):
    """The value is not known by its content."""


def no_futures(_value: object) -> bytes | None:
    """Say that nothing is a future."""
    return None


class Findings:
    """What was met while something was fingerprinted.

    Attributes:
        unsure: what of the code that may run cannot be seen, in words.
        imports: modules of the script that code imports by a text when it runs.
        made_by: modules of the script whose functions and classes are used.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.unsure: list[str] = []
        self.imports: set[str] = set()
        self.made_by: set[str] = set()


def fingerprint(
    value: object, modules: ModuleVersions, future_key: FutureKey = no_futures, findings: Findings | None = None
) -> bytes:
    """Return 16 bytes that are the same for equal values in every process.

    Sets count without order, dictionaries with theirs; arrays and tensors by dtype, shape and content; futures by their
    resume key; functions and classes as the module says; other objects by type and by what pickling would save of them.
    ``findings`` gets what is met on the way.

    Raises:
        NotFingerprintable: the value, or something in it, is not known by its content. The message names it.
        PayloadError: a module was changed on disk since it was imported.
    """
    writer = _Writer(modules, future_key, Findings() if findings is None else findings)
    try:
        writer.add(value)
    except RecursionError as error:
        raise NotFingerprintable("it is nested too deeply") from error
    return writer.state.digest()


class _Writer:
    """Feeds one hash with an unambiguous, tagged form of values."""

    def __init__(self, modules: ModuleVersions, future_key: FutureKey, findings: Findings) -> None:
        self.state = blake2b(digest_size=DIGEST_BYTES)
        self._findings = findings
        self._modules = modules
        self._future_key = future_key
        self._open: dict[int, int] = {}  # containers on the way to here, so that cycles end
        self._followed: dict[int, tuple[int, object]] = {}  # functions and classes, kept alive for their id
        self._checked: set[types.FunctionType] = set()

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
        elif kind is dict or kind is types.MappingProxyType:
            self._add_mapping(value)
        elif kind is set or kind is frozenset:
            self._put(b"set", b"".join(sorted(self._apart(item) for item in value)))
        elif kind is bytearray:
            self._put(b"bytearray", bytes(value))
        elif (numpy := sys.modules.get("numpy")) is not None and kind is numpy.ndarray:
            self._add_array(value)
        elif (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
            self._add_tensor(value, torch)
        else:
            self._add_special(value, kind)

    def _add_special(self, value: Any, kind: type) -> None:
        """Feed an object; pickling does not say of all kinds what they are."""
        if kind is types.MethodType:
            self._put(b"method")
            self.add(value.__func__)
            self.add(value.__self__)
        elif kind is functools.partial:
            self._put(b"partial")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, _MEMBER_KINDS):
            self._add_member(value)
        elif isinstance(value, _DESCRIPTORS):
            self._put(b"descriptor", value.__name__.encode())
        elif isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType | types.MethodDescriptorType):
            self._add_builtin(value)
        elif kind is CACHED:
            self._put(b"cached")
            self.add(value.__wrapped__)
        elif isinstance(value, _PARAMETERS):
            self._put(b"parameter", f"{kind.__name__} {value.__name__}".encode())
            self.add([getattr(value, each, None) for each in ("__bound__", "__constraints__", "__default__")])
        elif kind is msgspec.Meta:
            self._put(b"meta")
            self.add([getattr(value, name) for name in sorted(dir(value)) if name[0] != "_"])
        else:
            self._add_object(value)

    def _apart(self, value: object) -> bytes:
        writer = _Writer(self._modules, self._future_key, self._findings)
        writer.add(value)
        return writer.state.digest()

    def _add_mapping(self, value: Mapping[Any, Any]) -> None:
        self._put(b"dict", b"%d" % len(value))
        for key, item in value.items():
            self.add(key)
            self.add(item)

    def _add_unordered(self, value: Mapping[Any, Any]) -> None:
        """Feed a mapping whose order nobody sees, such as the attributes of an object."""
        self._put(b"unordered", b"%d" % len(value))
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

    def _add_tensor(self, value: Any, torch: Any) -> None:
        """Feed a tensor: what pickling saves of one tells its address."""
        if value.layout is not torch.strided:
            self._add_object(value)  # made of tensors
            return
        if value.is_meta or value.is_quantized:
            raise NotFingerprintable("a tensor without plain content cannot be looked into")
        self._put(b"tensor", f"{value.dtype} {tuple(value.shape)} {value.device.type} {value.requires_grad}".encode())
        self.add((type(value), vars(value)))
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        self._put(b"data", memoryview(plain.view(torch.uint8).numpy()))

    def _add_builtin(self, value: Any) -> None:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self._put(b"bound", value.__name__.encode())
            self.add(owner)
        else:
            module = getattr(value, "__module__", None) or getattr(value, "__objclass__", type(None)).__module__
            self._put(b"builtin", f"{module}.{value.__qualname__}".encode())
            self._add_compiled(str(module))

    def _add_object(self, value: Any) -> None:
        kind: Any = type(value)
        foreign = not self._modules.script.owns(kind.__module__)
        stands_for = _stands_for(value)
        if foreign and hasattr(value, "py_func"):
            # What a compiler keeps beside the function is of this process.
            self._add_stand_in(value, stands_for)
            return
        reducer = copyreg.dispatch_table.get(kind)
        reduced, error = attempt(lambda: value.__reduce_ex__(4) if reducer is None else reducer(value))
        if reduced is None and foreign and stands_for is not None:
            self._add_stand_in(value, stands_for)
            return
        if reduced is None:
            raise NotFingerprintable(f"an object of type {_name(kind)} cannot be looked into") from error
        if isinstance(reduced, str):
            self._add_named(value, reduced, stands_for)
            return
        self._put(b"object", b"%d" % len(reduced))
        for index, part in enumerate(reduced):
            if index in {3, 4} and part is not None:
                self.add(list(part))
            elif index == 2 and type(part) is dict:
                self._add_unordered(part)
            else:
                self.add(part)

    def _add_stand_in(self, value: object, function: object) -> None:
        self._put(b"stands for")
        self.add(type(value))
        self.add(function)

    def _add_named(self, value: object, name: str, stands_for: object) -> None:
        """Feed what pickles by its name alone."""
        module = getattr(value, "__module__", None)
        if not isinstance(module, str):
            module = str(vars(pickle)["whichmodule"](value, name))
        if stands_for is not None:
            self._add_stand_in(value, stands_for)
        elif module in MAINS:
            raise NotFingerprintable(f"of {name}, an object of type {_name(type(value))}, only its name is known")
        else:
            self._put(b"global", f"{module}.{name}".encode())
            self._add_whole(module)

    def _add_whole(self, module: str) -> None:
        """Feed a module with all that it imports, when it is the script's."""
        if content := self._modules.digest(module):
            self._put(b"whole", f"{module} ".encode() + content)

    def _add_compiled(self, module: str) -> None:
        """Feed the file of a module that has no code to look at, such as an extension of the script's own."""
        version = self._modules.of(module)
        if version is not None and not version.code:
            self._put(b"compiled", f"{module} ".encode() + version.entry.digest)

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
            self._add_whole(value.__name__)
            self._modules.look_at_all(value.__name__)
        elif self._is_installed(value):
            self._put(b"named", _name(value).encode())
        else:
            self._findings.made_by.add(value.__module__ or "")
            (self._add_class if isinstance(value, type) else self._add_function)(value)

    def _is_installed(self, value: Any) -> bool:
        """Return whether a function or class is known by its name; what only says so, as ``wraps()`` does, is not."""
        if "<" in value.__qualname__ or self._modules.script.owns(value.__module__ or ""):
            return False
        found: Any = sys.modules.get(value.__module__)
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is value or not isinstance(value, types.FunctionType)

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

    def _add_function(self, function: Any) -> None:
        if is_dispatcher(function):
            self._put(b"dispatcher")
            self._add_unordered(function.registry)
            return
        self._put(b"function")
        code = function.__code__
        self.add(code)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        names = frozenset(_codes.attribute_names(code))
        for cell in function.__closure__ or ():
            try:
                self._add_with_attributes(cell.cell_contents, names)
            except ValueError:
                self._put(b"empty")
        known = function.__globals__
        uses, reads = _codes.global_uses(code), _codes.global_uses(code, stores=False)
        module = function.__module__ or ""
        self._check_reads(function)
        for name in sorted(uses):
            if name in known:
                self._put(b"reads", name.encode())
                self._add_global(known[name], reads.get(name, ()), names)
        for name in sorted(set(imported(code, known.get("__package__") or ""))):
            self._add_whole(name)
        self._add_imported_by_text(function, frozenset(name for name in uses if known.get(name) is import_module))
        if not _BY_NAME.isdisjoint(uses.keys() - known.keys()):
            self._add_whole(module)
            self._modules.look_at_all(module)
        self._add_attributes(function, names)

    def _check_reads(self, function: types.FunctionType) -> None:
        """See that what a function reads in modules is what workers find there, unless it sets that itself."""
        if function in self._checked:
            return
        self._checked.add(function)
        code, known, module = function.__code__, function.__globals__, function.__module__ or ""
        uses = _codes.global_uses(code, stores=False)
        if known is getattr(sys.modules.get(module), "__dict__", None):
            for name in uses.keys() & known.keys():
                self._modules.check_set(module, name, known[name])
        reads = [(known.get(name), chain) for name, chains in uses.items() for chain in chains]
        bound = [(name, value) for name, value in _bound_before(function) if isinstance(value, types.ModuleType)]
        local = _codes.local_uses(code) if bound else {}
        reads += [(value, chain) for name, value in bound for chain in local.get(name, ())]
        imports = _codes.imported_uses(code, known.get("__package__") or "")
        reads += [(sys.modules.get(base), chain) for base, chain in imports]
        stores = frozenset(_codes.attribute_stores(code)) if reads else frozenset()
        for value, chain in reads:
            if isinstance(value, types.ModuleType):
                self._check_chain(value, chain, stores)

    def _check_chain(self, found: object, chain: tuple[str, ...], stores: frozenset[str]) -> None:
        owns = self._modules.script.owns
        for name in chain:
            if not isinstance(found, types.ModuleType) or not owns(found.__name__) or name not in vars(found):
                break
            if name not in stores:
                self._modules.check_set(found.__name__, name, vars(found)[name])
            found = vars(found)[name]
        if isinstance(found, types.ModuleType):
            if owns(found.__name__):
                self._modules.look_at_all(found.__name__)
        elif isinstance(found, types.FunctionType) and owns(found.__module__ or ""):
            self._check_reads(found)
        elif isinstance(found, type) and owns(found.__module__):
            self._modules.check_class(found)

    def _add_imported_by_text(self, function: Any, names: frozenset[str]) -> None:
        known = function.__globals__
        for constant, text in imported_by_text(function.__code__, names):
            name = text if constant else known.get(text)
            if isinstance(name, str) and name[:1] == ".":
                package = known.get("__package__") or ""
                name, _ = attempt(functools.partial(resolve_name, name, package))
            if isinstance(name, str):
                self._add_whole(name)
                self._modules.look_at_all(name)
                self._findings.imports.add(name)
            else:
                self._findings.unsure.append(f"{function.__qualname__}() imports a module by a name that it computes")

    def _add_with_attributes(self, value: object, names: frozenset[str]) -> None:
        """Feed what code with these names uses."""
        self.add(value)
        if isinstance(value, types.FunctionType) or type(value) is CACHED:
            self._add_attributes(value, names)

    def _add_attributes(self, function: object, names: frozenset[str]) -> None:
        """Feed what somebody put at a function, as far as these names reach it."""
        for name in sorted((vars(function).keys() | _OF_A_FUNCTION) & names):
            self._put(b"attribute", name.encode())
            self.add(getattr(function, name))

    def _add_global(self, value: object, uses: Iterable[tuple[str, ...]], names: frozenset[str]) -> None:
        if not isinstance(value, types.ModuleType):
            self._add_with_attributes(value, names)
            return
        self._put(b"module", value.__name__.encode())
        for chain in sorted(set(uses)):
            self._add_attribute(value, chain, names)

    def _add_attribute(self, module: types.ModuleType, chain: tuple[str, ...], names: frozenset[str]) -> None:
        """Feed what ``module.a.b`` is, as far as it is the script's."""
        found: object = module
        for name in chain:
            if not isinstance(found, types.ModuleType) or not self._modules.script.owns(found.__name__):
                break
            if name not in vars(found):
                # Made when it is asked for, or imported by then.
                break
            found = vars(found)[name]
            self._put(b"attribute", name.encode())
        if found is not module or self._modules.script.owns(module.__name__):
            self._add_with_attributes(found, names)

    def _add_class(self, cls: type) -> None:
        self._modules.check_class(cls)
        self._put(b"class", cls.__qualname__.encode())
        self._add_compiled(cls.__module__)
        self.add((type(cls), cls.__bases__))
        for name in sorted(set(vars(cls)) - _NOT_OF_A_CLASS):
            if not name.startswith(_OF_PYDANTIC) and (name != "__annotations__" or vars(cls)[name]):
                self._put(b"attribute", name.encode())
                self.add(vars(cls)[name])
        self._add_fields(cls, vars(cls))
        if "_abc_impl" in vars(cls):
            others = (each() for each in vars(abc)["_get_dump"](cls)[0])
            self._put(b"registered", " ".join(sorted(_name(each) for each in others if each is not None)).encode())

    def _add_fields(self, cls: type, space: Mapping[str, Any]) -> None:
        """Feed the fields of a class that msgspec or pydantic made."""
        if isinstance(cls, msgspec.StructMeta):
            self._put(b"struct")
            self.add((struct_fields(cls), struct_settings(cls), cls.__struct_encode_fields__))
        self.add(space.get("__pydantic_fields__"))
        if (decorators := space.get("__pydantic_decorators__")) is not None:
            for kind in sorted(type(decorators).__dataclass_fields__):
                # The methods themselves are attributes of the class.
                for name, each in sorted(getattr(decorators, kind).items()):
                    self._put(b"decorated", f"{kind} {name}".encode())
                    self.add(each.info)

    def _add_member(self, member: object) -> None:
        """Feed what a class statement wraps a function in; one of a derived class may do something else with it."""
        for kind, names in _MEMBERS.items():
            if isinstance(member, kind):
                self._put(b"member", kind.__name__.encode())
                self.add((type(member), [getattr(member, name) for name in names]))


_MEMBERS: dict[type, tuple[str, ...]] = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("dispatcher",),
}
_MEMBER_KINDS = tuple(_MEMBERS)
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType)


def _bound_before(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the variables of a function that have a value before it is called, with their values."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty one
            yield name, cell.cell_contents
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _stands_for(value: object) -> object:
    """Return the function that a callable object stands for, as caches and compilers leave one; None for others."""
    if not callable(value):
        return None
    found = getattr(value, "py_func", None)
    return getattr(value, "__wrapped__", None) if found is None else found


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
