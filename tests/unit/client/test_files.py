"""What is seen of files, and what counts as a change."""

from __future__ import annotations

import functools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl import _files, _templates
from pilot_hitl._files import Look
from pilot_hitl._fingerprint import no_futures
from pilot_hitl._keys import KeyMaker
from pilot_hitl.errors import DescriptionError
from pilot_hitl.model.descriptions import TaskDescription
from pilot_hitl.model.files import NOTHING, TAKEN, File, FileState, changes, written_by

NOWHERE = Path("/nonexistent")


def seen(task: TaskDescription, sandbox: str = "") -> dict[str, FileState]:
    states = Look(NOWHERE).of_task(task.verify(), _templates.staging_of(task)[0], sandbox)
    return {os.path.basename(state.path): state for state in states}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("run.sh", "in.dat", "a.toml", "deep/x.txt", "deep/er/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"executable": "/bin/sh", "arguments": ["-c", "cat in.dat"]}, set()),
        (
            {"executable": "sh", "arguments": ["run.sh", "in.dat", "12", "-x", "absent", "deep", "/etc/passwd"]},
            {"run.sh", "in.dat"},
        ),
        ({"executable": "HERE/run.sh"}, {"run.sh"}),
        ({"executable": "./run.sh"}, set()),
        ({"executable": "true", "arguments": ["--config=a.toml", "x=in.dat"]}, {"a.toml"}),
        ({"executable": "true", "input_staging": ["in.dat > b", "deep"]}, {"in.dat", "deep"}),
        ({"executable": "true", "input_staging": ["d*/*.txt"]}, {"*.txt"}),
        ({"executable": "true", "reads": ["absent", "deep"]}, {"absent", "deep"}),
        ({"executable": "true", "stdout": "in.dat", "output_staging": ["o > in.dat"]}, set()),
    ],
)  # fmt: skip
def test_the_files_of_a_program(here: Path, fields: dict[str, Any], names: set[str]) -> None:
    fields["executable"] = fields["executable"].replace("HERE", str(here))
    assert set(seen(TaskDescription(**fields))) == names


def test_a_relative_argument_is_looked_for_in_the_sandbox_first(here: Path) -> None:
    task = TaskDescription(executable="sh", arguments=["y.txt"])
    assert seen(task) == {}
    assert seen(task, str(here / "deep/er"))["y.txt"].path == str(here / "deep/er/y.txt")


def test_what_is_moved_away_is_no_change(here: Path) -> None:
    task = TaskDescription(executable="true", input_staging=[{"source": "in.dat", "action": "move"}])
    before = seen(task)["in.dat"]
    (here / "in.dat").unlink()
    after = seen(task)["in.dat"]
    assert (before.there, after.size) == (True, TAKEN)
    assert changes([after], [before]) == []


def test_a_folder_is_all_that_is_in_it_and_a_loop_of_links_ends(here: Path) -> None:
    (here / "deep/loop").symlink_to(here / "deep")
    first = Look(NOWHERE).state(str(here / "deep"))
    assert (first.several, first.size) == (True, 2)
    for name in ("er/y.txt", "z"):
        before = Look(NOWHERE).state(str(here / "deep"))
        (here / "deep" / name).write_text("longer text")
        assert Look(NOWHERE).state(str(here / "deep")).differs(before)
    # What the session itself writes, and what Python caches, is no change.
    kept = Look(here / "deep/er").state(str(here / "deep"))
    (here / "deep/er/new").touch()
    (here / "deep/__pycache__").mkdir()
    (here / "deep/__pycache__/x.pyc").touch()
    assert not Look(here / "deep/er").state(str(here / "deep")).differs(kept)


def test_a_folder_with_too_many_files_is_known_by_what_lies_in_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "MAX_ENTRIES", 1)
    before = Look(NOWHERE).state(str(here / "deep"))
    (here / "deep/z").touch()
    assert Look(NOWHERE).state(str(here / "deep")).differs(before)


def test_a_file_is_looked_at_once_a_look(here: Path) -> None:
    look = Look(NOWHERE)
    before = look.named("in.dat")
    (here / "in.dat").write_text("something else")
    assert look.named("in.dat") is before
    assert Look(NOWHERE).named("in.dat").differs(before)


