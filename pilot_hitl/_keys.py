"""Resume keys: by which a task finds, on the next run of the script, what it already computed.

A key is ``(namespace, explicit key or fingerprint, files, n-th occurrence in this incarnation)`` in 16 bytes. A
thousand equal calls are a thousand tasks, and on the next run each finds its own earlier result. Beside the key of work
that depends on files travels a :class:`~pilot_hitl.model.files.Note`, which says what was seen of them; an explicit key
stands for the files as well.
"""

from __future__ import annotations

import functools
import os
import threading
import types
import warnings
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pilot_hitl._files import CapturedPath, Look, PathArgument
from pilot_hitl._fingerprint import ATOMS, Findings, FutureKey, NotFingerprintable, fingerprint, no_futures
from pilot_hitl._modules import ModuleVersions
from pilot_hitl._occurrences import Occurrences
from pilot_hitl._parts import parts_of
from pilot_hitl.model.files import File, FileState, Note
from pilot_hitl.wire.ownership import Script
from pilot_hitl.wire.raised import stack_level

KEY_BYTES = 16
_VERSION = b"pilot-hitl keys 2"
_encode = msgspec.msgpack.Encoder().encode
NO_FOLDER = Path("/nonexistent")


class NotResumableWarning(UserWarning):
    """Something that a task is made of is not known by its content, so on the next run the task runs again.

    Give it an explicit key (``session.options(key="…")``) when it should not.
    """


class Keyed(NamedTuple):
    """The keys of some tasks, and their notes: as many, or none when none depends on files."""

    keys: list[bytes]
    notes: list[bytes]


class _Met:
    """Collects the files that are met while a value is fingerprinted; there they count by their paths alone."""

    __slots__ = ("_future_key", "_plain", "found")

    def __init__(self, future_key: FutureKey, plain: type[PathArgument]) -> None:
        """Collect plain paths as this."""
        self._future_key = future_key
        self._plain = plain
        self.found: list[File] = []

    def __call__(self, value: object) -> bytes | None:
        if isinstance(value, File):
            self.found.append(value)
        elif isinstance(value, Path):
            self.found.append(self._plain(value))
        else:
            return self._future_key(value)
        return b"%b %b" % (type(value).__name__.encode(), str(value).encode("utf-8", "surrogateescape"))


