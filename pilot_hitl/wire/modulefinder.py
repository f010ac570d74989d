"""The script's own modules, in a process that runs its functions: each in the version that the script has.

What a function brings is known before it is loaded. A process that already has another version of one of these modules
is not fit to run it: it has to make room for another process.
"""

from __future__ import annotations

import marshal
import os
import sys
import time
import types
from hashlib import blake2b
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from typing import Any, ClassVar

from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.manifest import Entry, unpack_manifest
from pilot_hitl.wire.ownership import Script

DIGEST_BYTES = 16
GRANULARITY = 50_000_000
"""Nanoseconds by which the clock of a file system may be behind that of the process."""


class OtherVersion(Exception):
    """This process imported another version of a module than the script has."""


def source_digest(source: bytes) -> bytes:
    """Return what tells one version of a source from another."""
    return blake2b(source, digest_size=DIGEST_BYTES).digest()


class ScriptLoader(SourceFileLoader):
    """Runs the code that the script packed; all else is as in the file that it is of."""

    def __init__(self, entry: Entry, blobs: BlobStore) -> None:
        """Load ``entry``."""
        super().__init__(entry.name, entry.file)
        self.entry = entry
        self._blobs = blobs

    def exec_module(self, module: types.ModuleType) -> None:
        """Run it, and note what it reads meanwhile."""
        Reads.begin()
        try:
            super().exec_module(module)
        finally:
            Reads.depth -= 1

    def get_code(self, fullname: str) -> types.CodeType:
        """Return the packed code.

        Raises:
            ImportError: it is gone.
        """
        entry = self.entry
        try:
            content = self._blobs.get(entry.blob)
        except OSError as error:
            raise ImportError(f"the code of {fullname} that the script packed is gone: {error}") from error
        code: types.CodeType = marshal.loads(memoryview(content)[entry.at : entry.at + entry.size])
        return code


