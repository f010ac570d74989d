"""The script's ``__main__`` where a function of the script runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import functools, sys
from pilot_hitl.wire.pickling import dumps
loads = 0
data = []
@functools.cache
def load():
    global loads
    loads += 1
    return loads
class Thing:
    def run(self): return load()
def method_like(x): return x.run()
def plain(): return load(), helper(), data
def helper(): return __name__
def own(): return own.count
own.count = 0
open(sys.argv[1], "wb").write(dumps([dumps(each) for each in (plain, Thing().run, helper, own, len)]))
"""
LOADER = """
import pickle, sys
from pilot_hitl.wire import scriptmodule as sm
plain, run, helper, own, length = pickle.load(open(sys.argv[1], "rb"))
"""


def _loaded(tmp_path: Path, code: str) -> list[str]:
    packed, said = tmp_path / "packed", ""
    for text in (SCRIPT, LOADER + code):
        path = tmp_path / f"script{len(text)}.py"
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, str(path), str(packed)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    return said.splitlines()


def test_names_are_found_and_globals_stay(tmp_path: Path) -> None:
    code = """
function = sm.load(plain)
main = sm.Loading.module
sm.publish(main)
import __main__
print(__main__ is main, __main__.plain is function, __main__.helper is function.__globals__["helper"])
print(function())
function.__globals__["data"].append(1)
again = sm.load(plain)
print(again is function, again.__globals__ is function.__globals__, again(), __main__.plain is again)
other = sm.load(helper)
print(other.__globals__ is function.__globals__, sm.Loading.module is main, other())
print(sm.load(run)(), sm.load(run)())
own_one = sm.load(own); own_one.count = 5
print(sm.load(own)())
sm.load(length)
print(sm.Loading.module is sm.BARE, hasattr(sm.BARE, "nothing"))
"""
    assert _loaded(tmp_path, code) == [
        "True True True",
        "(1, '__main__', [])",
        "False True (1, '__main__', [1]) True",
        "False False __main__",
        "1 1",
        "0",
        "True False",
    ]


def test_a_child_that_is_started_anew_knows_the_names(tmp_path: Path) -> None:
    code = """
import runpy, subprocess
sm.load(plain)
main = sm.Loading.module
where = main.__file__
child = "import runpy, sys; space = runpy.run_path(sys.argv[1], run_name='__mp_main__'); print(space['plain']())"
print(subprocess.run([sys.executable, "-c", child, where], capture_output=True, text=True, check=True).stdout.strip())
try:
    print(sm.BARE.__file__)
except AttributeError:
    print("nothing to define")
"""
    assert _loaded(tmp_path, code) == ["(1, '__main__', [])", "nothing to define"]


STANDING_IN = """
import functools, pickle, sys
import numpy as np
from pilot_hitl.wire.pickling import dumps
class Compiled:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.py_func = function
    def __call__(self, x): return self.py_func(x) * FACTOR
    def __reduce__(self): return self.__qualname__
FACTOR = 3
@Compiled
def compiled(x): return x + 1
@functools.singledispatch
def kind(x): return "other"
@kind.register
def _(x: int): return "number" if x < 5 else kind(str(x))
class Once:
    @functools.cached_property
    def value(self): return compiled(1)
    @functools.singledispatchmethod
    def of(self, x): return kind(x)
def use(): return compiled(1), kind(1), kind(9), Once().value, Once().of(2)
packed = dumps([dumps(use), dumps(compiled), dumps(kind)])
try:
    dumps(np.frompyfunc(lambda x: x, 1, 1))
except pickle.PicklingError as error:
    print("vectorize" in str(error))
open(sys.argv[1], "wb").write(packed)
"""


def test_what_stands_for_a_function_travels_with_it(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    loader = (
        "import pickle, sys\nfrom pilot_hitl.wire import scriptmodule as sm\n"
        "use, compiled, kind = map(sm.load, pickle.load(open(sys.argv[1], 'rb')))\n"
        "print(use(), compiled(2), kind(1), kind('x'))"
    )
    said = []
    for name, text in (("write.py", STANDING_IN), ("read.py", loader)):
        path = tmp_path / name
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, str(path), str(packed)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said == ["True\n", "(6, 'number', 'other', 6, 'number') 9 number other\n"]