class KeyMaker:
    """Makes the keys of one incarnation. Safe to use from several threads."""

    def __init__(self, namespace: str, future_key: FutureKey, folder: Path = NO_FOLDER) -> None:
        """Count occurrences from zero; ``folder`` is the session's."""
        self.folder = folder
        self.modules = ModuleVersions(Script())
        self._future_key = future_key
        self._root = blake2b(_VERSION + namespace.encode(), digest_size=32).digest()
        self._parts: dict[bytes, dict[str, bytes]] = {}
        self._captured: dict[bytes, tuple[File, ...]] = {}
        self._findings: dict[bytes, Findings] = {}
        self._occurrences = Occurrences(folder)
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def function(self, function: object, name: str) -> bytes:
        """Return the fingerprint of a function; empty, after one warning, when it has none."""
        met, given = _Met(no_futures, CapturedPath), _Met(no_futures, PathArgument)
        findings = Findings()
        try:
            made = fingerprint(function, self.modules, met, findings)
            if (bound := _bound(function)) is not None:
                fingerprint(bound, self.modules, given)
        except NotFingerprintable as error:
            self._warn(name, f"calls of {name} are not resumable: {error}")
            return b""
        if met.found or given.found:
            self._captured[made] = (*met.found, *given.found)
        self._findings[made] = findings
        if made not in self._parts:
            self._parts[made] = parts_of(function, self.modules)
        return made

    def captured(self, function: bytes) -> tuple[File, ...]:
        """Return the files that the function of a fingerprint captured."""
        return self._captured.get(function, ())

    def findings(self, function: bytes) -> Findings:
        """Return what was met when the fingerprint of a function was made."""
        return self._findings.get(function) or Findings()

    def is_sure(self, function: bytes, name: str) -> bool:
        """Return whether a fingerprint covers all code that its function may run; say once why it does not."""
        why = self.findings(function).unsure
        if why:
            self._warn(
                name,
                f"calls of {name} are not resumable: {why[0]}; name the module's file in options(reads=[…]), or "
                "import it by a constant name",
            )
        return not why

    def parts(self, function: bytes) -> dict[str, bytes]:
        """Return what the fingerprint of a function covers, see :func:`~pilot_hitl._parts.parts_of`."""
        return self._parts.get(function, {})

    def look(self) -> Look:
        """Return a look at files, for what is submitted together."""
        return Look(self.folder)

    def service(self, handler: object, kwargs: object) -> bytes:
        """Return the fingerprint of a service's handler, its arguments and the code they reach; empty when none."""
        module = self.modules.digest(handler.partition(":")[0]) if isinstance(handler, str) else b""
        findings = Findings()
        try:
            made = fingerprint((handler, kwargs, module), self.modules, no_futures, findings)
        except NotFingerprintable:
            return b""
        return b"" if findings.unsure else made

    def prefix(self, function: bytes, explicit: str) -> bytes:
        """Return what the keys of a function's calls have in common; empty when they have no key."""
        if explicit:
            return blake2b(b"explicit " + explicit.encode(), digest_size=32, key=self._root).digest()
        return blake2b(b"call " + function, digest_size=32, key=self._root).digest() if function else b""

    def call(
        self, prefix: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, reads: Sequence[str | File] = ()
    ) -> tuple[bytes, bytes]:
        """Return key and note of one call under a :meth:`prefix` made of a function; both empty when it has no key.

        Raises:
            DescriptionError: it takes a file whose content is meant, and that is not there.
        """
        base, met = self._base(prefix, args, kwargs, name)
        if not base:
            return b"", b""
        if not met and not reads:
            return self._numbered_one(base), b""
        keys, notes = self._with_files([base], [_states(self.look(), reads, met)])
        return keys[0], notes[0]

    def calls(
        self, prefix: bytes, many: Iterable[tuple[Any, ...]], name: str, reads: Sequence[str | File] = ()
    ) -> Keyed | None:
        """Return the keys of calls without keywords, as :meth:`call`; None when one of them has none."""
        bases: list[bytes] = []
        files: list[list[FileState]] = []
        look = self.look()
        for args in many:
            base, met = self._base(prefix, args, {}, name)
            if not base:
                return None
            bases.append(base)
            files.append(_states(look, reads, met) if met or reads else [])
        return self._with_files(bases, files) if any(files) else Keyed(self._numbered(bases), [])

    def atoms(self, prefix: bytes, values: Sequence[Any], reads: Sequence[str | File] = ()) -> Keyed:
        """Return the keys of calls ``(value,)`` where each value's exact type is in ``ATOMS``.

        The same keys as :meth:`calls` would give, faster.
        """
        try:
            bases = [
                blake2b(b"(%b,)" % repr(each).encode(), digest_size=KEY_BYTES, key=prefix).digest() for each in values
            ]
        except ValueError:  # an integer of thousands of digits has no repr
            bases = [self._base(prefix, (each,), {}, "")[0] for each in values]
        if not reads:
            return Keyed(self._numbered(bases), [])
        return self._with_files(bases, [_states(self.look(), reads, [])] * len(bases))

    def explicit(self, prefix: bytes, count: int) -> list[bytes]:
        """Return the next ``count`` keys under a :meth:`prefix` made of an explicit key."""
        return self._numbered([prefix[:KEY_BYTES]] * count)

    def content(self, kind: bytes, content: bytes) -> bytes:
        """Return the key of something known by these bytes, such as the name of a body."""
        return self._numbered_one(self._content(kind, content))

    def described(self, kind: bytes, content: bytes, files: list[FileState]) -> tuple[bytes, bytes]:
        """Return key and note of something known by these bytes and the files that it depends on."""
        base = self._content(kind, content)
        if not files:
            return self._numbered_one(base), b""
        keys, notes = self._with_files([base], [files])
        return keys[0], notes[0]

    def _content(self, kind: bytes, content: bytes) -> bytes:
        return blake2b(kind + b" " + content, digest_size=KEY_BYTES, key=self._root).digest()

    def named(self, kind: bytes, *parts: str) -> bytes:
        """Return the key of something whose name occurs once, such as a checkpoint."""
        content = b"".join(b"%d:%b" % (len(part.encode()), part.encode()) for part in parts)
        return blake2b(kind + b" " + content, digest_size=KEY_BYTES, key=self._root).digest()

    def _base(
        self, prefix: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> tuple[bytes, Sequence[File]]:
        """Return the key of a call whatever is in its files, and these."""
        if not prefix:
            return b"", ()
        if not kwargs and all(type(item) in ATOMS for item in args):
            try:
                return blake2b(repr(args).encode(), digest_size=KEY_BYTES, key=prefix).digest(), ()
            except ValueError:
                pass  # an integer of thousands of digits has no repr
        met = _Met(self._future_key, PathArgument)
        try:
            content = fingerprint((args, kwargs), self.modules, met)
        except NotFingerprintable as error:
            self._warn(name, f"a call of {name} is not resumable because of its arguments: {error}")
            return b"", ()
        return blake2b(content, digest_size=KEY_BYTES, key=prefix).digest(), met.found

    def _with_files(self, bases: list[bytes], files: list[list[FileState]]) -> Keyed:
        """Return the keys of work as it is with these files; the same files of neighbours are encoded once."""
        keys: list[bytes] = []
        notes: list[bytes] = []
        last: list[FileState] | None = None
        told: list[FileState] = []
        content = b""
        for base, states in zip(bases, files, strict=True):
            if states is not last:
                last, told = states, _as_text(states)
                content = _encode(told)
            key = blake2b(content, digest_size=KEY_BYTES, key=base).digest() if states else base
            keys.append(key)
            notes.append(_encode(Note(base, told)) if states else b"")
        return Keyed(self._numbered(keys), notes)

    def _numbered_one(self, base: bytes) -> bytes:
        with self._lock:
            count = self._occurrences.count_one(base)
        return _nth(base, count) if count else base

    def _numbered(self, bases: list[bytes]) -> list[bytes]:
        with self._lock:
            counts = self._occurrences.count(bases)
        if not any(counts):
            return bases
        return [_nth(base, count) if count else base for base, count in zip(bases, counts, strict=True)]

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"{message}; give it a key with options(key=…)", NotResumableWarning, stack_level())