class Reads:
    """Files that the script's modules read, and folders that they list, while they are imported.

    The interpreter's own audit tells. A hook cannot be taken away: a process that imports no such module has none.

    Attributes:
        depth: how many modules are being imported.
        seen: by path, what was there then.
    """

    depth = 0
    seen: ClassVar[dict[str, tuple[object, ...]]] = {}
    _listens = False
    _script = Script()

    @classmethod
    def begin(cls) -> None:
        """Listen from now on, until ``depth`` is lowered again."""
        if not cls._listens:
            cls._listens = True
            sys.addaudithook(cls._hear)
        cls.depth += 1

    @classmethod
    def _hear(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.depth or event not in _READING:
            return
        depth, cls.depth = cls.depth, 0  # what is looked up here is not the module's doing
        try:
            lists = event != "open"
            writes = not lists and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if not writes and not sys._getframe(1).f_code.co_filename.startswith("<frozen importlib"):
                cls._note("." if arguments[0] is None else arguments[0], lists=lists)
        finally:
            cls.depth = depth

    @classmethod
    def _note(cls, named: object, *, lists: bool) -> None:
        if not isinstance(named, str | bytes | os.PathLike):
            return  # a descriptor
        path = os.path.abspath(os.fsdecode(named))  # text, as it is told
        if not path.startswith(_SYSTEM) and not path.endswith(_CODE) and cls._script.owns_file(path):
            cls.seen.setdefault(path, _names_in(path) if lists else _look(path))

    @classmethod
    def changed(cls) -> str:
        """Return the path of something that is not what was read; empty for none."""
        for path, seen in cls.seen.items():
            if (_look(path) if seen[:1] != _FOLDER else _names_in(path)) != seen:
                return path
        return ""


_READING = frozenset({"open", "os.listdir", "os.scandir"})
_SYSTEM = ("/usr/", "/etc/", "/dev/", "/proc/", "/sys/")
_CODE = (".py", ".pyc", ".pyw", ".so")
_FOLDER = ("folder",)


def _names_in(folder: str) -> tuple[object, ...]:
    try:
        return (*_FOLDER, *sorted(name for name in os.listdir(folder) if name != "__pycache__"))  # text, as above
    except OSError:
        return _FOLDER


class ModuleFinder:
    """Finds the script's modules first of all; one a process, see :func:`use`."""

    def __init__(self, blobs: BlobStore) -> None:
        """Know no module yet."""
        self._blobs = blobs
        self._entries: dict[str, Entry] = {}
        self._installed: dict[bytes, frozenset[str]] = {}
        self._on_disk: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self._before = frozenset(sys.modules)
        self._asked: dict[str, int] = {}
        self._loose: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        self._script = Script()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module of the script is loaded; None for any other, of which is noted when it was asked for."""
        del path, target
        entry = self._entries.get(name)
        if entry is None or not entry.blob:
            self._asked[name] = time.time_ns()
            return None
        loader = ScriptLoader(entry, self._blobs)
        return spec_from_file_location(name, entry.file, loader=loader, submodule_search_locations=entry.folders)

    def install(self, packed: bytes) -> None:
        """Let the modules of a manifest be found from now on.

        Raises:
            OtherVersion: one of them is here in another version; nothing is installed then.
        """
        named = self._installed.get(packed)
        if named is None:
            entries = unpack_manifest(packed)
            self._install([each for each in entries if self._entries.get(each.name) != each])
            named = self._installed[packed] = frozenset(each.name for each in entries)
        for name in self._entries.keys() - named:
            # Somebody else's function brought it. This one may import it too, by a name that it computes.
            if name in sys.modules and self._lies_otherwise(self._entries[name]):
                raise OtherVersion(f"it knows another version of the module {name}")

    def _install(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._check(entry)
        for entry in entries:
            self._entries[entry.name] = entry
            if entry.name in self._before:
                # Imported when the interpreter started, before any version was asked for.
                sys.modules.pop(entry.name, None)
        self._before -= {entry.name for entry in entries}

    def _lies_otherwise(self, entry: Entry) -> bool:
        seen = _look(entry.file)
        known = self._on_disk.get(entry.file)
        if known is None or known[0] != seen:
            known = self._on_disk[entry.file] = (seen, _digest_of(entry.file))
        return bool(entry.blob) and known[1] != entry.digest

    def note(self) -> None:
        """Take note of modules of the script that were imported and that no manifest names."""
        if not self._asked:
            return
        asked, self._asked = self._asked, {}
        for name, when in asked.items():
            file = getattr(sys.modules.get(name), "__file__", None)
            if isinstance(file, str) and name not in self._entries and self._script.owns(name):
                seen = _look(file)
                changed = not seen or seen[2] > when - GRANULARITY
                # What was written while it was imported may be what was imported, or not.
                self._loose[name] = (file, seen, b"" if changed else _digest_of(file))

    def _check(self, entry: Entry) -> None:
        known = self._entries.get(entry.name)
        before = known.digest if known is not None else None
        if known is None and entry.name in sys.modules and entry.name not in self._before:
            before = self._loose.get(entry.name, ("", (), b""))[2]
        if before is not None and before != entry.digest:
            raise OtherVersion(f"it knows another version of the module {entry.name}")

    def changed(self) -> str:
        """Return why this process is of no use for what arrives from now on; empty when it is."""
        for name, (file, seen, _) in self._loose.items():
            if name not in self._entries and _look(file) != seen:
                return f"the module {name} has changed since it imported it"
        if path := Reads.changed():
            return f"{path} has changed since a module read it when it was imported"
        return ""


def _look(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ctime_ns, found.st_ino


def _digest_of(file: str) -> bytes:
    try:
        with open(file, "rb") as source:  # text, as in modules
            return source_digest(source.read())
    except OSError:
        return b""


class Here:
    """The finder of this process; None where functions are not run."""

    finder: ModuleFinder | None = None


def use(blobs: BlobStore) -> ModuleFinder:
    """Let this process find the script's modules; ``blobs`` holds their code."""
    if Here.finder is not None:
        sys.meta_path.remove(Here.finder)
    Here.finder = ModuleFinder(blobs)
    sys.meta_path.insert(0, Here.finder)
    return Here.finder


def install(packed: bytes) -> None:
    """Let the modules of a manifest be found here; nothing where functions are not run.

    Raises:
        OtherVersion: one of them is here in another version.
    """
    if Here.finder is not None:
        Here.finder.install(packed)
