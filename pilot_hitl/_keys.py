"""Resume keys: by which a task finds, on the next run of the script, what it already computed.

A key is ``(namespace, explicit key or fingerprint, n-th occurrence in this incarnation)`` in 16 bytes. A thousand
equal calls are a thousand tasks, and on the next run each finds its own earlier result.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

from pilot_hitl._fingerprint import ATOMS, FutureKey, NotFingerprintable, fingerprint
from pilot_hitl._modules import ModuleVersions
from pilot_hitl.wire.ownership import Script
from pilot_hitl.wire.raised import stack_level

KEY_BYTES = 16
_VERSION = b"pilot-hitl keys 1"


class NotResumableWarning(UserWarning):
    """Something that a task is made of is not known by its content, so on the next run the task runs again.

    Give it an explicit key (``session.options(key="…")``) when it should not.
    """


class KeyMaker:
    """Makes the keys of one incarnation. Safe to use from several threads."""

    def __init__(self, namespace: str, future_key: FutureKey) -> None:
        """Count occurrences from zero."""
        self.modules = ModuleVersions(Script())
        self._future_key = future_key
        self._root = blake2b(_VERSION + namespace.encode(), digest_size=32).digest()
        self._counts: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def function(self, function: object, name: str) -> bytes:
        """Return the fingerprint of a function; empty, after one warning, when it has none."""
        try:
            return fingerprint(function, self.modules)
        except NotFingerprintable as error:
            self._warn(name, f"calls of {name} are not resumable: {error}")
            return b""

    def service(self, handler: object, kwargs: object) -> bytes:
        """Return the fingerprint of a service's handler, its arguments and the code they reach; empty when none."""
        module = self.modules.digest(handler.partition(":")[0]) if isinstance(handler, str) else b""
        try:
            return fingerprint((handler, kwargs, module), self.modules)
        except NotFingerprintable:
            return b""

    def prefix(self, function: bytes, explicit: str) -> bytes:
        """Return what the keys of a function's calls have in common; empty when they have no key."""
        if explicit:
            return blake2b(b"explicit " + explicit.encode(), digest_size=32, key=self._root).digest()
        return blake2b(b"call " + function, digest_size=32, key=self._root).digest() if function else b""

    def call(self, prefix: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bytes:
        """Return the key of one call under a :meth:`prefix` made of a function; empty when it has none."""
        base = self._base(prefix, args, kwargs, name)
        return self._numbered([base])[0] if base else b""

    def calls(self, prefix: bytes, many: Iterable[tuple[Any, ...]], name: str) -> list[bytes] | None:
        """Return the keys of calls without keywords; None when one of them has none."""
        bases: list[bytes] = []
        for args in many:
            base = self._base(prefix, args, {}, name)
            if not base:
                return None
            bases.append(base)
        return self._numbered(bases)

    def atoms(self, prefix: bytes, values: Sequence[Any]) -> list[bytes]:
        """Return the keys of calls ``(value,)`` where each value's exact type is in ``ATOMS``.

        The same keys as :meth:`calls` would give, faster.
        """
        try:
            return self._numbered(
                [blake2b(b"(%b,)" % repr(each).encode(), digest_size=KEY_BYTES, key=prefix).digest() for each in values]
            )
        except ValueError:  # an integer of thousands of digits has no repr
            return self._numbered([self._base(prefix, (each,), {}, "") for each in values])

    def explicit(self, prefix: bytes, count: int) -> list[bytes]:
        """Return the next ``count`` keys under a :meth:`prefix` made of an explicit key."""
        return self._numbered([prefix[:KEY_BYTES]] * count)

    def content(self, kind: bytes, content: bytes) -> bytes:
        """Return the key of something known by these bytes, such as a description."""
        return self._numbered([blake2b(kind + b" " + content, digest_size=KEY_BYTES, key=self._root).digest()])[0]

    def named(self, kind: bytes, *parts: str) -> bytes:
        """Return the key of something whose name occurs once, such as a checkpoint."""
        content = b"".join(b"%d:%b" % (len(part.encode()), part.encode()) for part in parts)
        return blake2b(kind + b" " + content, digest_size=KEY_BYTES, key=self._root).digest()

    def _base(self, prefix: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bytes:
        if not prefix:
            return b""
        if not kwargs and all(type(item) in ATOMS for item in args):
            try:
                return blake2b(repr(args).encode(), digest_size=KEY_BYTES, key=prefix).digest()
            except ValueError:
                pass  # an integer of thousands of digits has no repr
        try:
            content = fingerprint((args, kwargs), self.modules, self._future_key)
        except NotFingerprintable as error:
            self._warn(name, f"a call of {name} is not resumable because of its arguments: {error}")
            return b""
        return blake2b(content, digest_size=KEY_BYTES, key=prefix).digest()

    def _numbered(self, bases: list[bytes]) -> list[bytes]:
        counts = self._counts
        keys: list[bytes] = []
        with self._lock:
            for base in bases:
                count = counts.get(base, 0)
                counts[base] = count + 1
                keys.append(base if not count else blake2b(b"%d" % count, digest_size=KEY_BYTES, key=base).digest())
        return keys

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"{message}; give it a key with options(key=…)", NotResumableWarning, stack_level())
