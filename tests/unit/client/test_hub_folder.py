"""A folder of sockets that is somebody else's gives one message, whatever lies there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pilot_hitl._hubprocess import find
from pilot_hitl.errors import HubUnreachable
from pilot_hitl.wire.places import runtime_folder


def of_another(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


THERE: dict[str, Callable[[Path], None]] = {
    "a file": Path.touch,
    "a link": lambda path: path.symlink_to(path.parent),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
    "open to all": open_to_all,
    "of another": of_another,
}


@pytest.mark.parametrize("what", THERE)
def test_what_is_not_ours_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = runtime_folder(tmp_path / "home")
    if what == "of another" and os.getuid():
        pytest.xfail("only root can give folders away")
    THERE[what](folder)
    with pytest.raises(HubUnreachable, match="must be a folder of yours that nobody else can enter"):
        find(tmp_path / "home")
