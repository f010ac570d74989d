from __future__ import annotations

import gc
import importlib
import math
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl._functions import FunctionPacker, PackedFunction, script_path
from pilot_hitl._keys import KeyMaker
from pilot_hitl.errors import PayloadError
from pilot_hitl.wire import values
from pilot_hitl.wire.blobs import BlobStore


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def packer(blobs: BlobStore) -> FunctionPacker:
    return FunctionPacker(blobs, KeyMaker("", lambda _: None))


def made(source: str, **known: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", **known}
    run(source, namespace)
    return namespace["f"]


def run(source: str, namespace: dict[str, Any]) -> None:
    exec(source, namespace)  # noqa: S102 - the test's own source


def module_function(x: int) -> int:
    return x + 1


def load(packed: PackedFunction, blobs: BlobStore) -> Any:
    return values.loads(packed.code, blobs)


def test_functions_come_back(packer: FunctionPacker, blobs: BlobStore) -> None:
    assert load(packer.pack(module_function), blobs) is module_function
    assert load(packer.pack(math.sqrt), blobs)(4) == 2
    assert load(packer.pack(made("def f(x): return x * N", N=3)), blobs)(2) == 6
    offset = 10
    assert load(packer.pack(lambda x: x + offset), blobs)(1) == 11


def test_the_same_function_is_packed_once(packer: FunctionPacker) -> None:
    function = made("def f(x): return helper(x)", helper=made("def f(x): return -x"))
    assert packer.pack(function) is packer.pack(function)
    assert packer.pack(module_function) is packer.pack(module_function)


def test_what_changed_is_noticed(packer: FunctionPacker, blobs: BlobStore) -> None:
    function = made("def f(x): return helper(x) + N", N=1, helper=made("def f(x): return x"))
    assert load(packer.pack(function), blobs)(1) == 2
    function.__globals__["N"] = 5
    assert load(packer.pack(function), blobs)(1) == 6
    function.__globals__["helper"] = made("def f(x): return -x")
    assert load(packer.pack(function), blobs)(1) == 4
    function.__defaults__ = (7,)
    assert load(packer.pack(function), blobs)() == -2

    cell = 1

    def closure() -> int:
        return cell

    first = packer.pack(closure)
    cell = 2
    assert packer.pack(closure).fingerprint != first.fingerprint
    assert load(packer.pack(closure), blobs)() == 2


def test_what_can_change_in_place_is_packed_each_time(packer: FunctionPacker, blobs: BlobStore) -> None:
    table = [1]
    function = made("def f(): return sum(table)", table=table)
    first = packer.pack(function)
    table.append(2)
    assert load(packer.pack(function), blobs)() == 3
    assert load(first, blobs)() == 1


CLASS_EDITS = [
    ("K.limit = 2", (2, 1, 1)),
    ("K.area = lambda self: 5", 5),
    ("SCALE = 3", (1, 3, 1)),
    ("B.base = 4", (1, 1, 4)),
    ("K.more = 1", (1, 1, 1)),
]


@pytest.mark.parametrize(("change", "expected"), CLASS_EDITS)
def test_what_changed_of_a_class_is_noticed(packer: FunctionPacker, change: str, expected: object) -> None:
    source = (
        "SCALE = 1\nclass B:\n    base = 1\nclass K(B):\n    limit = 1\n"
        "    def area(self): return self.limit, SCALE, self.base\ndef f(): return K().area()"
    )
    function = made(source)
    before = packer.pack(function)
    assert packer.pack(function) is before
    run(change, function.__globals__)
    assert function() == expected
    after = packer.pack(function)
    assert (after.digest == before.digest, after.fingerprint == before.fingerprint) == (False, False)


ORDINARY = [
    "import dataclasses as d\n@d.dataclass\nclass K:\n    x: int = 1\n    y: list = d.field(default_factory=list)",
    "import enum\nclass K(enum.Enum):\n    A = 1\n    def g(self): return 1",
    "import typing\nclass K(typing.NamedTuple):\n    x: int = 1",
    "import functools\nclass K:\n    __slots__ = ('a',)\n    @functools.lru_cache\n    def g(self): return 1",
    "import abc\nclass K(abc.ABC):\n    @property\n    def g(self): return 1\n    @classmethod\n    def h(c): return c",
    "import msgspec\nclass K(msgspec.Struct):\n    x: int = 1",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_functions_with_ordinary_classes_are_packed_once(packer: FunctionPacker, source: str) -> None:
    function = made(f"{source}\ndef f(): return K")
    first = packer.pack(function)
    # What pickling and annotations leave at a class is no change of it.
    type.__setattr__(function(), "__slotnames__", [])
    assert function().__annotations__ is not None
    assert packer.pack(function) is first


def test_forgotten_functions_are_forgotten(packer: FunctionPacker) -> None:
    for _ in range(3):
        packer.pack(made("def f(): return 1"))
    gc.collect()
    assert not packer._packed


def test_what_cannot_be_packed_is_named(packer: FunctionPacker) -> None:
    lock = threading.Lock()
    with pytest.raises(PayloadError, match="locks"):
        packer.pack(lambda: lock)
    with pytest.raises(PayloadError, match="cannot be called"):
        packer.pack(3)


def test_large_functions_travel_by_reference(packer: FunctionPacker, blobs: BlobStore) -> None:
    data = bytes(200_000)
    packed = packer.pack(lambda: len(data))
    assert len(packed.code) < 100
    assert load(packed, blobs)() == 200_000


def test_the_scripts_folders_travel_with_the_function(
    packer: FunctionPacker, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_script.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    beside_the_script = importlib.import_module("beside_the_script")
    assert str(tmp_path) in script_path()
    assert not any(path.endswith("site-packages") for path in script_path())
    packed = packer.pack(beside_the_script.double)
    monkeypatch.undo()
    del sys.modules["beside_the_script"]
    before = list(sys.path)
    try:
        assert load(packed, blobs)(4) == 8
    finally:
        sys.path[:] = before
        sys.modules.pop("beside_the_script", None)
