"""Dry runs and platforms: they need neither a hub nor a batch system."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli


def test_a_dry_run_prints_the_script_and_submits_nothing(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bash = subprocess.run(["which", "bash"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ["--nodes", "4", "-q", "main", "-A", "ab12", "-t", "30", "--system-arg=--licenses=x", "--count", "2"]
    said = cli("pilot", "submit", "-s", "alpha", "-r", "slurm", *asked, "--dry-run")
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = {"--nodes=4", "--partition=main", "--account=ab12", "--time=00:30:00", "--licenses=x", "--array=1-2"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    assert f"run: sbatch --parsable {home}/sessions/alpha/pilots/1/batch.sh" in said.stderr
    assert not (home / "sessions").exists()
    assert subprocess.run([bash, "-n"], input=said.stdout, text=True, check=False).returncode == 0

    facts = json.loads(cli("pilot", "submit", "-s", "alpha", "-r", "slurm", "--dry-run", "--json").stdout)
    assert facts["command"].startswith("sbatch --parsable ")
    assert facts["script"].startswith("#!/bin/bash\n")
    assert facts["platform"] == "slurm"


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (["-r", "local"], 2, "resource='local' has none"),
        (["-r", "slrum"], 1, "did you mean slurm"),
        (["-r", "ornl.frontier"], 1, "wants project"),
        (["-r", "slurm", "--module", "a\nb"], 2, "modules"),
    ],
)
def test_what_a_dry_run_refuses(cli: Cli, asked: list[str], code: int, words: str) -> None:
    said = cli("pilot", "submit", "-s", "alpha", *asked, "--dry-run")
    assert said.exit_code == code
    assert words in said.stderr
    assert not said.stdout


def test_platforms(cli: Cli, home: Path) -> None:
    rows = {row["name"]: row for row in json.loads(cli("platforms", "list", "--json").stdout)}
    assert {"local", "slurm", "ornl.frontier", "bsc.marenostrum5"} <= set(rows)
    assert rows["ornl.frontier"]["gpus_per_node"] == 8
    assert "ornl.frontier" in cli("platforms", "list").stdout
    shown = cli("platforms", "show", "ornl.frontier").stdout
    assert "requires: project" in shown
    assert "https://docs.olcf.ornl.gov" in shown
    (home / "platforms").mkdir(parents=True)
    (home / "platforms" / "ours.toml").write_text('description = "fat nodes"\n')
    assert json.loads(cli("platforms", "show", "ours", "--json").stdout)["description"] == "fat nodes"
    assert "no platform 'moon'" in cli("platforms", "show", "moon").stderr
