"""Which of two classes are the same."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import abc, enum, functools, pickle, sys, typing
from dataclasses import dataclass, field
import msgspec
from pilot_hitl.wire import classes, pickling
"""
SOURCES = [
    "class C: pass",
    "class C:\n    def f(self): return 1",
    "class C:\n    def f(self): return 2",
    "class C:\n    def f(self, x=2): return 1",
    "class C:\n    limit = 1",
    "class C:\n    limit = 2",
    "class C:\n    limit: int = 2",
    "class C(dict): pass",
    "class C(dict, metaclass=abc.ABCMeta): pass",
    "class C(enum.Enum):\n    A = 1",
    "class C(enum.Enum):\n    A = 2",
    "class C(enum.Enum):\n    A = 1\n    def f(self): return 1",
    "class C(enum.IntFlag):\n    A = 1",
    "@dataclass\nclass C:\n    x: int",
    "@dataclass\nclass C:\n    x: float",
    "@dataclass(frozen=True)\nclass C:\n    x: int",
    "@dataclass\nclass C:\n    x: int = 1",
    "@dataclass\nclass C:\n    x: list = field(default_factory=list)",
    "class C(typing.NamedTuple):\n    x: int",
    "class C(typing.NamedTuple):\n    x: int = 1",
    "class C(typing.TypedDict):\n    x: int",
    "class C(msgspec.Struct):\n    x: int",
    "class C(msgspec.Struct):\n    x: int = 1",
    "class C(msgspec.Struct, frozen=True):\n    x: int = 1",
    "class C:\n    @property\n    def f(self): return 1",
    "class C:\n    @functools.cached_property\n    def f(self): return 1",
    "class C:\n    @functools.cached_property\n    def f(self): return 2",
    "class C:\n    @staticmethod\n    def f(): return 1",
    "class C:\n    class D:\n        def f(self): return 1",
    "class B:\n    def f(self): return 1\nclass C(B): pass",
    "class B:\n    def f(self): return 2\nclass C(B): pass",
    "T = typing.TypeVar('T')\nclass C(typing.Generic[T]): pass",
]


def run(path: Path, code: str, *arguments: str) -> list[str]:
    path.write_text(HEAD + code)
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + done.stderr.splitlines()


def test_equal_classes_have_one_make_and_different_ones_different_makes(tmp_path: Path) -> None:
    code = f"for source in {SOURCES!r}:\n    exec(source)\n    print(classes.make_of(C))\n"
    first = run(tmp_path / "one.py", code)
    assert len(set(first)) == len(first) == len(SOURCES)
    assert run(tmp_path / "another.py", code) == first


VALUES = {
    "class C:\n    def __init__(self, x=1): self.x = x\n    def __eq__(self, other): return self.x == other.x": "C()",
    "class C(enum.Enum):\n    A = 1\n    def f(self): return C.A": "C.A.f()",
    "@dataclass(frozen=True)\nclass C:\n    x: int = 1\n    def other(self): return C(2)": "{C(): [C().other()]}",
    "class C(typing.NamedTuple):\n    x: int = 1": "C(3)",
    "class C(msgspec.Struct, tag=True, rename='camel'):\n    x_y: int = 1\n    z: list = []\n"
    "    def f(self): return C(2)": "C().f()",
    "class B(msgspec.Struct):\n    x: int\nclass C(B, kw_only=True):\n    y: int = 2": "C(1)",
    "class C(Exception):\n    def __init__(self, x): super().__init__(x); self.x = x\n"
    "    def __eq__(self, other): return self.x == other.x": "C(1)",
    "class B:\n    class C:\n        def __eq__(self, other): return True\nC = B.C": "C()",
}


@pytest.mark.parametrize("source", VALUES)
def test_what_comes_back_is_of_the_class_that_is_there(tmp_path: Path, source: str) -> None:
    value, stored, other = VALUES[source], tmp_path / "stored", tmp_path / "other"
    write = f"{source}\nopen(sys.argv[1], 'wb').write(pickling.dumps({value}))"
    # By way of a process that knows nothing of the class, as through a worker.
    via = "value = pickle.load(open(sys.argv[1], 'rb'))\nopen(sys.argv[2], 'wb').write(pickling.dumps(value))"
    read = (
        f"{source}\nvalue = pickle.load(open(sys.argv[1], 'rb'))\nprint(value == {value}, type(value) is type({value}))"
    )
    run(tmp_path / "write.py", write, str(stored))
    run(tmp_path / "via.py", via, str(stored), str(other))
    assert run(tmp_path / "read.py", read, str(other)) == ["True True"]


def test_a_class_that_changed_is_named_once_and_not_taken(tmp_path: Path) -> None:
    stored = str(tmp_path / "stored")
    run(tmp_path / "write.py", "class C:\n    x = 1\nopen(sys.argv[1], 'wb').write(pickling.dumps([C(), C()]))", stored)
    read = (
        "class C:\n    x = 2\nfirst, second = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(isinstance(first, C), type(first) is type(second), first.x, C.x)"
    )
    said = run(tmp_path / "read.py", read, stored)
    assert said[0] == "False True 1 2"
    assert sum("C has changed" in line for line in said[1:]) == 1


def test_two_classes_of_one_make_are_two() -> None:
    from pilot_hitl.wire import pickling

    def factory() -> Any:
        class Local:
            pass

        return Local

    one, two = factory(), factory()
    values = pickle.loads(pickling.dumps([one(), two(), one]))
    assert [type(values[0]) is one, type(values[1]) is two, values[2] is one] == [True, True, True]


def test_classes_that_functions_make_are_one_only_where_they_hold_the_same(tmp_path: Path) -> None:
    maker = (
        "def made(n, shared):\n    class Local:\n        kept = shared\n"
        "        def f(self): return n\n    return Local\n"
    )
    write = maker + (
        "import gc\nfiles = []\nfor n, shared in ((1, ()), (1, ()), (2, ()), (1, [1]), (1, [2])):\n"
        "    files.append(pickling.dumps(made(n, shared)()))\n    gc.collect()\n"
        "pickle.dump(files, open(sys.argv[1], 'wb'))"
    )
    read = (
        "values = [pickle.loads(each) for each in pickle.load(open(sys.argv[1], 'rb'))]\n"
        "print([(each.f(), each.kept) for each in values])\n"
        "print([type(each) is type(values[0]) for each in values])"
    )
    stored = str(tmp_path / "stored")
    run(tmp_path / "write.py", write, stored)
    assert run(tmp_path / "read.py", read, stored) == [
        "[(1, ()), (1, ()), (2, ()), (1, [1]), (1, [2])]",
        "[True, True, False, False, False]",
    ]
