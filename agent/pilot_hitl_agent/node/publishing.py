"""Outside effects of committed speculative executables: done after the decision, in processes of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate
from pilot_hitl_agent.node.executables import Executables
from pilot_hitl_agent.node.link import Exit, Unspawned
from pilot_hitl_agent.node.logs import read_file
from pilot_hitl_agent.node.scripts import failed_step, publication, staged_outputs
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners


class Copying(msgspec.Struct):
    """One publication that runs."""

    attempt: tuple[int, int, int]
    outputs: list[str]
    errors: str


class Publishing:
    """Publishes sandboxes and outputs."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, executables: Executables) -> None:
        """Run scripts through the root spawner."""
        self._settings = settings
        self._spawners = spawners
        self._executables = executables
        self._running: dict[int, Copying] = {}

    @property
    def busy(self) -> bool:
        """Whether something is being published."""
        return bool(self._running)

    def start(
        self, attempt: tuple[int, int, int], own: str, template: ExecutableTemplate, body: ExecutableBody
    ) -> bool:
        """Begin, with the sandbox ``own`` of the attempt; False when there is nothing to do.

        Raises:
            ValueError: a staging directive cannot be meant.
        """
        script = publication(template, own, body.sandbox, self._executables.folders)
        if not script:
            return False
        root = self._spawners.root
        errors = f"{self._settings.logs}/publish.{attempt[0]}.{attempt[1]}.{attempt[2]}.err"
        argv = [self._executables.shell, "-c", script, self._executables.secret]
        number = self._spawners.link_environment(root, self._spawners.environment(template.environment))
        token = root.spawn(argv, number, {}, "/", (), ("/dev/null", errors), "publish")
        outputs = staged_outputs(template, own, self._executables.folders)
        self._running[token] = Copying(attempt, outputs, errors)
        return True

    def ended(self, news: Exit | Unspawned) -> dict[str, Any] | None:
        """Return the facts of a publication that ended; None when the news is of something else."""
        copying = self._running.pop(news.token, None)
        if copying is None:
            return None
        ok = isinstance(news, Exit) and news.status == 0
        message = ""
        if not ok:
            said, _ = read_file(copying.errors)
            step = failed_step(self._executables.secret, said)
            before = (step[2] if step else said).decode(errors="replace").strip()
            message = f"{step[1]} failed: {before}" if step else before or "it could not be started or was killed"
        _remove(copying.errors)
        task, epoch, run = copying.attempt
        return {"task": task, "epoch": epoch, "run": run, "ok": ok, "message": message, "outputs": copying.outputs}


def _remove(path: str) -> None:
    # A log file too many is no reason to fail what was published.
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
