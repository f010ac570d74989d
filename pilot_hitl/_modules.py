"""The versions of the script's own modules: what it imported, told apart by content.

What counts is what this process runs, not what lies on disk now: a version is taken once for each import (or reload) of
a module. Where a file was changed between its import and the first look, its cached code is what counts, if Python
wrote that; otherwise it is said.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
import threading
import types
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from importlib.machinery import ModuleSpec, SourceFileLoader
from operator import attrgetter, is_
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pilot_hitl._lasting import Changes, Lasting, changes_of, is_same, lasting
from pilot_hitl.errors import PayloadError
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.imports import imported
from pilot_hitl.wire.manifest import Entry, pack_manifest, unpack_manifest
from pilot_hitl.wire.modulefinder import DIGEST_BYTES, ScriptLoader, source_digest
from pilot_hitl.wire.ownership import MAINS, Script
from pilot_hitl.wire.processes import began_at
from pilot_hitl.wire.raised import attempt, stack_level

_SOURCE = (".py", ".pyw")
_spec_of = attrgetter("__spec__")


class ModuleChangedWarning(UserWarning):
    """The script set something in a module of its own, and workers import that module as it was written.

    Pass what was set as an argument, or set it in the function that is called.
    """


class Version(NamedTuple):
    """One module as this process has it.

    Attributes:
        entry: as it travels, without a blob.
        code: marshalled; empty when there is none.
        imports: names that its code may import.
    """

    entry: Entry
    code: bytes
    imports: tuple[str, ...]


class _Loaded:
    """Versions of loaded modules, for all sessions of this process, with the import that each is of."""

    known: dict[str, tuple[object, Version]]


_Loaded.known = {}


class ModuleVersions:
    """Knows versions of modules. Safe to use from several threads.

    Attributes:
        script: which of them are looked at.
    """

    def __init__(self, script: Script) -> None:
        """Know none yet."""
        self.script = script
        # Modules that are imported when functions run, and were not here: as they lay on disk when first looked at.
        self._found: dict[str, Version | None] = {}
        self._lasting: dict[bytes, Lasting] = {}
        self._changes: dict[bytes, Changes] = {}
        self._told: set[str] = set()
        self._lock = threading.RLock()

    def of(self, name: str) -> Version | None:
        """Return the version of a module; None when it is not the script's, or there is nothing to see of it.

        One that is not there at all has a version without a digest.

        Raises:
            PayloadError: what lies on disk is not what was imported, so that nobody could import the same.
        """
        module = sys.modules.get(name)
        if name in MAINS or name.partition(".")[0] in sys.stdlib_module_names:
            return None
        with self._lock:
            if module is not None:
                return self._of_loaded(name, module) if self.script.owns(name) else None
            if name not in self._found:
                self._found[name] = self._look_for(name)
            return self._found[name]

    def _look_for(self, name: str) -> Version | None:
        spec = self._find(name)
        if spec is None and self._may_be_ours(name):
            # That there is none counts as well: what imports it may go on without.
            return Version(Entry(name, b"", ""), b"", ())
        owned = spec is not None and spec.origin is not None and self.script.owns_file(spec.origin)
        return _look(name, spec.origin, spec) if owned and spec and spec.origin else None

    def _may_be_ours(self, name: str) -> bool:
        parent, _, last = name.rpartition(".")
        above = sys.modules.get(parent)
        return not parent or (hasattr(above, "__path__") and self.script.owns(parent) and last not in vars(above))

    def check_set(self, module: str, name: str, value: object) -> None:
        """See that a global of a module is what it is where the module is imported anew, as far as that can be told.

        Raises:
            PayloadError: it is a constant, or a display of constants, and somebody else than the module changed it.
        """
        sure = self._sure(module)
        if sure is not None and name in sure.names and self._is_set(module, name, value, sure.names[name]):
            raise PayloadError(_said(f"{module}.{name}", module, value, sure.names[name]))

    def check_class(self, cls: type) -> None:
        """See that attributes of a module's class are what they are where it is imported anew, as :meth:`check_set`.

        Raises:
            PayloadError: as :meth:`check_set`.
        """
        if attempt(partial(attrgetter(cls.__qualname__), sys.modules.get(cls.__module__)))[0] is not cls:
            return  # workers do not find it by its name
        sure = self._sure(cls.__module__)
        for name, constant in (sure.classes.get(cls.__qualname__, {}) if sure is not None else {}).items():
            value = vars(cls).get(name, constant)
            # A metaclass makes something else of what the body bound, such as a member of an enum.
            made = types.FunctionType if isinstance(constant, types.CodeType) else type(constant)
            if type(value) is made and self._is_set(cls.__module__, name, value, constant, exactly=False):
                raise PayloadError(
                    _said(f"{cls.__module__}.{cls.__qualname__}.{name}", cls.__module__, value, constant)
                )

    def look_at_all(self, module: str) -> None:
        """Warn where a global of a module, or of one that it imports, is not what :meth:`check_set` wants.

        This is for a module that is used in ways that nobody can see: it may be that nothing reads that global.

        Raises:
            PayloadError: as :meth:`of`.
        """
        for name in self.closure([module]):
            space = vars(sys.modules[name]) if name in sys.modules else {}
            sure = self._sure(name)
            for each, constant in (sure.names if sure is not None else {}).items():
                what = f"{name}.{each}"
                if each in space and what not in self._told and self._is_set(name, each, space[each], constant):
                    self._told.add(what)
                    warnings.warn(_said(what, name, space[each], constant), ModuleChangedWarning, stack_level())

    def _sure(self, module: str) -> Lasting | None:
        version = self.of(module)
        if version is None or not version.code:
            return None
        found = self._lasting.get(version.code)
        if found is None:
            found = self._lasting[version.code] = lasting(marshal.loads(version.code))
        return found

    def _is_set(self, module: str, name: str, value: object, constant: object, *, exactly: bool = True) -> bool:
        """Return whether a value is another one than a module made, by nobody's hand but the script's.

        ``exactly``: who sets an attribute of this name sets that of something else.
        """
        if is_same(value, constant):
            return False
        others = (each for each in list(sys.modules) if each != module and self.script.owns(each))
        return not any(self._may_change(each, module, name, constant, exactly=exactly) for each in others)

    def _may_change(self, other: str, module: str, name: str, value: object, *, exactly: bool) -> bool:
        """Return whether another module of the script, by its code, may change something in this one."""
        version, _ = attempt(lambda: self.of(other))
        if version is None or not version.code or module not in version.imports:
            return False
        found = self._changes.get(version.code)
        if found is None:
            found = self._changes[version.code] = changes_of(marshal.loads(version.code))
        return found.reach(name, value) or (not exactly and name in found.attributes)

    def closure(self, roots: Iterable[str]) -> dict[str, Version]:
        """Return all modules of the script that these import, directly or not, by name.

        Raises:
            PayloadError: as :meth:`of`.
        """
        found: dict[str, Version] = {}
        todo, seen = list(roots), set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if parent := name.rpartition(".")[0]:
                todo.append(parent)
            version = self.of(name)
            if version is not None:
                found[name] = version
                todo += version.imports
        return found

    def digest(self, name: str) -> bytes:
        """Return the content of a module and of all that it imports; empty when it is not the script's.

        Raises:
            PayloadError: as :meth:`of`.
        """
        state = blake2b(digest_size=DIGEST_BYTES)
        if self.of(name) is None:
            return b""
        for each, version in sorted(self.closure([name]).items()):
            state.update(b"%d:%b%b" % (len(each), each.encode(), version.entry.digest))
        return state.digest()

    def _of_loaded(self, name: str, module: types.ModuleType) -> Version | None:
        spec = getattr(module, "__spec__", None)
        known = _Loaded.known.get(name)
        if known is not None and known[0] is spec and spec is not None:
            return known[1]
        loader = getattr(spec, "loader", None)
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            return None
        version = _look(name, file, spec)
        if version is not None and version.code and type(loader) is SourceFileLoader:
            version = _as_imported(name, module, version, file)
        if version is not None:
            _Loaded.known[name] = (spec, version)
        return version

    def _find(self, name: str) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        path: list[str] | None = None
        if parent:
            above = sys.modules.get(parent) or self._find(parent)
            where = getattr(above, "__path__", None) or getattr(above, "submodule_search_locations", None)
            if where is None or name.rpartition(".")[2] in vars(above):
                return None
            path = list(where)
        for finder in sys.meta_path:
            spec, _ = attempt(partial(finder.find_spec, name, path, None))
            if isinstance(spec, ModuleSpec):
                return spec
        return None


def _look(name: str, file: str, spec: ModuleSpec | None) -> Version | None:
    """Return the version that lies on disk; None when there is nothing.

    Raises:
        PayloadError: it is no Python.
    """
    loader = getattr(spec, "loader", None)
    folders = getattr(spec, "submodule_search_locations", None)
    places = None if folders is None else [os.path.abspath(each) for each in folders]  # text on the wire
    package = name if places is not None else name.rpartition(".")[0]
    if isinstance(loader, ScriptLoader):
        # This is a worker: what runs here is what came with its function. A session of another home has other blobs.
        code = loader.get_code(name)
        entry = msgspec.structs.replace(loader.entry, blob=b"", at=0, size=0)
        return Version(entry, marshal.dumps(code), tuple(imported(code, package)))
    if not file.endswith(_SOURCE):
        found, _ = attempt(lambda: os.stat(file))
        if found is None:
            return None
        digest = source_digest(f"{found.st_size} {found.st_mtime_ns}".encode())
        return Version(Entry(name, digest, file, places), b"", ())
    source, _ = attempt(lambda: _read(file, loader))
    if source is None:
        return None
    entry = Entry(name, source_digest(source), os.path.abspath(file), places)
    if (ready := _ready(file, getattr(spec, "cached", None))) is not None:
        return _version(entry, ready, marshal.loads(ready))
    with warnings.catch_warnings():
        # Whoever imported it was warned.
        warnings.simplefilter("ignore")
        compiled, error = attempt(lambda: compile(source, file, "exec", dont_inherit=True))
    if not isinstance(compiled, types.CodeType):
        raise PayloadError(f"the module {name} cannot be sent to a worker: {file}: {error}") from error
    return _version(entry, marshal.dumps(compiled), compiled)


def _version(entry: Entry, marshalled: bytes, code: types.CodeType) -> Version:
    package = entry.name if entry.folders is not None else entry.name.rpartition(".")[0]
    return Version(entry, marshalled, tuple(dict.fromkeys(imported(code, package))))


def _ready(file: str, cache: str | None) -> bytes | None:
    """Return the marshalled code in Python's cache, when it was made after the file was last touched."""
    found, _ = attempt(lambda: (os.stat(file), os.stat(str(cache)), Path(str(cache)).read_bytes()))
    if found is None:
        return None
    source, cached, content = found
    good = source.st_ctime_ns < cached.st_mtime_ns and content[:16] == _MAGIC + _stamp(source)
    return content[16:] if good else None


