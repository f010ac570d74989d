"""What an executable leaves, as a value: what its future gives, here and in functions that take it as an argument."""

from __future__ import annotations

from typing import Any

import msgspec

from pilot_hitl.model.outputs import Output
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire.outputs import Written, outputs_of, text_of

EXECUTABLE = range(0x90, 0xA0)
"""An executable's outcome is no packed value but a MessagePack array, and that is what one starts with."""

_decoder = msgspec.msgpack.Decoder(ExecutableResult)
NOTHING_LEFT = msgspec.msgpack.encode(ExecutableResult(0, ""))
"""What an executable leaves that ran on a no-op pilot."""


class Completed:
    """What an executable that ended with exit code 0 left.

    Attributes:
        exit_code: 0.
    """

    # Thousands are kept, few are looked into: packed, one takes a third of the memory.
    __slots__ = ("_packed", "exit_code")

    def __init__(self, packed: bytes) -> None:
        """Wrap an encoded :class:`ExecutableResult`; output that is not inline is read when asked for.

        Raises:
            msgspec.MsgspecError: it is none.
        """
        self._packed = packed
        self.exit_code = self._result.exit_code

    @property
    def _result(self) -> ExecutableResult:
        return _decoder.decode(self._packed)

    @property
    def sandbox(self) -> str:
        """Absolute path of its working directory."""
        return self._result.sandbox

    @property
    def outputs(self) -> list[str]:
        """Absolute paths of staged outputs; a list of the caller's own."""
        return self._result.outputs

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become surrogate escapes.

        Raises:
            OSError: it was too large to travel, and its file does not hold it any more.
        """
        return text_of(self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """Standard error, see :attr:`stdout`."""
        return text_of(self.stderr_bytes)

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output, see :attr:`stdout`."""
        return self.written.stdout()

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error, see :attr:`stdout`."""
        return self.written.stderr()

    @property
    def written(self) -> Written:
        """What it wrote, not yet read."""
        own = self._result
        return Written([Output(own.stdout, own.stderr, own.stdout_at, own.stderr_at), *own.others])

    def __repr__(self) -> str:
        """Show what a person looks for first."""
        return f"Completed(exit_code={self.exit_code}, sandbox={self.sandbox!r}, outputs={self.outputs!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it wraps."""
        return Completed, (self._packed,)


def completed(payload: bytes | bytearray | memoryview) -> Completed:
    """Return what an encoded :class:`ExecutableResult` says.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return Completed(bytes(payload))


def written_of(payload: bytes) -> Written:
    """Return what a task wrote, by the payload of its outcome: a success or a failure of an executable or a call."""
    try:
        if payload and payload[0] in EXECUTABLE:
            return completed(payload).written
    except msgspec.MsgspecError:
        return Written([])
    return Written(outputs_of(payload))
