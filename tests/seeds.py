"""The seed of a run of the tests: of their order, and of what they try at random.

``PILOT_HITL_SEED`` sets it. Without it a run is as every other: the order is that of the files, hypothesis and the
seeded histories tell the same stories, and so a failure is the change's. ``tools/flaky`` and ``tools/search`` set it.
"""

from __future__ import annotations

import os
import random
from collections.abc import MutableSequence
from typing import Protocol, TypeVar

from tests.parts import long_ones

VARIABLE = "PILOT_HITL_SEED"


class Test(Protocol):
    """What is known of a test before it runs."""

    @property
    def nodeid(self) -> str: ...


T = TypeVar("T", bound=Test)


def given() -> int | None:
    """Return the seed of this run, None for none."""
    text = os.environ.get(VARIABLE, "")
    return int(text) if text else None


def first(usual: int) -> int:
    """Return where seeded histories begin to count: at the ``usual`` number, or elsewhere in a run with a seed."""
    seed = given()
    return usual if seed is None else random.Random(seed).randrange(1 << 40)


def examples(most: int) -> int:
    """Return how many stories a test tells: all in a long run, and in one with a seed; else enough for every kind."""
    return most if long_ones() or given() is not None else max(20, most * 2 // 5)


def shuffle(tests: MutableSequence[T], seed: int) -> None:
    """Put the files, and the tests of each file, into another order.

    The tests of a file stay together: what a file sets up once is set up once.
    """
    chance = random.Random(seed)
    files: dict[str, list[T]] = {}
    for test in tests:
        files.setdefault(test.nodeid.partition("::")[0], []).append(test)
    names = sorted(files)
    chance.shuffle(names)
    for name in names:
        files[name].sort(key=lambda test: test.nodeid)
        chance.shuffle(files[name])
    tests[:] = [test for name in names for test in files[name]]
