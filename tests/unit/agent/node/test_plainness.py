"""After which functions nobody needs to look what they changed."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pilot_hitl_agent.node.plainness import changes_nothing

LIMIT = 3
TABLE = [1, 2]


def _square(x: int) -> int:
    return x * x


def _sum(n: int) -> int:
    return sum(_square(each) for each in range(n) if each > LIMIT)


def _root(x: float) -> float:
    if x < 0:
        raise ValueError(x)
    return math.sqrt(x)


def _recursive(n: int) -> int:
    return n * _recursive(n - 1) if n else 1


def _environment() -> None:
    os.environ["A"] = "b"


def _imports() -> None:
    import signal

    signal.alarm(1)


def _by_name() -> None:
    __import__("os").umask(0)


def _by_class(x: int) -> Any:
    return x.__class__.__base__


def _table() -> list[int]:
    return TABLE


def _prints() -> None:
    print("x")


def _indirectly() -> None:
    _environment()


def _nested() -> Any:
    return [os.getcwd() for _ in range(1)]


def _default(x: list[int] = TABLE) -> int:
    return len(x)


async def _awaits() -> int:
    return 1


@pytest.mark.parametrize("function", [_square, _sum, _root, _recursive, abs, len, math.sqrt, time.sleep, lambda x: x])
def test_these_change_nothing(function: Callable[..., Any]) -> None:
    assert changes_nothing(function)


@pytest.mark.parametrize(
    "function",
    [
        _environment, _imports, _by_name, _by_class, _table, _prints, _indirectly, _nested, _default, _awaits,
        open, exec, os.umask, sys.settrace, [].append, functools.partial(abs, 1), dict, test_these_change_nothing,
    ],
)  # fmt: skip
def test_of_these_nobody_knows(function: Callable[..., Any]) -> None:
    assert not changes_nothing(function)
