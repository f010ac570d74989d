"""What an executable leaves, as a value: what its future gives, here and in functions that take it as an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.templates import ExecutableResult

_Range = tuple[str, int, int]
_decoder = msgspec.msgpack.Decoder(ExecutableResult)


class Completed:
    """What an executable that ended with exit code 0 left.

    Attributes:
        exit_code: 0.
        sandbox: absolute path of its working directory.
        outputs: absolute paths of staged outputs.
    """

    __slots__ = ("_result", "exit_code", "outputs", "sandbox")

    def __init__(self, result: ExecutableResult) -> None:
        """Wrap the result; output that is not inline is read when asked for."""
        self._result = result
        self.exit_code = result.exit_code
        self.sandbox = result.sandbox
        self.outputs = result.outputs

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become surrogate escapes.

        Raises:
            OSError: it was too large to travel and its file is gone.
        """
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error, see :attr:`stdout`."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output, see :attr:`stdout`."""
        own = self._result.stdout or _read(self._result.stdout_at)
        return own + b"".join(out or _read(at) for out, _err, at, _err_at in self._result.others)

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error, see :attr:`stdout`."""
        own = self._result.stderr or _read(self._result.stderr_at)
        return own + b"".join(err or _read(at) for _out, err, _out_at, at in self._result.others)

    def __repr__(self) -> str:
        """Show what a person looks for first."""
        return f"Completed(exit_code={self.exit_code}, sandbox={self.sandbox!r}, outputs={self.outputs!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the result."""
        return Completed, (self._result,)


def _read(at: _Range) -> bytes:
    path, offset, length = at
    if not path or not length:
        return b""
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def completed(payload: bytes | bytearray | memoryview) -> Completed:
    """Return what an encoded :class:`ExecutableResult` says.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return Completed(_decoder.decode(payload))
