"""What surely stands in a module after its import, and what is said where a script set something else."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl._functions import FunctionPacker
from pilot_hitl._keys import KeyMaker
from pilot_hitl._lasting import is_same, lasting
from pilot_hitl.wire.blobs import BlobStore

NAMES: list[tuple[str, dict[str, object]]] = [
    ("A = 1\nB = -2.5\nC = 60 * 60\nD = None\nE = 'x'\nF = (1, 'two')\nG: int = 3", dict(zip(
        "ABCDEFG", (1, -2.5, 3600, None, "x", (1, "two"), 3), strict=True))),
    ("A = {'a': 1, 'b': [1, 2, 3, {'c': {4, 5}}]}", {"A": {"a": 1, "b": [1, 2, 3, {"c": {4, 5}}]}}),
    ("A = {1: 2, (3, 4): 5}\nB = [1, 2]\nC = [0, 1, 2, 3]\nD = {1, 2, 3}\nE = {}", {
        "A": {1: 2, (3, 4): 5}, "B": [1, 2], "C": [0, 1, 2, 3], "D": {1, 2, 3}, "E": {}}),
    (f"A = {dict.fromkeys(range(40), 'v')!r}", {"A": dict.fromkeys(range(40), "v")}),
    ("A = 1\nA = 2", {}),
    ("A = 1 if __name__ else 2", {}),
    ("A = __doc__ or 5", {}),
    ("if __name__ == 'x':\n    A = 1\nB = 2", {"B": 2}),
    ("for A in ():\n    B = 1\nC = 3", {"C": 3}),
    ("from os.path import *\nA = 1", {}),
    ("A = 1\nglobals().update(A=2)", {}),
    ("A = 1\nimport sys\nsetattr(sys.modules[__name__], 'A', 2)", {}),
    ("A = 1\ndef f():\n    global A\n    A = 2", {}),
    ("A = int('1')\nB = [A, 2]\nC = {'k': A}", {}),
    ("A = 1\ndel A", {}),
    # Caches, registries and counters are changed by the module itself.
    ("A = {}\ndef f(k):\n    A[k] = 1", {}),
    ("A = []\ndef f(k):\n    A.append(k)", {}),
    ("A = {'n': 0}\ndef f():\n    A['n'] += 1", {}),
    ("A = {'a': {}}\ndef f(k):\n    A['a'][k] = 1", {}),
    ("A = {'a': []}\ndef f(k):\n    A['a'].append(k)", {}),
    ("A = {'a': []}\ndef f(k):\n    return A['a']", {}),
    ("A = {}\ndef f(g):\n    g(A)", {}),
    ("A = {}\nB = A", {}),
    ("A = {}\ndef f():\n    return A", {}),
    # Whoever only looks changes nothing.
    ("A = {'a': 1}\ndef f(k):\n    return A[k] + A.get(k, 0) + sum(A[x] for x in A) if k in A else 0", {"A": {"a": 1}}),
    ("A = {'a': {'b': 1}}\ndef f(k):\n    return A['a'][k] * 2", {"A": {"a": {"b": 1}}}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), NAMES)
def test_what_surely_stands_in_a_module(source: str, expected: dict[str, object]) -> None:
    code = compile(source, "there.py", "exec", dont_inherit=True)
    space: dict[str, object] = {"__name__": "there", "__doc__": None}
    sys.modules["there"] = types.ModuleType("there")
    try:
        exec(code, space)  # noqa: S102 - this is what an import does
    finally:
        del sys.modules["there"]
    sure = lasting(code).names
    found = {name: value for name, value in sure.items() if not isinstance(value, types.CodeType) and name != "__doc__"}
    assert found == expected
    assert all(is_same(space[name], value) for name, value in found.items())


def test_what_surely_stands_in_classes() -> None:
    source = """
class A:
    level = 1
    table = {"a": 1}
    count = 0
    names = []
    class B:
        deep = 2
    def __init__(self):
        type(self).count += 1
        self.names.append(1)
def make():
    class C:
        level = 1
"""
    assert lasting(compile(source, "", "exec")).classes == {"A": {"level": 1, "table": {"a": 1}}, "A.B": {"deep": 2}}
    source = "def f(x: int = 3, *, y=dict()): return x\n@f\ndef g(): pass\nh = lambda: f\ndef f2(): f.__doc__ = ''"
    assert lasting(compile(source, "", "exec")).names.keys() == {"f", "h", "f2"}


def test_modules_as_they_are_hold_what_surely_stands_in_them() -> None:
    seen = 0
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] not in sys.stdlib_module_names or not file.endswith(".py"):
            continue
        code = compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
        for each, constant in lasting(code).names.items():
            seen += 1
            assert is_same(vars(module).get(each, constant), constant), f"{name}.{each}"
    assert seen > 300


SETTINGS = """
steps = 1
by_name = {"a": 1}
cache = {}
class K:
    level = 1
    def grow(self): return self.level + 1
