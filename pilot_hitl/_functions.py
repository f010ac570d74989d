"""Functions, packed once.

A function of an importable module travels by reference, one of ``__main__`` (or a lambda, or a closure) by value, with
what it captures. Python cannot tell us when something that was captured changes, so the rule is:

* everything captured is immutable (numbers, text, tuples of those, modules, functions and classes of which the same is
  true): the function is packed once, and again only when one of its globals, cells, defaults or its code, or an
  attribute of one of its classes, *is another object* than before;
* something captured can be changed in place (a list, a dict, an array, any other object): the function is packed
  again at each ``call``; a ``map`` packs it once.

So a task always sees what the function saw when it was submitted.

With each function travel the versions of the script's modules that it, or what it gets, may reach (see
:mod:`pilot_hitl.wire.manifest`); when one of them was reloaded, or another one is reached, what was packed is put
together again with the present ones.

A worker loads code once and keeps it; what carries *state* (the object of a bound method, cells, defaults or arguments
of a partial that can be changed in place, attributes of a function) it loads anew for each call, so that no call sees
what another one did to it. Globals are no state in this sense: they stay, as in a process pool.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from pilot_hitl._classchanges import Watch, Watcher, by_reference, unchanged
from pilot_hitl._codes import rebinds
from pilot_hitl._fingerprint import ATOMS
from pilot_hitl._keys import KeyMaker
from pilot_hitl._modules import Manifest
from pilot_hitl.errors import PayloadError
from pilot_hitl.wire import pickling, values
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.functions import ScriptFunction
from pilot_hitl.wire.ownership import MAINS
from pilot_hitl.wire.pickling import CACHED


class PackedFunction(NamedTuple):
    """A function as it travels.

    Attributes:
        code: the packed value; ``digest`` is its content hash.
        modules: the packed manifest that is in it.
        pickled: the function alone.
        name: what people see.
        fingerprint: 16 bytes, empty when its calls are not resumable.
        anew: whether it carries state, so that each call must have one of its own.
        needs: modules that have to be imported beside those that it names.
    """

    code: bytes
    digest: bytes
    modules: bytes
    pickled: bytes
    name: str
    fingerprint: bytes
    anew: bool
    needs: tuple[str, ...] = ()


class FunctionPacker:
    """Packs functions and remembers what it packed, weakly. Safe to use from several threads."""

    def __init__(self, blobs: BlobStore, keys: KeyMaker) -> None:
        """Large functions go to ``blobs``."""
        self._blobs = blobs
        self._keys = keys
        self.manifest = Manifest(keys.modules, blobs)
        self._packed: dict[int, tuple[weakref.ref[Any], Watch, PackedFunction]] = {}
        self._classes: weakref.WeakKeyDictionary[type, Watch | None] = weakref.WeakKeyDictionary()
        self._turns = False
        self._life = os.urandom(8)

    def pack(self, function: Any) -> PackedFunction:
        """Return the packed function, made anew only where the rule above says so.

        Raises:
            PayloadError: it cannot be called or cannot be pickled.
        """
        known = self._packed.get(id(function))
        packed = known[2] if known is not None and known[0]() is function and unchanged(known[1], function) else None
        if packed is not None and packed.modules is self.manifest.current():
            return packed
        watcher = Watcher()
        good = watcher.look(function)
        self._compare(watcher.classes)
        packed = (
            self._pack(function) if packed is None or self.manifest.changed(packed.modules) else self.present(packed)
        )
        if good:
            watch = [(None if owner is function else owner, name, value) for owner, name, value in watcher.watch]
            identity, table = id(function), self._packed
            # Objects that cannot be referred to weakly are packed each time.
            with suppress(TypeError):
                table[identity] = (weakref.ref(function, lambda _: table.pop(identity, None)), watch, packed)
        return packed

    def _pack(self, function: Any) -> PackedFunction:
        name = function_name(function)
        if not callable(function):
            raise PayloadError(f"{function!r} cannot be called: pass the function itself, not what it returns")
        reached: set[str] = set()
        try:
            pickled = pickling.dumps(function, reached)
            self.manifest.reach(reached)
            made = self._keys.function(function, name)
            needs = self._needs(made, reached)
            alone = PackedFunction(b"", b"", b"", pickled, name, made, carries_state(function), needs)
            return self._put_together(alone)
        except PayloadError:
            raise
        except OSError as error:
            raise PayloadError(f"the function {name} cannot be stored: {error}") from error
        except Exception as error:  # boundary: pickling runs anybody's code
            raise PayloadError(
                f"the function {name} cannot be sent to a worker: {type(error).__name__}: {error}; what it uses from "
                "outside must be picklable, so open files, locks and connections belong inside it"
            ) from error

    def _needs(self, made: bytes, reached: set[str]) -> tuple[str, ...]:
        """Return the modules of the script that its function uses by way of what others hold, such as a registry."""
        found = self._keys.findings(made)
        needs = {name for name in found.made_by - reached - MAINS if name in sys.modules}
        self.manifest.reach(reached | needs | found.imports)
        return tuple(sorted(needs))

    def _compare(self, classes: list[type]) -> None:
        """Note whether one of these holds something else than when a function that uses it was packed before."""
        for cls in classes:
            alone = Watcher()
            watch = alone.watch if alone.look(cls) else None
            if cls in self._classes:
                before = self._classes[cls]
                self._turns |= before is None or not unchanged(before, cls)
            self._classes[cls] = watch

    def present(self, packed: PackedFunction) -> PackedFunction:
        """Return what was packed just now with the modules that were reached since, as by arguments."""
        return packed if packed.modules is self.manifest.packed else self._put_together(packed)

    def _put_together(self, packed: PackedFunction) -> PackedFunction:
        modules = self.manifest.current()
        # What may import modules that nobody can see is looked at by workers in each run of the script.
        life = self._life if self._keys.findings(packed.fingerprint).unsure else b""
        whole = ScriptFunction(script_path(), packed.pickled, modules, self._turns, packed.needs, life)
        code = values.dumps(whole, self._blobs)
        return packed._replace(code=code, digest=blake2b(code, digest_size=20).digest(), modules=modules)


def function_name(function: Any) -> str:
    """Return what people call a function."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", None) or type(function).__qualname__)


