"""What is the same work, and the same class, from one run of a script to the next."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.behaviour.studies import Study

MODULES = {
    "lib.py": """
import functools
VALUE = "one"
def f(x): return (VALUE, x)
@functools.cache
def cached(x): return f(x)
@functools.singledispatch
def dispatched(x): return f(x)
class Thing:
    def __init__(self, x): self.x = x
    def run(self): return f(self.x)
    @classmethod
    def made(cls, x): return cls(x).run()
""",
    "middle.py": "import lib\ndef g(x): return lib.f(x)\n",
    "pkg/__init__.py": "",
    "pkg/deep.py": "from lib import f\ndef h(x): return f(x)\n",
    "pkg/sub.py": "from .deep import h\ndef k(x): return h(x)\n",
    "space/part.py": "def p(x):\n    from lib import f\n    return f(x)\n",
    "late.py": "from lib import f\n",
    # Nobody but the script imports it.
    "extra.py": "import lib\n@lib.dispatched.register\ndef _(x: str): return lib.VALUE, len(x)\n",
}
WAYS = """
import functools, importlib, json
import extra, lib, middle, pkg.sub, space.part
def inside(x):
    import late
    return late.f(x)
def by_text(x):
    return importlib.import_module("late").f(x)
def found(x):
    return getattr(lib, "f")(x)
def over(value):
    return value.run()
def produce(x):
    return lib.Thing(x)
WAYS = {
    "reference": (lib.f, 1), "lambda": (lambda x: lib.f(x), 1), "two down": (middle.g, 1), "inside": (inside, 1),
    "text": (by_text, 1), "getattr": (found, 1), "partial": (functools.partial(lib.f, 1),), "package": (pkg.sub.k, 1),
    "attribute": (lambda x: pkg.sub.k(x), 1), "namespace": (space.part.p, 1), "method": (lib.Thing(1).run,),
    "class method": (lib.Thing.made, 1), "argument": (over, lib.Thing(1)), "cached": (lib.cached, 1),
    "dispatched": (lib.dispatched, 1), "registered": (lib.dispatched, "x"),
    "plain method": (lib.Thing.run, lib.Thing(1)),
}
with ph.Session("ways", on_exit="detach") as session:
    if session.query("pilots") == []:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
    futures = {name: session.call(*way) for name, way in WAYS.items()}
    futures["handed on"] = session.call(over, session.call(produce, 1))
    results = {name: future.result(60) for name, future in futures.items()}
    reused = {row["task"] for row in session.query("tasks") if row.get("reused")}
    print(json.dumps({name: [*value, futures[name].task in reused] for name, value in results.items()}))
"""


def _write(study: Study, old: str, new: str, age: int) -> None:
    """Write all modules; their age differs from version to version, because Python's caches go by whole seconds."""
    for name, text in MODULES.items():
        path = study.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(old, new))
        os.utime(path, (1e9 + age, 1e9 + age))


def _run(study: Study, script: str, *arguments: str) -> Any:
    return json.loads(study.run(script, *arguments).splitlines()[-1])


def test_a_kept_pilot_runs_the_present_modules(study: Study) -> None:
    _write(study, "one", "one", 0)
    first = _run(study, WAYS)
    assert {name: value for name, value in first.items() if value != ["one", 1, False]} == {}
    _write(study, "one", "two", 10)
    second = _run(study, WAYS)
    assert {name: value for name, value in second.items() if value != ["two", 1, False]} == {}
    third = _run(study, WAYS)
    assert {name: value for name, value in third.items() if value != ["two", 1, True]} == {}
    study.run("with ph.Session('ways', on_exit='stop'): pass")


LONG = """
import importlib, json, pathlib
import lib, middle
def f(x):
    return middle.g(x)
SCALE = 1
class Shape:
    sides = 3
    def area(self):
        return SCALE, self.sides
def area(x):
    return Shape().area()
path = pathlib.Path(lib.__file__)
def write(old, new):
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, (time.time() + 1000,) * 2)
with ph.Session("long", fresh=True) as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
    seen = [session.call(f, 1).result(60)[0]]
    write("one", "two")
    seen.append(session.options(environment={"OTHER": "1"}).call(f, 2).result(60)[0])
    importlib.reload(lib)
    seen.append(session.call(f, 3).result(60)[0])
    seen.append(session.call(lib.f, 3).result(60)[0])
    # They may all arrive before the first of them runs.
    areas = [session.call(area, 1)]
    SCALE = 2
    areas.append(session.call(area, 2))
    Shape.sides = 5
    areas += [*session.map(area, [3]), session.call(area, 4)]
    seen.append([future.result(60) for future in areas])
    print(json.dumps(seen))
"""