def test_content_counts_where_it_is_asked_for(here: Path) -> None:
    path = here / "in.dat"
    facts = path.stat()
    plain, hashed = File(path), File(path, hash=True)

    def states() -> list[FileState]:
        return [Look(NOWHERE).of_argument(each) for each in (plain, hashed)]

    first = states()
    os.utime(path, (1e9, 1e9))
    assert [now.differs(old) for now, old in zip(states(), first, strict=True)] == [True, False]
    path.write_text("IN.DAT")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert [now.differs(old) for now, old in zip(states(), first, strict=True)] == [False, True]


def test_files_in_keys(here: Path) -> None:
    def key(*args: Any, **kwargs: Any) -> tuple[bytes, bytes]:
        keys = KeyMaker("", no_futures)
        return keys.call(keys.prefix(b"f" * 16, ""), args, kwargs, "f")

    forms = [(here / "in.dat",), ([here / "in.dat"],), ({"x": (here / "in.dat",)},), (File("in.dat"),)]
    before = [key(*args) for args in forms]
    assert all(note for _key, note in before)
    assert len({each for each, _note in before}) == len(forms)
    assert before == [key(*args) for args in forms]
    (here / "in.dat").write_text("changed")
    assert not {each for each, _ in before} & {each for each, _ in (key(*args) for args in forms)}
    assert key(str(here / "in.dat"))[1] == b""
    assert key(here / "made later")[1] != b""
    with pytest.raises(DescriptionError, match="there is no such file"):
        key([File("made later")])


def test_a_file_travels_as_a_path(here: Path) -> None:
    assert pickle.loads(pickle.dumps(File("in.dat", hash=True))) == here / "in.dat"
    assert File("in.dat") == File(here / "in.dat") != File("in.dat", hash=True)
    assert len({File("in.dat"), File(here / "in.dat")}) == 1
    for wrong in ("", b"x", None, 3):
        with pytest.raises(TypeError):
            File(wrong)  # type: ignore[arg-type]


def test_changes_in_words() -> None:
    old = FileState("/a", 1, 1_000_000_000)
    assert changes([old], [old]) == []
    for now, before, words in (
        (FileState("/a", 2, 1_000_000_000), old, "/a changed: 1 byte of"),
        (FileState("/a", NOTHING), old, "/a is not there any more"),
        (old, FileState("/a", NOTHING), "/a is there now, and was not then"),
        (old, None, "/a is there now"),
        (FileState("/a", 1, 0, b"x"), FileState("/a", 1, 0, b"y"), "/a changed: other content"),
    ):
        ((got, was),) = changes([now], [before] if before else [])
        assert got.change(was).startswith(words)
    ((gone, was),) = changes([], [old])
    assert gone.change(was) == "/a is not there any more"


def test_only_what_was_changed_meanwhile_can_be_its_own() -> None:
    at = 10_000_000_000
    assert written_by(FileState("/a", 1, at), 9.0, 11.0)
    assert not written_by(FileState("/a", 1, at), 10.5, 11.0)
    assert not written_by(FileState("/a", 1, at), 8.0, 9.5)
    assert not written_by(FileState("/a", NOTHING), 9.0, 11.0)
    assert not written_by(FileState("/a", 1, at, several=True), 9.0, 11.0)


class Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str:
        return self.path.read_text()

    def __call__(self) -> str:
        return self.read()


def test_paths_that_a_function_captured_count_as_files(tmp_path: Path) -> None:
    def read(path: Path) -> str:
        return path.read_text()

    def around(path: Path) -> Any:
        return lambda: (path.read_text(), path)

    def default(path: Path) -> Any:
        def read(given: Path = path) -> str:
            return given.read_text()

        return read

    ways: list[tuple[Any, bool]] = [
        (around, False),
        (default, False),
        (lambda path: functools.partial(read, path), True),
        (lambda path: functools.partial(read, path=path), True),
        (lambda path: Reader(path).read, True),
        (Reader, True),
    ]
    for number, (way, folders) in enumerate(ways):
        path = tmp_path / str(number)
        path.mkdir()
        seen = []
        for step in range(3):
            keys = KeyMaker("", lambda _: None)
            captured = keys.captured(keys.function(way(path), "read"))
            seen.append({state.path: state for state in map(keys.look().named, captured)}[str(path)])
            if step == 0:
                path.rmdir()
            else:
                path.write_text("one")
        assert [state.there for state in seen] == [folders, False, True], number
        assert seen[2].size == 3
