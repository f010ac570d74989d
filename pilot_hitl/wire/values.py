"""Packed values: what arguments, functions and results look like in opaque fields.

The first byte says how to read the rest:

* ``0`` a pickle (protocol 5), buffers in band;
* ``1`` a pickle with out-of-band buffers: ``<II`` pickle size and buffer count, ``<Q`` each buffer's size, the
  pickle, the buffers;
* ``2`` a reference: ``<Q`` size and the digest of a blob that holds one of the other two forms;
* ``3`` one of these three together with what the call wrote, see :mod:`pilot_hitl.wire.outputs`.

Futures inside arguments become references to their tasks (``persistent_id``) and are replaced by the packed values of
those tasks when they are loaded; nothing here ever loads a value that its own session did not make.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pilot_hitl.wire.blobs import DIGEST_BYTES, BlobStore
from pilot_hitl.wire.completed import EXECUTABLE, completed
from pilot_hitl.wire.outputs import ENVELOPE, value_at
from pilot_hitl.wire.pickling import ScriptPickler

INLINE_LIMIT = 64 * 1024
"""Values up to this many bytes travel inline, larger ones by reference."""

_HEAD = struct.Struct("<II")
_SIZE = struct.Struct("<Q")
_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
FutureId = Callable[[object], int | None]
"""Returns the task id of a future, None for anything else."""


class _Pickler(ScriptPickler):
    """Pickles by value what plain pickle cannot, keeps large buffers apart and turns futures into references."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], future_id: FutureId | None) -> None:
        super().__init__(file, buffer_callback=buffers.append)
        self._future_id = future_id

    def persistent_id(self, obj: object) -> int | None:
        """Return the task id of a future."""
        return None if self._future_id is None else self._future_id(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: list[memoryview], value_of: Callable[[int], object]) -> None:
        super().__init__(file, buffers=buffers)
        self._value_of = value_of

    def persistent_load(self, pid: int) -> object:
        """Return the value of the task that a future stood for."""
        return self._value_of(pid)


def dumps_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    blobs: BlobStore,
    future_id: FutureId,
    modules: set[str] | None = None,
) -> bytes:
    """Return packed ``(args, kwargs)``; ``future_id`` is called for every object that is not plain data.

    ``modules`` gets the names of modules that whoever loads it imports.

    Raises:
        Whatever pickling raises.
    """
    if not kwargs and all(type(item) in _ATOMS for item in args):
        plain = pickle.dumps((args, kwargs), 5)
        if len(plain) < INLINE_LIMIT:
            return b"\0" + plain
    return dumps((args, kwargs), blobs, future_id, modules)


def dumps(value: object, blobs: BlobStore, future_id: FutureId | None = None, modules: set[str] | None = None) -> bytes:
    """Return the packed value; large ones are stored in ``blobs`` first; ``modules`` as in :func:`dumps_call`.

    Raises:
        Whatever pickling raises; OSError when the blob cannot be stored.
    """
    if type(value) in _ATOMS:
        main = pickle.dumps(value, 5)
        return b"\0" + main if len(main) < INLINE_LIMIT else _by_reference([b"\0", main], blobs)
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = _Pickler(file, buffers, future_id)
    pickler.dump(value)
    if modules is not None:
        modules |= pickler.modules
    main = file.getvalue()
    if not buffers:
        return b"\0" + main if len(main) < INLINE_LIMIT else _by_reference([b"\0", main], blobs)
    views = [buffer.raw() for buffer in buffers]
    head = b"\1" + _HEAD.pack(len(main), len(views)) + b"".join(_SIZE.pack(view.nbytes) for view in views)
    if len(head) + len(main) + sum(view.nbytes for view in views) < INLINE_LIMIT:
        return b"".join([head, main, *views])
    return _by_reference([head, main, *views], blobs)


def loads(packed: bytes, blobs: BlobStore, inputs: Mapping[int, bytes] | None = None) -> Any:
    """Return the value; ``inputs`` holds the packed values of the tasks whose futures it mentions.

    Raises:
        BlobMissing: a referenced blob is gone.
        KeyError: it mentions a task that is not in ``inputs``.
        Whatever unpickling raises.
    """
    return _Loader(blobs, inputs or {}).load(packed)


def blob_of(packed: bytes) -> bytes:
    """Return the digest of the blob that holds a packed value; empty when none does."""
    return packed[1 + _SIZE.size : 1 + _SIZE.size + DIGEST_BYTES] if packed[:1] == b"\2" else b""


def pickled(packed: bytes) -> tuple[bytes, list[bytes]]:
    """Return the pickle, and its buffers, in a packed value of form 0 or 1.

    Raises:
        pickle.UnpicklingError: it is of another form.
        struct.error: it is cut off.
    """
    if packed[:1] == b"\0":
        return packed[1:], []
    if packed[:1] != b"\1":
        raise pickle.UnpicklingError("no pickle lies in this packed value itself")
    size, count = _HEAD.unpack_from(packed, 1)
    at = 1 + _HEAD.size + count * _SIZE.size
    parts = [packed[at : at + size]]
    at += size
    for index in range(count):
        length = _SIZE.unpack_from(packed, 1 + _HEAD.size + index * _SIZE.size)[0]
        parts.append(packed[at : at + length])
        at += length
    return parts[0], parts[1:]


class _Loader:
    """Loads one value; each input is unpacked at most once, so two mentions of a future are one object."""

    def __init__(self, blobs: BlobStore, inputs: Mapping[int, bytes]) -> None:
        self._blobs = blobs
        self._inputs = inputs
        self._loaded: dict[int, object] = {}

    def load(self, packed: bytes | bytearray | memoryview) -> Any:
        view = memoryview(packed)
        kind = view[0]
        if kind == 2:
            return self.load(self._blobs.get(bytes(view[1 + _SIZE.size : 1 + _SIZE.size + DIGEST_BYTES])))
        if kind == 0:
            return self._unpickle(view[1:], [])
        if kind in EXECUTABLE:
            return completed(view)
        if kind == ENVELOPE:
            return self.load(view[value_at(view) :])
        if kind != 1:
            raise pickle.UnpicklingError(f"a packed value cannot start with byte {kind}")
        size, count = _HEAD.unpack_from(view, 1)
        position = 1 + _HEAD.size
        sizes = [_SIZE.unpack_from(view, position + index * _SIZE.size)[0] for index in range(count)]
        position += count * _SIZE.size
        main, position = view[position : position + size], position + size
        buffers = []
        for length in sizes:
            piece = view[position : position + length]
            # A reader may write into its arrays, so buffers that arrived inline get memory of their own.
            buffers.append(memoryview(bytearray(piece)) if piece.readonly else piece)
            position += length
        return self._unpickle(main, buffers)

    def _unpickle(self, main: memoryview, buffers: list[memoryview]) -> Any:
        if not self._inputs and not buffers:
            return pickle.loads(main)  # only values of the session's own owner get here
        return _Unpickler(io.BytesIO(main), buffers, self._value_of).load()

    def _value_of(self, task: int) -> object:
        if task not in self._loaded:
            self._loaded[task] = self.load(self._inputs[task])
        return self._loaded[task]


def _by_reference(parts: list[Any], blobs: BlobStore) -> bytes:
    digest, size = blobs.put(parts)
    return b"\2" + _SIZE.pack(size) + digest
