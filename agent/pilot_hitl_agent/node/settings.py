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
        environment: the client's environment, over which tasks' variables are set.
        spawners: processes that start executables; 0 chooses.
        address: by which other nodes of the pilot reach this one; empty on a pilot of one machine.
        shared: whether other nodes use the pilot's folder too.
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
    environment: dict[str, str] = {}
    spawners: int = 0
    address: str = ""
    shared: bool = False

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
        variables = {key: value for key, value in self.environment.items() if key not in _OURS}
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


def launcher_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what launchers set in the processes that they start.

    Kept are settings, as far as they can be told from it: where Slurm's configuration lies.
    """
    kept = {key: value for key, value in variables.items() if not key.startswith(_LAUNCHERS)}
    where = variables.get("SLURM_CONF") or os.environ.get("SLURM_CONF")
    if where:
        kept["SLURM_CONF"] = where
    return kept
