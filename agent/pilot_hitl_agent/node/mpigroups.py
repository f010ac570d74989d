"""Warm MPI groups on one node: launchers, ranks that connect, calls and what came of them.

The decisions are :class:`~.groupcore.GroupCore`'s; this is the shell around it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import time
from collections import deque

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.outputs import Output
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.templates import FunctionTemplate
from pilot_hitl.wire.node import Launch, Share
from pilot_hitl.wire.outputs import bare, outputs_of, with_output
from pilot_hitl_agent.node import frames, packets, presence
from pilot_hitl_agent.node import groupcore as gc
from pilot_hitl_agent.node.endings import signal_name
from pilot_hitl_agent.node.events import Died, Ended, Results
from pilot_hitl_agent.node.frames import Call, Code, Done
from pilot_hitl_agent.node.grouplaunch import Launcher, Start, StartError, first_to_fail, why_unstarted
from pilot_hitl_agent.node.link import Exit, Link, Unspawned, end_of
from pilot_hitl_agent.node.logs import TAIL, Logs, tail_of
from pilot_hitl_agent.node.proctree import descendants
from pilot_hitl_agent.node.rank_output import last_output
from pilot_hitl_agent.node.rankframes import Anew, FromRank, Hello, ToRank, Unable, Up, Welcome, door, shared_memory
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners, Unwatch, Watch

BACKLOG = 1024
LEAST_IDLE = 8
"""So many idle ranks are kept also where there are few cores."""
DETAIL_LIMIT = 20_000
_CREDENTIALS = struct.Struct("3i")
_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_from_rank = msgspec.msgpack.Decoder(list[FromRank])
_NOTICED = re.compile(r"rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)")
"""Open MPI's word on who died."""
_TASK = re.compile(r"^srun: error: (\S+): tasks? (\d+(?:-\d+)?)[\d,-]*: (.+)", re.MULTILINE)
"""Slurm's."""


class Member(msgspec.Struct):
    """One rank on this node.

    Attributes:
        pidfd: tells its end.
        log: number of the log that its calls write to.
        linked: its socket is still open.
    """

    rank: int
    link: socket.socket
    page: mmap.mmap
    pid: int
    pidfd: int
    log: int
    linked: bool = True


class Job(msgspec.Struct, frozen=True):
    """A call of a lane, with what its group would be started for."""

    launch: Launch
    template: FunctionTemplate
    environment: int
    layout: tuple[Share, ...]
    folder: str = ""


class Party(msgspec.Struct):
    """What the shell keeps of a group.

    Attributes:
        ranks: of the whole group.
        known: templates whose code was sent.
        said: how ranks here ended the present call.
        trouble: why it cannot be used, by rank; -1 for the launcher.
        gone: process numbers of ranks that ended.
        last: what their last calls wrote, and the end of their standard error.
        ends: their descriptors, to look at before a call is sent.
        job: the call that it was started for; None for groups of another node.
        token: of the launcher's process, 0 for none.
    """

    name: str
    ranks: int
    members: dict[int, Member]
    known: set[int]
    said: dict[int, Done]
    trouble: dict[int, Failure]
    gone: dict[int, int]
    ends: select.poll
    job: Job | None = None
    token: int = 0
    link: Link | None = None
    log: int = -1
    err_from: int = 0
    end: Exit | Unspawned | None = None
    start: Start | None = None
    last: dict[int, tuple[list[Output], bytes]] = {}


