"""Bringing nodes back that were cut off for longer than their lease, and that the job still has.

What had run there ended with the lease, the node's member included. A step of its own starts it anew, as soon as the
batch system reaches the node; a node that the job has lost meanwhile is not tried for ever.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pilot_hitl_agent.node import spawner

_log = logging.getLogger(__name__)
FIRST, LONGEST = 2.0, 60.0
"""Seconds between tries; they double."""
TRIES = 12
PATIENCE = 30.0
"""Seconds that a try may take until the node's member says hello."""


class Missing(msgspec.Struct):
    """A node that was lost.

    Attributes:
        process: the step that is to bring it back, or has.
        at: when to look at it next, monotonic.
    """

    name: str
    at: float
    pause: float = FIRST
    tries: int = 0
    process: subprocess.Popen[bytes] | None = None


class Returning:
    """Nodes that were lost and may come back."""

    def __init__(self, job: str, config: Path, cores: int) -> None:
        """Start members of ``job`` with this configuration, on ``cores`` cores each."""
        self._job = job
        self._config = config
        self._cores = cores
        self._missing: dict[int, Missing] = {}
        self._steps: list[subprocess.Popen[bytes]] = []

    def lost(self, node: int, name: str, now: float) -> None:
        """A node was lost."""
        self._missing.setdefault(node, Missing(name, now + FIRST))

    def joined(self, node: int) -> None:
        """A node is there (again)."""
        found = self._missing.pop(node, None)
        if found is not None and found.process is not None:
            _log.info("node %d (%s) is back", node, found.name)
            self._steps.append(found.process)

    def next_deadline(self) -> float | None:
        """Return when :meth:`turn` is due, monotonic."""
        return min((missing.at for missing in self._missing.values()), default=None)

    def turn(self, now: float) -> None:
        """Try again what is due."""
        self._steps = [step for step in self._steps if step.poll() is None]
        for node, missing in list(self._missing.items()):
            if now < missing.at:
                continue
            if missing.process is not None and missing.process.poll() is None:
                missing.process.kill()
            missing.tries += 1
            missing.process = self._start(self.command(node, missing.name), node) if missing.tries <= TRIES else None
            if missing.process is None:
                _log.warning("node %d (%s) does not come back", node, missing.name)
                del self._missing[node]
                continue
            missing.at = now + max(missing.pause, PATIENCE if missing.tries > 1 else FIRST)
            missing.pause = min(LONGEST, 2 * missing.pause)

    def close(self) -> None:
        """End what was begun for nodes that are still missing: srun, told so, ends its step."""
        for missing in self._missing.values():
            if missing.process is not None and missing.process.poll() is None:
                missing.process.terminate()
        self._missing.clear()

    def command(self, node: int, name: str) -> list[str]:
        """Return the command that starts the member of a node."""
        return [
            "srun", f"--jobid={self._job}", "--overlap", "--no-kill", f"--nodelist={name}", "--nodes=1", "--ntasks=1",
            f"--cpus-per-task={self._cores}", "--cpu-bind=none", "--mpi=none", "--input=none", "--quiet",
            f"--export=ALL,{spawner.NODE_VARIABLE}={node}",
            sys.executable, "-I", "-S", spawner.PROGRAM, str(self._config),
        ]  # fmt: skip

    @staticmethod
    def _start(command: Sequence[str], node: int) -> subprocess.Popen[bytes] | None:
        # What tells a step's place is the old step's; srun would take some of it for what is asked of the new one.
        old = ("SLURM_STEP", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_CPU_BIND")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(old)}
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        except OSError as error:
            _log.warning("node %d cannot be brought back: %s", node, error)
            return None