def remember(k): cache[k] = 1
def scale(x): return x * 2
"""
READERS = """
import lsettings
from lsettings import K as Kind
def run(x): return x * lsettings.steps
def inside(x):
    import lsettings
    return x * lsettings.steps
def inside_from(x):
    from lsettings import steps as n
    return x * n
def inside_called(x):
    from lreaders import run
    return run(x)
def inside_class(x):
    from lsettings import K
    return x * K.level
def kind(x): return x * Kind.level
def named(x): return x * lsettings.by_name["a"]
def closure():
    m = lsettings
    return lambda x: x * m.steps
def default(x, m=lsettings, *, n=lsettings): return x * m.steps
def only_by_keyword(x, *, n=lsettings): return x * n.steps
def sets_itself(x):
    lsettings.steps = x
    return lsettings.steps
def other(x): return lsettings.remember(x)
def opaque(x, m): return x * m.steps
def scaled(x): return lsettings.scale(x)
def grown(x): return Kind().grow() * x
def by_text(x): return x * getattr(lsettings, "steps")
"""


@pytest.fixture
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "lsettings.py").write_text(SETTINGS)
    (tmp_path / "lreaders.py").write_text(READERS)
    (tmp_path / "llocal.py").write_text("import lsettings\nlsettings.by_name['a'] = 7\nlsettings.K.level = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("lreaders")
    for name in ("lreaders", "lsettings", "llocal"):
        sys.modules.pop(name, None)


def pack(function: object, folder: Path) -> None:
    FunctionPacker(BlobStore(folder / "blobs"), KeyMaker("", lambda _: None)).pack(function)


of_the_script: Any = types.FunctionType(
    compile("lambda *_: 7", "script.py", "eval").co_consts[0], {"__name__": "__main__"}, "of_the_script"
)

REFUSED: list[tuple[str, Callable[[Any], object]]] = [
    ("steps", lambda m: m.run),
    ("steps", lambda m: m.inside),
    ("steps", lambda m: m.inside_from),
    ("steps", lambda m: m.inside_called),
    ("steps", lambda m: m.closure()),
    ("steps", lambda m: m.default),
    ("steps", lambda m: m.only_by_keyword),
    ("steps", lambda m: partial(m.run, 2)),
    ("by_name", lambda m: m.named),
    ("K.level", lambda m: m.kind),
    ("K.level", lambda m: m.inside_class),
    ("K.level", lambda m: partial(m.other, m.Kind())),
    ("K.grow", lambda m: m.grown),
    ("scale", lambda m: m.scaled),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_what_a_script_set_in_a_module_is_refused_however_it_is_read(readers: Any, index: int, tmp_path: Path) -> None:
    what, choose = REFUSED[index]
    space = vars(sys.modules["lsettings"])
    function = choose(readers)
    pack(function, tmp_path)
    space["remember"]("now")
    pack(function, tmp_path)
    # Not by their names: these stand in a module as well.
    space["steps"] = 5
    space["by_name"].update(a=7)
    if what.startswith("K."):
        setattr(space["K"], what[2:], of_the_script if what == "K.grow" else 9)
    if what == "scale":
        space["scale"] = of_the_script
    with pytest.raises(ph.PayloadError, match=rf"lsettings\.{what} was set to .* by this script, and is .*argument"):
        pack(function, tmp_path)


@pytest.mark.parametrize("name", ["sets_itself", "other"])
def test_what_a_function_sets_or_never_reads_is_its_own(readers: Any, name: str, tmp_path: Path) -> None:
    pack(readers.run, tmp_path)
    vars(sys.modules["lsettings"]).update(steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(getattr(readers, name), tmp_path)


@pytest.mark.parametrize("choose", [lambda m: partial(m.opaque, m=m.lsettings), lambda m: m.by_text])
def test_where_nobody_sees_what_is_read_a_warning_says_it_once(
    readers: Any, choose: Callable[[Any], object], tmp_path: Path
) -> None:
    pack(readers.run, tmp_path)
    vars(sys.modules["lsettings"]).update(steps=5)
    packer = FunctionPacker(BlobStore(tmp_path / "blobs"), KeyMaker("", lambda _: None))
    with pytest.warns(ph.ModuleChangedWarning, match=r"lsettings\.steps was set to 5"):
        packer.pack(choose(readers))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packer.pack(choose(readers))


def test_what_another_module_of_the_script_changes_is_left_in_peace(readers: Any, tmp_path: Path) -> None:
    importlib.import_module("llocal")
    for function in (readers.named, readers.kind):
        pack(function, tmp_path)


def test_a_module_that_only_uses_the_same_name_excuses_nobody(readers: Any, tmp_path: Path) -> None:
    (tmp_path / "llocal.py").write_text("by_name = {}\nby_name.update(a=1)\n")
    importlib.import_module("llocal")
    pack(readers.named, tmp_path)
    vars(sys.modules["lsettings"])["by_name"].update(a=7)
    with pytest.raises(ph.PayloadError, match=r"lsettings\.by_name was set to"):
        pack(readers.named, tmp_path)