_MAGIC = importlib.util.MAGIC_NUMBER + bytes(4)


def _stamp(source: os.stat_result) -> bytes:
    """Return by what Python's caches know a source."""
    numbers = (int(source.st_mtime), source.st_size)
    return b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)


def _read(file: str, loader: object) -> bytes:
    if isinstance(loader, SourceFileLoader) or not hasattr(loader, "get_data"):
        with open(file, "rb") as opened:  # text, as in modules
            return opened.read()
    data: bytes = loader.get_data(file)  # of an archive
    return data


def _as_imported(name: str, module: types.ModuleType, version: Version, file: str) -> Version:
    """Return the version that was imported: the file's, or where that changed meanwhile, the one in Python's cache.

    Raises:
        PayloadError: neither is what this process has.
    """
    at, began, why = _changed_at(file), began_at(os.getpid()) - 1, ""
    if at < began and _ready(file, getattr(module, "__cached__", None)) is not None:
        return version
    code: types.CodeType = marshal.loads(version.code)
    candidates = [(version, code)]
    if (cached := _cached(module, version)) is not None:
        # A cache that names another file than there is now was written when the module was imported.
        candidates.insert(0 if cached[2] else 1, cached[:2])
    for found, its_code in candidates:
        why = _difference(name, module, its_code, file, constants=at > began)
        if not why:
            return found
    raise PayloadError(
        f"the module {name} of this script is not what {file} says ({why} differs): the file was changed after its "
        f"import, or the script set {name}.{why}. Reload it with importlib.reload({name}), or start the script again; "
        "pass what the script sets as an argument"
    )


