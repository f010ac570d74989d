"""The examples for clusters, on one: each by the command that the guide names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import examples
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.requires("slurm")


def run(cluster: Cluster, home: Path, *command: str, timeout: float = 120) -> list[str]:
    """Return the lines that an example prints on a cluster."""
    return examples.run(home, *command, timeout=timeout, SLURM_CONF=str(cluster.conf))


def test_a_gpu_set_sees_the_devices_of_its_nodes(slurm: Cluster, tmp_path: Path) -> None:
    lines = run(slurm, tmp_path / "home", "gpu_set.py", "slurm", "2")
    assert lines[0] == "4 GPUs on 2 nodes"
    assert sorted(line.partition("CUDA_VISIBLE_DEVICES=")[2] for line in lines[1:5]) == ["0", "0", "1", "1"]


def test_an_array_of_pilots_serves_one_session(slurm: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    lines = run(slurm, home, "pilot_array.py", "slurm")
    assert lines[-1] == "sum 2646700"
    assert sum(int(line.split()[3]) for line in lines if " ran " in line) == 200
    scripts = [path.read_text() for path in home.glob("sessions/*/pilots/*/batch.sh")]
    assert scripts
    assert all("#SBATCH --array=1-4\n" in script for script in scripts)


@pytest.mark.long
@pytest.mark.timeout(480)
def test_a_pilot_renews_itself(slurm: Cluster, tmp_path: Path) -> None:
    lines = run(slurm, tmp_path / "home", "renewing_pilot.py", "slurm", "2", "3", timeout=420)
    assert lines[-1] == "each step once: True"
    shares = [line for line in lines if " ran " in line]
    assert len(shares) >= 2
