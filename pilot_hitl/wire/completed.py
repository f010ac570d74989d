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
        """Pickle as the result."""
        return Completed, (self._result,)


def completed(payload: bytes | bytearray | memoryview) -> Completed:
    """Return what an encoded :class:`ExecutableResult` says.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return Completed(_decoder.decode(payload))


def written_of(payload: bytes) -> Written:
    """Return what a task wrote, by the payload of its outcome: a success or a failure of an executable or a call."""
    try:
        if payload and payload[0] in EXECUTABLE:
            return completed(payload).written
    except msgspec.MsgspecError:
        return Written([])
    return Written(outputs_of(payload))
