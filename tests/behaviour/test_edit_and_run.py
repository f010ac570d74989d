"""A person edits a script's parts and runs it again, on a pilot that stays and with a service that stays."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from tests.behaviour.studies import Study

FILES = {
    "helpers.py": "def double(x):\n    return 2 * x\n\ndef half(x):\n    return x / 2\n",
    "deep.py": "STEP = 10\ndef climb(x):\n    return x + STEP\n",
    "middle.py": "import deep\ndef go(x):\n    return deep.climb(x)\n",
    "serving.py": """
from pathlib import Path
class Counts:
    def __init__(self):
        with open(Path(__file__).with_name("starts"), "a") as file:
            file.write("start\\n")
    def __call__(self, x):
        return x + 100
""",
    "caching.py": "import functools\n@functools.cache\ndef squared(x):\n    return x ** 2\n",
    "wrapping.py": """
import functools
def more(function):
    @functools.wraps(function)
    def wrapped(x):
        return function(x) + 1000
    return wrapped
""",
    "settings.py": "import json, pathlib\nREAD = json.loads(pathlib.Path(__file__).with_suffix('.json').read_text())\n",
    "settings.json": '{"rate": 3}\n',
    "optional.py": "try:\n    import faster\nexcept ImportError:\n    faster = None\ndef name():\n"
    "    return faster.NAME if faster else 'plain'\n",
    "input.txt": "4\n",
    "other.txt": "1\n",
    "captured.txt": "7\n",
    "program.sh": "#!/bin/sh\necho program >> $1/ran\necho 1\n",
    "shapes.py": "class Kind(type):\n    def sides(cls):\n        return 4\n"
    "class Shape(metaclass=Kind):\n    def area(self):\n        return 7\n",
}
SCRIPT = """
import json, math, pathlib
import caching, helpers, middle, optional, serving, settings, shapes, wrapping
LIMIT = 5
CAPTURED = pathlib.Path(FOLDER, "captured.txt")
def ran(name):
    with open(FOLDER + "/ran", "a") as file:
        file.write(name + "\\n")
def doubled(x): ran("doubled"); return helpers.double(x)
def halved(x): ran("halved"); return helpers.half(x)
def climbed(x): ran("climbed"); return middle.go(x)
def limited(x): ran("limited"); return min(x, LIMIT)
def measured(shape): ran("measured"); return shape.area(), type(shape).sides()
def squared(x): ran("squared"); return caching.squared(x)
def read(path): ran("read"); return int(path.read_text())
def captured(): ran("captured"); return int(CAPTURED.read_text())
def rated(x): ran("rated"); return x * settings.READ["rate"]
def named(): ran("named"); return optional.name()
rooted = wrapping.more(math.floor)
def rounded(x): ran("rounded"); return rooted(x)
def late(x):
    ran("late")
    from middle import go
    return go(x)
CALLS = {"doubled": (doubled, 3), "halved": (halved, 3), "climbed": (climbed, 3), "limited": (limited, 9),
         "read": (read, pathlib.Path(FOLDER, "input.txt")), "other": (read, pathlib.Path(FOLDER, "other.txt")),
         "measured": (measured, shapes.Shape()), "squared": (squared, 3), "late": (late, 3), "captured": (captured,),
         "rated": (rated, 2), "named": (named,), "rounded": (rounded, 1.5)}
if "--plain" in sys.argv:
    results = {name: function(*arguments) for name, (function, *arguments) in CALLS.items()}
    results["served"] = serving.Counts()(1)
    print(json.dumps(results))
    sys.exit()
keep = "--keep" in sys.argv
name, on_exit = ("kept", "detach") if keep else ("other", "stop")
with ph.Session(name, fresh="--fresh" in sys.argv, on_exit=on_exit) as session:
    if not session.query("pilots") or not keep:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
    service = session.start_service(ph.ServiceDescription(name="counts", handler="serving:Counts"))
    futures = {name: session.call(*call) for name, call in CALLS.items()}
    futures["program"] = session.submit(ph.TaskDescription(executable=FOLDER + "/program.sh", arguments=[FOLDER]))
    results = {name: future.result(60) for name, future in futures.items()}
    results["program"] = results["program"].stdout
    results["served"] = service.request(1).result(60)
    print(json.dumps(results))
