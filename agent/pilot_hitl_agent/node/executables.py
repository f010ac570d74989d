"""Executables on one node: from a launch to the request for a process, from its end to a result."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate
from pilot_hitl.wire.current import ATTEMPT_VARIABLE, TASK_VARIABLE, attempt_text
from pilot_hitl.wire.modes import asked_folder
from pilot_hitl.wire.node import Launch
from pilot_hitl_agent.node.attempts import Group, Line, Plan
from pilot_hitl_agent.node.endings import Endings
from pilot_hitl_agent.node.events import Ended, HandedBack, Results
from pilot_hitl_agent.node.gangs import Gangs, Job, Part, resource_variables
from pilot_hitl_agent.node.launchers import (
    Choice,
    Flavour,
    NoLauncherError,
    flavour_of,
    starts_directly,
)
from pilot_hitl_agent.node.link import Exit, Link, Returned, Unspawned
from pilot_hitl_agent.node.logs import Logs
from pilot_hitl_agent.node.presence import Watch, ranks_of_attempt
from pilot_hitl_agent.node.probing import CUT_SHORT, Probes
from pilot_hitl_agent.node.sandboxes import Sandboxes
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners, Unwatch
from pilot_hitl_agent.node.spawners import Watch as Poll
from pilot_hitl_agent.node.unanswered import Unanswered
from pilot_hitl_agent.node.wrapping import Wrap, Wrapping

_body_decoder = msgspec.msgpack.Decoder(ExecutableBody)


class Executables:
    """Runs the executables of one node."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, logs: Logs, watch: Poll, unwatch: Unwatch) -> None:
        """Start processes through ``spawners``; what is not theirs is seen to end through ``watch``."""
        self._settings = settings
        self._spawners = spawners
        self._logs = logs
        self._sandboxes = Sandboxes(settings.tasks)
        self.wrapping = Wrapping(settings)
        self.secret = f"pilot-hitl-{secrets.token_hex(8)}"
        self._endings = Endings(settings, spawners, logs, self.wrapping, self.secret)
        self._plans: dict[int, Plan] = {}
        self._cpus: dict[int, tuple[int, ...]] = {}
        self._lines: dict[int, Line] = {}
        self._by_token: dict[int, Group] = {}
        self._host = settings.inventory.name
        self._watch = Watch(watch, unwatch)
        self._gangs = Gangs(settings, self._watch)
        self._gangs_by_task: dict[int, Group] = {}
        self._probes = Probes(spawners, "launchers")
        self._waiting: dict[str, list[Group]] = {}
        self._unanswered = Unanswered()
        self.warnings: list[dict[str, Any]] = []
        """What ought to be told of tasks that are not to fail for it; whoever takes them empties it."""
        self.late: list[Results] = []
        """Ends that came together with another one; whoever takes ends takes these next."""

    def learn(self, number: int, template: ExecutableTemplate) -> None:
        """Make a template known."""
        environment = self._spawners.environment(template.environment)
        wrapped = bool(template.pre_exec or template.post_exec or template.input_staging or template.output_staging)
        sets = "OMP_NUM_THREADS" in self._spawners.variables(environment)
        self._plans[number] = Plan(template, environment, wrapped, sets)

    def knows(self, number: int) -> bool:
        """Return whether a template is an executable."""
        return number in self._plans

    def start(self, lane: int, launch: Launch, slots: tuple[Slot, ...], *, apart: bool = False) -> Results | None:
        """Ask for the processes of an attempt; returns its end when it cannot even be tried.

        ``apart``: below spawners that start nothing else.
        """
        line = self._lines.get(lane)
        if line is None:
            link = self._spawners.apart() if apart else self._spawners.lane(slots[0].cores)
            line = self._lines[lane] = Line(link, slots, self._logs.take(), deque(), {}, {})
        return self._add(lane, line, launch)

    def push(self, lane: int, launches: list[Launch]) -> None:
        """Let attempts run on a lane behind what is there, each right after the one before."""
        line = self._lines[lane]
        for launch in launches:
            # What cannot be tried is told when what runs before it has ended.
            self._add(lane, line, launch)

    def recall(self, lane: int) -> None:
        """Take back what has not begun; the spawner says what that is."""
        line = self._lines.get(lane)
        if line is not None and len(line.order) > 1:
            line.link.recall(lane)

    def returned(self, news: Returned) -> HandedBack | None:
        """Take what a spawner has not begun and never will."""
        lane, back = 0, []
        for token in news.tokens:
            group = self._by_token.pop(token, None)
            if group is None:
                continue
            lane, line = group.lane, self._lines[group.lane]
            task = group.launch.task
            group.tokens.discard(token)
            if line.order[0] == task:
                # As far as anybody knows it runs: it had to be tried again, and waited for what runs in its place.
                self._spawn(group, self._plain_command(group), task_name(task))
                continue
            self._forget(line, group)
            back.append(task)
        return HandedBack(lane, back) if back else None

    def ended(self, news: Exit | Unspawned) -> Results | None:
        """Take the end of a process; returns what that ends on its lane."""
        if news.token in self._probes:
            return self._probed(news)
        group = self._by_token.pop(news.token, None)
        if group is None:
            return None
        group.tokens.discard(news.token)
        if isinstance(news, Exit):
            self._note_exit(group, news)
        elif self._spawn_again(group, news):
            return None
        if group.tokens:
            if group.status or group.spoiled:
                # One rank failed: the others would wait for it for ever.
                for token in group.tokens:
                    group.link.kill(token, signal.SIGKILL)
            return None
        if group.part is not None:
            # What its ranks have left behind on this node goes with the launcher.
            group.part.over = True
            return self._settle(group, kill=True)
        return self._over(group)

    def knows_token(self, token: int) -> bool:
        """Return whether a process is an executable's."""
        return token in self._by_token or token in self._probes

    def lost(self, link: Link) -> list[Results | HandedBack]:
        """A spawner died and what it had started was killed: end what ran as unfinished, hand back what waited."""
        news: list[Results | HandedBack] = []
        for lane, line in [(lane, line) for lane, line in self._lines.items() if line.link is link]:
            if (part := line.groups[line.order[0]].part) is not None:
                if (told := self._lost_launcher(line.groups[line.order[0]], part)) is not None:
                    news.append(told)
                continue
            for group in line.groups.values():
                for token in group.tokens:
                    self._by_token.pop(token, None)
                group.tokens.clear()
            first = line.groups[line.order[0]]
            waiting = [task for task in line.order if task in line.groups and task != line.order[0]]
            for task in waiting:
                self._forget(line, line.groups[task])
            if waiting:
                news.append(HandedBack(lane, waiting))
            first.spoiled = Failure(Cause.SPAWNER_DIED, "the process that had started it was killed", self._host)
            del line.groups[first.launch.task]
            if (told := self._tell(lane, line, self._finish(first))) is not None:
                news.append(told)
        return news

    def runs(self, lane: int) -> bool:
        """Return whether a lane runs executables."""
        return lane in self._lines

    def send(self, lane: int, task: int, number: int) -> Results | None:
        """Signal the trees of an attempt; returns its end when there is nothing to wait for."""
        group = self._lines[lane].groups.get(task)
        if group is None:
            return None
        group.signalled = group.signalled or number in (signal.SIGTERM, signal.SIGKILL)
        if group.part is not None:
            return self._signal_gang(group, group.part, number)
        for token in group.tokens:
            group.link.kill(token, number)
        return None

    def conclude(self, lane: int, task: int) -> Results | None:
        """The leading part of a gang ended: end this one as well, unless this node started its ranks itself."""
        line = self._lines.get(lane)
        group = line.groups.get(task) if line is not None else None
        if group is None or group.part is None or group.part.leads:
            return None
        group.part.over = True
        self._gangs.signal(group.part, signal.SIGKILL)
        return self._settle(group, kill=True)

    def gone(self, fd: int) -> list[Results] | None:
        """Take word of the kernel that a process of a gang is gone; None when the descriptor is of something else."""
        task = self._watch.ended(fd)
        if task is None:
            return None
        group = self._gangs_by_task.get(task)
        if group is None or group.part is None:
            return []
        ended = self._settle(group, kill=group.part.over or group.part.ending == signal.SIGKILL)
        return [ended] if ended is not None else []

    def tokens(self) -> dict[int, int]:
        """Return the task behind each token."""
        return {token: group.launch.task for token, group in self._by_token.items()}

    def look_for_lost(self) -> bool:
        """Ask spawners for what they were asked for a while ago; return whether there is more."""
        return self._unanswered.look(self._by_token.keys(), lambda token: self._by_token[token].link)

    def trees(self, lane: int, task: int) -> list[list[int]]:
        """Return the roots of the process trees of an attempt on this node, for each rank, looked up now."""
        line = self._lines.get(lane)
        group = line.groups.get(task) if line is not None else None
        if group is None:
            return []
        if group.part is not None:
            return list(ranks_of_attempt(group.part.attempt, self._settings.mark).values())
        return [pids for token in group.tokens if (pids := self._spawners.roots(group.link, token))]

    def ranks(self) -> list[tuple[int, int]]:
        """Return ``(pid, task)`` of the ranks on this node that a launcher started, looked up now."""
        return [
            (pid, task)
            for task, group in self._gangs_by_task.items()
            if group.part is not None
            for pid in self._gangs.seen(group.part).ranks
        ]

    def close(self) -> None:
        """Remove folders that hold nothing."""
        self._watch.close()
        self._sandboxes.close()
        self.wrapping.close()

    # --- starting -----------------------------------------------------------------------------------------------------

    def _add(self, lane: int, line: Line, launch: Launch) -> Results | None:
        line.order.append(launch.task)
        try:
            self._request(lane, line, launch)
        except FailureError as error:
            return self._tell(lane, line, Ended(launch.task, b"", error.failure))
        return None

    def _request(self, lane: int, line: Line, launch: Launch) -> None:
        plan, part = self._plans[launch.template], None
        if launch.ranks > 1 and not launch.slots:
            # It was held ahead: it has the slots of its lane.
            launch = msgspec.structs.replace(launch, slots=line.slots)
        try:
            body = _body_decoder.decode(launch.body).whole()
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._refusal(Cause.PAYLOAD, f"its description cannot be read: {error}") from None
        own = bool(launch.condition) or not body.sandbox
        name = task_name(launch.task)
        sandbox = self._sandboxes.path(name, launch.epoch, launch.run) if own else body.sandbox
        try:
            part = self._part(plan, body, launch, sandbox)
            # A folder that several nodes use is made by each, or by the one that leads; nobody takes it away.
            own = own and (len(launch.layout) < 2 or (part is not None and part.leads))
            if own:
                self._sandboxes.make(sandbox)
            elif not os.path.isdir(sandbox) and (part is None or part.leads):  # once a task: a Path costs ten times
                asked_folder(Path(sandbox), Path(self._settings.session_folder), self._settings.umask)
            wrap = (
                self.wrapping.begin(plan.template, body, launch, "" if part is None else part.folder)
                if plan.wrapped
                else None
            )
            argv = self._command(plan, body, wrap, sandbox, part, ranked=launch.ranks > 1)
        except OSError as error:
            text = f"{error.filename or sandbox} cannot be made: {error.strerror}"
            raise self._refusal(Cause.SETUP, text) from None
        except ValueError as error:
            raise self._refusal(Cause.SETUP, str(error)) from None
        except FailureError:
            if own:
                self._sandboxes.leave(sandbox)
            raise
        files = (_file(plan.template.stdout, sandbox), _file(plan.template.stderr, sandbox))
        group = Group(
            lane,
            launch,
            line.slots,
            plan,
            body,
            line.link,
            sandbox,
            own,
            line.log,
            files,
            set(),
            shell=wrap is not None or plan.shell,
            part=part,
            wrap=wrap,
        )
        line.groups[launch.task] = group
        self._spawners.running.add(launch.task)
        if part is None:
            self._spawn(group, argv, name)
            return
        self._gangs_by_task[launch.task] = group
        if part.leads:
            group.argv = argv
            try:
                self._lead(group, part)
            except FailureError:
                del line.groups[launch.task]
                self._spawners.running.drop(launch.task)
                self._drop_gang(group, part)
                if own:
                    self._sandboxes.leave(sandbox)
                raise

    def _refusal(self, cause: Cause, text: str) -> FailureError:
        return FailureError(Failure(cause, text, self._host))

    def _tell(self, lane: int, line: Line, ended: Ended) -> Results | None:
        """Return what can be told of a lane now that one of its attempts ended; what ended early waits its turn."""
        if line.order[0] != ended.task:
            line.ended[ended.task] = ended
            return None
        told = [ended]
        line.order.popleft()
        while line.order and (early := line.ended.pop(line.order[0], None)) is not None:
            line.order.popleft()
            told.append(early)
        if not line.order:
            del self._lines[lane]
            self._logs.free(line.log)
            self._spawners.leave(line.link)
        return Results(lane, told)

    def _forget(self, line: Line, group: Group) -> None:
        """Drop an attempt that has not begun."""
        line.order.remove(group.launch.task)
        self._spawners.running.drop(group.launch.task)
        del line.groups[group.launch.task]
        if group.wrap is not None:
            self.wrapping.forget(group.wrap)
        if group.own:
            self._sandboxes.leave(group.sandbox)

    def _plain_command(self, group: Group) -> list[str]:
        return [self.wrapping.shell, group.plan.program, *group.body.arguments]

    def _command(
        self, plan: Plan, body: ExecutableBody, wrap: Wrap | None, sandbox: str, part: Part | None, *, ranked: bool
    ) -> list[str]:
        # Around each rank that a launcher starts goes what is each rank's; the rest goes around the launcher.
        staged = wrap is not None and wrap.staged and part is None
        if wrap is not None and (wrap.lines or staged):
            argv = [plan.template.executable, *body.arguments]
            if wrap.lines:
                argv = self.wrapping.rank(wrap, plan.template, argv, ranked=ranked)
            return self.wrapping.task(wrap, plan.template, sandbox, argv) if staged else argv
        if not plan.program:
            plan.program = self._look_up(plan)
            plan.shell = False
        if plan.shell:
            return [self.wrapping.shell, plan.program, *body.arguments]
        return [plan.program, *body.arguments]

    def _look_up(self, plan: Plan) -> str:
        name = plan.template.executable
        if "/" in name:
            return name
        path = self._spawners.variables(plan.environment).get("PATH", os.defpath)
        for folder in path.split(":"):
            candidate = f"{folder or '.'}/{name}"
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # many folders, each a call
                return os.path.abspath(candidate)
        raise FailureError(self._endings.missing(name, f"it is not in PATH={path}"))

    def _spawn(self, group: Group, argv: list[str], name: str) -> None:
        link, launch, template = group.link, group.launch, group.plan.template
        environment = self._spawners.link_environment(link, group.plan.environment)
        out_path, err_path = self._logs.paths(group.log)
        link.log(group.log, out_path, err_path)
        outputs: tuple[int | str, int | str] = (group.files[0] or group.log, group.files[1] or group.log)
        text = attempt_text(name, launch.epoch, launch.run)
        several = launch.ranks > 1 or len(group.slots) > 1
        places = self._gangs.direct_variables(launch, text) if several else []
        for rank, slot in enumerate(group.slots):
            more = {TASK_VARIABLE: name, ATTEMPT_VARIABLE: text}
            more.update(resource_variables(slot, with_threads=not group.plan.sets_threads))
            if several:
                more.update(places[rank])
                number = launch.first_rank(self._settings.node) + rank
                if number and template.stdout:
                    outputs = (f"{group.files[0]}.{number}", outputs[1])
                if number and template.stderr:
                    outputs = (outputs[0], f"{group.files[1]}.{number}")
            cpus = self._cpus.get(slot.cores)
            if cpus is None:
                cpus = self._cpus[slot.cores] = self._settings.cpus(slot.cores)
            # Ranks run side by side, so only what is a single process may wait for its lane.
            lane = group.lane if len(group.slots) == 1 else 0
            token = link.spawn(argv, environment, more, group.sandbox, cpus, outputs, launch.task, lane=lane)
            group.tokens.add(token)
            if several:
                group.ranks.append(token)
            self._by_token[token] = group

    def _spawn_again(self, group: Group, news: Unspawned) -> bool:
        """Note why a process could not be started; True when it is tried another way."""
        template = group.plan.template
        if news.what == "program" and news.number == errno.ENOEXEC and len(group.slots) == 1 and not group.shell:
            # As execvp and every shell do: a script without a first line is the shell's.
            group.shell = group.plan.shell = True
            self._spawn(group, self._plain_command(group), task_name(group.launch.task))
            return True
        if news.what == "program" and "/" not in template.executable:
            group.plan.program = ""
        group.spoiled = self._endings.unspawned(group, news)
        return False

    # --- gangs that a launcher starts ---------------------------------------------------------------------------------

    def _part(self, plan: Plan, body: ExecutableBody, launch: Launch, sandbox: str) -> Part | None:
        """Return the part of a gang that this launch is; None when this node starts its ranks itself."""
        if launch.ranks <= 1:
            return None
        template = plan.template
        flavour = Flavour()
        if template.launcher != "fork":
            variables = self._spawners.variables(plan.environment)
            try:
                program = plan.program or self._look_up(plan)
            except FailureError:
                # pre_exec may make it known; else its ranks will say that it is missing.
                program = ""
            if program:
                flavour = flavour_of(program, body.arguments, variables, sandbox)
        staged = bool(template.input_staging or template.output_staging)
        if starts_directly(template.launcher, flavour, staged=staged):
            return None
        part = self._gangs.part(launch, task_name(launch.task), flavour)
        part.began = time.time()
        return part

    def _lead(self, group: Group, part: Part) -> None:
        """Run the launcher of a gang, or first find out what there is.

        Raises:
            FailureError: it cannot be run.
        """
        plan = group.plan
        path = self._spawners.variables(plan.environment).get("PATH", os.defpath)
        found = self._probes.known(path)
        if found is None:
            self._probe(group, path)
            part.waits = True
            return
        part.waits = False
        launch, template = group.launch, plan.template
        variables = self._spawners.variables(plan.environment)
        name = task_name(launch.task)
        job = Job(name, template, group.argv, group.sandbox, self.secret, variables, not plan.sets_threads)
        try:
            choice = self._gangs.choose(part, launch, template.launcher, found)
            command = self._gangs.write(part, launch, job)
        except NoLauncherError as error:
            cause, more_words = (Cause.NO_PROGRAM, "") if found.complete else (Cause.SETUP, CUT_SHORT)
            raise self._refusal(cause, f"{template.name or template.executable}: {error}{more_words}") from None
        except OSError as error:
            raise self._refusal(Cause.SETUP, f"the gang's folder {part.folder}: {error.strerror}") from None
        argv, wrap = command.argv, group.wrap
        if wrap is not None and wrap.staged:
            argv = self.wrapping.task(wrap, template, group.sandbox, argv)
        more = {TASK_VARIABLE: name, ATTEMPT_VARIABLE: part.attempt, **command.environment}
        self._run_launcher(group, argv, more, choice)

    def _run_launcher(self, group: Group, argv: list[str], more: dict[str, str], choice: Choice) -> None:
        link = group.link
        environment = self._spawners.link_environment(link, self._spawners.without_launchers(group.plan.environment))
        link.log(group.log, *self._logs.paths(group.log))
        outputs: tuple[int | str, int | str] = (group.files[0] or group.log, group.files[1] or group.log)
        label = f"{group.launch.task} {choice.text}"
        token = link.spawn(argv, environment, more, group.sandbox, (), outputs, label)
        group.tokens.add(token)
        self._by_token[token] = group

    def _probe(self, group: Group, path: str) -> None:
        """Ask the launchers of a PATH what they are; once for each PATH, and nobody waits in the daemon for it."""
        self._waiting.setdefault(path, []).append(group)
        self._probes.ask(path, group.plan.environment)

    def _probed(self, news: Exit | Unspawned) -> Results | None:
        path = self._probes.answered(news)
        if path is None or (found := self._probes.known(path)) is None:
            return None
        self._gangs.learn(found)
        told: list[Results] = []
        for group in self._waiting.pop(path, []):
            if group.part is None or not group.part.waits:
                continue
            try:
                self._lead(group, group.part)
            except FailureError as error:
                group.spoiled = error.failure
                if (ended := self._over(group)) is not None:
                    told.append(ended)
        self._probes.forget(path)
        self.late.extend(told[1:])
        return told[0] if told else None

    def _signal_gang(self, group: Group, part: Part, number: int) -> Results | None:
        """Signal the ranks on this node. The launcher itself is left alone: most kill all ranks when told to end."""
        here = self._gangs.signal(part, number)
        if number not in (signal.SIGTERM, signal.SIGKILL):
            return None
        if part.waits:
            part.waits = False
            return self._over(group)
        if part.leads:
            if number == signal.SIGKILL or not here:
                for token in group.tokens:
                    group.link.kill(token, number)
            return None
        return self._settle(group, kill=number == signal.SIGKILL)

    def _lost_launcher(self, group: Group, part: Part) -> Results | None:
        """The spawner of a launcher died, and the launcher with it; to parts that do not lead, nothing happened."""
        if not part.leads:
            return None
        for token in group.tokens:
            self._by_token.pop(token, None)
        group.tokens.clear()
        group.spoiled = Failure(Cause.PILOT_ENDED, "the process that had started it was killed", self._host)
        part.over = True
        return self._settle(group, kill=True)

    def _settle(self, group: Group, *, kill: bool) -> Results | None:
        """Return the end of a part once nothing of it is left on this node."""
        part = group.part
        if part is None or group.tokens or not self._gangs.gone(part, group.launch.task, kill=kill):
            return None
        return self._over(group)

    def _over(self, group: Group) -> Results | None:
        line = self._lines[group.lane]
        del line.groups[group.launch.task]
        return self._tell(group.lane, line, self._finish(group))

    def _drop_gang(self, group: Group, part: Part) -> None:
        self._gangs_by_task.pop(group.launch.task, None)
        if warning := self._gangs.close(part):
            self.warnings.append({"task": group.launch.task, "message": warning})

    # --- ending -------------------------------------------------------------------------------------------------------

    def _note_exit(self, group: Group, news: Exit) -> None:
        group.began = min(group.began, news.began) if group.began else news.began
        group.ended = max(group.ended, news.ended)
        # Ranks that run side by side on this node write to one pipe: the last to end tells of them all.
        group.out, group.err = news.out or group.out, news.err or group.err
        if news.status and not group.status:
            group.status = news.status
            group.failed = group.ranks.index(news.token) if news.token in group.ranks else -1

    def _finish(self, group: Group) -> Ended:
        self._spawners.running.drop(group.launch.task)
        # What lies in the folder stays, so all that is read for the result is there still.
        left = not group.own or self._sandboxes.leave(group.sandbox)
        ended = self._endings.of(group, left=left)
        if group.part is not None:
            self._drop_gang(group, group.part)
        return ended


class FailureError(Exception):
    """Carries a failure out of a computation."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _file(name: str, sandbox: str) -> str:
    return str(Path(sandbox) / name) if name else ""