def _said(what: str, module: str, value: object, constant: object) -> str:
    is_function = isinstance(constant, types.CodeType)
    written = f"as {module} has it" if is_function else f"{constant!r:.80}"
    now = getattr(value, "__qualname__", "") + "()" if is_function else f"{value!r:.80}"
    return (
        f"{what} was set to {now} by this script, and is {written} where {module} is imported, as in workers: pass it "
        "as an argument, or set it in the function that is called"
    )


def _changed_at(file: str) -> float:
    found, _ = attempt(lambda: os.stat(file))
    return 0.0 if found is None else found.st_ctime


def _cached(module: types.ModuleType, version: Version) -> tuple[Version, types.CodeType, bool] | None:
    """Return what Python's cache holds of a module, and whether it is of another file than lies there now."""
    path, file = getattr(module, "__cached__", None), version.entry.file
    content, _ = attempt(lambda: Path(str(path)).read_bytes())
    now, _ = attempt(lambda: os.stat(file))
    if content is None or now is None or content[:8] != _MAGIC:
        return None
    code, _ = attempt(lambda: marshal.loads(content[16:]))
    if not isinstance(code, types.CodeType):
        return None
    entry = msgspec.structs.replace(version.entry, digest=source_digest(content[16:]))
    return _version(entry, content[16:], code), code, content[8:16] != _stamp(now)


