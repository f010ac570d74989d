"""How what a task wrote travels with its value, and how it is read back."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.outputs import NOWHERE, Output, Range
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.completed import written_of
from pilot_hitl.wire.outputs import Written, bare, checksum, outputs_of, read_range, with_output
from pilot_hitl.wire.values import dumps, loads

outputs = st.lists(st.builds(Output, st.binary(max_size=50), st.binary(max_size=50)), max_size=3)


@given(outputs, st.one_of(st.integers(), st.text(), st.binary(), st.lists(st.floats(allow_nan=False))))
def test_a_value_is_the_same_with_and_without_output(
    tmp_path_factory: pytest.TempPathFactory, wrote: list[Output], value: object
) -> None:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    packed = dumps(value, blobs)
    together = with_output(packed, wrote)
    assert loads(together, blobs) == value
    assert bare(together) == packed
    assert outputs_of(together) == wrote
    assert written_of(together).stdout() == b"".join(each.stdout for each in wrote)


def test_a_failure_without_a_value_has_output_too() -> None:
    payload = with_output(b"", [Output(b"out", b"err")])
    assert bare(payload) == b""
    assert written_of(payload).stderr() == b"err"


def test_what_another_release_wrote_is_no_error() -> None:
    assert outputs_of(b"\3\2\0\0\0\xc1\xc1rest") == []
    assert bare(b"\3\2\0\0\0\xc1\xc1rest") == b"rest"
    # Ranges had no checksum.
    old = msgspec.msgpack.encode([0, "/box", b"", b"", ["/log", 1, 2], ["", 0, 0], [], []])
    assert msgspec.msgpack.decode(old, type=ExecutableResult).stdout_at == Range("/log", 1, 2)


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=200), st.data())
def test_a_range_is_the_same_bytes_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, mine: bytes, others: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    path.write_bytes(others + mine + others)
    at = Range(str(path), len(others), len(mine), zlib.crc32(mine))
    assert read_range(at, "stdout") == mine
    assert read_range(at, "stdout", 10) == mine[-10:]
    changed = data.draw(st.binary(max_size=600))
    path.write_bytes(changed)
    if changed[len(others) : len(others) + len(mine)] == mine:
        return
    with pytest.raises(OSError, match="the task's stdout is lost"):
        read_range(at, "stdout")


def test_a_sampled_file_is_told_by_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "out"
    content = b"a" * 5000 + b"b" * 5000
    path.write_bytes(content)
    at = Range(str(path), 0, 10_000, checksum(content, sampled=True), sampled=True)
    assert read_range(at, "stderr") == content
    path.write_bytes(b"b" * 5000 + b"a" * 5000)
    with pytest.raises(OSError, match="holds something else"):
        read_range(at, "stderr")


def test_a_person_is_shown_the_end_and_where_the_rest_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 9000)
    at = Range(str(log), 0, 9000, zlib.crc32(b"x" * 9000))
    written = Written([Output(b"", b"why\xff", at, NOWHERE)])
    assert written.view() == {"stdout": "x" * 4000, "stdout_at": [f"{log}:0+9000"], "stderr": "why\ufffd"}
    assert written.view(limit=100) == {"stdout_at": [f"{log}:0+9000"], "stderr": "why\ufffd"}
    log.unlink()
    assert "lost" in str(written.view()["stdout_lost"])
