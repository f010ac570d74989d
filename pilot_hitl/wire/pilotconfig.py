"""What the processes of a pilot are told when they start."""

from __future__ import annotations

import msgspec

from pilot_hitl.model.resources import NodeInventory


class PilotConfig(msgspec.Struct, kw_only=True, frozen=True):
    """What a pilot's processes are told, as the JSON file ``config.json`` in the pilot's folder.

    Attributes:
        home, session, pilot: which.
        folder: of the pilot; ``session_folder`` of the session.
        endpoint: of the hub.
        keys: path of the home's keys.
        nodes: inventory; one node for a local pilot.
        environment: of the client, the base of every task's.
        cwd: of the client, where function tasks run.
        sys_path: of the client, so that functions pickled by reference are found.
        flags: of the client's interpreter; those of function workers.
        umask: of the client; that of tasks, while all that is ours below the home is for the user alone.
        runtime: minutes until the pilot ends by itself.
        noop: run no processes.
        hub_timeout: seconds without a hub after which the pilot ends by itself.
        mark: value of ``PILOT_HITL_MARK`` for every process of the pilot; on a batch system its nodes, which may share
            a machine, append ``/`` and their number.
        system: batch system inside whose job the pilot runs, e.g. ``"slurm"``; then nodes find out by themselves what
            they have, and ``nodes`` is empty. Empty for a local pilot.
        count: nodes that the job has.
        cores_per_node, gpus_per_node, memory_per_node: what is used of each node; 0 for all that the job has there.
        lease: seconds for which a node goes on without its agent.
        launchers: how many launchers (steps of the batch system, ``mpirun``) the site bears at a time.
        ends_at: when the job ends, in seconds since 1970; 0: the batch system is asked.
    """

    home: str
    session: str
    pilot: int
    folder: str
    session_folder: str
    endpoint: str
    keys: str
    nodes: list[NodeInventory]
    environment: dict[str, str]
    cwd: str
    sys_path: list[str]
    runtime: float
    noop: bool
    hub_timeout: float
    mark: str
    system: str = ""
    count: int = 1
    cores_per_node: int = 0
    gpus_per_node: int = 0
    memory_per_node: int = 0
    lease: float = 10.0
    launchers: int = 100
    flags: list[str] = []
    umask: int = 0o022
    ends_at: float = 0.0
