"""Modules of the script in a process that runs its functions."""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.manifest import Entry, pack_manifest
from pilot_hitl.wire.modulefinder import ModuleFinder, OtherVersion, Reads, source_digest


class Worker:
    """What a worker knows, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        self.finder = ModuleFinder(self.blobs)

    def write(self, name: str, value: str) -> Path:
        path = self.folder / f"{name}.py"
        path.write_text(f"VALUE = {value!r}\n")
        # Long ago, as far as the file's own time can say.
        os.utime(path, (1e9, 1e9))
        return path

    def manifest(self, **values: str) -> bytes:
        entries = []
        for name, value in values.items():
            source, file = f"VALUE = {value!r}\n".encode(), str(self.folder / f"{name}.py")
            code = marshal.dumps(compile(source, file, "exec"))
            blob = self.blobs.put([b"before", code])[0]
            entries.append(Entry(name, source_digest(source), file, None, blob, 6, len(code)))
        return pack_manifest(entries)

    def value(self, name: str) -> Any:
        found = vars(importlib.import_module(name))["VALUE"]
        self.finder.note()
        return found


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.meta_path.insert(0, made.finder)
    Reads.seen.clear()
    yield made
    Reads.seen.clear()
    sys.meta_path.remove(made.finder)
    for name in ("mflib", "mfother"):
        sys.modules.pop(name, None)


def test_what_the_script_packed_is_what_is_imported(worker: Worker) -> None:
    worker.write("mflib", "of the disk")
    worker.finder.install(worker.manifest(mflib="of the script"))
    assert worker.value("mflib") == "of the script"
    module = sys.modules["mflib"]
    assert module.__file__ == str(worker.folder / "mflib.py")
    assert importlib.reload(module) is module
    assert worker.value("mflib") == "of the script"


def test_another_version_needs_another_worker(worker: Worker) -> None:
    one, two = worker.manifest(mflib="one"), worker.manifest(mflib="two", mfother="here")
    worker.finder.install(one)
    worker.finder.install(one)
    with pytest.raises(OtherVersion, match="mflib"):
        worker.finder.install(two)
    assert importlib.util.find_spec("mfother") is None
    worker.finder.install(worker.manifest(mflib="one", mfother="there"))
    assert (worker.value("mflib"), worker.value("mfother")) == ("one", "there")


@pytest.mark.parametrize("changed", [True, False])
def test_what_was_imported_as_it_lay_there_is_told_apart_by_content(worker: Worker, changed: bool) -> None:
    path = worker.write("mflib", "one")
    while path.stat().st_ctime > time.time() - 0.1:
        time.sleep(0.02)
    assert worker.value("mflib") == "one"
    if changed:
        with pytest.raises(OtherVersion):
            worker.finder.install(worker.manifest(mflib="two"))
        return
    worker.finder.install(worker.manifest(mflib="one"))
    assert worker.finder.changed() == ""


def test_a_module_that_changes_later_is_noticed(worker: Worker) -> None:
    worker.write("mflib", "one")
    assert worker.value("mflib") == "one"
    assert worker.finder.changed() == ""
    worker.write("mflib", "two")
    assert "mflib" in worker.finder.changed()


def test_pythons_caches_do_not_count(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = worker.write("mflib", "old")
    assert worker.value("mflib") == "old"
    del sys.modules["mflib"]
    worker.finder._loose.clear()
    worker.write("mflib", "new")  # of the same size, and as old: Python takes its cache
    assert worker.value("mflib") == "old"
    del sys.modules["mflib"]
    worker.finder._loose.clear()
    worker.finder.install(worker.manifest(mflib="new"))
    assert worker.value("mflib") == "new"
    assert path.read_text() == "VALUE = 'new'\n"


def test_code_that_is_gone_is_said(worker: Worker) -> None:
    worker.finder.install(pack_manifest([Entry("mflib", b"x" * 16, "/nowhere/mflib.py", None, b"y" * 20, 0, 1)]))
    with pytest.raises(ImportError, match="mflib"):
        importlib.import_module("mflib")


def test_that_a_module_is_not_there_counts(worker: Worker) -> None:
    missing = pack_manifest([Entry("mfother", b"", "")])
    worker.finder.install(missing)
    with pytest.raises(OtherVersion, match="mfother"):
        worker.finder.install(worker.manifest(mfother="one"))
    again = ModuleFinder(worker.blobs)
    again.install(worker.manifest(mfother="one"))
    with pytest.raises(OtherVersion, match="mfother"):
        again.install(missing)


READING = [
    ("open('{path}').close()", True),
    ("import pathlib; pathlib.Path('{path}').read_text()", True),
    ("import os; os.close(os.open('{path}', os.O_RDONLY))", True),
    ("import glob; glob.glob('{folder}/data/*')", False),
]


@pytest.mark.parametrize(("source", "whole"), READING)
def test_what_a_module_read_at_its_import_is_looked_at(worker: Worker, source: str, whole: bool) -> None:
    folder = worker.folder / "data"
    folder.mkdir()
    path = folder / "read.txt"
    path.write_text("one")
    text = source.format(path=path, folder=worker.folder)
    code = marshal.dumps(compile(f"{text}\nVALUE = 1", str(worker.folder / "mflib.py"), "exec"))
    blob = worker.blobs.put([code])[0]
    entry = Entry("mflib", b"1", str(worker.folder / "mflib.py"), None, blob, 0, len(code))
    worker.finder.install(pack_manifest([entry]))
    assert worker.value("mflib") == 1
    assert worker.finder.changed() == ""
    if whole:
        path.write_text("other")
    (folder / "another.txt").write_text("new")
    assert str(folder) in worker.finder.changed()


def test_what_is_read_later_or_written_is_not(worker: Worker) -> None:
    path = worker.folder / "read.txt"
    path.touch()
    name = f"pathlib.Path({str(path)!r})"
    text = f"import pathlib\ndef read(): return {name}.read_text()\n{name}.write_text('')\nVALUE = read"
    code = marshal.dumps(compile(text, str(worker.folder / "mflib.py"), "exec"))
    blob = worker.blobs.put([code])[0]
    worker.finder.install(
        pack_manifest([Entry("mflib", b"1", str(worker.folder / "mflib.py"), None, blob, 0, len(code))])
    )
    assert worker.value("mflib")() == ""
    path.write_text("other")
    assert worker.finder.changed() == ""


def test_what_a_function_does_not_name_is_as_it_lies_on_disk(worker: Worker) -> None:
    path = worker.write("mflib", "one")
    worker.finder.install(worker.manifest(mflib="one"))
    assert worker.value("mflib") == "one"
    worker.finder.install(worker.manifest(mfother="one"))
    path.write_text("VALUE = 'two'\n")
    with pytest.raises(OtherVersion, match="mflib"):
        worker.finder.install(worker.manifest(mfother="one"))
    worker.finder.install(worker.manifest(mflib="one", mfother="one"))