def script_path() -> tuple[str, ...]:
    """Return the folders on ``sys.path`` that are not the interpreter's own, absolute, in order."""
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {os.path.join(path, "lib-dynload") for path in own}  # paths are text in sys.path
    found: list[str] = []
    for entry in sys.path:
        folder = os.path.abspath(entry or ".")  # as above
        if folder not in own and folder not in found and os.path.isdir(folder):  # as above
            found.append(folder)
    return tuple(found)


def interpreter_flags() -> list[str]:
    """Return the flags with which a child of this interpreter would be one like it, as the standard library has it."""
    import subprocess

    flags: list[str] = vars(subprocess)["_args_from_interpreter_flags"]()
    return flags


def carries_state(value: Any, seen: set[int] | None = None) -> bool:
    """Return whether a call could leave something behind in what it calls, other than in globals."""
    kind, seen = type(value), set() if seen is None else seen
    if kind in _VALUES or isinstance(value, type | types.ModuleType | types.MethodDescriptorType):
        return False
    parts = _parts(value)
    if parts is None:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(carries_state(item, seen) for item in parts)


def _parts(value: Any) -> Sequence[Any] | None:
    """Return what a callable or an unchangeable container consists of; None for what can be changed itself."""
    if type(value) in {tuple, frozenset}:
        return tuple(value)
    if isinstance(value, types.BuiltinFunctionType):
        return () if isinstance(value.__self__, types.ModuleType | type | types.NoneType) else None
    if isinstance(value, types.MethodType):
        return (value.__func__,) if isinstance(value.__self__, type) else None
    if type(value) is functools.partial:
        return (value.func, *value.args, *value.keywords.values(), *vars(value).values())
    if type(value) is CACHED or (type(value).__qualname__, type(value).__module__) == _INITIALIZED:
        # What one keeps is what its author wants kept; the initializer of the other is for the first call of a worker.
        return (value.__wrapped__,)
    return _parts_of_function(value) if isinstance(value, types.FunctionType) else None


def _parts_of_function(value: types.FunctionType) -> Sequence[Any] | None:
    if by_reference(value):
        return ()
    if vars(value).keys() - {"__wrapped__"} or rebinds(value.__code__, value.__code__.co_freevars):
        return None
    cells = [getattr(cell, "cell_contents", None) for cell in value.__closure__ or ()]
    return (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *cells, *vars(value).values())


_INITIALIZED = ("Initialized", "pilot_hitl.wire.initialized")
_VALUES = {*ATOMS, complex, range, slice, type(Ellipsis), type(NotImplemented)}
