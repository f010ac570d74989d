"""``python -m pilot_hitl_agent CONFIG``: the agent of a pilot. Started by the spawner, never by hand."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import msgspec

from pilot_hitl.wire.logs import log_to
from pilot_hitl.wire.modes import keep_private, own_file
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl_agent.agent import Agent
from pilot_hitl_agent.node.spawner import NODE_VARIABLE
from pilot_hitl_agent.nodes import Node

FORMAT = "%(asctime)s %(levelname)s agent %(message)s"


def nodes_of(config: PilotConfig) -> dict[int, Node]:
    """Return the nodes of a local pilot."""
    if config.noop:
        from pilot_hitl_agent.noop import NoopNode

        return {index: NoopNode(index) for index in range(len(config.nodes))}
    from pilot_hitl_agent.node.daemon import NodeDaemon, NodeSettings, inherited_link

    settings = NodeSettings(
        node=0,
        inventory=config.nodes[0],
        session=config.session,
        pilot=config.pilot,
        home=config.home,
        mark=config.mark,
        session_folder=config.session_folder,
        pilot_folder=config.folder,
        blobs=str(Path(config.session_folder) / "blobs"),
        work=config.cwd or "/",
        path=config.sys_path,
        flags=config.flags,
        umask=config.umask,
        environment=config.environment,
    )
    return {0: NodeDaemon(settings, inherited_link())}


def _log(config: PilotConfig) -> int:
    """Return where the log goes: a file of its own on a batch system, whose output may end with the first node."""
    if not config.system:
        return sys.stderr.fileno()
    folder = Path(config.folder) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    node = os.environ.get(NODE_VARIABLE) or os.environ.get("SLURM_NODEID", "0")
    return own_file(folder / f"member.{node}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def main() -> int:
    """Run until the pilot ends. Exit code 0 tells the spawner that the end was meant."""
    keep_private()
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=PilotConfig)
    log_to(_log(config), FORMAT)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    if config.system:
        from pilot_hitl_agent.member import run

        return run(config)
    Agent(config, nodes_of(config)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
