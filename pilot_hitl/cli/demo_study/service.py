"""The surrogate as a service: a replica keeps it loaded, trains it again when there is more, and answers questions.

A question names the observations that the surrogate must have learned from, and a replica keeps the surrogates of
several such sets. So tasks that assume different answers of a person may retrain it as they like: nobody's prediction
depends on what somebody else taught it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from pilot_hitl.cli.demo_study.surrogate import Array, Model, Prediction, Training, train

NAME = "surrogate"
"""Of the service."""
HANDLER = "pilot_hitl.cli.demo_study.service:Surrogate"
KEPT = 32
"""Trained surrogates that a replica keeps, the latest used."""
TRIES = 5
"""A replica that is started anew has learned nothing; so often it is taught again before a question fails."""


@dataclass(frozen=True)
class Question:
    """What is expected at these places, ``(n, 2)`` of feed and kill, given the observations of this version."""

    version: str
    places: Array


class Surrogate:
    """The handler: one lives in each replica."""

    def __init__(self) -> None:
        """It knows nothing yet."""
        self._models: OrderedDict[str, Model] = OrderedDict()

    def setup(self) -> None:
        """Nothing is to be loaded; training it once has numpy's linear algebra ready before the first question."""
        train(Training(((0.03, 0.06, 0.1), (0.04, 0.06, 0.2))))

    def train(self, training: Training) -> str:
        """Learn from these observations, unless that is known already; return their version."""
        version = training.version
        if version not in self._models:
            self._models[version] = train(training)
            while len(self._models) > KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(version)
        return version

    def __call__(self, batch: Sequence[Question]) -> list[Prediction | None]:
        """Answer each question; None where the observations that it names were never learned from."""
        return [self._answer(question) for question in batch]

    def _answer(self, question: Question) -> Prediction | None:
        model = self._models.get(question.version)
        if model is None:
            return None
        self._models.move_to_end(question.version)
        return model.predict(question.places)


class Endpoint(Protocol):
    """What is needed of a handle of the service."""

    def request(self, item: Any, /) -> Future[Any]:
        """Ask a replica."""
        ...

    def broadcast(self, item: Any, /, *, method: str) -> Sequence[Future[Any]]:
        """Call a method of the handler in each replica."""
        ...


def ask(endpoint: Endpoint, training: Training, places: Array) -> Prediction:
    """Have the surrogate learn from these observations, and return what it expects at these places.

    Raises:
        ServiceError: the service does not answer.
    """
    for _ in range(TRIES):
        for taught in endpoint.broadcast(training, method="train"):
            taught.result()
        prediction: Prediction | None = endpoint.request(Question(training.version, places)).result()
        if prediction is not None:
            return prediction
    raise RuntimeError(
        f"the service {NAME!r} forgot {TRIES} times what it had learned: its replicas die, or are too many"
    )


def consult(training: Training, places: Array) -> Prediction:
    """As :func:`ask`, from inside a task."""
    import pilot_hitl as ph

    return ask(ph.service(NAME), training, places)
