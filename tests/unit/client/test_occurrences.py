"""How often a digest was met is counted exactly, however little of it is kept in memory."""

from __future__ import annotations

import errno
import os
import sys
import tracemalloc
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl import _occurrences
from pilot_hitl._occurrences import Occurrences


def digest(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=16).digest()


def numbers(met: list[bytes]) -> list[int]:
    """What a counter without any limit says."""
    seen: Counter[bytes] = Counter()
    found = []
    for each in met:
        found.append(seen[each])
        seen[each] += 1
    return found


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=20),
    st.integers(1, 12),
    st.sampled_from((1, 8, 64)),
    st.sampled_from((1, 10_000)),
)
def test_as_a_counter_without_a_limit(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], recent: int, bits: int, reads: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_occurrences, "READS", reads)
        counted = Occurrences(tmp_path_factory.getbasetemp(), recent, bits)
        found = []
        for batch in batches:
            if len(batch) == 1:
                found.append(counted.count_one(digest(batch[0])))
            else:
                found += counted.count([digest(each) for each in batch])
    assert found == numbers([digest(each) for batch in batches for each in batch])


def test_many_are_counted_with_little_memory(tmp_path: Path) -> None:
    counted = Occurrences(tmp_path, 500, 1 << 10)
    many = [digest(number) for number in range(20_000)]
    for at in range(0, len(many), 100):
        assert not any(counted.count(many[at : at + 100]))
    assert len(counted._recent.counts) <= 1024
    assert counted.count(many[::-1]) == [1] * len(many)
    assert counted.count(many[:50]) == [2] * 50


@given(
    st.lists(st.integers(0, 200).map(lambda number: number << 24) | st.integers(0, 1 << 12), max_size=400),
    st.sampled_from((40, 100, 1000)),
    st.booleans(),
)
def test_heads_that_want_one_place_are_kept_apart(
    tmp_path_factory: pytest.TempPathFactory, heads: list[int], recent: int, one_by_one: bool
) -> None:
    counted = Occurrences(tmp_path_factory.getbasetemp(), recent, 64)
    met = [head.to_bytes(8, sys.byteorder) + b"the rest" for head in heads]
    found = [counted.count_one(each) for each in met] if one_by_one else counted.count(met)
    assert found + counted.count(met) == numbers([*met, *met])


def test_no_object_is_kept_for_what_was_met(tmp_path: Path) -> None:
    counted = Occurrences(tmp_path)
    tracemalloc.start()
    try:
        for at in range(0, 60_000, 250):
            counted.count([digest(number) for number in range(at, at + 250)])
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, _occurrences.__file__)])
        made_here = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, __file__)])
    finally:
        tracemalloc.stop()
    assert sum(trace.count for trace in kept.statistics("filename")) < 20
    assert sum(trace.count for trace in made_here.statistics("filename")) < 20  # a digest is gone with its batch


def test_nearly_nothing_new_looks_known_to_a_full_filter(tmp_path: Path) -> None:
    runs_of, filter_bytes = 1 << 10, 1 << 13
    full = filter_bytes * 8 // _occurrences.BITS_A_HEAD
    counted = Occurrences(tmp_path, runs_of - 1, filter_bytes)
    for at in range(0, full, runs_of):
        counted.count([digest(number) for number in range(at, at + runs_of)])
    assert len(counted._filter) * 8 == filter_bytes
    assert len(counted._runs) * runs_of == full
    counted._limit, before = 1 << 20, counted._reads
    new = range(full, full + 20_000)
    assert not any(counted.count([digest(number) for number in new]))
    assert counted._reads - before < len(counted._runs) * len(new) // 100


def test_what_begins_alike_is_never_given_one_number_twice(tmp_path: Path) -> None:
    counted = Occurrences(tmp_path, 2, 8)
    alike = [b"same head" + digest(number)[:7] for number in range(6)]
    found: dict[bytes, list[int]] = {each: [] for each in alike}
    for _ in range(5):
        for each in alike:
            found[each] += counted.count([each])
    for given_ in found.values():
        assert len(set(given_)) == 5


@pytest.mark.parametrize("fails_after", [0, 2])
def test_where_nothing_can_be_written_it_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: int
) -> None:
    failed = []

    def full(*_arguments: object, **_more: object) -> int:
        failed.append(1)
        raise OSError(errno.ENOSPC, "no space left on device")

    counted = Occurrences(tmp_path, 8, 8)
    many = [digest(number) for number in range(60)]
    found = [count for at in range(fails_after) for count in counted.count(many[10 * at : 10 * at + 10])]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for at in range(fails_after * 10, 60, 5):
            found += counted.count(many[at : at + 5])
    assert failed
    found += counted.count(many)
    found += counted.count(many)
    assert found == numbers([*many, *many, *many])


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    counted = Occurrences(tmp_path, 2, 8)
    counted.count([digest(each) for each in range(100)])
    assert list(tmp_path.iterdir()) == []
