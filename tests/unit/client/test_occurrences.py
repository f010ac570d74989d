"""How often a digest was met is counted exactly, however little of it is kept in memory."""

from __future__ import annotations

import errno
import os
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