def _difference(name: str, module: types.ModuleType, code: types.CodeType, file: str, *, constants: bool) -> str:
    """Return the name of something in a module that is not what its code says; empty when nothing differs.

    ``constants``: the file was written since this process began, so that it may have been changed after the import.
    """
    known = set(_shapes(code))
    for function in _functions(name, module):
        if function.__code__.co_filename == file and _shape(function.__code__) not in known:
            return function.__qualname__
    if not constants:
        return ""
    space = vars(module)
    for each, constant in lasting(code).names.items():
        now = space.get(each)
        if type(now) is type(constant) and not isinstance(now, dict | list | set) and not is_same(now, constant):
            return each
    return ""


def _functions(name: str, owner: types.ModuleType | type) -> Iterator[types.FunctionType]:
    for value in list(vars(owner).values()):
        if isinstance(value, type) and value.__module__ == name and value is not owner:
            if not isinstance(owner, type) or value.__qualname__.startswith(f"{owner.__qualname__}."):
                yield from _functions(name, value)
            continue
        inner: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        while hasattr(inner, "__wrapped__") and not isinstance(inner, types.FunctionType):
            inner = inner.__wrapped__
        if isinstance(inner, types.FunctionType) and inner.__module__ == name:
            yield inner


def _shapes(code: types.CodeType) -> Iterator[tuple[Any, ...]]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield _shape(constant)
            yield from _shapes(constant)


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    """Return what makes code what it does, without where it stands."""
    constants = tuple(
        _shape(each)
        if isinstance(each, types.CodeType)
        else (type(each).__name__, tuple(sorted(map(repr, each))) if isinstance(each, frozenset) else repr(each))
        for each in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return code.co_name, code.co_code, constants, names, counts, code.co_exceptiontable


class Manifest:
    """The modules that the functions of one session reached so far, as they travel. Grows. Safe for several threads.

    It is one for all functions, since what one of them returns is what another one gets.
    """

    def __init__(self, versions: ModuleVersions, blobs: BlobStore) -> None:
        """Store code in ``blobs``."""
        self._versions = versions
        self._blobs = blobs
        self._roots: set[str] = set()
        self._entries: dict[str, Entry] = {}
        self._modules: list[types.ModuleType] = []
        self._specs: list[object] = []
        self._lock = threading.Lock()
        self.packed = b""

    def reach(self, roots: Iterable[str]) -> None:
        """Let these modules, and what they import, be part of it.

        Raises:
            PayloadError: see :meth:`ModuleVersions.of`.
            OSError: their code cannot be stored.
        """
        if self._roots.issuperset(roots):
            return
        with self._lock:
            wanted = self._roots.union(roots)
            self._renew(wanted)
            self._roots = wanted  # only now: where it failed, the next function asks again

    def current(self) -> bytes:
        """Return it packed, with the present version of each module.

        Raises:
            As :meth:`reach`.
        """
        if not all(map(is_, map(_spec_of, self._modules), self._specs)):
            with self._lock:
                self._renew(self._roots)
        return self.packed

    def changed(self, packed: bytes) -> bool:
        """Return whether a module has another version now than in an earlier manifest."""
        self.current()
        return any(self._entries.get(each.name) != each for each in unpack_manifest(packed))

    def _renew(self, roots: set[str]) -> None:
        found = self._versions.closure(roots)
        fresh = {
            name: version
            for name, version in found.items()
            if name not in self._entries or self._entries[name].digest != version.entry.digest
        }
        codes = [version.code for version in fresh.values() if version.code]
        blob = self._blobs.put(codes)[0] if codes else b""
        at = 0
        for name, (entry, code, _) in fresh.items():
            if code:
                self._entries[name] = msgspec.structs.replace(entry, blob=blob, at=at, size=len(code))
                at += len(code)
            else:
                self._entries[name] = entry
        modules = [sys.modules[name] for name in sorted(self._entries) if hasattr(sys.modules.get(name), "__spec__")]
        self._modules, self._specs = modules, [getattr(each, "__spec__", None) for each in modules]
        self.packed = pack_manifest(self._entries[name] for name in sorted(self._entries))
