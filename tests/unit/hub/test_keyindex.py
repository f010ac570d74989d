"""Tasks by resume key: against a dictionary, whatever order keys come in and whatever the disk does."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl.hub import keyindex
from pilot_hitl.hub.keyindex import KeyIndex
from tests.behaviour.studies import further


class Bulks:
    """A store that is a dictionary: first task -> keys of it and those after it."""

    def __init__(self) -> None:
        self.bulks: dict[int, bytes] = {}

    def incarnations(self) -> list[int]:
        return sorted({first >> 32 for first in self.bulks})

    def keyed(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        return iter([(start, self.bulks[start]) for start in sorted(self.bulks) if first <= start <= last])

    def key_at(self, task: int) -> bytes:
        for first, keys in self.bulks.items():
            if 0 <= task - first < len(keys) // 16:
                return keys[16 * (task - first) : 16 * (task - first + 1)]
        return b""


def some_keys(numbers: list[int], alike: bool) -> bytes:
    # Alike: all begin with the same eight bytes, so that only the whole key tells them apart.
    return b"".join(bytes(8) + n.to_bytes(8, "big") if alike else random.Random(n).randbytes(16) for n in numbers)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TAIL": 20, "RUNS": 2, "FENCE": 3}.items():
        monkeypatch.setattr(keyindex, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("seed", further(3, range(8)))
def test_it_finds_what_a_dictionary_finds(seed: int, alike: bool, tmp_path: Path) -> None:
    chance = random.Random(seed)
    bulks = Bulks()
    index = KeyIndex(bulks, tmp_path)
    after: dict[int, int] = {}
    for _ in range(60):
        incarnation = chance.randint(1, 4)
        count = chance.choice([1, 1, 2, 7, 50])
        keys = some_keys([chance.randrange(400) for _ in range(count)], alike)
        first = incarnation << 32 | after.get(incarnation, 0)
        after[incarnation] = after.get(incarnation, 0) + count + chance.choice([0, 0, 3])
        expected = {
            (offset, start + at)
            for offset in range(count)
            for start, theirs in bulks.bulks.items()
            for at in range(len(theirs) // 16)
            if start >> 32 != incarnation and theirs[16 * at : 16 * at + 16] == keys[16 * offset : 16 * offset + 16]
        }
        assert set(index.sources(first, keys)) == expected
        bulks.bulks[first] = keys
        index.note(first)
    index.close()
    assert list(tmp_path.iterdir()) == [], "it leaves no file"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("room", [0, 8, 100])
def test_a_full_disk_makes_it_lie_in_memory(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(io.BytesIO):
        """A file that takes so many bytes."""

        def __init__(self, **_more: Any) -> None:
            if not room:
                raise OSError(28, "No space left on device")
            super().__init__()

        def write(self, data: Any) -> int:
            left = room - self.tell()
            if left <= 0:
                raise OSError(28, "No space left on device")
            return super().write(data[:left])

    bulks = Bulks()
    bulks.bulks[1 << 32] = keys = some_keys(list(range(100)), alike=False)
    index = KeyIndex(bulks, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", Small)
        assert set(index.sources(2 << 32, keys)) == {(at, (1 << 32) + at) for at in range(100)}
    index.close()