def _bound(function: object) -> object:
    """Return what is given to a function before it is called: its object, or arguments of a partial."""
    if isinstance(function, functools.partial):
        return function.args, function.keywords, _bound(function.func)
    if isinstance(function, types.MethodType):
        return None if isinstance(function.__self__, type) else function.__self__
    plain = isinstance(function, type | types.FunctionType | types.BuiltinFunctionType) or hasattr(
        function, "__wrapped__"
    )
    return None if plain else function


def _nth(base: bytes, count: int) -> bytes:
    """Return the key of work of which so many came before."""
    return blake2b(b"%d" % count, digest_size=KEY_BYTES, key=base).digest()


def _states(look: Look, reads: Iterable[str | File], met: Iterable[File]) -> list[FileState]:
    """Return what is seen of files, each once."""
    # What is named twice is looked at as it is named last, more closely.
    found = {state.path: state for state in map(look.named, reads)}
    for file in met:
        state = look.of_argument(file)
        found[state.path] = state
    return list(found.values())


def _as_text(states: list[FileState]) -> list[FileState]:
    """Return them with names that can travel: what a file system calls a file need not be text."""
    if all(state.path.isascii() for state in states):
        return states
    return [
        msgspec.structs.replace(state, path=os.fsencode(state.path).decode("utf-8", "backslashreplace"))
        for state in states
    ]
