"""What a node daemon is told when it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire.current import (
    ADDRESS_VARIABLE,
    ATTEMPT_VARIABLE,
    PILOT_VARIABLE,
    RANK_VARIABLE,
    RANKS_VARIABLE,
    SESSION_VARIABLE,
    TASK_VARIABLE,
)
from pilot_hitl.wire.places import HOME_VARIABLE, MARK_VARIABLE
from pilot_hitl_agent.node.spawner import LINK_VARIABLE, TOKEN_VARIABLE

_OURS = (ATTEMPT_VARIABLE, LINK_VARIABLE, RANK_VARIABLE, RANKS_VARIABLE, TASK_VARIABLE, TOKEN_VARIABLE)
_PLACES = ("PWD", "OLDPWD")
"""They tell where the client is; a task's PWD is its own working directory."""
_ALLOCATION = (
    "SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_", "PMIX2_", "OMPI_COMM_", "OMPI_APP_CTX_",
    "OMPI_MCA_orte_", "OMPI_MCA_ess", "OMPI_MCA_pmix", "OMPI_MCA_initial_wdir", "PRTE_MCA_prte_", "PRTE_MCA_ess",
    "HYDI_", "MV2_COMM_", "MPI_LOCAL", "PALS_", "ALPS_", "FLUX_TASK_", "FLUX_JOB_", "FLUX_PMI_", "FLUX_KVS_", "JSM_",
    "LSB_", "PBS_",
)  # fmt: skip
_ALLOCATION_NAMES = frozenset({
    "OMPI_ARGV", "OMPI_COMMAND", "OMPI_FILE_LOCATION", "OMPI_FIRST_RANKS", "OMPI_NUM_APP_CTX", "OMPI_UNIVERSE_SIZE",
    "OMPI_MCA_num_procs", "PRTE_LAUNCHED", "PE_HOSTFILE", "LS_JOBPID",
})  # fmt: skip
_SETTINGS = frozenset({"SLURM_CONF", "PBS_CONF_FILE", "PBS_DEFAULT", "PBS_SERVER"})
"""Where a batch system's configuration lies: the same everywhere, and of no allocation."""
_DEVICES = frozenset({
    "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK",
})  # fmt: skip
"""What a batch system says of the devices of its allocation, which are not those of another one's nodes."""
JOB_FACTS = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_ACCOUNT", "SLURM_JOB_QOS",
    "SLURM_JOB_RESERVATION", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_JOB_USER", "SLURM_JOB_UID",
    "SLURM_CLUSTER_NAME",
)  # fmt: skip
"""What tasks are told of their pilot's job. With the number, ``srun --overlap`` starts a step in it. The variables by
which MPI and its launchers find an allocation (``SLURM_JOBID``, ``SLURM_NODELIST``, …) stay away: a program that a task
starts by hand would take itself for a rank of the pilot's own step, or spread over the pilot's nodes."""
_LAUNCHERS = ("SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_", "OMPI_COMM_", "PALS_", "FLUX_TASK_", "FLUX_JOB_")
PER_SPAWNER = 16
"""Cores that one spawner serves where many are on a node."""
FEW = 2
"""Spawners of a small node: measured, one reaches 82 % of what two cores can start and two 95 %."""


class NodeSettings(msgspec.Struct, kw_only=True):
    """Everything a daemon must know; all of it is plain data, so it can lie in the pilot's config file.

    Attributes:
        node: index of the node in its pilot.
        inventory: what the node offers.
        session, pilot: name and number, for the tasks' environment.
        home: folder of the user's sessions.
        mark: value of ``PILOT_HITL_MARK``; must differ between nodes that may share a machine.
        session_folder, pilot_folder: absolute; logs and sandboxes lie below the latter.
        blobs: folder of large values.
        work: absolute; the client's working directory: functions run in it, staging starts from it.
        path: the client's ``sys.path``; ``flags`` those of its interpreter.
        umask: the client's; a folder that a task wants elsewhere is made with it.
        environment: the client's environment, over which tasks' variables are set.
        spawners: processes that start executables; 0 chooses.
        address: by which other nodes of the pilot reach this one; empty on a pilot of one machine.
        shared: whether other nodes use the pilot's folder too.
        job: what tasks are told of the pilot's own job (:func:`job_facts`).
    """

    node: int
    inventory: NodeInventory
    session: str
    pilot: int
    home: str
    mark: str
    session_folder: str
    pilot_folder: str
    blobs: str
    work: str
    path: list[str] = []
    flags: list[str] = []
    umask: int = 0o022
    environment: dict[str, str] = {}
    spawners: int = 0
    address: str = ""
    shared: bool = False
    job: dict[str, str] = {}

    @property
    def logs(self) -> Path:
        """Folder of the slots' logs."""
        folder = Path(self.pilot_folder) / "logs"
        return folder / f"node.{self.node}" if self.shared else folder

    @property
    def tasks(self) -> Path:
        """Folder of the attempts' sandboxes."""
        return Path(self.pilot_folder) / "tasks"

    @property
    def spawner_count(self) -> int:
        """How many processes start executables."""
        cores = len(self.inventory.cores)
        return self.spawners or max(min(FEW, cores), -(-cores // PER_SPAWNER))

    def base_environment(self) -> dict[str, str]:
        """Return what every task of the pilot gets."""
        variables = without_allocation(self.environment, elsewhere=self.shared)
        for name in (*_OURS, *_PLACES):
            variables.pop(name, None)
        variables.update(self.job)
        variables.setdefault("PATH", os.defpath)
        variables[SESSION_VARIABLE] = self.session
        variables[PILOT_VARIABLE] = str(self.pilot)
        variables[HOME_VARIABLE] = self.home
        variables[MARK_VARIABLE] = self.mark
        if self.address:
            variables[ADDRESS_VARIABLE] = self.address
        return variables

    def cpus(self, cores: int) -> tuple[int, ...]:
        """Return the CPU numbers behind a bit set of core indices; empty when nothing is bound."""
        if not self.inventory.pinned:
            return ()
        numbers = self.inventory.cores
        return tuple(
            numbers[index] for index in range(cores.bit_length()) if cores >> index & 1 and index < len(numbers)
        )


def job_facts(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what tasks are told of the job that these variables are of."""
    return {name: variables[name] for name in JOB_FACTS if name in variables}


def without_allocation(variables: Mapping[str, str], *, elsewhere: bool) -> dict[str, str]:
    """Return the client's environment without what an allocation set in which the client may run.

    ``elsewhere``: the tasks run in another allocation, so the devices of this one are not theirs.
    """
    inside = elsewhere and "SLURM_JOB_ID" in variables
    return {
        key: value
        for key, value in variables.items()
        if key in _SETTINGS
        or not (key.startswith(_ALLOCATION) or key in _ALLOCATION_NAMES or (inside and key in _DEVICES))
    }


def launcher_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what launchers set in the processes that they start.

    Kept are settings, as far as they can be told from it: where Slurm's configuration lies.
    """
    kept = {key: value for key, value in variables.items() if not key.startswith(_LAUNCHERS)}
    where = variables.get("SLURM_CONF") or os.environ.get("SLURM_CONF")
    if where:
        kept["SLURM_CONF"] = where
    return kept
