"""Folders of calls that run ahead: one an attempt, kept while they may count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.node import Launch, Share
from pilot_hitl_agent.node.apart import Apart


def launch(task: int = 1, condition: int = 7, run: int = 0, **more: Any) -> Launch:
    return Launch(1 << 32 | task, 1, run, 1, 1, (1, 0), condition, (Slot(0, 1),), b"", **more)


@pytest.fixture
def apart(tmp_path: Path) -> Apart:
    return Apart(tmp_path / "tasks", 0)


def test_a_needed_call_is_not_apart(apart: Apart, tmp_path: Path) -> None:
    needed = launch(condition=0)
    assert apart.begin(needed) == ""
    assert not apart
    assert apart.ended(needed.task, good=True) == ""
    assert not (tmp_path / "tasks").exists()


def test_each_attempt_has_a_folder_and_empty_ones_are_used_again(apart: Apart, tmp_path: Path) -> None:
    first, second = apart.begin(launch(1)), apart.begin(launch(1, run=1))
    assert first != second
    assert apart.ended(launch(1).task, good=True) == ""
    third = apart.begin(launch(2))
    assert Path(third).is_dir()
    assert len(list((tmp_path / "tasks").iterdir())) <= 2


def test_what_is_left_is_kept_until_the_condition_is_decided(apart: Apart) -> None:
    folders = {}
    for task, condition in ((1, 7), (2, 7), (3, 8)):
        folders[task] = apart.begin(launch(task, condition))
        Path(folders[task], "file").write_text("x")
        assert apart.ended(launch(task).task, good=True) == folders[task]
    assert apart.unwanted == []
    apart.settle(8, truth=True)
    assert apart.unwanted == []
    apart.settle(7, truth=False)
    assert apart.unwanted == [folders[1], folders[2]]


def test_what_a_failed_attempt_left_is_nobodys_and_its_number_can_be_given_again(apart: Apart) -> None:
    folder = apart.begin(launch())
    Path(folder, "file").write_text("x")
    assert apart.ended(launch().task, good=False) == folder, "it ran apart, which may be why it failed"
    assert not Path(folder).exists()
    [unwanted] = apart.unwanted
    assert Path(unwanted, "file").exists()
    assert apart.begin(launch()) == folder
    assert list(Path(folder).iterdir()) == []
    assert apart.ended(launch().task, good=False) == folder


def test_what_was_not_begun_leaves_no_trace(apart: Apart, tmp_path: Path) -> None:
    apart.begin(launch())
    apart.back(launch().task)
    assert not apart
    apart.close()
    assert list((tmp_path / "tasks").iterdir()) == []


def test_several_ranks_share_one_and_the_node_that_leads_answers(tmp_path: Path) -> None:
    layout = tuple(Share(node, f"n{node}", "", (Slot(node, 1),)) for node in (0, 1))
    nodes = [Apart(tmp_path / "tasks", node) for node in (0, 1)]
    wide = launch(ranks=2, layout=layout)
    folders = {node.begin(wide) for node in nodes}
    assert len(folders) == 1
    [folder] = folders
    Path(folder).mkdir(parents=True)
    Path(folder, "rank1").write_text("x")
    assert nodes[1].ended(wide.task, good=True) == ""
    assert Path(folder, "rank1").exists()
    assert nodes[0].ended(wide.task, good=True) == folder


def test_several_ranks_of_one_node(apart: Apart) -> None:
    wide = launch(ranks=2, layout=(Share(0, "n0", "", (Slot(0, 1), Slot(0, 2))),))
    folder = apart.begin(wide)
    Path(folder).mkdir(parents=True)
    assert apart.ended(wide.task, good=True) == "", "they left nothing"
    assert not Path(folder).exists()
    apart.begin(wide)
    Path(folder).mkdir()
    Path(folder, "half").write_text("x")
    # Its ranks died without a word, and it is started once more.
    assert apart.begin(wide) == folder
    assert not Path(folder).exists()


def test_a_folder_that_cannot_be_made_is_found_out_by_the_call(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("no folder")
    apart = Apart(tmp_path / "tasks", 0)
    folder = apart.begin(launch())
    assert folder
    assert apart.ended(launch().task, good=False) == folder
