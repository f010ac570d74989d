"""``pilot-hitl demo --resource slurm``: the study of the demo, on four nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster

COMMAND = [sys.executable, "-m", "pilot_hitl", "demo", "--size", "small", "--unattended", "--json"]


def _demo(folder: Path, cluster: Cluster, *options: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PILOT_HITL")}
    environment = {**clean, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": "", "SLURM_CONF": str(cluster.conf)}
    command = [*COMMAND, "--home", str(folder / "home"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)


def _found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.requires("slurm")
@pytest.mark.long
@pytest.mark.timeout(300)  # two whole studies, one of them on twice the processes that this machine has cores for
def test_the_study_finds_the_same_on_four_nodes(tmp_path: Path, slurm: Cluster) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    how = ("--reviewer-delay", "2", "--seed", "3", "--no-compare")
    local = _found(_demo(here, slurm, "--cores", "2", *how))
    found = _found(_demo(there, slurm, "--resource", "slurm", "--nodes", "4", "--cores", "4", *how))
    assert found["results_sha256"] == local["results_sha256"]
    assert (found["answer"], found["tasks_done"], found["tasks_failed"]) == (local["answer"], local["tasks_done"], 0)
    assert found["speculative_committed"] > 0
    ledger = found["ledger"]
    assert found["ledger_error_core_s"] <= 0.005 * ledger["total"]
    # Simulations, or the surrogate, ran on each of the nodes.
    command = [sys.executable, "-m", "pilot_hitl", "--home", found["home"], "report", "demo", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    used = {
        (row["node"], bar[2])
        for row in json.loads(said)["timeline"]
        for bar in row["bars"]
        if bar[2] in {"services", "needed"}
    }
    assert {node for node, _ in used} == {0, 1, 2, 3}
    assert len([use for _, use in used if use == "services"]) == 1
    slurm.wait_idle()


@pytest.mark.requires("slurm")
def test_a_refused_pilot_is_told_in_slurms_words(tmp_path: Path, slurm: Cluster) -> None:
    done = _demo(tmp_path, slurm, "--resource", "slurm", "--queue", "nowhere", "--no-compare")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