"""


class Edit(NamedTuple):
    """What a person changes; without ``old`` a file that is there or not.

    Attributes:
        again: what depends on it.
    """

    file: str
    old: str
    new: str
    again: set[str]


EDITS = [
    Edit("helpers.py", "2 * x", "3 * x", {"doubled"}),
    Edit("deep.py", "STEP = 10", "STEP = 20", {"climbed", "late"}),
    Edit("middle.py", "deep.climb(x)", "deep.climb(x) + 1", {"climbed", "late"}),
    Edit("shapes.py", "return 7", "return 8", {"measured"}),
    Edit("shapes.py", "return 4", "return 5", {"measured"}),
    Edit("script", "LIMIT = 5", "LIMIT = 6", {"limited"}),
    Edit("serving.py", "x + 100", "x + 200", {"served"}),
    Edit("caching.py", "x ** 2", "x ** 4", {"squared"}),
    Edit("wrapping.py", "+ 1000", "+ 2000", {"rounded"}),
    Edit("settings.json", "3", "4", {"rated"}),
    Edit("faster.py", "", "NAME = 'fast'\n", {"named"}),
    Edit("input.txt", "4", "5", {"read"}),
    Edit("captured.txt", "7", "9", {"captured"}),
    Edit("program.sh", "echo 1", "echo 2", {"program"}),
]
ALL = ["captured", "climbed", "doubled", "halved", "late", "limited", "measured", "named", "program", "rated", "read"]
ALL += ["read", "rounded", "squared"]  # read for two files


class Person:
    """Edits files, runs the script, and knows what has to run again: what was never run with these edits."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.files = {**FILES, "script": SCRIPT}
        self.age = 0
        self.made: set[int] = set()
        self.known: set[tuple[str, frozenset[int]]] = set()
        self.served: frozenset[int] | None = None
        for name in FILES:
            self.save(name)

    def save(self, name: str) -> None:
        self.age += 10
        if name != "script":
            path = self.study.folder / name
            path.write_text(self.files[name])
            path.chmod(0o755)
            # Python's caches go by whole seconds; other files are the same with the same content.
            old = self.age if path.suffix == ".py" else int(self.files[name] != FILES[name])
            os.utime(path, (1e9 + old,) * 2)

    def toggle(self, number: int) -> None:
        """Make an edit, or take it back."""
        edit, undo = EDITS[number], number in self.made
        self.made ^= {number}
        if not edit.old:
            self.files[edit.file] = edit.new
            if undo:
                (self.study.folder / edit.file).unlink()
                return
        else:
            old, new = (edit.new, edit.old) if undo else (edit.old, edit.new)
            assert old in self.files[edit.file]
            self.files[edit.file] = self.files[edit.file].replace(old, new)
        self.save(edit.file)

    def state(self, name: str) -> frozenset[int]:
        return frozenset(number for number in self.made if name in EDITS[number].again)

    def new(self) -> list[str]:
        """Return what has to run now."""
        now = [(name, self.state(name)) for name in ALL]
        again = [name for name, state in now if (name, state) not in self.known]
        if "read" in again and self.known:
            again.remove("read")  # that of the other file did not change
        self.known.update(now)
        return again

    def run(self, *options: str) -> tuple[Any, list[str], int]:
        """Run the script; return its results, which functions ran, and how many replicas started."""
        for name in ("ran", "starts"):
            (self.study.folder / name).unlink(missing_ok=True)
        results = json.loads(self.study.run(self.files["script"], *options))
        return results, sorted(self.study.lines("ran")), len(self.study.lines("starts"))

    def step(self, *, fresh: bool) -> None:
        """Run the script on what was kept, and compare with one that knows nothing of earlier runs."""
        expected, served = self.new(), self.state("served")
        results, ran, starts = self.run("--keep")
        assert ran == expected, self.made
        assert starts == (served != self.served), self.made
        self.served = served
        plain = self.run("--plain")[0]
        assert {name: value for name, value in results.items() if name != "program"} == plain, self.made
        assert results["program"] == ("2\n" if self.state("program") else "1\n")
        if fresh:
            assert self.run("--fresh") == (results, ALL, 1), self.made


def session_of(study: Study, steps: Iterable[int], fresh: int) -> None:
    """Go through edits; each ``fresh``-th step is compared with a whole fresh session too."""
    person = Person(study)
    try:
        person.step(fresh=False)
        for at, number in enumerate(steps):
            person.toggle(number)
            person.step(fresh=at % fresh == fresh - 1)
    finally:
        study.run("with ph.Session('kept', on_exit='stop'): pass")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_depends_on_an_edit_runs_again_and_nothing_else(study: Study) -> None:
    # All edits, one upon the other; then they are taken back, the ones in the middle first.
    order = list(range(len(EDITS)))
    session_of(study, [*order, *order[5:], *reversed(order[:5])], fresh=1)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
def test_edits_in_any_order(study: Study, seed: int) -> None:
    session_of(study, random.Random(seed).choices(range(len(EDITS)), k=20), fresh=7)
