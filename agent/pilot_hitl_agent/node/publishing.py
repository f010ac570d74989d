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
from pilot_hitl_agent.node.scripts import publication, stager
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners
from pilot_hitl_agent.node.steps import read, take


class Copying(msgspec.Struct):
    """One publication that runs."""

    attempt: tuple[int, int, int]
    template: ExecutableTemplate
    report: str
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
            OSError: its report cannot be kept.
        """
        wrapping = self._executables.wrapping
        steps = publication(template, own, body.sandbox, wrapping.folders)
        if not steps:
            return False
        root = self._spawners.root
        name = f"publish.{attempt[0]}.{attempt[1]}.{attempt[2]}"
        errors, report = f"{self._settings.logs}/{name}.err", wrapping.report(name)
        number = self._spawners.link_environment(root, self._spawners.environment(template.environment))
        command = stager(report, [], steps, file=f"{report}.job")
        token = root.spawn(command, number, {}, "/", (), ("/dev/null", errors), "publish")
        self._running[token] = Copying(attempt, template, report, errors)
        return True

    def ended(self, news: Exit | Unspawned) -> dict[str, Any] | None:
        """Return the facts of a publication that ended; None when the news is of something else."""
        copying = self._running.pop(news.token, None)
        if copying is None:
            return None
        status = news.status if isinstance(news, Exit) else -1
        told = read(copying.template, take(copying.report, f"{copying.report}.job"), status, staged=False, lined=False)
        ok, message = status == 0, ""
        if not ok:
            said = read_file(copying.errors)[0].decode(errors="replace").strip()
            message = told.fault.message if told.fault else said or "it could not be started or was killed"
        outputs = told.outputs
        _remove(copying.errors)
        task, epoch, run = copying.attempt
        return {"task": task, "epoch": epoch, "run": run, "ok": ok, "message": message, "outputs": outputs}


def _remove(path: str) -> None:
    # A log file too many is no reason to fail what was published.
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
