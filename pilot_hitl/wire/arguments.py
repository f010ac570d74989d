"""The arguments of calls in words, without loading anything: what was pickled is read, nothing of it is run."""

from __future__ import annotations

import io
import pickle
import reprlib
import struct
from typing import Any

from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.values import blob_of, pickled

LARGEST = 1 << 24
"""Bytes of arguments that are read at most."""
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60


class _Made(type):
    """Stands for an object, or a class, of any kind: what it would have been made of.

    It is a class itself, because a pickle may make objects of what it has made.
    """

    parts: list[Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> _Made:
        """Stand for what a function or class returns for these arguments."""
        named = len(args) > 1 and "_make_skeleton_" in cls.__name__ and isinstance(args[1], str)
        return _made(args[1] if named else cls.__name__, [] if named else [*args, *kwargs.items()])

    def __setstate__(cls, state: Any) -> None:
        cls.parts.append(state)

    def append(cls, item: Any) -> None:
        """Take an item of a list."""
        cls.parts.append(item)

    def extend(cls, items: Any) -> None:
        """Take items of a list."""
        cls.parts.extend(items)

    def __setitem__(cls, key: Any, value: Any) -> None:
        cls.parts.append((key, value))

    def __repr__(cls) -> str:
        return f"{cls.__name__}({', '.join(map(repr, cls.parts))})"


def _made(name: str, parts: list[Any]) -> _Made:
    """Return what stands for a thing of this name."""
    return _Made(name, (), {"parts": parts, "__new__": _Made.__call__, "__slots__": ()})


class _Reader(pickle.Unpickler):
    """Reads a pickle without importing, and so without running, anything that it names."""

    def __init__(self, content: bytes, buffers: list[bytes]) -> None:
        super().__init__(io.BytesIO(content), buffers=buffers)
        self._tasks: dict[int, int] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a stand-in for what a global names."""
        return _made(global_name, []) if module_name == "builtins" else _made(f"{module_name}.{global_name}", [])

    def persistent_load(self, pid: Any) -> str:
        """Return what a future stands for: the n-th task that these arguments depend on."""
        return f"<the result of dependency {self._tasks.setdefault(pid, len(self._tasks) + 1)}>"


def arguments_of(body: bytes, blobs: BlobStore) -> dict[str, tuple[str, str]] | None:
    """Return the arguments of a packed call by position or name, each as ``(short text, whole text)``.

    None when they cannot be read.
    """
    try:
        if digest := blob_of(body):
            if blobs.path(digest).stat().st_size > LARGEST:
                return None
            body = bytes(blobs.get(digest))
        content, buffers = pickled(body)
        args, kwargs = _Reader(content, buffers).load()
        named = {f"argument {at}": value for at, value in enumerate(args, 1)}
        named |= {f"argument {name}": value for name, value in kwargs.items()}
        return {name: (_shown.repr(value), repr(value)) for name, value in named.items()}
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        return None
    except (struct.error, RecursionError, MemoryError):
        return None