def test_what_the_script_imported_counts_until_it_is_reloaded(study: Study) -> None:
    _write(study, "one", "one", 0)
    assert _run(study, LONG) == ["one", "one", "two", "two", [[1, 3], [2, 3], [2, 5], [2, 5]]]


CLASSES = """
import abc, enum, functools, json, typing
from dataclasses import dataclass, field
T = typing.TypeVar("T")
class Phase(enum.Enum):
    A = 1
    B = 2
    def next(self): return Phase.B
class Flags(enum.IntFlag):
    X = 1
    Y = 2
@dataclass(frozen=True)
class Key:
    x: int
    y: list = field(default_factory=list, compare=False, hash=False)
class Pair(typing.NamedTuple):
    a: int
class Box(typing.Generic[T]):
    def __init__(self, x): self.x = x
    def __eq__(self, other): return isinstance(other, Box) and self.x == other.x
class Outer:
    class Inner:
        def __eq__(self, other): return isinstance(other, Outer.Inner)
class Base(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
class Child(Base):
    def f(self): return 1
    @functools.cached_property
    def p(self): return 2
    def __eq__(self, other): return isinstance(other, Child)
class Lost(LookupError):
    def __init__(self, where): super().__init__(where); self.where = where
def factory():
    class Local:
        def __eq__(self, other): return isinstance(other, Local)
    return Local
Local = factory()
MAKERS = {
    "enum": lambda: Phase.A, "method": lambda: Phase.A.next(), "flags": lambda: Flags.X | Flags.Y,
    "frozen": lambda: Key(1), "tuple": lambda: Pair(1), "generic": lambda: Box[int](1), "inner": lambda: Outer.Inner(),
    "child": lambda: Child(), "local": lambda: Local(), "keys": lambda: {Key(1): Phase.A, Phase.B: [Pair(2)]},
}
def raises():
    raise Lost("there")
def same(value, name):
    right = MAKERS[name]()
    return value == right and type(value) is type(right)
class Answers:
    def __call__(self, value):
        return value is Phase.A, Phase.B
with ph.Session("classes", on_exit="detach") as session:
    if session.query("pilots") == []:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=3, runtime=10))
    wrong = []
    futures = {name: session.call(make) for name, make in MAKERS.items()}
    checks = {name: session.call(same, future, name) for name, future in futures.items()}
    for name, future in futures.items():
        value, right = future.result(60), MAKERS[name]()
        wrong += [f"{name}: {value!r}"] * (value != right or type(value) is not type(right))
        wrong += [f"{name} in a worker"] * (not checks[name].result(60))
    wrong += ["is"] * (futures["enum"].result() is not Phase.A)
    try:
        session.call(raises).result(60)
    except Lost as error:
        wrong += ["where"] * (error.where != "there")
    service = session.start_service(ph.ServiceDescription(name="answers", handler=Answers))
    seen, member = service.request(Phase.A).result(60)
    wrong += ["service in"] * (not seen) + ["service out"] * (member is not Phase.B)
    reused = sum(bool(row.get("reused")) for row in session.query("tasks"))
    print(json.dumps([wrong, reused]))
"""


def test_a_class_of_the_script_is_the_same_class_on_each_run(study: Study) -> None:
    assert _run(study, CLASSES) == [[], 0]
    assert _run(study, CLASSES) == [[], 20]
    # What became another class is that, and what did not is not.
    assert _run(study, CLASSES.replace("A = 1", "A = 3"))[0] == []
    study.run("with ph.Session('classes', on_exit='stop'): pass")


CHANGED = """
import warnings
class Plain:
    limit = LIMIT
with ph.Session("changed") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = session.options(key="mine").call(lambda: Plain()).result(60)
    print(isinstance(value, Plain), [str(each.message).count("Plain has changed") for each in caught],
          all(each.filename == __file__ for each in caught))
"""


def test_a_class_that_changed_is_named(study: Study) -> None:
    assert study.run(CHANGED.replace("LIMIT", "1")) == "True [] True\n"
    assert study.run(CHANGED.replace("LIMIT", "2")) == "False [1] True\n"
