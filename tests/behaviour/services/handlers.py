"""Handlers of the tests; replicas import this module by reference to it, or get a copy of a class."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


class Double:
    """Doubles what it gets; remembers the batch sizes that it saw."""

    def __init__(self, factor: int = 2, wait: float = 0.0) -> None:
        self.factor = factor
        self.wait = wait
        self.sizes: list[int] = []

    def __call__(self, batch: list[Any]) -> list[Any]:
        self.sizes.append(len(batch))
        time.sleep(self.wait)
        return [item * self.factor for item in batch]

    def seen(self, _: object) -> list[int]:
        return self.sizes

    def train(self, factor: int) -> int:
        self.factor = factor
        return os.getpid()


class Odd:
    """Misbehaves as it is asked to."""

    def __call__(self, item: Any) -> Any:
        if item == "raise":
            raise KeyError("no such thing")
        if item == "unpicklable":
            raise type("Local", (Exception,), {})("cannot travel")
        if item == "die":
            os._exit(3)
        if item == "hang":
            time.sleep(600)
        return item


class Once:
    """Hangs, or dies, at the first request of all its replicas' lives; ``place`` remembers."""

    def __init__(self, place: str, how: str) -> None:
        self.place = Path(place)
        self.how = how

    def __call__(self, item: Any) -> Any:
        if not self.place.exists():
            self.place.touch()
            if self.how == "hang":
                time.sleep(600)
            os._exit(7)
        return item


class Batches:
    """Returns what ``kind`` says instead of one result an item."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, batch: list[Any]) -> Any:
        return {"few": batch[:-1], "many": [*batch, 1], "text": "abc", "one": 5}[self.kind]


class Broken:
    """Cannot be set up."""

    def setup(self) -> None:
        raise FileNotFoundError("model.pt is missing")

    def __call__(self, item: Any) -> Any:
        return item


class Slow:
    """Takes a while to be set up, and for each batch; writes down what it served."""

    def __init__(self, setup: float = 0.0, wait: float = 0.0) -> None:
        self.before = setup
        self.wait = wait

    def setup(self) -> None:
        time.sleep(self.before)

    def __call__(self, batch: list[Any]) -> list[Any]:
        time.sleep(self.wait)
        return [(item, os.getpid()) for item in batch]