class MpiGroups:
    """Runs the calls of several ranks on one node. What came of them is in :meth:`outcomes`."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, logs: Logs, watch: Watch, unwatch: Unwatch) -> None:
        """Wait for ranks at this node's door."""
        self._settings = settings
        self._spawners = spawners
        self._logs = logs
        self._watch = watch
        self._unwatch = unwatch
        self._host = settings.inventory.name
        self._launcher = Launcher(settings, spawners, watch, unwatch)
        self._unasked: dict[str, int] = {}
        self.core = gc.GroupCore(max(LEAST_IDLE, len(settings.inventory.cores)))
        self._events: deque[gc.Event] = deque()
        self._stepping = False
        self._out: list[Results | Died] = []
        self._jobs: dict[int, Job] = {}
        self._parties: dict[str, Party] = {}
        self._launchers: dict[int, Party] = {}
        self._strangers: dict[int, socket.socket] = {}
        self._by_link: dict[int, tuple[Party, Member]] = {}
        self._by_pidfd: dict[int, tuple[Party, Member]] = {}
        self._buffer = mmap.mmap(-1, frames.ROOM)
        self._closed_door = ""
        self._door = self._open()

    # --- for the calls ------------------------------------------------------------------------------------------------

    def start(
        self,
        lane: int,
        launch: Launch,
        slots: tuple[Slot, ...],
        template: FunctionTemplate,
        env: int,
        folder: str = "",
    ) -> None:
        """Run a call of several ranks on a lane; ``env`` is the number of its environment, ``folder`` as in Call."""
        settings = self._settings
        own = Share(settings.node, self._host, settings.address, slots, tuple(settings.cpus(s.cores) for s in slots))
        job = self._jobs[lane] = Job(launch, template, env, launch.layout or (own,), folder)
        alone = len(job.layout) == 1
        leads = job.layout[0].node == settings.node
        token = f"{time.time_ns():016x}.{settings.node}.{secrets.token_hex(4)}"
        key = _key(job)
        self._step(gc.Want(lane, launch.task, key, len(slots), leads, alone, launch.condition, token))

    def serves(self, lane: int) -> bool:
        """Return whether a lane is one of these."""
        return lane in self.core.lanes

    def send(self, lane: int, number: int) -> None:
        """Signal the ranks of a lane's call."""
        self._step(gc.Asked(lane, number))

    def release(self, lane: int) -> None:
        """The lane is over."""
        self._jobs.pop(lane, None)
        self._step(gc.Released(lane))

    def settle(self, condition: int, *, truth: bool) -> None:
        """A condition was decided: what ran under it is adopted or ended."""
        self._step(gc.Settled(condition, truth))

    def end_idle(self) -> None:
        """End all groups that serve no call."""
        self._step(gc.EndIdle())

    @property
    def busy(self) -> bool:
        """Whether there is any group, or a call that waits for one."""
        return bool(self._parties) or any(work.task for work in self.core.lanes.values())

    def outcomes(self) -> list[Results | Died]:
        """Return what came of calls since the last time."""
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """Return when :meth:`on_timer` is due (``time.monotonic()``)."""
        return self.core.next_deadline()

    def on_timer(self) -> None:
        """Do what is due."""
        due = self.core.next_deadline()
        if due is not None and due <= time.monotonic():
            self._step(gc.Passed())

    def receive(self, fd: int) -> bool:
        """Take what a descriptor has; False when it is none of these."""
        if (found := self._by_link.get(fd)) is not None:
            self._read(*found)
        elif (found := self._by_pidfd.get(fd)) is not None:
            self._bury(*found)
        elif fd in self._strangers:
            self._greet(fd)
        elif self._door is not None and fd == self._door.fileno():
            self._accept(self._door)
        else:
            return False
        return True

    def ended(self, news: Exit | Unspawned) -> bool:
        """Take the end of a launcher; False when it is none."""
        if self._launcher.answered(news):
            known = [(token, each) for token, each in self._unasked.items() if self._launcher.knows(each)]
            for token, _ in known:
                del self._unasked[token]
                self._launch(token)
            for _, environment in known:
                self._launcher.served(environment)
            return True
        party = self._launchers.pop(news.token, None)
        if party is None:
            return False
        self._launcher_ended(party, news)
        return True

    def lost(self, link: Link) -> None:
        """A spawner died, and the launchers that it had started were killed."""
        for token, party in list(self._launchers.items()):
            if party.link is link:
                del self._launchers[token]
                self._launcher_ended(party, None)

    def processes(self) -> list[tuple[int, int]]:
        """Return ``(pid, task that it runs or 0)`` of each rank."""
        return [
            (member.pid, frames.RUNNING.unpack_from(member.page, frames.RUNNING_AT)[0])
            for party in self._parties.values()
            for member in party.members.values()
        ]

    def close(self) -> None:
        """Close everything; ranks end at that."""
        for party in list(self._parties.values()):
            for member in list(party.members.values()):
                self._forget(party, member)
        for fd in list(self._strangers):
            self._dismiss(fd)
        for token in self._parties:
            shutil.rmtree(shared_memory(self._settings.mark, token), ignore_errors=True)
        if self._door is not None:
            self._unwatch(self._door.fileno())
            self._door.close()
            self._door = None

    # --- the core -----------------------------------------------------------------------------------------------------

    def _step(self, event: gc.Event) -> None:
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                for instruction in self.core.step(self._events.popleft(), time.monotonic()):
                    self._do(instruction)
        finally:
            self._stepping = False

    def _do(self, order: gc.Instruction) -> None:
        if isinstance(order, gc.Give):
            self._give(order)
        elif isinstance(order, gc.Told):
            self._tell(order)
        elif isinstance(order, gc.Bring):
            self._bring(order)
        elif isinstance(order, gc.Hit):
            self._hit(self._parties[order.token], order.number)
        elif isinstance(order, gc.EndLauncher):
            self._end_launcher(self._parties[order.token])
        else:
            self._drop(order.token)

    def _bring(self, order: gc.Bring) -> None:
        job = self._jobs[order.lane]
        self._parties[order.token] = Party(order.token, job.launch.ranks, {}, set(), {}, {}, {}, select.poll(), job)
        if self._launcher.knows(job.environment):
            self._launch(order.token)
        else:
            self._unasked[order.token] = job.environment
            self._launcher.ask(job.environment)

    def _launch(self, token: str) -> None:
        party = self._parties[token]
        job = party.job
        if job is None:
            raise RuntimeError("only a group of our own can be launched")
        try:
            if self._closed_door:
                self._refuse_to_start()
            launch = msgspec.structs.replace(job.launch, layout=job.layout)
            start = party.start = self._launcher.prepare(token, _key(job), launch, job.environment)
        except StartError as error:
            party.trouble[-1] = Failure(Cause.SETUP, str(error), self._host)
            self._step(gc.LauncherGone(token))
            return
        link = party.link = self._spawners.lane(job.layout[0].slots[0].cores)
        party.log = self._logs.take()
        out, err = self._logs.paths(party.log)
        party.err_from = self._logs.size(err)
        link.log(party.log, out, err)
        environment = self._spawners.link_environment(link, self._launcher.environment(job.environment))
        logs = (party.log, party.log)
        party.token = link.spawn(start.argv, environment, start.more, self._settings.work, start.cpus, logs, "mpi")
        self._launchers[party.token] = party

    def _refuse_to_start(self) -> None:
        raise StartError(f"ranks cannot reach the daemon on {self._host}: {self._closed_door}")

    def _end_launcher(self, party: Party) -> None:
        if self._unasked.pop(party.name, None) is not None:
            self._step(gc.LauncherGone(party.name))
        elif party.link is not None and party.token:
            party.link.kill(party.token, signal.SIGKILL)

    def _launcher_ended(self, party: Party, news: Exit | Unspawned | None) -> None:
        party.end, party.token = news, 0
        # Who ended before it is told before it.
        self._bury_dead(party)
        self._step(gc.LauncherGone(party.name))

    def _give(self, order: gc.Give) -> None:
        job = self._jobs[order.lane]
        party, launch = self._parties[order.token], job.launch
        party.said = {}
        if self._bury_dead(party):
            # One died unnoticed: the others must not begin.
            return
        items: list[ToRank] = [Anew()] if order.anew else []
        if launch.template not in party.known:
            party.known.add(launch.template)
            template = job.template
            code = (template.digest, template.code, template.name, template.sandbox, template.logging)
            items.append(Code(launch.template, *code))
        items.append(
            Call(launch.task, launch.epoch, launch.run, launch.template, launch.body, launch.inputs, job.folder)
        )
        packet = _encoder.encode(items)
        for member in party.members.values():
            # An earlier attempt of this task may have ended in it. It waits, so nobody else writes there now.
            frames.OVER.pack_into(member.page, frames.RUNNING_AT, 0, 0.0, 0)
            try:
                frames.send(member.link, packet)
            except OSError as error:
                if error.errno not in packets.GONE:
                    # Those who have it would wait for this one for ever: the group ends, and its call with it.
                    self._hit(party, signal.SIGKILL)
                    return
                # Its end is about to be seen.
                continue

    def _hit(self, party: Party, number: int) -> None:
        pids = [pid for member in party.members.values() for pid in (member.pid, *descendants(member.pid))]
        presence.send(pids, number)
        if number == signal.SIGTERM:
            # A stopped process would sleep through its SIGTERM.
            presence.send(pids, signal.SIGCONT)

    def _drop(self, token: str) -> None:
        party = self._parties.pop(token)
        for member in list(party.members.values()):
            self._forget(party, member)
        if party.log >= 0:
            self._logs.free(party.log)
        if party.start is not None:
            self._launcher.clean(party.start)
        shutil.rmtree(shared_memory(self._settings.mark, token), ignore_errors=True)

    # --- ranks --------------------------------------------------------------------------------------------------------

    def _open(self) -> socket.socket | None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            made.bind(door(self._settings.mark))
            made.listen(BACKLOG)
        except OSError as error:
            # Only calls of several ranks suffer, and say so.
            self._closed_door = str(error.strerror)
            made.close()
            return None
        self._watch(made.fileno(), False)
        # Nobody else has this door, so what a daemon before this one has left is nobody's.
        left = shared_memory(self._settings.mark)
        for folder in left.parent.glob(f"{left.name}*"):
            shutil.rmtree(folder, ignore_errors=True)
        return made

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                made, _ = listener.accept()
            except OSError:
                return
            _, uid, _ = _CREDENTIALS.unpack(made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.getuid():
                made.close()
                continue
            made.setblocking(False)
            packets.enlarge(made)
            self._strangers[made.fileno()] = made
            self._watch(made.fileno(), False)

    def _dismiss(self, fd: int) -> None:
        self._unwatch(fd)
        self._strangers.pop(fd).close()

    def _greet(self, fd: int) -> None:
        """Take the first word of a process that says it is a rank."""
        link = self._strangers[fd]
        try:
            packet, ancillary, _, _ = link.recvmsg(4096, socket.CMSG_SPACE(16))
        except BlockingIOError:
            return
        except OSError:
            packet, ancillary = b"", []
        fds = packets.fds_in(ancillary)
        try:
            pid, _, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            hello = _hello.decode(packet)
            page = mmap.mmap(fds[0], frames.PAGE_SIZE)
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError, IndexError, msgspec.MsgspecError):
            # It is none, or gone again.
            self._dismiss(fd)
            return
        finally:
            for each in fds:
                os.close(each)
        if not self._admit(link, hello, page, (pid, pidfd)):
            os.close(pidfd)
            page.close()
            self._dismiss(fd)

    def _admit(self, link: socket.socket, hello: Hello, page: mmap.mmap, process: tuple[int, int]) -> bool:
        party = self._parties.get(hello.token)
        if party is None:
            leader = hello.token.split(".")[1:2]
            if leader == [str(self._settings.node)] or hello.here == hello.ranks:
                # Of a group that was given up.
                return False
            party = self._parties[hello.token] = Party(hello.token, hello.ranks, {}, set(), {}, {}, {}, select.poll())
        if hello.rank in party.members or hello.rank in party.gone:
            return False
        settings = self._settings
        log = self._logs.take()
        search = settings.environment.get("PYTHONPATH", "")
        welcome = Welcome(self._host, settings.blobs, settings.work, settings.path, search, *self._logs.paths(log))
        # Should it be gone, the end of its process tells.
        with contextlib.suppress(OSError):
            frames.send(link, _encoder.encode(welcome))
        del self._strangers[link.fileno()]
        member = party.members[hello.rank] = Member(hello.rank, link, page, *process, log)
        self._by_link[link.fileno()] = self._by_pidfd[member.pidfd] = (party, member)
        self._watch(member.pidfd, False)
        party.ends.register(member.pidfd, select.POLLIN)
        self._watch(link.fileno(), False)
        self._step(gc.Joined(hello.token, hello.rank, hello.key, hello.here, hello.here == hello.ranks))
        return True

    def _read(self, party: Party, member: Member) -> None:
        while member.linked:
            try:
                packet = frames.receive(member.link, self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # Broken; or what it said was lost on the way, and now only its end can be relied upon.
                presence.send([member.pid], signal.SIGKILL)
                packet = b""
            if not packet:
                # Its process's end is seen by itself; until then there is nothing more to hear.
                self._hang_up(member)
                return
            try:
                items = _from_rank.decode(packet)
            except msgspec.MsgspecError:
                # Not of this protocol: dropped. (Code of the user may write to any descriptor.)
                continue
            for item in items:
                self._hear(party, member, item)

    def _hear(self, party: Party, member: Member, item: FromRank) -> None:
        if isinstance(item, Done):
            party.said.setdefault(member.rank, item)
            self._step(gc.Said(party.name, member.rank, item.task, item.failure is not None))
        elif isinstance(item, Up):
            self._step(gc.Ready(party.name, member.rank))
        else:
            self._cannot(party, member, item)

    def _cannot(self, party: Party, member: Member, said: Unable) -> None:
        text = f"{said.reason} (rank {member.rank} of {party.ranks})"
        party.trouble[member.rank] = Failure(Cause.SETUP, text, self._host, 0, said.detail)
        self._step(gc.Unready(party.name, member.rank))

    def _bury(self, party: Party, member: Member) -> None:
        """A rank's process ended."""
        self._read(party, member)
        party.last[member.rank] = last_output(member.page, self._logs.paths(member.log))
        self._forget(party, member)
        party.gone[member.rank] = member.pid
        work = self.core.lanes.get(self.core.groups[party.name].lane)
        task = work.task if work is not None else 0
        pages = [each.page for each in party.members.values()] + [member.page]
        self._step(gc.Gone(party.name, member.rank, any(has_begun(page, task) for page in pages)))

    def _bury_dead(self, party: Party) -> bool:
        """Take the ends that nobody has looked at yet; returns whether there were any."""
        dead = {fd for fd, _event in party.ends.poll(0)}
        for member in [member for member in party.members.values() if member.pidfd in dead]:
            self._bury(party, member)
        return bool(dead)

    def _forget(self, party: Party, member: Member) -> None:
        del party.members[member.rank]
        self._logs.free(member.log)
        self._hang_up(member)
        del self._by_pidfd[member.pidfd]
        party.ends.unregister(member.pidfd)
        self._unwatch(member.pidfd)
        os.close(member.pidfd)

    def _hang_up(self, member: Member) -> None:
        if member.linked:
            member.linked = False
            del self._by_link[member.link.fileno()]
            self._unwatch(member.link.fileno())
            member.link.close()

    # --- what came of a call ------------------------------------------------------------------------------------------

    def _tell(self, told: gc.Told) -> None:
        party = self._parties.get(told.token)
        if told.verdict is gc.Verdict.SAID and party is not None:
            self._out.append(Results(told.lane, [self._said(told, party)]))
        elif told.verdict is gc.Verdict.UNSTARTED:
            ended = Ended(told.task, b"", self._unstarted(party), natural=False)
            self._out.append(Results(told.lane, [ended]))
        else:
            words = party.last if party is not None else {}
            payload = with_output(b"", [each for rank in sorted(words) for each in words[rank][0]])
            self._out.append(Died(told.lane, told.task, self._died(told, party), 0.0, time.time(), payload))

    def _said(self, told: gc.Told, party: Party) -> Ended:
        dones = party.said
        began, ended = min(done.began for done in dones.values()), max(done.ended for done in dones.values())
        outputs = [each for rank in sorted(dones) for each in outputs_of(dones[rank].payload)]
        failed = sorted((done.ended, rank) for rank, done in dones.items() if done.failure is not None)
        if not failed:
            payload = with_output(bare(dones[0].payload) if 0 in dones else b"", outputs)
            return Ended(told.task, payload, None, began, ended)
        first = dones[failed[0][1]]
        failure = failure_of([(rank, done.failure) for _, rank in failed if (done := dones[rank]).failure is not None],
                             party.ranks, self._host, told.hung)  # fmt: skip
        return Ended(told.task, with_output(bare(first.payload), outputs), failure, began, ended)

    def _unstarted(self, party: Party | None) -> Failure:
        if party is None:
            text = f"no rank of its MPI group came up within {gc.START:g} s"
            return Failure(Cause.SETUP, text, self._host)
        if party.trouble:
            return party.trouble[min(party.trouble)]
        tail = self._tail(party)
        if (
            party.start is not None
            and (why := why_unstarted(party.start, b"\n" + tail.encode(), self._host)) is not None
        ):
            return why
        what = party.start.what if party.start is not None else "the launcher on another node"
        text = f"the ranks of its MPI group did not come up ({what} {self._how(party)})"
        return Failure(Cause.SETUP, text, self._host, 0, tail)

    def _died(self, told: gc.Told, party: Party | None) -> Failure:
        if party is None:
            return Failure(Cause.WORKER_DIED, "it was ended before it began", self._host)
        tail = self._tail(party)
        noticed = who_died(tail)
        if noticed is not None and (told.culprit < 0 or told.culprit not in noticed.ranks):
            # It saw all nodes, and that one of its ranks died first.
            text = f"{noticed.who} of {party.ranks} {noticed.how} while it ran"
            return Failure(Cause.WORKER_DIED, text, noticed.host, noticed.status, tail)
        if told.culprit < 0:
            what = party.start.what if party.start is not None else "the launcher on another node"
            text = f"its MPI group ended: {what} {self._how(party)}"
            return Failure(Cause.WORKER_DIED, text, self._host, 0, tail)
        how, status = ("died", 0) if noticed is None else (noticed.how, noticed.status)
        pid = party.gone[told.culprit]
        if own := party.last.get(told.culprit, ([], b""))[1]:
            tail = f"{own.decode(errors='replace')}\n{tail}"[-TAIL:]
        text = f"rank {told.culprit} of {party.ranks} {how} while it ran"
        note = f"rank {told.culprit} was process {pid}"
        return Failure(Cause.WORKER_DIED, text, self._host, status, tail, note=note)

    def _how(self, party: Party) -> str:
        news = party.end
        if isinstance(news, Unspawned):
            return f"could not be started: {os.strerror(news.number)}"
        if news is None:
            return "said nothing"
        if news.status < 0:
            return f"was killed by signal {-news.status} ({signal_name(-news.status)})"
        return f"exited with code {news.status}"

    def _tail(self, party: Party) -> str:
        if party.log < 0:
            return ""
        if isinstance(party.end, Exit):
            return end_of(party.end.err)[-TAIL:].decode(errors="replace")
        return tail_of(self._logs.paths(party.log)[1], party.err_from).decode(errors="replace")


def _key(job: Job) -> str:
    """Return what calls have in common that one group can serve: ranks, slots, environment, modules of the script."""
    where = [(share.node, share.slots, share.cpus) for share in job.layout]
    text = msgspec.msgpack.encode((where, sorted(job.template.environment.items()), job.template.modules))
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def has_begun(page: mmap.mmap, task: int) -> bool:
    """Return whether the rank with this page runs a call, or has ended it, and be it without a word of that."""
    running, _, over = frames.OVER.unpack_from(page, frames.RUNNING_AT)
    return task > 0 and task in (running, over)


def failure_of(failed: list[tuple[int, Failure]], ranks: int, host: str, hung: tuple[int, ...]) -> Failure:
    """Return one failure for those of several ranks, the first first.

    ``detail`` has all tracebacks, equal ones once, up to a length.
    """
    rank, first = failed[0]
    same: dict[str, list[int]] = {}
    for number, failure in failed:
        same.setdefault(failure.detail or failure.message, []).append(number)
    heads = [f"--- {_names(numbers)} on {host}\n" for numbers in same.values()]
    tail = f"--- {_names(list(hung))} on {host} came to no end and had to be ended\n" if hung else ""
    room = max(0, (DETAIL_LIMIT - len(tail) - sum(map(len, heads))) // len(same) - 1)
    parts = [f"{head}{text.rstrip()[-room:]}\n" for head, text in zip(heads, same, strict=True)]
    text = f"{first.message} (rank {rank} of {ranks})"
    return Failure(first.cause, text, host, first.exit_code, "".join([*parts, tail])[:DETAIL_LIMIT])


def _names(ranks: list[int]) -> str:
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    named = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(named)}"


class Noticed(msgspec.Struct, frozen=True):
    """What a launcher says of the ranks that ended badly first."""

    ranks: range
    who: str
    host: str
    how: str
    status: int


def who_died(text: str) -> Noticed | None:
    """Return what a launcher says on who died; None when it says nothing."""
    if (found := _NOTICED.search(text)) is not None:
        rank, number = int(found[1]), int(found[3])
        how = f"was killed by signal {number} ({signal_name(number)})"
        return Noticed(range(rank, rank + 1), f"rank {rank}", found[2], how, -number)
    if (found := _TASK.search(text)) is not None:
        first, _, last = found[2].partition("-")
        ranks = range(int(first), int(last or first) + 1)
        status, *_ = first_to_fail(text.encode()) or (0,)
        how = (
            f"was killed by signal {-status} ({signal_name(-status)})" if status < 0 else f"ended ({found[3].strip()})"
        )
        return Noticed(ranks, f"rank{'s' if last else ''} {found[2]}", found[1], how, status)
    return None
