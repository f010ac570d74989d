from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.inbox import audit
from pilot_hitl.inbox.audit import Kind


def _chain(count: int, session: str = "mesh") -> list[tuple[bytes, bytes]]:
    rows = []
    previous = audit.genesis(session)
    for index in range(count):
        entry = audit.append(previous, list(Kind)[index % len(Kind)], index, 1000.0 + index, {"by": "ana", "n": index})
        rows.append((entry.content, entry.hash))
        previous = entry.hash
    return rows


def test_a_whole_chain_is_sound() -> None:
    rows = _chain(7)
    assert audit.verify(rows, "mesh") is None
    assert audit.verify([], "mesh") is None
    assert audit.verify(rows, "mesh", head=rows[-1][1]) is None
    assert audit.verify(rows, "mesh", head=rows[3][1]) is None  # a head that was kept a while ago
    assert all(len(hash_) == audit.HASH_BYTES for _content, hash_ in rows)


def test_equal_facts_have_equal_bytes() -> None:
    first = audit.entry_bytes(Kind.ANSWER, 1, 2.0, {"a": 1, "b": 2.0})
    assert first == audit.entry_bytes(Kind.ANSWER, 1, 2, {"b": 2, "a": 1})
    assert audit.read(first) == {"kind": "answer", "checkpoint": 1, "at": 2, "facts": {"a": 1, "b": 2}}


@given(st.integers(0, 9), st.integers(0, 200))
def test_a_changed_byte_is_found_where_it_is(index: int, place: int) -> None:
    rows = _chain(10)
    content, hash_ = rows[index]
    place %= len(content)
    rows[index] = (content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], hash_)
    fault = audit.verify(rows, "mesh")
    assert fault is not None
    assert fault.index == index


@given(st.integers(0, 8))
def test_a_removed_entry_is_found(index: int) -> None:
    rows = _chain(10)
    del rows[index]
    fault = audit.verify(rows, "mesh")
    assert fault is not None
    assert fault.index == index


def test_swapped_entries_and_sessions_are_found() -> None:
    rows = _chain(4)
    assert audit.verify([rows[1], rows[0], *rows[2:]], "mesh") is not None
    assert audit.verify(rows, "other") is not None


def test_a_cut_end_is_found_with_a_head_from_elsewhere() -> None:
    rows = _chain(5)
    assert audit.verify(rows[:3], "mesh") is None
    assert audit.verify(rows[:3], "mesh", head=rows[4][1]) == audit.Fault(3, "entries at the end are missing")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"kind":"party"}'])
def test_a_well_linked_entry_must_still_be_one(content: bytes) -> None:
    rows = [(content, audit.link(audit.genesis("mesh"), content))]
    assert audit.verify(rows, "mesh") is not None
