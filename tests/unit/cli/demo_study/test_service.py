"""The surrogate's handler, and asking it, without a service around it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import service
from pilot_hitl.cli.demo_study.service import Question, Surrogate
from pilot_hitl.cli.demo_study.surrogate import Training, train
from tests.unit.cli.demo_study.samples import REGION, hill, measures

PLACES = REGION.grid(3)


def _training(count: int) -> Training:
    return Training.of(measures(feed, kill, hill(feed, kill)) for feed, kill in REGION.grid(4).tolist()[:count])


class Here:
    """An endpoint whose replica is in this process. It forgets all it learned the first ``forgetful`` times."""

    def __init__(self, forgetful: int = 0) -> None:
        self.forgetful = forgetful
        self.asked = 0
        self._replica = Surrogate()
        self._replica.setup()

    def request(self, item: Any, /) -> Future[Any]:
        self.asked += 1
        if self.asked <= self.forgetful:
            self._replica = Surrogate()
        return _done(self._replica([item])[0])

    def broadcast(self, item: Any, /, *, method: str) -> list[Future[Any]]:
        return [_done(getattr(self._replica, method)(item))]


def _done(value: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_each_question_is_answered_by_what_it_names() -> None:
    handler = Surrogate()
    first, second = handler.train(_training(4)), handler.train(_training(9))
    answers = handler([Question(second, PLACES), Question("nothing", PLACES), Question(first, PLACES)])
    assert answers[1] is None
    for answer, count in ((answers[2], 4), (answers[0], 9)):
        expected = train(_training(count)).predict(PLACES)
        assert answer is not None
        assert answer.mean.tobytes() == expected.mean.tobytes()
        assert answer.deviation.tobytes() == expected.deviation.tobytes()


def test_the_least_used_is_forgotten_first() -> None:
    handler = Surrogate()
    first = handler.train(_training(3))
    others = [
        handler.train(_training(3) + Training.of([measures(0.03, 0.06, 0.01 * index)])) for index in range(service.KEPT)
    ]
    assert handler([Question(first, PLACES)]) == [None]
    assert None not in handler([Question(version, PLACES) for version in others])


def test_asking_teaches_first_and_again_after_a_restart() -> None:
    endpoint = Here(forgetful=2)
    found = service.ask(endpoint, _training(9), PLACES)
    assert endpoint.asked == 3
    assert np.array_equal(found.mean, train(_training(9)).predict(PLACES).mean)


def test_asking_ends_when_nothing_is_ever_learned() -> None:
    with pytest.raises(RuntimeError, match="surrogate"):
        service.ask(Here(forgetful=100), _training(9), PLACES)
