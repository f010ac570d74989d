"""Pilots on this machine: a spawner process, which starts the agent and everything below it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.places import MARK_VARIABLE, SessionPlaces
from pilot_hitl.wire.processes import runs

ROOT = "root"
"""File in a pilot's folder, by its root: its pid and start time."""


class CoreLeases:
    """Which local pilot uses which CPUs, so that two sessions do not pin their tasks to the same ones."""

    def __init__(self, cpus: list[int] | None = None) -> None:
        """Lease out ``cpus``; default those that this process may use."""
        self.cpus = sorted(os.sched_getaffinity(0)) if cpus is None else cpus
        self._leases: dict[object, list[int]] = {}

    def take(self, holder: object, count: int) -> tuple[list[int], bool]:
        """Return ``count`` CPUs (0: all) for a holder, least used first, and whether they are real.

        More than the machine has are virtual: counted, but nothing is bound to them.
        """
        if count > len(self.cpus):
            return list(range(count)), False
        used = dict.fromkeys(self.cpus, 0)
        for lease in self._leases.values():
            for cpu in lease:
                used[cpu] += 1
        chosen = sorted(sorted(self.cpus, key=lambda cpu: used[cpu])[: count or len(self.cpus)])
        self._leases[holder] = chosen
        return chosen, True

    def give_back(self, holder: object) -> None:
        """End a lease; unknown holders are ignored."""
        self._leases.pop(holder, None)


def inventory(description: PilotDescription, host: str, cpus: list[int], *, pinned: bool) -> list[NodeInventory]:
    """Return the nodes of a local pilot: one real one, or the pretended ones of a noop pilot."""
    if description.noop and description.simulated_nodes > 1:
        count = max(1, description.cores // description.simulated_nodes) if description.cores else 8
        devices = description.gpus // description.simulated_nodes
        return [
            NodeInventory(name=f"sim{i}", cores=list(range(count)), gpus=list(range(devices)), pinned=False)
            for i in range(description.simulated_nodes)
        ]
    gpus = list(range(description.gpus))
    return [NodeInventory(name=host, cores=cpus, gpus=gpus, memory=description.memory, pinned=pinned)]


def start(config: PilotConfig) -> int:
    """Start a local pilot and return the pid of its spawner, the root of all its processes.

    Raises:
        OSError: it cannot be started.
    """
    folder = Path(config.folder)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    path, partial = folder / "config.json", folder / "config.json.new"
    # Whole at any moment: by it, a later hub starts the pilot again.
    partial.write_bytes(msgspec.json.encode(config))
    partial.replace(path)
    with (folder / "logs" / "pilot.log").open("ab") as log:
        return _started([spawner_file(), str(path)], {**os.environ, MARK_VARIABLE: config.mark}, log.fileno())


def sweep(mark: str) -> int:
    """Begin to end everything that carries a pilot's mark, whose root is gone; return the pid of who does it.

    Raises:
        OSError: it cannot be started.
    """
    program = str(Path(spawner_file()).with_name("proctree.py"))
    return _started([program, mark], {**os.environ}, subprocess.DEVNULL)


def wait(process: int) -> None:
    """Wait until a process has ended that was started here; 0 for none."""
    if process:
        os.waitpid(process, 0)


def _started(program: list[str], environment: dict[str, str], log: int) -> int:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", *program],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    # The hub watches it through a pidfd and reaps it there; Popen's own bookkeeping would only warn.
    process.returncode = 0
    return process.pid


def root_of(folder: Path) -> int:
    """Return the pid of the root of a pilot that an earlier hub started in this folder; 0 when it is gone."""
    try:
        pid, started = map(int, (folder / ROOT).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0
    return pid if runs(pid, started) else 0


def spawner_file() -> str:
    """Return the path of the spawner, which runs by path because it must not import what a package imports."""
    spec = importlib.util.find_spec("pilot_hitl_agent")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package pilot_hitl_agent is not installed beside pilot_hitl: install pilot-hitl again"
        )
    return str(Path(spec.submodule_search_locations[0]) / "node" / "spawner_main.py")


def pilot_mark(places: SessionPlaces, pilot: int) -> str:
    """Return the environment mark of a pilot's processes."""
    return f"{places.mark}/{pilot}"


def last_words(log: Path) -> str:
    """Return the end of a log as the end of a sentence; empty when it says nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
            text = file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f"; its last words: {text}" if text else ""
