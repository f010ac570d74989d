"""What stands around one attempt of an executable, from the command to what its report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pilot_hitl.model.ids import task_name
from pilot_hitl.model.templates import ExecutableBody, ExecutableResult, ExecutableTemplate
from pilot_hitl.wire.modes import made_ours
from pilot_hitl.wire.node import Launch
from pilot_hitl_agent.node import steps
from pilot_hitl_agent.node.scripts import STAGER, TRAPS, Folders, Origin, moves, shell_command, stager
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.steps import Reports, Steps

SHELLS = ("/bin/bash", "/bin/sh")
_result = msgspec.msgpack.Decoder(ExecutableResult)


class Wrap(msgspec.Struct):
    """What stands around an attempt.

    Attributes:
        report: of the stager, and of the shell of a single rank.
        rank_reports: of the shells of several ranks, each of which adds its number.
        lines: there are lines for a shell.
        before, after: there is something to stage before the program, and after it.
        origins: tasks in whose sandboxes it finds inputs.
        files: what was too long for an argument.
    """

    report: str
    rank_reports: str
    lines: bool
    before: bool
    after: bool
    origins: list[Origin]
    files: list[str] = []

    @property
    def staged(self) -> bool:
        """Whether the stager has something to do."""
        return self.before or self.after


class Wrapping:
    """Wraps the executables of one node."""

    def __init__(self, settings: NodeSettings) -> None:
        """Keep reports in the pilot's folder."""
        self.folders = Folders(session=settings.session_folder, pilot=settings.pilot_folder)
        self.shell = next((shell for shell in SHELLS if Path(shell).exists()), SHELLS[-1])
        self._reports = Reports(Path(settings.pilot_folder) / "steps")

    def report(self, name: str) -> str:
        """Return where a report goes.

        Raises:
            OSError: reports cannot be kept.
        """
        return self._reports.path(name)

    def begin(self, template: ExecutableTemplate, body: ExecutableBody, launch: Launch, gang: str) -> Wrap | None:
        """Return what stands around an attempt; None for nothing. ``gang``: folder of its gang, or empty.

        Raises:
            OSError: reports cannot be kept.
            ValueError: it is not known where an input lies.
        """
        lines = bool(template.pre_exec or template.post_exec)
        after = bool(template.output_staging) and not launch.condition
        if not (lines or after or template.input_staging):
            return None
        report = self._reports.path(f"{task_name(launch.task)}.{launch.epoch}.{launch.run}")
        # Here, because what writes it has the umask of the user.
        made_ours(report)
        origins = _origins(body.origins, dict(launch.inputs)) if body.origins else []
        return Wrap(report, f"{gang}/steps" if gang else report, lines, bool(template.input_staging), after, origins)

    def rank(self, wrap: Wrap, template: ExecutableTemplate, argv: Sequence[str], *, ranked: bool) -> list[str]:
        """Return the command of a rank: a program with its lines around it.

        Raises:
            OSError: its script cannot be written.
        """
        file = f"{wrap.report}.sh"
        command = shell_command(template, argv, wrap.rank_reports, file, self.shell, ranked=ranked)
        if command[1] == file:
            wrap.files.append(file)
        return command

    def task(self, wrap: Wrap, template: ExecutableTemplate, sandbox: str, argv: Sequence[str]) -> list[str]:
        """Return the command of a task: a program, or a launcher, with its staging around it."""
        before = moves(template.input_staging, sandbox, self.folders, wrap.origins)
        after = moves(template.output_staging, sandbox, self.folders) if wrap.after else []
        file = f"{wrap.report}.job"
        command = stager(wrap.report, before, after, argv, file)
        if command[len(STAGER)] == f"@{file}":
            wrap.files.append(file)
        return command

    def end(
        self, wrap: Wrap, template: ExecutableTemplate, status: int, ranks: Sequence[int] = (), failed: int = -1
    ) -> Steps:
        """Return what the reports of an attempt say, and remove them.

        ``ranks``: its ranks, when it has several; ``failed``: which of these failed first, -1 when that is not known.
        """
        single = wrap.lines and not ranks
        traps = [wrap.report + TRAPS] if single else []
        found = steps.read(
            template, steps.take(wrap.report, *wrap.files, *traps), status, staged=wrap.before, lined=single
        )
        if found.fault is not None or not ranks or not wrap.lines:
            return found
        names = [f"{wrap.rank_reports}.{rank}" for rank in ranks]
        each = [
            steps.read(template, steps.take(name, name + TRAPS), status, staged=False, lined=True) for name in names
        ]
        return msgspec.structs.replace(steps.first(each, status, failed), outputs=found.outputs, code=found.code)

    def forget(self, wrap: Wrap) -> None:
        """Remove what was prepared for an attempt that did not begin."""
        steps.take(wrap.report, *wrap.files)

    def close(self) -> None:
        """Remove the reports' folder."""
        self._reports.close()


def _origins(tasks: Sequence[int], inputs: Mapping[int, bytes]) -> list[Origin]:
    found = []
    for task in tasks:
        try:
            sandbox = _result.decode(inputs[task]).sandbox
        except (KeyError, msgspec.MsgspecError):
            sandbox = ""
        if not sandbox:
            raise ValueError(f"{task_name(task)}, whose files are to be staged, left no sandbox")
        found.append(Origin(task_name(task), sandbox))
    return found
