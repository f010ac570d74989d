"""A call that runs ahead of a decision is listened to wherever its worker stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot_hitl_agent.node.ahead import Watch


def test_a_call_begins_although_the_folder_of_the_one_before_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, own, place = tmp_path / "before", tmp_path / "own", tmp_path / "place"
    for folder in (before, own, place):
        folder.mkdir()
    (place / "log.txt").touch()
    monkeypatch.chdir(before)
    before.rmdir()
    watch = Watch()
    watch.begin(str(own), str(place))
    try:
        os.chdir(own)
        with pytest.raises(FileNotFoundError, match="runs ahead of a decision"), open("log.txt", "a"):
            pass
    finally:
        missed = watch.end()
    assert missed == str(place / "log.txt")
