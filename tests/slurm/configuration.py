"""What the files of a test cluster say: ``slurm.conf`` and its companions, as text."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["local", "netns"]

MPI_CONF = "PMIxCollFence=ring\n"
"""``mpi.conf``. The fence along a tree, which Slurm 22.05 takes where no data is collected, lets ranks go on before all
have come (seen with 16 ranks on 4 nodes: each one). MPI_Init of Open MPI 4.1 ends with such a fence, and a rank that is
written to before it is ready crashes or hangs: 9 of 60 starts of as many ranks."""

TIMES = """\
KillWait=5
SlurmdTimeout=15
SlurmctldTimeout=30
MessageTimeout=5
BatchStartTimeout=10
InactiveLimit=0
WaitTime=0
MinJobAge=600
SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0,max_array_tasks=10000
"""
"""Seconds, shorter than a site has them: a test waits for each."""

MACHINERY = """\
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
JobAcctGatherType=jobacct_gather/linux
MaxArraySize=10001
MaxJobCount=50000
"""
"""A node may claim more CPUs than this machine has (config_overrides), so nothing is bound to them (task/none)."""


@dataclass(frozen=True)
class Shape:
    """What a cluster looks like.

    Attributes:
        base: folder of all its files.
        port: the controller's; up to 49 more follow.
        nodes: how many, named n1, n2, ...
        mode: ``local``: all nodes are this host. ``netns``: each has its own address, host name and processes.
        cpus, gpus: of each node, as Slurm counts them; the GPUs are stand-ins.
        enforce_accounts: with an accounting database, and jobs only for accounts and QOS that are in it.
        extra: further lines of slurm.conf.
    """

    base: Path
    port: int
    nodes: int = 4
    mode: Mode = "local"
    cpus: int = 4
    gpus: int = 2
    enforce_accounts: bool = False
    extra: str = ""

    @property
    def names(self) -> list[str]:
        """Of the nodes."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def network(self) -> str:
        """First three bytes of the nodes' addresses in mode netns; the host is .1."""
        return f"10.{100 + self.port // 250 % 100}.{self.port % 250}"

    def address(self, node: str) -> str:
        """Return the address of a node, or of the host for any other name."""
        if self.mode == "local":
            return "127.0.0.1"
        return f"{self.network}.{10 + int(node[1:]) if node in self.names else 1}"

    @property
    def munge_socket(self) -> Path:
        """Of this cluster's own munged."""
        return self.base / "munge" / "socket"

    @property
    def auth_info(self) -> str:
        """Seconds that a credential holds, and with that how long a requeued job waits (a site: 120)."""
        return f"socket={self.munge_socket},cred_expire=20"


def slurm_conf(shape: Shape) -> str:
    """Return the text of slurm.conf."""
    base, host, user = shape.base, socket.gethostname().partition(".")[0], getpass.getuser()
    lines = [
        f"ClusterName=hitl{shape.port}",
        f"SlurmctldHost={host}({shape.address(host)})",
        f"SlurmctldPort={shape.port}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        f"AuthInfo={shape.auth_info}",
        f"StateSaveLocation={base}/state",
        f"SlurmctldPidFile={base}/run/slurmctld.pid",
        f"SlurmctldLogFile={base}/log/slurmctld.log",
        f"SlurmdPidFile={base}/run/slurmd.%n.pid",
        f"SlurmdLogFile={base}/log/slurmd.%n.log",
        f"SlurmdSpoolDir={base}/spool/%n",
        # One a node: Slurm's PMIx keeps its folders there, by job and not by node.
        f"TmpFS={base / 'tmp'}/%n",
        MACHINERY + TIMES,
        *_accounting(shape),
    ]
    if shape.gpus:
        lines.append("GresTypes=gpu")
    for number, name in enumerate(shape.names, start=1):
        own = shape.mode == "netns"
        where = f"NodeHostname={name if own else host} NodeAddr={shape.address(name)}"
        size = f"CPUs={shape.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1"
        gres = f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
        feature = "odd" if number % 2 else "even"
        lines.append(
            f"NodeName={name} {where} Port={shape.port + 10 + number} {size} RealMemory=4000 Feature={feature}{gres}"
        )
    every = f"Nodes=n[1-{shape.nodes}] State=UP"
    lines += [
        f"PartitionName=main {every} Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=5 PreemptMode=OFF",
        f"PartitionName=short {every} MaxTime=5 DefaultTime=1 PriorityTier=5 PreemptMode=OFF",
        f"PartitionName=low {every} MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10",
        shape.extra,
    ]
    return "\n".join(lines) + "\n"


def _accounting(shape: Shape) -> list[str]:
    if not shape.enforce_accounts:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={shape.port + 1}",
        f"AccountingStoragePass={shape.munge_socket}",
        "AccountingStorageEnforce=associations,qos",
        "AccountingStorageTRES=gres/gpu",
    ]


def slurmdbd_conf(shape: Shape) -> str:
    """Return the text of slurmdbd.conf, for a database at the port after its own."""
    lines = [
        f"DbdHost={socket.gethostname().partition('.')[0]}",
        "DbdAddr=127.0.0.1",
        f"DbdPort={shape.port + 1}",
        f"SlurmUser={getpass.getuser()}",
        "AuthType=auth/munge",
        f"AuthInfo={shape.auth_info}",
        f"PidFile={shape.base}/run/slurmdbd.pid",
        f"LogFile={shape.base}/log/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        "StorageHost=127.0.0.1",
        f"StoragePort={shape.port + 2}",
        "StorageUser=slurm",
        "StoragePass=slurm",
        "StorageLoc=slurm",
    ]
    return "\n".join(lines) + "\n"


def hosts(shape: Shape) -> str:
    """Return the text of /etc/hosts on every node."""
    host = socket.gethostname().partition(".")[0]
    lines = ["127.0.0.1 localhost", *(f"{shape.address(name)} {name}" for name in (host, *shape.names))]
    return "\n".join(lines) + "\n"


def gres_conf(shape: Shape, devices: list[Path]) -> str:
    """Return the text of gres.conf; without devices GPUs are counted, and no variable tells which."""
    if not shape.gpus:
        return ""
    if not devices:
        return f"AutoDetect=off\nName=gpu Count={shape.gpus}\n"
    return "AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in devices)
