"""What runs again after something was edited, and what does not: counted, over runs of one study."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl.model.ids import without_ids
from tests.behaviour.studies import Study, append, further

PATIENCE = 60.0
Edit = Callable[["Bench"], object]
Steps = list[tuple[Edit, str]]


class Where:
    """A path inside a value of the script's own class."""

    def __init__(self, path: Path) -> None:
        self.path = path


def reads(log: str, label: str, what: Any) -> str:
    """Note that it ran, and return what is in the file that the argument holds somewhere."""
    append(log, label)
    while not isinstance(what, Path):
        what = what.path if isinstance(what, Where) else next(iter(what.values() if isinstance(what, dict) else what))
    return "".join(path.read_text() for path in (sorted(what.iterdir()) if what.is_dir() else [what]))


def notes(log: str, label: str, number: int = 0) -> int:
    append(log, label)
    return number


def makes(log: str, label: str, path: Path) -> str:
    append(log, label)
    path.write_text(label)
    return label


class Bench:
    """A study's files, and what ran of it."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.folder = study.folder
        self.log = str(study.folder / "log")
        self.sandboxes: dict[str, str] = {}
        self.changes: dict[str, Any] = {}
        self.said = ""
        for name in ("in.dat", "read.dat", "hash.dat", "cfg", "parts/a.txt", "parts/b.txt", "data/x/one"):
            self.write(name, "first")
        self.program("count.sh", "count")
        self.program("sim.sh", "sim")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, name: str, label: str, more: str = "") -> None:
        self.write(name, f'#!/bin/sh\necho {label} >> "$LOG"\n{more}\n')
        (self.folder / name).chmod(0o755)

    def task(self, label: str, script: str = "", **more: Any) -> ph.TaskDescription:
        more = {"executable": "/bin/sh", "arguments": ["-c", f'echo {label} >> "$LOG"; {script}']} | more
        return ph.TaskDescription(name=label, environment={"LOG": self.log} | more.pop("environment", {}), **more)

    def programs(self, session: ph.Session) -> Iterator[tuple[str, ph.TaskFuture[Any]]]:
        here, sh = self.folder, "/bin/sh"
        described = [
            self.task("staged", input_staging=[f"{here}/in.dat"]),
            self.task("pattern", input_staging=[f"{here}/parts/*.txt > parts/"]),
            self.task("folder", input_staging=[f"{here}/data"]),
            self.task("count", executable=f"{here}/count.sh", arguments=[]),
            self.task("sim", executable=sh, arguments=[f"{here}/sim.sh", f"{here}/out.dat"]),
            self.task("option", arguments=["-c", 'echo option >> "$LOG"', "x", f"--config={here}/cfg"]),
            self.task("reads", reads=[f"{here}/read.dat", f"{here}/later.dat"]),
            self.task("plain", "echo kept > kept", **self.changes),
            self.task("moved", input_staging=[{"source": f"{here}/gone.dat", "action": "move"}]),
            self.task("output", "echo out > o", output_staging=[f"o > {here}/staged.out"]),
        ]
        (self.folder / "gone.dat").touch() if not self.sandboxes else None
        for each, future in zip(described, session.submit(described), strict=True):
            yield each.name, future

    def calls(self, session: ph.Session) -> Iterator[tuple[str, ph.TaskFuture[Any]]]:
        here, log = self.folder, self.log
        yield "path", session.call(reads, log, "path", here / "in.dat")
        yield "nested", session.call(reads, log, "nested", {"a": [(here / "in.dat",)]})
        yield "object", session.call(reads, log, "object", Where(here / "in.dat"))
        yield "data", session.call(reads, log, "data", here / "data/x")
        yield "hash", session.call(reads, log, "hash", ph.File(here / "hash.dat", hash=True))
        yield "file", session.call(reads, log, "file", [ph.File(here / "cfg")])
        yield "told", session.options(reads=[str(here / "read.dat")]).call(notes, log, "told")
        yield "mapped", session.map(reads, [log], ["mapped"], [here / "parts/a.txt"])[0]
        yield "makes", session.call(makes, log, "makes", here / "made.txt")
        yield "text", session.call(notes, log, "text")

    def run(self, **more: Any) -> dict[str, ph.TaskFuture[Any]]:
        """Run the study and wait for all of it."""
        with self.study.session(**more) as session:
            found = dict([*self.programs(session), *self.calls(session)])
            for label, future in found.items():
                done = future.result(PATIENCE)
                self.sandboxes[label] = getattr(done, "sandbox", "")
            self.why = {label: session.explain_reuse(future) for label, future in found.items()}
        return found

    def ran(self, edit: Edit) -> set[str]:
        before = Counter(self.study.lines("log"))
        edit(self)
        self.run()
        again = Counter(self.study.lines("log")) - before
        assert set(again.values()) <= {1}
        return set(again)


def write(name: str, text: str) -> Edit:
    return lambda bench: bench.write(name, text)


def touch(name: str) -> Edit:
    return lambda bench: os.utime(bench.folder / name, (1e9, 1e9))


def remove(name: str) -> Edit:
    return lambda bench: (bench.folder / name).unlink()


def change(**attributes: Any) -> Edit:
    return lambda bench: bench.changes.update(attributes)


def same_times(name: str, text: str) -> Edit:
    """Write something else of the same size, and set the times back."""

    def edit(bench: Bench) -> None:
        facts = (bench.folder / name).stat()
        bench.write(name, text)
        os.utime(bench.folder / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return edit


def nothing(_: Bench) -> None: ...


EDITS: dict[str, Steps] = {
    "inputs": [
        (nothing, ""),
        (write("in.dat", "second"), "staged path nested object"),
        (write("parts/c.txt", "new"), "pattern"),
        (remove("parts/b.txt"), "pattern"),
        (write("parts/a.txt", "other"), "pattern mapped"),
        (write("data/x/one", "other"), "folder data"),
        (nothing, ""),
    ],
    "programs": [
        (lambda bench: bench.program("count.sh", "count", "true"), "count"),
        # What a program writes where its own argument says is no input of it, however often that is.
        (lambda bench: bench.program("sim.sh", "sim", 'echo one > "$1"'), "sim"),
        (nothing, ""),
        (lambda bench: bench.program("sim.sh", "sim", 'echo four > "$1"'), "sim"),
        (nothing, ""),
        (write("out.dat", "by hand"), "sim"),
        (write("cfg", "other"), "option file"),
        (write("read.dat", "other"), "reads told"),
        (write("later.dat", "there now"), "reads"),
    ],
    "content": [
        (touch("hash.dat"), ""),
        (same_times("hash.dat", "third"), "hash"),
        (touch("in.dat"), "staged path nested object"),
        (write("made.txt", "by hand"), "makes"),
        (nothing, ""),
    ],
    "options": [
        (change(priority=3, timeout=300.0, retries=1, grace=2.0, mem_per_rank=100, tags={"colocate": "a"}), ""),
        (change(environment={"MODE": "fast"}), "plain"),
        (change(cores_per_rank=2), "plain"),
        (change(sandbox="named"), "plain"),
    ],
    "gone": [
        (lambda bench: shutil.rmtree(bench.sandboxes["plain"]), "plain"),
        (nothing, ""),
        (remove("staged.out"), "output"),
        # An empty folder is given to the next attempt: that it is gone says nothing.
        (lambda bench: shutil.rmtree(bench.sandboxes["count"], ignore_errors=True), ""),
    ],
}


@pytest.mark.one_node("an edit asks for two cores")
@pytest.mark.parametrize("steps", further(1, EDITS.values(), ids=EDITS))
def test_what_depends_on_an_edit_runs_again_and_nothing_else(
    study: Study, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.folder)  # one asks for a relative sandbox
    bench = Bench(study)
    everything = bench.ran(nothing)
    assert everything == set(bench.why)
    for number, (edit, expected) in enumerate(steps):
        ran = bench.ran(edit)
        assert ran == set(expected.split()), f"step {number}: {bench.why}"
        for label, why in bench.why.items():
            if label in ran:
                assert "first time" not in why
                assert "stored" not in why
            else:
                assert "its result is stored from run " in why


def fails(log: str, label: str, seconds: float = 0.0) -> None:
    append(log, label)
    time.sleep(seconds)
    raise ValueError(label)


def test_failures_are_kept_or_run_again_and_which_is_said(study: Study, capfd: pytest.CaptureFixture[str]) -> None:
    log, slow_log = str(study.folder / "log"), str(study.folder / "slow")

    def run(timeout: float = 1.0, **more: Any) -> tuple[str, list[str], list[str], str]:
        before = len(study.lines("log"))
        with study.session(**more) as session:
            bad = session.call(fails, log, "call")
            after = session.call(notes, log, "after", bad)
            slow = session.options(timeout=timeout).call(fails, slow_log, "slow", 60.0)
            program = session.submit(
                ph.TaskDescription(
                    executable="sh", arguments=["-c", "echo program >> $LOG; exit 3"], environment={"LOG": log}
                )
            )
            again = session.options(retry_failed=True).call(fails, log, "again")
            told = [str(future.exception(PATIENCE)) for future in (bad, after, program, again, slow)]
            why = [session.explain_reuse(bad), session.explain_reuse(slow)]
            task = bad.task
        # The command line says the same of a session that nobody has open.
        assert study.tool("task", "why-reused", task, "--session", "study").strip() == f"{task}: {why[0]}"
        return without_ids("\n".join(told)), sorted(study.lines("log")[before:]), why, capfd.readouterr().err

    first = run()
    assert first[1] == ["again", "call", "program"]
    assert "run again" not in first[3]
    kept = run(retry_failed=False)
    assert kept[:2] == (first[0], ["again"])
    assert all("its failure is stored from run 1" in why for why in kept[2])
    assert "3 failures of earlier runs were kept" in kept[3]
    assert "1 task runs again after a failure" in kept[3]
    # What a limit ended is another failure under another limit.
    other = run(retry_failed=False, timeout=2.0)
    assert other[1] == ["again"]
    assert "stored" in other[2][0]
    assert "failed then" in other[2][1]
    again = run()
    assert again[:2] == first[:2]
    assert "failed then (ValueError: call), and failures run again" in again[2][0]
    assert "4 tasks run again after a failure in an earlier run (retry_failed=False keeps those)" in again[3]
