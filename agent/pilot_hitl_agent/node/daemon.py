"""The node daemon: the node core and the processes behind it, to be embedded in a loop that polls one descriptor.

::

    daemon = NodeDaemon(settings, spawner_socket)
    poller.register(daemon.fileno(), POLLIN)
    ...
    daemon.handle(messages)              # from the agent
    daemon.on_readable()                 # when its descriptor is readable
    daemon.on_timer()                    # when next_deadline() has passed
    send(daemon.drain())                 # once a turn of the loop: to the agent; also sends to all processes
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.templates import FunctionTemplate, Template
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    Changes,
    FromNode,
    Launch,
    Launches,
    NodeLog,
    NodeStop,
    NodeTemplate,
    ToNode,
)
from pilot_hitl_agent.node.acted import Acted
from pilot_hitl_agent.node.calls import Calls
from pilot_hitl_agent.node.core import Event, NodeCore
from pilot_hitl_agent.node.events import (
    EXECUTABLE,
    Conclude,
    Instruction,
    Late,
    Push,
    Recall,
    Release,
    Settle,
    Signal,
    Start,
    Tell,
    TemplateFacts,
    Tick,
)
from pilot_hitl_agent.node.executables import Executables
from pilot_hitl_agent.node.limits import Limits
from pilot_hitl_agent.node.link import Closed, Exit, Greeting, Link, News, Returned, Unspawned
from pilot_hitl_agent.node.logs import Logs
from pilot_hitl_agent.node.presence import ranks_of_node, send
from pilot_hitl_agent.node.proctree import descendants, kill_marked, state_of, variable_of
from pilot_hitl_agent.node.publishing import Publishing
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawner import LINK_VARIABLE, TOKEN_VARIABLE
from pilot_hitl_agent.node.spawners import Spawners

_template_decoder: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)
DOUBT = 1.0
"""Seconds that an end by SIGTERM is not believed on a batch system unless this side sent it: so it ends its jobs,
all processes at once, and who hears of it last must not take what it did to the others for their own doing."""
TERMINATED = frozenset({-int(signal.SIGTERM), 128 + int(signal.SIGTERM)})
ROUND = 5.0
"""Seconds between two looks for what was sent and never arrived, while anything was sent since."""
LEFT_OVER = 10.0
"""Seconds for which :meth:`NodeDaemon.settle` waits: what is in uninterruptible sleep may never end."""
CLOSING = 2.0
"""Seconds beyond the grace that :meth:`NodeDaemon.close` waits for killed processes."""


class NodeDaemon:
    """Runs attempts on one node. Not thread-safe; never blocks, but in :meth:`close`."""

    def __init__(self, settings: NodeSettings, root: socket.socket) -> None:
        """Take over the link to the root spawner (see :func:`inherited_link`)."""
        self.settings = settings
        self.broken = ""
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}
        self._core = NodeCore(settings.inventory.name)
        self._logs = Logs(settings.logs)
        base = settings.base_environment()
        self._spawners = Spawners(root, settings, base, self._watch, self._unwatch)
        self.ran = self._spawners.running.before
        self.acted = Acted(Path(settings.pilot_folder) / "acted")
        self._outside: set[int] = set()
        self._executables = Executables(settings, self._spawners, self._logs, self._watch, self._unwatch)
        self._calls = Calls(settings, self._spawners, self._logs, self._watch, self._unwatch)
        self._limits = Limits(settings.inventory.name, self._executables, self._calls)
        self._publishing = Publishing(settings, self._spawners, self._executables)
        self._changes: list[Change] = []
        self._events: list[str] = []
        self._bad_templates: dict[int, str] = {}
        self._doubtful: deque[tuple[float, Exit]] = deque()
        self._closed = False
        self._round_due: float | None = None
        self._left_over: set[int] = set()
        calls = self._calls
        # Looked up by type: a chain of isinstance checks would cost more than most of what they choose between.
        self._actions: dict[type, Callable[[Any], Event | None]] = {
            Tell: self._tell,
            Start: self._start,
            Release: lambda it: calls.release(it.lane),
            Push: self._push,
            Recall: self._recall,
            Signal: self._signal,
            Conclude: lambda it: self._executables.conclude(it.lane, it.task),
            Late: self._late,
            Settle: lambda it: calls.settle(it.condition, truth=it.truth),
        }

    # --- the loop's face ----------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the one descriptor to poll for reading; it stands for all sockets of this node."""
        return self._epoll.fileno()

    def handle(self, messages: Iterable[ToNode]) -> None:
        """Take messages of the agent, in order."""
        for message in messages:
            if isinstance(message, NodeTemplate):
                self._learn(message)
            elif self._bad_templates and isinstance(message, Launches):
                self._step(Launches(self._without_bad(message.launches)))
            else:
                self._step(message)

    def on_readable(self) -> None:
        """Take what processes reported."""
        for fd, _event in self._epoll.poll(0):
            if (calls := self._calls.receive(fd)) is not None:
                for outcome in calls:
                    self._step(outcome)
            elif (found := self._spawners.receive(fd)) is not None:
                self._take_news(*found)
            elif (ended := self._executables.gone(fd)) is not None:
                for each in ended:
                    self._step(each)

    def next_deadline(self) -> float | None:
        """Return the ``time.monotonic()`` at which :meth:`on_timer` is due; None for never."""
        moments = [self._core.next_deadline(), self._calls.groups.next_deadline(), self._limits.due, self._round_due]
        if self._doubtful:
            moments.append(self._doubtful[0][0])
        return min((moment for moment in moments if moment is not None), default=None)

    def on_timer(self, now: float | None = None) -> None:
        """Do what is due."""
        self._believe(time.monotonic() if now is None else now)
        self._step(Tick(), now)
        if self._round_due is not None and self._round_due <= time.monotonic():
            self._spawners.kernel.refresh()
            self._round_due = time.monotonic() + ROUND if self._look_for_lost() else None
        if self._limits.due is not None and self._limits.due <= time.monotonic():
            for exceeded in self._limits.look(self._core):
                self._step(exceeded)
        self._calls.groups.on_timer()

    def _look_for_lost(self) -> bool:
        """Look for what was sent and never arrived; return whether there is more to look for."""
        found, more = self._calls.look_for_lost()
        for outcome in found:
            self._step(outcome)
        return self._executables.look_for_lost() or more

    def drain(self) -> list[FromNode]:
        """Send what gathered to all processes, and return what gathered for the agent."""
        while outcomes := self._calls.outcomes():
            for outcome in outcomes:
                self._step(outcome)
        self._calls.flush()
        if self._calls.apart.unwanted:
            self._publishing.unwanted(self._calls.apart.unwanted)
            self._calls.apart.unwanted = []
        self._publishing.flush()
        while failed := self._spawners.flush():
            for link, news in failed:
                self._take_news(link, news)
            self._calls.flush()
            self._publishing.flush()
        for warning in self._executables.warnings:
            self._event("mpi_mismatch", **warning)
        self._executables.warnings.clear()
        out: list[FromNode] = [*self._publishing.told()]
        if self._changes:
            out.append(Changes(self.settings.node, self._changes))
            self._changes = []
        if self._events:
            out.append(NodeLog(self.settings.node, self._events))
            self._events = []
        return out

    @property
    def busy(self) -> bool:
        """Whether any attempt is on this node, or something is being published."""
        return bool(self._core.attempts) or self._publishing.busy

    # --- for the agent ------------------------------------------------------------------------------------------------

    def publish(self, attempt: tuple[int, int, int], own: str, template: Template, asked: str) -> None:
        """Put in place what a committed speculative attempt ``(task, epoch, run)`` left in its own folder.

        That is: what is in ``own`` appears in the folder that was asked for (``asked``; empty for a call means the
        script's folder), and outputs are staged. To be called for what was reported as ``unpublished``, once its
        condition is true. A ``NodePublished`` tells the end.

        Raises:
            ValueError: a staging directive cannot be meant.
        """
        self._publishing.start(attempt, own, template, asked)

    def processes(self) -> list[dict[str, Any]]:
        """Return what runs on this node, looked up now: ``{"kind": spawner|worker|task, "pid", "task"}`` (0: none)."""
        found = self._spawners.processes()
        tasks, workers = self._executables.tokens(), self._calls.processes()
        known: set[int] = set()
        for link, spawner_pid in self._spawners.pids():
            for pid in descendants(spawner_pid):
                prefix, _, number = (variable_of(pid, TOKEN_VARIABLE) or "").partition(":")
                if prefix != link.prefix or not number.isdigit() or int(number) not in tasks or pid in known:
                    continue
                known.add(pid)
                found.append({"kind": "task", "pid": pid, "task": tasks[int(number)]})
        ranks = [(pid, task) for pid, task in self._executables.ranks() if pid not in known]
        found.extend({"kind": "task", "pid": pid, "task": task} for pid, task in ranks)
        found.extend({"kind": "worker", "pid": pid, "task": task} for pid, task in workers if pid)
        return found

    def pin(self, *, pinned: bool) -> None:
        """Bind tasks to cores, or do not; to be called before the first one is launched."""
        if not pinned:
            self.settings.inventory = msgspec.structs.replace(self.settings.inventory, pinned=False)

    def settle(self) -> None:
        """Wait until nothing runs here that an agent before this one had started: none of it may run twice at a time.

        To be called once, before anything is launched; takes :data:`LEFT_OVER` seconds at most.
        """
        root, limit = self._spawners.root, time.monotonic() + LEFT_OVER
        while (self._left_over or not root.pid) and not self.broken and (left := limit - time.monotonic()) > 0:
            select.select([self.fileno()], [], [], left)
            self.on_readable()
            self._spawners.flush()
        if self._left_over:
            self._event("left_over", processes=len(self._left_over))
            self._left_over.clear()

    def clear(self, grace: float, reason: str) -> bool:
        """End everything, as :meth:`close` does, but go on: what comes next is another agent's.

        What ended is told to nobody.

        Returns:
            Whether everything has ended; if not, only a new daemon can go on here.
        """
        self._end_all(grace, reason)
        self._calls.forget_conditions()
        self._changes.clear()
        self._events.clear()
        if self.busy or self.broken:
            return False
        self._core = NodeCore(self.settings.inventory.name)
        return True

    def close(self, grace: float = 0.0) -> list[FromNode]:
        """End everything, wait until it is gone (``grace`` seconds and a little), and return the last changes.

        Afterwards the agent exits with 0, at which the root spawner kills whatever should be left.
        """
        if self._closed:
            return []
        last = self._end_all(grace, "the pilot ended")
        self._closed = True
        self._calls.close()
        self._executables.close()
        self._logs.close()
        self._spawners.running.close()
        self.acted.close()
        self._spawners.close()
        self._epoll.close()
        return last

    def _end_all(self, grace: float, reason: str) -> list[FromNode]:
        """End everything and wait until it is gone, ``grace`` seconds and a little; return what was said meanwhile."""
        self._step(NodeStop(grace, reason))
        self._believe(float("inf"))
        self._calls.groups.end_idle()
        last = self.drain()
        limit = time.monotonic() + grace + CLOSING
        while (self.busy or self._calls.groups.busy) and not self.broken and (left := limit - time.monotonic()) > 0:
            due = self.next_deadline()
            wait = left if due is None else max(0.0, min(left, due - time.monotonic()))
            select.select([self.fileno()], [], [], wait)
            self.on_readable()
            self.on_timer()
            last.extend(self.drain())
        return last

    # --- inside -------------------------------------------------------------------------------------------------------

    def _learn(self, message: NodeTemplate) -> None:
        number = message.template
        try:
            template = _template_decoder.decode(message.blob)
        except (msgspec.MsgspecError, ValueError) as error:
            self._bad_templates[number] = str(error)
            self._event("bad_template", template=number, message=str(error))
            return
        self._bad_templates.pop(number, None)
        group = EXECUTABLE
        if isinstance(template, FunctionTemplate):
            group = self._calls.learn(number, template)
        else:
            self._executables.learn(number, template)
        # What acts outside is told apart from everything else: it must be known whether it has begun.
        ahead = template.on_preempt != "suspend" and template.effects != "outside"
        if template.effects == "outside" and not self.settings.shared:
            self._outside.add(number)
        self._step(TemplateFacts(number, group, template.timeout, template.grace, ahead))

    def _without_bad(self, launches: Sequence[Launch]) -> list[Launch]:
        good = []
        for launch in launches:
            why = self._bad_templates.get(launch.template)
            if why is None:
                good.append(launch)
                continue
            failure = Failure(Cause.PAYLOAD, f"its template cannot be read: {why}", self.settings.inventory.name)
            self._changes.append(Change(launch.task, launch.epoch, launch.run, ChangeKind.FINISHED, 0, b"", failure))
        return good

    def _step(self, event: Event, now: float | None = None) -> None:
        moment = time.monotonic() if now is None else now
        more: deque[Event] = deque()
        instructions = self._core.step(event, moment)
        while True:
            for instruction in instructions:
                follow = self._do(instruction)
                if follow is not None:
                    more.append(follow)
            if not more:
                return
            instructions = self._core.step(more.popleft(), moment)

    def _do(self, instruction: Instruction) -> Event | None:
        return self._actions[type(instruction)](instruction)

    def _tell(self, instruction: Tell) -> None:
        self._changes.append(instruction.change)

    def _start(self, instruction: Start) -> Event | None:
        runner = self._executables if self._executables.knows(instruction.launch.template) else self._calls
        if self._round_due is None:
            self._round_due = time.monotonic() + ROUND
        apart = instruction.launch.task in self._core.apart
        if instruction.launch.template in self._outside:
            launch = instruction.launch
            self.acted.begin((launch.task, launch.epoch, launch.run))
        ended = runner.start(instruction.lane, instruction.launch, instruction.slots, apart=apart)
        if (megabytes := instruction.slots[0].memory) > 0 and ended is None:
            self._limits.begin(instruction.lane, megabytes, instruction.launch.task)
        return ended

    def _push(self, instruction: Push) -> None:
        runner = self._executables if self._executables.knows(instruction.launches[0].template) else self._calls
        runner.push(instruction.lane, instruction.launches)

    def _recall(self, instruction: Recall) -> Event | None:
        self._executables.recall(instruction.lane)
        return self._calls.recall(instruction.lane)

    def _signal(self, instruction: Signal) -> Event | None:
        number = int(instruction.send)
        if self._executables.runs(instruction.lane):
            return self._executables.send(instruction.lane, instruction.task, number)
        self._calls.send(instruction.lane, instruction.task, number)
        return None

    def _late(self, instruction: Late) -> None:
        """Name the processes that outlive their SIGKILL: uninterruptible sleep is the usual cause."""
        pids = [each["pid"] for each in self.processes() if each["task"] == instruction.task]
        states = {pid: state_of(pid) for pid in pids}
        self._event("end_missed_bound", task=instruction.task, cause=instruction.reason.cause.name, processes=states)

    def _take_news(self, link: Link, news: list[News]) -> None:
        for item in news:
            if self._left_over and isinstance(item, Exit | Unspawned):
                self._left_over.discard(item.token)
            if isinstance(item, Exit) and not link.was_killed(item.token) and self._in_doubt(item):
                self._doubtful.append((time.monotonic() + DOUBT, item))
            elif isinstance(item, Exit | Unspawned):
                self._take_end(item)
            elif isinstance(item, Returned):
                if (back := self._executables.returned(item)) is not None:
                    self._step(back)
            elif isinstance(item, Greeting):
                if link is self._spawners.root and item.running:
                    self._end_left_over(item)
            elif isinstance(item, Closed) and link is self._spawners.root:
                self._break()

    def _in_doubt(self, news: Exit) -> bool:
        return self.settings.shared and news.status in TERMINATED

    def _believe(self, now: float) -> None:
        """Take the bad ends that are old enough to be the processes' own."""
        while self._doubtful and self._doubtful[0][0] <= now:
            self._take_end(self._doubtful.popleft()[1])

    def _take_end(self, news: Exit | Unspawned) -> None:
        if self._executables.knows_token(news.token):
            if (outcome := self._executables.ended(news)) is not None:
                self._step(outcome)
            while self._executables.late:
                self._step(self._executables.late.pop(0))
            return
        if (outcomes := self._calls.ended(news)) is not None:
            for each in outcomes:
                self._step(each)
        elif (helper := self._spawners.helper_ended(news)) is not None:
            self._helper_lost(helper)
        else:
            self._publishing.ended(news)

    def _helper_lost(self, link: Link) -> None:
        if not (self._spawners.was_left(link) or self._spawners.was_retired(link)):
            self._event("spawner_died", pid=link.pid)
        for inner in self._spawners.below(link):
            self._helper_lost(inner)
        for each in self._executables.lost(link):
            self._step(each)
        for outcome in self._calls.lost(link):
            self._step(outcome)

    def _end_left_over(self, greeting: Greeting) -> None:
        """An agent before this one died: what it had started is nobody's any more, and runs again if it must."""
        for token, _label, _pid, _began in greeting.running:
            self._spawners.root.kill(token, signal.SIGKILL)
            self._left_over.add(token)
        # Ranks that a launcher started hang on no spawner.
        send(ranks_of_node(self.settings.mark), signal.SIGKILL)
        self._event("agent_restarted", restarts=greeting.restarts, killed=len(greeting.running))

    def _break(self) -> None:
        """The root spawner died: nothing can be started or waited for here any more."""
        self.broken = "the root spawner died"
        self._spawners.running.freeze()
        kill_marked(self.settings.mark)
        self._step(NodeStop(0.0, self.broken))
        for link in self._spawners.all_links():
            self._helper_lost(link)

    def _event(self, event: str, **facts: Any) -> None:
        self._events.append(json.dumps({"event": event, "node": self.settings.node, "time": time.time(), **facts}))

    def _watch(self, fd: int, writing: bool) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if writing else 0)
        known = self._watched.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known != events:
            self._epoll.modify(fd, events)
        self._watched[fd] = events

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)


def inherited_link() -> socket.socket:
    """Return the agent's end of the link to the spawner that started it.

    Raises:
        KeyError: this process was not started by a spawner.
    """
    fd = int(os.environ.pop(LINK_VARIABLE))
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


__all__ = ["NodeDaemon", "NodeSettings", "inherited_link"]
