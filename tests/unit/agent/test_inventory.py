"""What a node of a batch job offers, by what Slurm and the kernel say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl_agent.cluster import inventory as inv

ALLOWED = len(os.sched_getaffinity(0))
BASE = {"SLURM_NODEID": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "3", "SLURMD_NODENAME": "n2"}


def config(cores: int = 0, gpus: int = 0, memory: int = 0) -> PilotConfig:
    """Return a pilot's configuration."""
    return PilotConfig(
        home="/h",
        session="s",
        pilot=1,
        folder="/h/p",
        session_folder="/h",
        endpoint="",
        keys="",
        nodes=[],
        environment={},
        cwd="/",
        sys_path=[],
        runtime=60,
        noop=False,
        hub_timeout=60,
        mark="m",
        system="slurm",
        count=3,
        cores_per_node=cores,
        gpus_per_node=gpus,
        memory_per_node=memory,
    )


@pytest.mark.parametrize(
    ("text", "node", "count"),
    [("4", 0, 4), ("4(x2),8", 1, 4), ("4(x2),8", 2, 8), ("4(x2),8", 3, 0), ("", 0, 0), ("96(x100),48(x2)", 101, 48)],
)
def test_slurms_list_of_counts(text: str, node: int, count: int) -> None:
    assert inv.per_node(text, node) == count


def test_more_cpus_than_the_kernel_allows_are_virtual() -> None:
    found = inv.inventory(config(), 1, "n2", {"SLURM_JOB_CPUS_PER_NODE": f"{ALLOWED + 3}(x3)"})
    assert found.cores == list(range(ALLOWED + 3))
    assert not found.pinned


def test_all_cpus_that_the_kernel_allows_are_real() -> None:
    found = inv.inventory(config(), 0, "n1", {"SLURM_JOB_CPUS_PER_NODE": str(ALLOWED)})
    assert sorted(found.cores) == sorted(os.sched_getaffinity(0))
    assert found.pinned


def test_what_the_pilot_asked_for_is_the_most_it_uses() -> None:
    found = inv.inventory(
        config(cores=1, gpus=1, memory=100), 0, "n1", {"SLURM_JOB_CPUS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "2,3"}
    )
    assert (len(found.cores), found.gpus, found.memory) == (1, [2], 100)


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_GPUS": "4,5"}, [0, 1]),
        ({"SLURM_STEP_GPUS": "4,5"}, [4, 5]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f,GPU-2e"}, [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_GPUS": "3"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_gpus(variables: dict[str, str], devices: list[int]) -> None:
    assert inv.devices(variables) == devices


def test_memory_is_the_least_of_all_limits() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert inv.memory_limit({"SLURM_MEM_PER_NODE": "100"}, 4) == 100
    assert inv.memory_limit({"SLURM_MEM_PER_CPU": "10"}, 4) == 40
    assert 0 < inv.memory_limit({}, 4) <= machine


def test_cores_come_domain_by_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for domain, cpus in ((0, "0-1,4"), (1, "2-3,5")):
        (tmp_path / f"node{domain}").mkdir()
        (tmp_path / f"node{domain}" / "cpulist").write_text(cpus + "\n")
    monkeypatch.setattr(inv, "NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))
    found = inv.inventory(config(), 0, "n1", {"SLURM_JOB_CPUS_PER_NODE": "6"})
    assert found.cores == [0, 1, 4, 2, 3, 5]


def test_where_this_is() -> None:
    here = inv.whereabouts(config(), BASE | {"SLURM_RESTART_COUNT": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"})
    assert (here.node, here.nodes, here.name, here.job, here.number) == (1, 3, "n2", "77.2", "77")
    assert here.address == "127.0.0.1"
    assert here.machine


def test_outside_of_a_job_step_the_remedy_is_named() -> None:
    with pytest.raises(RuntimeError, match="start it with srun"):
        inv.whereabouts(config(), {})
