from __future__ import annotations

import enum
import functools
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilot_hitl._fingerprint import NotFingerprintable, fingerprint
from pilot_hitl._modules import ModuleVersions
from pilot_hitl.wire.ownership import Script

SCRIPT = ModuleVersions(Script())


class Own(Script):
    """A script that owns this test's modules."""

    def owns(self, module: str) -> bool:
        return module == __name__ or module.startswith("made")


OWN = ModuleVersions(Own())


def of(value: object, script: ModuleVersions = OWN) -> bytes:
    return fingerprint(value, script)


def made(source: str, name: str = "f", **known: Any) -> Any:
    """Return a function of its own module, as another run of a script would make it."""
    namespace: dict[str, Any] = {"__name__": "made", **known}
    exec(compile(source, "elsewhere", "exec"), namespace)  # noqa: S102 - the test's own source
    return namespace[name]


class Point:
    def __init__(self, x: float) -> None:
        self.x = x


class Colour(enum.Enum):
    RED = 1


DIFFERENT = [
    None, True, 1, 1.0, "1", b"1", -0.0, 0.0, (1,), [1], {1}, {1: 1}, {"1": 1}, [[1], 2], [1, [2]], 10**5000, (),
    Point(1.0), Point(2.0), Colour.RED, np.arange(3), np.arange(3.0), np.arange(3).reshape(3, 1), np.float64(1.0),
    Path("a"), pow, Point, functools.partial(pow, 2), "ab".upper, bytearray(b"1"), float("nan"), 1j,
]  # fmt: skip


def test_different_values_differ() -> None:
    assert len({of(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_a_copy_is_equal() -> None:
    for value in DIFFERENT:
        assert of(pickle.loads(pickle.dumps(value))) == of(value), value


def test_sets_and_dictionaries_have_no_order() -> None:
    words = [f"word{index}" for index in range(50)]
    assert of(set(words)) == of({*words[25:], *words[:25]})
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of({1: "a", "b": 2}) == of({"b": 2, 1: "a"})
    assert of({1: "a"}) != of({1: "b"})


def test_an_array_is_known_by_content_not_by_layout() -> None:
    array = np.arange(12).reshape(3, 4)
    assert of(array) == of(np.asfortranarray(array))
    assert of(array) != of(array.T)


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x): return x + 2",
        "def f(x, y=1): return x + 1",
        "def f(x): return g(x) + 1",
        "def f(x):\n  def inner(): return 2\n  return x + 1",
    ],
)
def test_a_function_is_its_code(changed: str) -> None:
    assert of(made("def f(x): return x + 1")) == of(made("\n\ndef f(x): return x + 1  # elsewhere"))
    assert of(made("def f(x): return x + 1")) != of(made(changed))


def test_what_a_function_reads_counts() -> None:
    source = "def f(x): return helper(x) * SCALE"
    first = of(made(source, SCALE=2, helper=made("def f(x): return x")))
    assert first == of(made(source, SCALE=2, helper=made("def f(x): return x"), unrelated=threading.Lock()))
    assert first != of(made(source, SCALE=3, helper=made("def f(x): return x")))
    assert first != of(made(source, SCALE=2, helper=made("def f(x): return -x")))


def test_closures_defaults_and_recursion_count() -> None:
    source = "def outer(n):\n  def f(x, *, k=[1]): return x + n\n  return f"
    outer = made(source, "outer")
    assert of(outer(1)) == of(made(source, "outer")(1)) != of(outer(2))
    assert of(made("def f(n): return n and f(n - 1)")) == of(made("def f(n): return n and f(n - 1)"))


def test_installed_functions_are_names() -> None:
    assert of(np.mean) == of(np.mean, SCRIPT)
    assert of(np.mean) != of(np.median)


def test_what_has_no_content_is_refused() -> None:
    values: list[Any] = [threading.Lock(), [threading.Lock()], made("def f(): return lock", lock=threading.Lock())]
    for value in values:
        with pytest.raises(NotFingerprintable):
            of(value)


def test_cycles_end() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    other: list[Any] = [1]
    other.append(other)
    assert of(ring) == of(other)
    point: Any = Point(1.0)
    point.x = point
    assert of(point)


def test_the_same_in_another_process() -> None:
    program = (
        "from pilot_hitl._fingerprint import fingerprint\nfrom pilot_hitl._modules import ModuleVersions\n"
        "from pilot_hitl.wire.ownership import Script\n"
        "def helper(x): return {x, 'b', 'c'}\n"
        "def f(x, y=frozenset({'p', 'q', 'r'})): return helper(x) in {'s', 't', 'u'}\n"
        "class C:\n    def m(self): return f\n"
        "print(fingerprint((f, C, C(), {'x', 'y', 'z'}, {'k': 1.5}), ModuleVersions(Script())).hex())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(results) == 1
