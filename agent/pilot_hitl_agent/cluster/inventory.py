"""What the node of a batch job offers, from what the batch system and the kernel say."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl_agent.node.spawner import NODE_VARIABLE

_GROUP = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_CPU_LIST = re.compile(r"(\d+)(?:-(\d+))?")
NODES = Path("/sys/devices/system/node")
BOOT = Path("/proc/sys/kernel/random/boot_id")
CONTROL = Path("/sys/fs/cgroup")


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """Which node of which job this process is on.

    Attributes:
        node, nodes: index of this node, and how many the job has.
        name: as the batch system knows it.
        job: its number, and how often it was started again.
        number: the job's number alone.
        address: by which other nodes reach this one.
        machine: equal on nodes that share a machine.
        inventory: what tasks may use.
    """

    node: int
    nodes: int
    name: str
    job: str
    number: str
    address: str
    machine: str
    inventory: NodeInventory


def whereabouts(config: PilotConfig, environment: Mapping[str, str] = os.environ) -> Whereabouts:
    """Return where this process of a Slurm job is.

    Raises:
        RuntimeError: it is in no job step.
    """
    try:
        number = environment["SLURM_JOB_ID"]
        node = int(environment.get(NODE_VARIABLE) or environment["SLURM_NODEID"])
    except (KeyError, ValueError):
        raise RuntimeError(
            f"pilot {config.pilot} is one of Slurm, but this process on {socket.gethostname()} is in no job step: "
            "start it with srun inside the job"
        ) from None
    name = environment.get("SLURMD_NODENAME", socket.gethostname())
    return Whereabouts(
        node=node,
        nodes=int(environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "1"))),
        name=name,
        job=f"{number}.{environment.get('SLURM_RESTART_COUNT', '0')}",
        number=number,
        address=local_address(environment.get("SLURM_LAUNCH_NODE_IPADDR", "")),
        machine=_read(BOOT),
        inventory=inventory(config, node, name, environment),
    )


def inventory(config: PilotConfig, node: int, name: str, environment: Mapping[str, str]) -> NodeInventory:
    """Return what the job has on one node, at most what the pilot asked for there.

    Cores are in order of NUMA domains, so that neighbours share their memory. They are real CPU numbers when the
    kernel allows this process just as many CPUs as the job has here, or the job has all of them; else they are virtual.
    """
    allowed = os.sched_getaffinity(0)
    given = per_node(environment.get("SLURM_JOB_CPUS_PER_NODE", ""), node) or len(allowed)
    domains = numa_domains()
    pinned = len(allowed) == given
    cores = sorted(allowed, key=lambda cpu: (domains.get(cpu, 0), cpu)) if pinned else list(range(given))
    cores = cores[: config.cores_per_node or None]
    gpus = devices(environment)
    return NodeInventory(
        name=name,
        cores=cores,
        gpus=gpus[: config.gpus_per_node or None],
        memory=config.memory_per_node or memory_limit(environment, given),
        pinned=pinned,
    )


def per_node(text: str, node: int) -> int:
    """Return the entry of one node in Slurm's ``4(x2),8``; 0 when there is none."""
    at = 0
    for count, times in _GROUP.findall(text):
        at += int(times or 1)
        if node < at:
            return int(count)
    return 0


def numa_domains() -> dict[int, int]:
    """Return the NUMA domain of each CPU."""
    found: dict[int, int] = {}
    for folder in NODES.glob("node[0-9]*"):
        for first, last in _CPU_LIST.findall(_read(folder / "cpulist")):
            found.update(dict.fromkeys(range(int(first), int(last or first) + 1), int(folder.name[4:])))
    return found


def devices(environment: Mapping[str, str]) -> list[int]:
    """Return the GPU numbers that this job step has; where they have names instead, they are counted."""
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        names = [name for name in environment.get(variable, "").split(",") if name and name != "NoDevFiles"]
        if names:
            return [int(name) for name in names] if all(map(str.isdigit, names)) else list(range(len(names)))
    return []


def memory_limit(environment: Mapping[str, str], cpus: int) -> int:
    """Return how many MB the job has here: by the batch system, the control group or the machine, the least of them."""
    limits = []
    if (text := environment.get("SLURM_MEM_PER_NODE", "")).isdigit():
        limits.append(int(text))
    elif (text := environment.get("SLURM_MEM_PER_CPU", "")).isdigit():
        limits.append(int(text) * cpus)
    group = _read(Path("/proc/self/cgroup")).rpartition("::")[2]
    for folder in (CONTROL / group.lstrip("/"), *(CONTROL / group.lstrip("/")).parents):
        if (text := _read(folder / "memory.max")).isdigit():
            limits.append(int(text) >> 20)
        if folder == CONTROL:
            break
    found = re.search(r"MemTotal:\s+(\d+)", _read(Path("/proc/meminfo")))
    if found:
        limits.append(int(found[1]) >> 10)
    return min((limit for limit in limits if limit > 0), default=0)


def local_address(peer: str) -> str:
    """Return the address of this host on the way to another one, its own if that is this host."""
    with socket.socket(socket.AF_INET6 if ":" in peer else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: this only looks the route up.
            probe.connect((peer or socket.gethostname(), 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
