"""Handlers and metrics of a replica, without a socket."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pilot_hitl.wire.services import Status, decode_said, pack, unpack
from pilot_hitl_services.handlers import Handler, Packed, Work
from pilot_hitl_services.metrics import Histogram


def works(*items: object) -> list[Work]:
    return [Work("", *pack(item)) for item in items]


def values(answers: list[Packed]) -> list[Any]:
    return [unpack(answer.body, answer.buffers) for answer in answers]


def half(batch: list[int]) -> list[float]:
    return [1 / item for item in batch]


def test_one_bad_item_does_not_spoil_its_neighbours() -> None:
    answers = Handler(half, "half", batched=True, idempotent=True).serve(works(1, 0, 4))
    assert [answer.status for answer in answers] == [Status.OK, Status.RAISED, Status.OK]
    assert isinstance(pickle.loads(answers[1].body), ZeroDivisionError)
    once = Handler(half, "half", batched=True, idempotent=False).serve(works(1, 0, 4))
    assert {answer.status for answer in once} == {Status.RAISED}, "what may not run twice does not"


def test_what_cannot_be_unpickled_is_told_to_its_own_request() -> None:
    handler = Handler(half, "half", batched=True, idempotent=True)
    bad = Work("", b"\x80\x05no pickle", ())
    answers = handler.serve([works(2)[0], bad, works(4)[0]])
    assert [answer.status for answer in answers] == [Status.OK, Status.RAISED, Status.OK]
    assert values([answers[0], answers[2]]) == [0.5, 0.25]


@pytest.mark.parametrize("result", [5, "ab", [1], [1, 2, 3], {1: 2}])
def test_a_wrong_result_is_a_bad_reply_for_each(result: object) -> None:
    answers = Handler(lambda _: result, "it", batched=True, idempotent=True).serve(works(1, 2))
    assert [decode_said(answer.body)[0] for answer in answers] == ["BadReply", "BadReply"]


def test_only_public_methods_may_be_called() -> None:
    class Model:
        rate = 3

        def train(self, item: int) -> int:
            return item * self.rate

        def _secret(self) -> None: ...

        def __call__(self, item: int) -> int:
            return item

    handler = Handler(Model(), "Model", batched=False, idempotent=True)
    assert [not handler.refuses(name) for name in ("train", "rate", "_secret", "__call__", "nothing")] == [
        True, False, False, False, False,
    ]  # fmt: skip
    assert values(handler.serve([Work("train", *pack(5))])) == [15]


def test_a_percentile_is_right_within_a_fifth() -> None:
    histogram = Histogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    assert histogram.percentile(0.5) == pytest.approx(0.5, rel=0.2)
    assert histogram.percentile(0.99) == pytest.approx(0.99, rel=0.2)
    assert histogram.summary()["mean_ms"] == pytest.approx(500.5)
    assert Histogram().summary() == {"count": 0, "mean_ms": 0.0, "p50_ms": 0.0, "p99_ms": 0.0}
    histogram.add(0.0)
    histogram.add(1e12)
    assert histogram.count == 1002
