"""Platforms: ours, the user's, and RADICAL-Pilot's as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pilot_hitl.errors import UnknownPlatform
from pilot_hitl.launch import platforms

RADICAL = """
# a comment of theirs
{
    "lumi": {"resource_manager": "SLURM", "default_queue": "small", "cores_per_node": 64, "gpus_per_node": 8,
             # inside as well
             "mandatory_args": ["project", "access_schema"], "launch_methods": {"order": ["SRUN"], "SRUN": {}}},
    "polaris": {"resource_manager": "PBSPRO", "cores_per_node": 32},
    "broken": {"resource_manager": "SLURM", "cores_per_node": {"no": "number"}}
}
"""


def test_ours_are_platforms_with_sources() -> None:
    found = {platform.name: platform for platform in platforms.every()}
    assert found["slurm"].requires == []
    for platform in found.values():
        assert platform.system == "slurm"
        if platform.cores_per_node:
            assert platform.sources, f"{platform.name}: where do the facts come from?"
            assert platform.checked


def test_an_unknown_one_is_answered_with_those_that_come_close() -> None:
    with pytest.raises(UnknownPlatform, match=r"'slrum'.*did you mean slurm"):
        platforms.find("slrum")


def test_the_users_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "platforms").mkdir()
    (tmp_path / "platforms/slurm.toml").write_text('queue = "mine"\nrequires = ["project"]\n')
    assert platforms.find("slurm", tmp_path).queue == "mine"
    (tmp_path / "platforms/bad.toml").write_text('colour = "blue"\n')
    assert platforms.find("slurm", tmp_path).queue == "mine", "somebody else's fault is no reason to refuse this one"
    for look in (lambda: platforms.find("bad", tmp_path), lambda: list(platforms.every(tmp_path))):
        with pytest.raises(UnknownPlatform, match=r"bad\.toml does not describe a platform.*colour"):
            look()


def test_radical_pilots_descriptions_are_read_and_nothing_of_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, package = tmp_path / "home", tmp_path / "lib/radical/pilot"
    (home / ".radical/pilot/configs").mkdir(parents=True)
    (package / "configs").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "configs/resource_far.json").write_text(RADICAL)
    (package / "configs/resource_nonsense.json").write_text("{")
    mine = {"lumi": {"resource_manager": "SLURM", "default_queue": "mine"}}
    (home / ".radical/pilot/configs/resource_far.json").write_text(json.dumps(mine))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.delitem(sys.modules, "radical", raising=False)
    found = {platform.name: platform for platform in platforms.every()}
    assert found["far.lumi"].queue == "mine", "the user's file counts"
    assert found["far.polaris"].system == "pbspro"
    assert "far.broken" not in found
    assert "radical.pilot" not in sys.modules
    (home / ".radical/pilot/configs/resource_far.json").unlink()
    lumi = platforms.find("far.lumi")
    assert (lumi.queue, lumi.cores_per_node, lumi.gpus_per_node) == ("small", 64, 8)
    assert (lumi.requires, lumi.launcher) == (["project"], "srun")
    sys.modules.pop("radical", None)
