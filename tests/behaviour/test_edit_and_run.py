"""A person edits a script's parts and runs it again, on a pilot that stays."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.behaviour.studies import Study

FILES = {
    "helpers.py": "def double(x):\n    return 2 * x\n\ndef half(x):\n    return x / 2\n",
    "deep.py": "STEP = 10\ndef climb(x):\n    return x + STEP\n",
    "middle.py": "import deep\ndef go(x):\n    return deep.climb(x)\n",
    "serving.py": "class Counts:\n    def __call__(self, x):\n        return x + 100\n",
    "caching.py": "import functools\n@functools.cache\ndef squared(x):\n    return x ** 2\n",
    "input.txt": "4\n",
    "other.txt": "1\n",
    "program.sh": "#!/bin/sh\necho program >> $1/ran\necho 1\n",
    "shapes.py": "class Shape:\n    def area(self):\n        return 7\n",
}
SCRIPT = """
import json, pathlib
import caching, helpers, middle, serving, shapes
LIMIT = 5
def ran(name):
    with open(FOLDER + "/ran", "a") as file:
        file.write(name + "\\n")
def doubled(x): ran("doubled"); return helpers.double(x)
def halved(x): ran("halved"); return helpers.half(x)
def climbed(x): ran("climbed"); return middle.go(x)
def limited(x): ran("limited"); return min(x, LIMIT)
def measured(shape): ran("measured"); return shape.area()
def squared(x): ran("squared"); return caching.squared(x)
def read(path): ran("read"); return int(path.read_text())
def late(x):
    ran("late")
    from middle import go
    return go(x)
keep = "--keep" in sys.argv
name, on_exit = ("kept", "detach") if keep else ("other", "stop")
with ph.Session(name, fresh="--fresh" in sys.argv, on_exit=on_exit) as session:
    if not session.query("pilots") or not keep:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
    service = session.start_service(ph.ServiceDescription(name="counts", handler="serving:Counts"))
    calls = {"doubled": (doubled, 3), "halved": (halved, 3), "climbed": (climbed, 3), "limited": (limited, 9),
             "read": (read, pathlib.Path(FOLDER, "input.txt")), "other": (read, pathlib.Path(FOLDER, "other.txt")),
             "measured": (measured, shapes.Shape()), "squared": (squared, 3), "late": (late, 3)}
    futures = {name: session.call(*call) for name, call in calls.items()}
    futures["program"] = session.submit(ph.TaskDescription(executable=FOLDER + "/program.sh", arguments=[FOLDER]))
    results = {name: future.result(60) for name, future in futures.items()}
    results["program"] = results["program"].stdout
    results["served"] = service.request(1).result(60)
    print(json.dumps(results))
"""
EDITS = [
    ("helpers.py", "2 * x", "3 * x", {"doubled"}),
    ("deep.py", "STEP = 10", "STEP = 20", {"climbed", "late"}),
    ("shapes.py", "return 7", "return 8", {"measured"}),
    ("script", "LIMIT = 5", "LIMIT = 6", {"limited"}),
    ("serving.py", "x + 100", "x + 200", set()),
    ("caching.py", "x ** 2", "x ** 4", {"squared"}),
    ("input.txt", "4", "5", {"read"}),
    ("program.sh", "echo 1", "echo 2", {"program"}),
]


class Person:
    """Edits files, and runs the script."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.files = {**FILES, "script": SCRIPT}
        self.age = 0
        for name in FILES:
            self.save(name)

    def save(self, name: str) -> None:
        self.age += 10
        if name != "script":
            path = self.study.folder / name
            path.write_text(self.files[name])
            path.chmod(0o755)
            # Python's caches go by whole seconds; a file that is put back is as it was.
            old = self.age if path.suffix == ".py" or self.files[name] != FILES[name] else 0
            os.utime(path, (1e9 + old,) * 2)

    def edit(self, name: str, old: str, new: str) -> None:
        assert old in self.files[name]
        self.files[name] = self.files[name].replace(old, new)
        self.save(name)

    def run(self, *options: str) -> tuple[Any, list[str]]:
        """Run the script; return its results and which functions ran."""
        (self.study.folder / "ran").unlink(missing_ok=True)
        results = json.loads(self.study.run(self.files["script"], *options))
        return results, sorted(self.study.lines("ran"))


ALL = sorted(["doubled", "halved", "climbed", "limited", "measured", "squared", "late", "read", "read", "program"])


@pytest.mark.long
def test_what_depends_on_an_edit_runs_again_and_nothing_else(study: Study) -> None:
    person = Person(study)
    before, ran = person.run("--keep")
    assert ran == ALL
    for name, old, new, again in EDITS:
        for one, other, expected in ((old, new, again), (new, old, set())):
            person.edit(name, one, other)
            results, ran = person.run("--keep")
            assert ran == sorted(expected), (name, one, other)
            fresh, ran = person.run("--fresh")
            assert results == fresh, (name, one, other)
            assert ran == ALL
            assert (results == before) == (other == old)
    study.run("with ph.Session('kept', on_exit='stop'): pass")
