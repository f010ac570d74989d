"""What travels between clients and replicas."""

from __future__ import annotations

import numpy as np
import pytest

from pilot_hitl.wire.codec import FrameError
from pilot_hitl.wire.services import (
    Answered,
    Cancelled,
    Replies,
    Request,
    Requests,
    decode_replies,
    decode_requests,
    decode_said,
    encode_head,
    encode_said,
    pack,
    unpack,
)


@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "u1", "?", "c16", ">f4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (1, 0, 2)])
def test_small_arrays_come_back_equal_and_writable(kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)) or 1)[: int(np.prod(shape))].astype(kind).reshape(shape)
    body, buffers = pack(array)
    assert not buffers
    found = unpack(body, buffers)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert np.array_equal(found, array)
    assert found.flags.writeable
    assert type(found) is np.ndarray


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24.0).reshape(4, 6)[::2, ::3],
        np.array(["a", "bc"]),
        np.array([1, "x", None], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2026-01-01"], dtype="M8[D]"),
    ],
)
def test_other_arrays_come_back_equal(array: np.ndarray) -> None:
    assert np.array_equal(unpack(*pack(array)), array)


def test_large_arrays_are_not_copied_into_the_body() -> None:
    array = np.arange(1 << 15, dtype=float)
    body, buffers = pack({"one": array, "two": [array, "x"]})
    assert len(body) < 2000
    assert sum(memoryview(buffer).nbytes for buffer in buffers) == array.nbytes, "the same array travels once"
    found = unpack(body, [bytearray(buffer) for buffer in buffers])
    assert np.array_equal(found["two"][0], array)


def test_classes_of_the_script_travel_by_value() -> None:
    captured = 7
    body, buffers = pack([lambda x: x + captured])
    assert unpack(body, buffers)[0](1) == 8


def test_heads_come_back_and_anything_else_is_refused() -> None:
    requests = Requests([Request(1, b"x", 2, 0.5, "train"), Request(2, b"")], 3.0, 0.1)
    assert decode_requests(encode_head(requests)) == requests
    assert decode_requests(encode_head(Cancelled([4]))) == Cancelled([4])
    replies = Replies([Answered(1, b"y", 1)], 1.0, 0.2, 0.3)
    assert decode_replies(encode_head(replies)) == replies
    assert decode_said(encode_said("Overloaded", "full", "why")) == ("Overloaded", "full", "why")
    assert decode_said(b"\xc1")[0] == "ServiceError"
    for frame in (b"", b"\x02", encode_head(replies), b"\x01\xc1", b"\x01" + b"\x91" * 5000):
        with pytest.raises(FrameError):
            decode_requests(frame)
