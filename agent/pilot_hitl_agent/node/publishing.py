"""What committed speculative attempts left, put in place: after the decision, in processes of their own.

Calls leave files in a folder of their own, which are put where a needed call would have written them; programs also
have outputs to stage. Many calls are one process; of what goes to the same place, the later comes later.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.templates import ExecutableTemplate, Template
from pilot_hitl.wire.modes import made_ours
from pilot_hitl.wire.node import NodePublished
from pilot_hitl_agent.node import merge
from pilot_hitl_agent.node.executables import Executables
from pilot_hitl_agent.node.link import Exit, Unspawned
from pilot_hitl_agent.node.logs import read_file
from pilot_hitl_agent.node.scripts import publication, stager
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners
from pilot_hitl_agent.node.steps import read, take

if TYPE_CHECKING:
    from pilot_hitl_agent.node.stage import Move

Attempt = tuple[int, int, int]
AT_ONCE = 8
"""Publications of programs that run side by side."""
COMMAND = (sys.executable, "-I", "-S", merge.__file__)


class _Work(msgspec.Struct):
    """One publication.

    Attributes:
        own: the attempt's folder; ``to`` where its content is to be, empty for nowhere.
        template: of an executable; None for a call.
        steps: what the stager does for it.
    """

    attempt: Attempt
    own: str
    to: str
    template: ExecutableTemplate | None = None
    steps: list[Move] = []

    @property
    def places(self) -> set[str]:
        """What another publication must not write meanwhile."""
        return {self.to, *(step[4] for step in self.steps)} - {""}


class _Running(msgspec.Struct):
    """A process that publishes; ``files`` are removed after it: what it said, and what it was told."""

    works: list[_Work]
    out: str
    err: str
    told: str = ""
    report: str = ""


class Publishing:
    """Publishes what attempts left, and removes what nobody wants."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, executables: Executables) -> None:
        """Start processes through the root spawner."""
        self._settings = settings
        self._spawners = spawners
        self._executables = executables
        self._waiting: list[_Work] = []
        self._running: dict[int, _Running] = {}
        self._unwanted: list[str] = []
        self._removing: dict[int, str] = {}
        self._told: list[NodePublished] = []
        self._numbers = 0

    @property
    def busy(self) -> bool:
        """Whether something is being published."""
        return bool(self._running or self._waiting)

    def start(self, attempt: Attempt, own: str, template: Template, asked: str) -> None:
        """Publish what an attempt left in the folder ``own``, in ``asked`` or, empty, where it would have been."""
        under_way = [*self._waiting, *(work for running in self._running.values() for work in running.works)]
        if any(work.attempt == attempt for work in under_way):
            # The hub asks again after a lost connection.
            return
        if not isinstance(template, ExecutableTemplate):
            self._waiting.append(_Work(attempt, own, asked or self._settings.work))
            return
        steps = publication(template, own, asked, self._executables.wrapping.folders)
        if steps:
            self._waiting.append(_Work(attempt, own, asked, template, steps))
        else:
            self._told.append(self._answer(attempt))

    def unwanted(self, folders: Sequence[str]) -> None:
        """Remove folders, in time."""
        self._unwanted.extend(folders)

    def flush(self) -> None:
        """Start what can be started."""
        if self._waiting:
            self._start_waiting()
        if self._unwanted:
            folders, self._unwanted = self._unwanted, []
            # Without it they stay, in the session's folder.
            with contextlib.suppress(OSError):
                token, running = self._spawn_job("--remove", folders)
                self._removing[token] = running.told

    def told(self) -> list[NodePublished]:
        """Return what ended since this was called last."""
        told, self._told = self._told, []
        return told

    def ended(self, news: Exit | Unspawned) -> bool:
        """Take the end of a process; False when it is not one of these."""
        removed = self._removing.pop(news.token, None)
        if removed is not None:
            _remove(removed)
            return True
        running = self._running.pop(news.token, None)
        if running is None:
            return False
        status = news.status if isinstance(news, Exit) else -1
        said = read_file(running.err)[0].decode(errors="replace").strip()
        why = "" if not status else said or "it could not be started or was killed"
        for work, reason in zip(running.works, self._reasons(running, why), strict=True):
            if work.template is None:
                self._told.append(self._answer(work.attempt, reason))
                continue
            lines = take(running.report, f"{running.report}.job")
            told = read(work.template, lines, status, staged=False, lined=False)
            fault = told.fault.message if status and told.fault else reason
            self._told.append(self._answer(work.attempt, fault, told.outputs, work.to))
        for path in (running.out, running.err, running.told):
            _remove(path)
        return True

    def _reasons(self, running: _Running, why: str) -> list[str]:
        """Return why each of the works of a process was not done, empty for what was; ``why`` it failed itself."""
        if not why and running.told:
            try:
                return msgspec.json.decode(read_file(running.out)[0], type=list[str])
            except msgspec.MsgspecError as error:
                return [f"what was said of it cannot be read: {error}"] * len(running.works)
        return [why] * len(running.works)

    def _answer(self, attempt: Attempt, why: str = "", outputs: Sequence[str] = (), sandbox: str = "") -> NodePublished:
        return NodePublished(self._settings.node, attempt[0], not why, why, tuple(outputs), sandbox)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Start what waits for nothing, in order: for each place there is one at a time."""
        busy = {place for running in self._running.values() for work in running.works for place in work.places}
        batch: list[_Work] = []
        later: list[_Work] = []
        places: set[str] = set()
        for work in self._waiting:
            own = work.places
            # Calls of one process come one after the other, so they may well have the same place.
            taken = own & busy or (own & places if work.template else False)
            if taken or (work.template and len(self._running) >= AT_ONCE):
                busy |= own
                later.append(work)
            elif work.template:
                busy |= own
                self._run(work, work.template)
            else:
                places |= own
                batch.append(work)
        self._waiting = later
        if batch:
            self._run_batch(batch)

    def _run(self, work: _Work, template: ExecutableTemplate) -> None:
        root = self._spawners.root
        errors = self._path("err", work.attempt)
        try:
            report = self._executables.wrapping.report(f"publish.{'.'.join(map(str, work.attempt))}")
            command = stager(report, [], work.steps, file=f"{report}.job")
        except OSError as error:
            self._told.append(self._answer(work.attempt, f"{error.filename}: {error.strerror}"))
            return
        number = self._spawners.link_environment(root, self._spawners.environment(template.environment))
        token = root.spawn(command, number, {}, "/", (), ("/dev/null", errors), "publish")
        self._running[token] = _Running([work], "", errors, report=report)

    def _run_batch(self, works: list[_Work]) -> None:
        try:
            token, running = self._spawn_job("--jobs", [(work.own, work.to) for work in works])
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            self._told.extend(self._answer(work.attempt, why) for work in works)
            return
        running.works = works
        self._running[token] = running

    def _spawn_job(self, what: str, job: object) -> tuple[int, _Running]:
        """Start the program with a job.

        Raises:
            OSError: the job cannot be written.
        """
        self._numbers += 1
        told, out, err = (self._path(suffix, (self._numbers,)) for suffix in ("json", "out", "err"))
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        Path(told).write_text(json.dumps(job), encoding="utf-8")
        made_ours(out, err)
        root = self._spawners.root
        number = self._spawners.link_environment(root, 0)
        token = root.spawn([*COMMAND, what, told], number, {}, "/", (), (out, err), "publish")
        return token, _Running([], out, err, told)

    def _path(self, suffix: str, numbers: Sequence[int]) -> str:
        return f"{self._settings.logs}/publish.{'.'.join(map(str, numbers))}.{suffix}"


def _remove(path: str) -> None:
    # A log file too many is no reason to fail what was published.
    with contextlib.suppress(OSError):
        if path:
            Path(path).unlink(missing_ok=True)
