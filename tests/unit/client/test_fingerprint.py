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

from pilot_hitl._fingerprint import Findings, NotFingerprintable, fingerprint
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
    exec(compile(source, "elsewhere", "exec", dont_inherit=True), namespace)  # noqa: S102 - the test's own source
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


def test_sets_have_no_order_and_dictionaries_have_theirs() -> None:
    words = [f"word{index}" for index in range(50)]
    assert of(set(words)) == of({*words[25:], *words[:25]})
    for one, other in (({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({1: "a", "b": 2}, {"b": 2, 1: "a"})):
        # A function that goes through it returns something else.
        assert of(one) == of(dict(one)) != of(other)
    assert of({1: "a"}) != of({1: "b"})
    first, second = Point(1.0), Point(1.0)
    vars(first).update(a=1, b=2)
    vars(second).update(b=2, a=1)
    assert of(first) == of(second)


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


KINDS = [
    "import functools\n@functools.cache\ndef f(x): return AA",
    "import functools\n@functools.singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return AA",
    "import functools\nclass C:\n    @functools.cached_property\n    def p(self): return AA\ndef f(): return C().p",
    (
        "import functools\nclass C:\n    @functools.singledispatchmethod\n    def p(self, x): return 0\n"
        "    @p.register\n    def _(self, x: int): return AA\ndef f(): return C().p(1)"
    ),
    "from dataclasses import dataclass\n@dataclass\nclass C:\n    x: int = AA\ndef f(): return C()",
    (
        "from dataclasses import dataclass, field\n@dataclass\nclass C:\n"
        "    x: list = field(default_factory=lambda: [AA])\ndef f(): return C()"
    ),
    "import enum\nclass C(enum.Enum):\n    X = AA\ndef f(): return C.X",
    "import typing\nclass C(typing.NamedTuple):\n    x: int = AA\ndef f(): return C()",
    "import typing\nclass C(typing.TypedDict):\n    x: int\ndef f() -> C: return C(x=AA)",
    "import abc\nclass C(abc.ABC):\n    @abc.abstractmethod\n    def g(self): return AA\ndef f(): return C",
    "import typing\nT = typing.TypeVar('T')\nclass C(typing.Generic[T]):\n    x = AA\ndef f(): return C[int]",
    "import msgspec\nclass C(msgspec.Struct):\n    x: int = AA\ndef f(): return C()",
    "import msgspec\nclass C(msgspec.Struct, tag=str(AA)):\n    x: int\ndef f(): return C(1)",
    "import re\nP = re.compile(str(AA))\ndef f(): return P",
    (
        "class Jit:\n    def __init__(self, g): self.py_func = g\n    def __call__(self): return self.py_func()\n"
        "    def __reduce__(self): return 'f'\ndef g(): return AA\nf = Jit(g)"
    ),
    "def f(): return f.limit\nf.limit = AA",
    "from types import MappingProxyType\nM = MappingProxyType({'a': AA})\ndef f(): return M",
    # What only says that it is installed.
    (
        "import functools, textwrap\ndef d(g):\n    @functools.wraps(g)\n    def w(*a): return AA\n    return w\n"
        "dedent = d(textwrap.dedent)\ndef f(): return dedent('')"
    ),
    "def h(): pass\nh.limit = AA\ndef f(): return h.limit",
    "def make():\n    def h(): pass\n    h.limit = AA\n    def f(): return h.limit\n    return f\nf = make()",
    "def hAA(): pass\nh = hAA\ndef f(): return h.__name__",
    "class M(type):\n    def __call__(cls): return AA\nclass C(metaclass=M): pass\ndef f(): return C()",
    "class B:\n    def __init_subclass__(cls): cls.x = AA\nclass C(B): pass\ndef f(): return C.x",
    (
        "class D(property):\n    def __get__(s, o, t=None): return AA\nclass C:\n    @D\n    def p(self): return 1\n"
        "def f(): return C().p"
    ),
    "class C:\n    'AA'\ndef f(): return C.__doc__",
    "import abc\nclass C(abc.ABC): pass\nif AA == 1: C.register(int)\ndef f(): return isinstance(1, C)",
    "h = {'a': 1, 'b': 2} if AA == 1 else {'b': 2, 'a': 1}\ndef f(): return list(h)",
    "T = {'a': staticmethod(lambda: AA)}\ndef f(): return T['a']()",
    (
        "import functools\nclass C:\n    def g(self, x): return x\n    h = functools.partialmethod(g, AA)\n"
        "def f(): return C().h()"
    ),
    "import typing\nclass P(typing.Protocol):\n    def g(self): return AA\nclass C(P): pass\ndef f(): return C().g()",
    "import enum\nclass C(str, enum.Enum):\n    A = 'AA'\ndef f(): return C.A",
    ("import enum\nclass C(enum.IntFlag, boundary=[enum.KEEP, enum.EJECT][AA - 1]):\n    A = 1\ndef f(): return C(9)"),
    "import msgspec\nclass C(msgspec.Struct, rename={'x': 'yAA'}):\n    x: int\ndef f(): return C(1)",
    (
        "import msgspec, typing\nclass C(msgspec.Struct):\n    x: typing.Annotated[int, msgspec.Meta(gt=AA)]\n"
        "def f(): return C(5)"
    ),
]


@pytest.mark.parametrize("source", KINDS)
def test_every_kind_of_helper_is_known_by_its_content(source: str) -> None:
    assert of(made(source.replace("AA", "1"))) == of(made(source.replace("AA", "1")))
    assert of(made(source.replace("AA", "1"))) != of(made(source.replace("AA", "2")))


def test_compiled_functions_are_those_that_they_were_made_of() -> None:
    assert of(np.sqrt) != of(np.exp)
    assert of(np.vectorize(made("def f(x): return 1"))) != of(np.vectorize(made("def f(x): return 2")))
    with pytest.raises(NotFingerprintable, match="only its name"):
        of(np.frompyfunc(made("def f(x): return 1"), 1, 1))


def test_models_of_pydantic_are_known_by_their_content() -> None:
    pytest.importorskip("pydantic")
    source = (
        "import pydantic\nclass C(pydantic.BaseModel):\n    x: float = AA\n    @pydantic.field_validator('x')\n"
        "    @classmethod\n    def check(cls, x): return x + BB\ndef f(): return C()"
    )

    computed = (
        "import pydantic\nclass C(pydantic.BaseModel):\n    @pydantic.computed_field\n    @property\n"
        "    def y(self) -> int: return AA\ndef f(): return C().y"
    )
    assert of(made(computed.replace("AA", "1"))) == of(made(computed.replace("AA", "1")))
    assert of(made(computed.replace("AA", "1"))) != of(made(computed.replace("AA", "2")))

    def changed(a: str, b: str) -> bytes:
        return of(made(source.replace("AA", a).replace("BB", b)))

    assert changed("1", "1") == changed("1", "1")
    assert len({changed("1", "1"), changed("2", "1"), changed("1", "2")}) == 3


def test_tensors_are_known_by_content() -> None:
    torch = pytest.importorskip("torch")
    plain = torch.arange(4.0)
    different = [plain, plain[1:], plain.double(), plain.reshape(2, 2), plain + 1, torch.nn.Parameter(plain)]
    different += [torch.tensor(True), plain.bfloat16(), torch.complex(plain, plain).conj(), torch.nn.Linear(1, 1)]
    assert len({of(each) for each in different}) == len(different)
    for each in different:
        assert of(each) == of(pickle.loads(pickle.dumps(each)))
    with pytest.raises(NotFingerprintable):
        of(torch.empty(1, device="meta"))


BY_NAME = [
    ("from importlib import import_module\ndef f(): return import_module('a.b')", True),
    ("from importlib import import_module as im\nNAME = 'a.b'\ndef f(): return im(NAME)", True),
    ("import importlib\ndef f():\n    name = 'a.b'\n    return importlib.import_module(name, 'a')", True),
    ("import importlib\ndef f(name): return importlib.import_module(name)", False),
    ("import importlib\ndef f(): return [importlib.import_module(each) for each in ('a', 'b')]", False),
    ("from importlib import import_module as im\ndef f(): return im('a.' + str(1))", False),
    ("import importlib\ndef f(x): return importlib.import_module(f'a.{x}')", False),
    ("def f(x):\n    def g(): return __import__(x)\n    return g()", False),
    ("def g(x): return __import__(x.name)\ndef f(x): return g(x)", False),
    ("import importlib\ndef f(x): return importlib.reload(x)", True),
]


@pytest.mark.parametrize(("source", "sure"), BY_NAME)
def test_an_import_by_a_computed_name_is_noticed(source: str, sure: bool) -> None:
    findings = Findings()
    fingerprint(made(source), OWN, findings=findings)
    assert (not findings.unsure) is sure
