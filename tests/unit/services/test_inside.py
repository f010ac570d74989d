"""What a replica says of the requests in its handler, and what follows from it once it is gone."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl._replies import was_begun
from pilot_hitl.model.handlers import check_handler, is_async, streams
from pilot_hitl.wire.replicas import FINISHED_KEPT, Begun, begun_path, read_begun
from pilot_hitl_services.inside import Inside

numbers = st.lists(st.integers(1, (1 << 62) - 1), max_size=20, unique=True)


@given(batches=st.lists(numbers, max_size=30), finished=st.booleans())
def test_the_file_says_what_the_replica_knows(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], finished: bool
) -> None:
    path = begun_path(tmp_path_factory.mktemp("begun"), "task.1.000001", 7)
    inside = Inside(path, 20, finished=finished)
    answered: list[int] = []
    assert read_begun(path) == Begun()
    for batch in batches:
        inside.are(batch)
        assert read_begun(path) == inside.begun()
        assert inside.begun().inside == tuple(batch)
        inside.finished(batch)
        inside.are(())
        answered += batch if finished else []
        begun = read_begun(path)
        assert begun is not None
        assert begun.total == len(answered)
        assert set(begun.finished) == set(answered[-FINISHED_KEPT:])


def test_only_the_latest_answers_are_known(tmp_path: Path) -> None:
    path = begun_path(tmp_path, "task.1.000001", 7)
    inside = Inside(path, 1, finished=True)
    inside.finished(range(1, FINISHED_KEPT + 11))
    begun = read_begun(path)
    assert begun is not None
    assert begun == inside.begun()
    assert set(begun.finished) == set(range(11, FINISHED_KEPT + 11))


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 40])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.begun"
    if content is not None:
        path.write_bytes(content)
    assert read_begun(path) is None


def test_a_replica_serves_without_the_file(tmp_path: Path) -> None:
    inside = Inside(tmp_path / "no" / "folder", 2, finished=True)
    inside.are([1, 2])
    inside.finished([1, 2])
    assert inside.begun() == Begun((1, 2), (1, 2), 2)


MANY = FINISHED_KEPT + 1


@pytest.mark.parametrize(
    ("begun", "number", "last", "again", "expected"),
    [
        (None, 1, 0, True, True),
        (None, 1, 0, False, True),
        (Begun((1,)), 1, 0, True, True),
        (Begun((2,)), 1, 0, True, False),
        (Begun((2,), (1,), 1), 1, 0, True, False),
        (Begun((2,), (1,), 1), 1, 0, False, True),
        (Begun((2,), (3,), 1), 1, 0, False, False),
        (Begun((2,), (3,), MANY), 1, 0, False, True),
        (Begun((2,), (3,), MANY), 1, 3, False, False),
        (Begun((2,), (3,), MANY), 1, 4, False, True),
    ],
)
def test_what_was_begun_is_never_taken_for_what_was_not(
    begun: Begun | None, number: int, last: int, again: bool, expected: bool
) -> None:
    assert was_begun(begun, number, last, again=again) is expected


class Plain:
    def __call__(self, item: object) -> object:
        return item

    @staticmethod
    def static(item: object) -> Iterator[object]:
        yield item


class Awaited(Plain):
    async def __call__(self, item: object) -> object:
        return item


class Partly:
    __call__ = functools.partialmethod(Plain.__call__)


class Stream:
    def __call__(self, item: object) -> Iterator[object]:
        yield item


class AwaitedStream(Plain):
    async def __call__(self, item: object) -> AsyncIterator[object]:
        yield item


@pytest.mark.parametrize(
    ("handler", "awaited", "kind"),
    [
        (Plain, False, ""),
        (Plain(), False, ""),
        (Awaited, True, ""),
        (Awaited(), True, ""),
        (functools.partial(Awaited()), True, ""),
        (functools.partial(functools.partial(Stream())), False, "a generator"),
        (Stream, False, "a generator"),
        (Stream(), False, "a generator"),
        (AwaitedStream, False, "an async generator"),
        (Plain.static, False, "a generator"),
        (Plain().static, False, "a generator"),
        (Stream().__call__, False, "a generator"),
        (Awaited().__call__, True, ""),
        (len, False, ""),
        (Partly, False, ""),
    ],
)
def test_kinds_of_handlers(handler: Callable[..., object], awaited: bool, kind: str) -> None:
    assert is_async(handler) is awaited
    assert streams(handler) == kind
    if kind:
        with pytest.raises(ValueError, match=f"it.* is {kind}"):
            check_handler(handler, "it")
    else:
        check_handler(handler, "it")
