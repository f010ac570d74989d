"""Folders are merged as if what is in one had been written into the other, and nobody sees a half-written file."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl_agent.node import merge

NAMES = st.sampled_from(["a", "b", "ü", " c\n", "d" * 255, ".hidden"])
TREES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(NAMES, st.text(max_size=5), max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(st.text(max_size=5), inner), max_size=4),
    max_leaves=12,
)


def make(folder: Path, tree: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in tree.items():
        if isinstance(what, str):
            (folder / name).write_bytes(what.encode())
        else:
            make(folder / name, what)


def seen(folder: Path) -> dict[str, Any]:
    return {path.name: seen(path) if path.is_dir() else path.read_bytes().decode() for path in folder.iterdir()}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any] | None:
    """The tree that comes of it; None where a file meets a folder."""
    result = dict(below)
    for name, what in above.items():
        before = below.get(name)
        if before is None or (isinstance(before, str) and isinstance(what, str)):
            result[name] = what
        elif isinstance(before, dict) and isinstance(what, dict):
            inner = merged(before, what)
            if inner is None:
                return None
            result[name] = inner
        else:
            return None
    return result


def refuse_links(_source: object, target: object, **_: object) -> None:
    if os.path.lexists(str(target)):
        raise FileExistsError(errno.EEXIST, "it exists", str(target))
    raise OSError(errno.EXDEV, "another file system", str(target))


@pytest.fixture(params=["one file system", "two"])
def systems(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two":
        monkeypatch.setattr(os, "link", refuse_links)
    return str(request.param)


@given(below=TREES, above=TREES)
def test_any_two_trees(below: dict[str, Any], above: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    place, origin = folder / "place", folder / "origin"
    make(place, below)
    make(origin, above)
    wanted = merged(below, above)
    why = merge.merge(str(origin), str(place))
    assert bool(why) == (wanted is None), why
    assert seen(origin) == above, "what is put in place also stays where it was made"
    if wanted is None:
        assert "is to be put" in why
    else:
        assert seen(place) == wanted
        assert merge.merge(str(origin), str(place)) == "", "done again after a crash"
        assert seen(place) == wanted


def test_who_looks_sees_the_old_file_or_the_new_one(tmp_path: Path, systems: str) -> None:
    make(tmp_path / "place", {"x": "old"})
    make(tmp_path / "origin", {"x": "new", "y": "only new"})
    old = (tmp_path / "place" / "x").open()
    assert merge.merge(str(tmp_path / "origin"), str(tmp_path / "place")) == ""
    assert old.read() == "old", "not written into the file that was there"
    old.close()
    assert seen(tmp_path / "place") == {"x": "new", "y": "only new"}
    same = (tmp_path / "place" / "y").samefile(tmp_path / "origin" / "y")
    assert same is (systems == "one file system")


@pytest.mark.usefixtures("systems")
def test_modes_times_and_links(tmp_path: Path) -> None:
    origin, place = tmp_path / "origin", tmp_path / "place"
    make(origin, {"program": "#!", "folder": {"inner": "x"}})
    (origin / "program").chmod(0o751)
    os.utime(origin / "program", (1000, 2000))
    (origin / "folder").chmod(0o700)
    (origin / "relative").symlink_to("program")
    (origin / "absolute").symlink_to(origin / "folder" / "inner")
    (origin / "away").symlink_to("/no/such")
    make(place, {"elsewhere": "before"})
    (place / "program").symlink_to("elsewhere")
    (place / "relative").symlink_to("elsewhere")
    assert merge.merge(str(origin), str(place)) == ""
    assert (place / "program").is_symlink(), "as by a program that writes it"
    assert (place / "elsewhere").read_text() == "#!"
    facts = (place / "elsewhere").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime) == (0o751, 2000)
    assert stat.S_IMODE((place / "folder").stat().st_mode) == 0o700
    assert os.readlink(place / "relative") == "program"
    assert os.readlink(place / "absolute") == str(place / "folder" / "inner")
    assert os.readlink(place / "away") == "/no/such"


@pytest.mark.usefixtures("systems")
def test_what_cannot_be_put_says_why_and_leaves_no_partial_file(tmp_path: Path) -> None:
    origin, place = tmp_path / "origin", tmp_path / "place"
    make(origin, {"x": "file", "y": "file"})
    make(place, {"y": {"inner": ""}})
    assert merge.merge(str(origin), str(place)) == f"{place}/y: a folder is where a file is to be put"
    assert seen(place) == {"x": "file", "y": {"inner": ""}}
    (tmp_path / "file").write_text("")
    assert "file" in merge.merge(str(origin), str(tmp_path / "file"))


def test_as_a_program(tmp_path: Path) -> None:
    origin, place = tmp_path / "origin", tmp_path / "place"
    make(origin, {"x": "file"})
    command = [sys.executable, "-I", "-S", merge.__file__]
    subprocess.run([*command, str(origin), str(place)], check=True)
    assert seen(place) == {"x": "file"}
    job = tmp_path / "job"
    job.write_text(json.dumps([[str(origin), str(tmp_path / "other")], [str(origin), str(place / "x")], ["/no", "/"]]))
    told = subprocess.run([*command, "--jobs", str(job)], check=True, capture_output=True, text=True)
    first, second, third = json.loads(told.stdout)
    assert (first, third) == ("", "")
    assert str(place / "x") in second
    assert seen(tmp_path / "other") == {"x": "file"}
    failed = subprocess.run([*command, str(origin), str(place / "x")], check=False, capture_output=True, text=True)
    assert (failed.returncode, str(place / "x") in failed.stderr) == (1, True)
    (origin / "closed").mkdir(mode=0o500)
    job.write_text(json.dumps([str(origin), "/no/such"]))
    subprocess.run([*command, "--remove", str(job)], check=True)
    assert not origin.exists()
