"""Versions of the script's own modules."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl._functions import FunctionPacker
from pilot_hitl._keys import KeyMaker
from pilot_hitl._modules import ModuleVersions
from pilot_hitl.errors import PayloadError
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.manifest import unpack_manifest
from pilot_hitl.wire.modulefinder import ScriptLoader, source_digest, use
from pilot_hitl.wire.ownership import Script

FILES = {
    "idlib.py": "VALUE = 'one'\ndef f(x):\n    return VALUE, x\n",
    "idmiddle.py": "import idlib, json\ndef g(x): return idlib.f(x)\n",
    "idpkg/__init__.py": "",
    "idpkg/deep.py": "from . import other\nfrom .third import h\n",
    "idpkg/other.py": "",
    "idpkg/third.py": "def h():\n    import idlib\n",
    "idspace/part.py": "from importlib import import_module\ndef p(): return import_module('idlib')\n",
    "idring.py": "import idring_two\n",
    "idring_two.py": "import idring\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules that can be imported; Python writes no caches of them."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in [each for each in sys.modules if each.startswith("id") and each.partition(".")[0] + ".py" in FILES]:
        del sys.modules[name]
    for name in [each for each in sys.modules if each.partition(".")[0] in {"idpkg", "idspace"}]:
        del sys.modules[name]


@pytest.fixture
def packer(tmp_path: Path) -> FunctionPacker:
    return FunctionPacker(BlobStore(tmp_path / "blobs"), KeyMaker("", lambda _: None))


CLOSURES = [
    ("idlib", {"idlib"}),
    ("idmiddle", {"idmiddle", "idlib"}),
    ("idpkg.deep", {"idpkg", "idpkg.deep", "idpkg.other", "idpkg.third", "idlib"}),
    ("idspace.part", {"idspace.part", "idlib"}),
    ("idring", {"idring", "idring_two"}),
    ("json", set()),
    ("numpy", set()),
    ("pilot_hitl", set()),
    ("__main__", set()),
    # That it is not there counts as well.
    ("idnothing", {"idnothing"}),
]


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.usefixtures("folder")
def test_what_a_module_imports_belongs_to_it(loaded: bool) -> None:
    for name, expected in CLOSURES:
        if loaded and name != "idnothing":
            importlib.import_module(name)
        assert set(ModuleVersions(Script()).closure([name])) == expected, name


def test_a_reload_is_another_version_and_an_edit_is_none(folder: Path, packer: FunctionPacker) -> None:
    lib: Any = importlib.import_module("idlib")
    middle: Any = importlib.import_module("idmiddle")
    first = packer.pack(middle.g)
    (folder / "idlib.py").write_text(FILES["idlib.py"].replace("one", "two"))
    assert packer.pack(middle.g) is first
    importlib.reload(lib)
    second = packer.pack(middle.g)
    assert (second.digest, second.fingerprint) != (first.digest, first.fingerprint)
    assert second.fingerprint != first.fingerprint
    versions = [{each.name: each.digest for each in unpack_manifest(packed.modules)} for packed in (first, second)]
    assert versions[0].keys() == versions[1].keys() == {"idlib", "idmiddle"}
    assert versions[0]["idmiddle"] == versions[1]["idmiddle"]
    assert versions[0]["idlib"] != versions[1]["idlib"]


def test_what_is_reached_later_comes_with_what_was_packed_before(folder: Path, packer: FunctionPacker) -> None:
    lib: Any = importlib.import_module("idlib")
    first = packer.pack(lib.f)
    packer.manifest.reach({"idpkg.other"})
    again = packer.pack(lib.f)
    assert again is packer.pack(lib.f)
    assert again.fingerprint == first.fingerprint
    assert {each.name for each in unpack_manifest(again.modules)} == {"idlib", "idpkg", "idpkg.other"}
    assert all(str(folder) in each.file for each in unpack_manifest(again.modules))


@pytest.mark.usefixtures("folder")
def test_what_could_not_be_stored_is_asked_for_again(packer: FunctionPacker, tmp_path: Path) -> None:
    lib: Any = importlib.import_module("idlib")
    (tmp_path / "blobs").write_text("no folder")
    for _ in range(2):
        with pytest.raises(PayloadError, match="cannot be"):
            packer.pack(lib.f)
    (tmp_path / "blobs").unlink()
    assert {each.name for each in unpack_manifest(packer.pack(lib.f).modules)} == {"idlib"}


def test_a_session_of_another_home_stores_what_a_worker_was_given(folder: Path, packer: FunctionPacker) -> None:
    lib: Any = importlib.import_module("idlib")
    given = packer.pack(lib.f).modules
    del sys.modules["idlib"]
    use(BlobStore(folder / "blobs")).install(given)
    again: Any = importlib.import_module("idlib")
    assert isinstance(again.__spec__.loader, ScriptLoader)
    other = BlobStore(folder / "elsewhere")
    (entry,) = unpack_manifest(FunctionPacker(other, KeyMaker("", lambda _: None)).pack(again.f).modules)
    assert entry.digest == unpack_manifest(given)[0].digest
    assert other.path(entry.blob).exists()


@pytest.mark.parametrize("changed", ["VALUE = 'two'", "VALUE = 'one'\ndef f(x): return x\n"])
def test_a_module_that_changed_before_it_was_looked_at_is_said(folder: Path, changed: str) -> None:
    importlib.import_module("idlib")
    # Either a constant, or a function.
    rest = "" if "\n" in changed else FILES["idlib.py"].partition("\n")[2]
    (folder / "idlib.py").write_text(f"{changed}\n{rest}")
    with pytest.raises(PayloadError, match=r"idlib.*reload"):
        ModuleVersions(Script()).of("idlib")


@pytest.mark.parametrize("same_stamp", [True, False])
def test_what_was_imported_counts_where_python_has_a_cache(
    folder: Path, packer: FunctionPacker, monkeypatch: pytest.MonkeyPatch, same_stamp: bool
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = folder / "idlib.py"
    os.utime(path, (1e9, 1e9))
    lib: Any = importlib.import_module("idlib")
    path.write_text(FILES["idlib.py"].replace("return VALUE, x", "return VALUE, 2"))
    os.utime(path, (1e9, 1e9) if same_stamp else (2e9, 2e9))
    (entry,) = unpack_manifest(packer.pack(lib.f).modules)
    assert entry.digest != source_digest(path.read_bytes())
    assert b"VALUE" in packer._blobs.get(entry.blob)


@pytest.mark.parametrize(
    ("more", "refused"),
    [("", True), ("def init():\n    global VALUE\n", False), ("VALUE = 'again'\n", False)],
)
def test_a_constant_that_the_script_set_is_refused(
    folder: Path, packer: FunctionPacker, more: str, refused: bool
) -> None:
    bind = "    VALUE = 'other'\n" if "global" in more else ""
    path = folder / "idlib.py"
    path.write_text(FILES["idlib.py"] + more + bind)
    os.utime(path, (1e9, 1e9))
    lib: Any = importlib.import_module("idlib")
    assert packer.pack(lib.f)
    middle: Any = importlib.import_module("idmiddle")
    lib.VALUE = "mine"
    for function in (lib.f, middle.g):
        other = FunctionPacker(packer._blobs, KeyMaker("", lambda _: None))
        if refused:
            with pytest.raises(PayloadError, match=r"idlib.VALUE was set to 'mine'.*argument"):
                other.pack(function)
        else:
            assert other.pack(function)
