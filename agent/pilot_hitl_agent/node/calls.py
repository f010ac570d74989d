"""Function calls on one node: workers, what was sent to them, what came back, and who is to blame when one dies."""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections import deque
from collections.abc import Collection, Iterator

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.states import Tier
from pilot_hitl.model.templates import FunctionTemplate
from pilot_hitl.wire.current import ATTEMPT_VARIABLE, EXECUTOR_VARIABLE
from pilot_hitl.wire.node import Launch
from pilot_hitl.wire.outputs import with_output
from pilot_hitl_agent.node import frames, memory, packets
from pilot_hitl_agent.node.apart import Apart
from pilot_hitl_agent.node.call_output import output_of
from pilot_hitl_agent.node.endings import signal_name
from pilot_hitl_agent.node.events import Died, Ended, HandedBack, Results
from pilot_hitl_agent.node.frames import Call, Code, Done, FromWorker, Leaving, ToWorker, Unsent
from pilot_hitl_agent.node.gangs import resource_variables
from pilot_hitl_agent.node.link import Exit, Link, Unspawned, end_of
from pilot_hitl_agent.node.logs import TAIL, Logs, read_file
from pilot_hitl_agent.node.memory import MB
from pilot_hitl_agent.node.mpigroups import MpiGroups
from pilot_hitl_agent.node.nursery import FORK
from pilot_hitl_agent.node.pool import Place, Pool
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawner import LOST
from pilot_hitl_agent.node.spawners import Spawners, Unwatch, Watch
from pilot_hitl_agent.node.watchdog import Watchdog

NOBODY = -1
"""Whom a signal is aimed at that is for the worker alone."""
STRIKES = 3
"""Workers that a lane may lose without a call to blame, before the first of its calls is blamed."""
SERVERS = 4
"""Fork servers that are kept; more only while workers of more environments are at work."""
PREPARED = 64
"""Functions, the latest ones, that a spare worker loads ahead."""
_LOKY = "LOKY_MAX_CPU_COUNT"
Outcome = Results | HandedBack | Died

_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder(list[FromWorker])
_to_worker = msgspec.msgpack.Decoder(list[ToWorker])


class Worker(msgspec.Struct):
    """One worker process, as the daemon sees it.

    Attributes:
        ours: the daemon's end of the socket; ``theirs`` a duplicate of the worker's, to take unread packets back.
        sent: tasks whose results are awaited, in the order in which they run.
        pending: what goes into the next packet.
        known: templates whose code was sent.
        outside: the last task it was given that acts outside; 0 for none. Nothing is ever sent behind such a one.
        aimed: the task whose end the last signal was meant for; 0 for none.
        stalled: whether ``pending`` waits until the socket can be written.
    """

    token: int
    link: Link
    ours: socket.socket
    theirs: socket.socket
    page: mmap.mmap
    log: int
    sent: deque[int]
    pending: list[ToWorker]
    known: set[int]
    aimed: int = 0
    stalled: bool = False
    outside: int = 0


class Calls:
    """Runs the function calls of one node."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, logs: Logs, watch: Watch, unwatch: Unwatch) -> None:
        """Fork workers through the nursery of ``spawners``."""
        self._settings = settings
        self._spawners = spawners
        self._logs = logs
        self._watch = watch
        self._unwatch = unwatch
        self.pool = Pool(max(2, len(settings.inventory.cores)) + 2)
        self._templates: dict[int, FunctionTemplate] = {}
        self._outside: set[int] = set()
        self._groups: dict[int, int] = {}
        self._servers: dict[int, int] = {}
        self._workers: dict[int, Worker] = {}
        self._by_fd: dict[int, int] = {}
        self._ended: dict[int, Worker] = {}
        self._spares: set[int] = set()
        self._dirty: dict[int, None] = {}
        self._strikes: dict[int, int] = {}
        self._watchdog = Watchdog()
        self._buffer = mmap.mmap(-1, frames.ROOM)
        self._host = settings.inventory.name
        self.apart = Apart(settings.tasks, settings.node)
        self.groups = MpiGroups(settings, spawners, logs, watch, unwatch)

    def learn(self, number: int, template: FunctionTemplate) -> int:
        """Make a template known; returns the number of its environment, counted from 1."""
        self._templates[number] = template
        if template.effects == "outside":
            self._outside.add(number)
        group = self._groups[number] = self._spawners.environment(template.environment)
        shared = {name: value for name, value in template.environment.items() if name != EXECUTOR_VARIABLE}
        self._servers[group] = self._spawners.environment(shared)
        for spare in self.pool.idle(group) if self._spares else ():
            if spare in self._spares:
                self._prepare(spare, number)
        if not self._servers[group]:
            # Its start takes tens of milliseconds, so it begins before the first call is there.
            self._spawners.nursery()
        return self._groups[number] + 1

    def knows(self, number: int) -> bool:
        """Return whether a template is a function."""
        return number in self._templates

    def start(self, lane: int, launch: Launch, slots: tuple[Slot, ...], *, apart: bool = False) -> Outcome | None:
        """Run a call on a lane; returns its end when it cannot be tried.

        ``apart``: in a worker of its own, below a nursery of its own.
        """
        if launch.ranks > 1 or len(slots) > 1:
            environment = self._groups[launch.template]
            folder = self.apart.begin(launch)
            self.groups.start(lane, launch, slots, self._templates[launch.template], environment, folder)
            return None
        slot = slots[0]
        place = Place(
            slot.cores, slot.gpus, slot.gpu_shares, self._groups[launch.template], launch.task if apart else 0
        )
        number = self._take(lane, place, launch, slot.memory * MB)
        if not number:
            try:
                number = self._make(place)
            except OSError as error:
                text = f"no worker can be made: {error.strerror}"
                return Results(lane, [Ended(launch.task, b"", Failure(Cause.SETUP, text, self._host))])
            self.pool.add(number, lane, place, launch.condition)
        self._give(number, launch)
        if launch.rank[0] >= Tier.SPECULATIVE and self.pool.lacks_spare(place):
            self._spare(place)
        return None

    def _take(self, lane: int, place: Place, launch: Launch, limit: int) -> int:
        """Return a worker that is there for a call that may use ``limit`` bytes, 0 for any; 0 when one must be made."""
        number = self.pool.by_lane.get(lane, 0)
        if number and self.pool.seats[number].place != place:
            # What ran here before needed another environment, or to be alone.
            self._let_go(lane)
            number = 0
        number = number or self.pool.take(lane, place, launch.condition)
        if not number or limit <= 0 or launch.template not in self._outside or place.apart:
            return number
        if not self._is_full(number, limit):
            return number
        # What acts cannot be begun again in another worker, see `renew`.
        self.pool.drop(number)
        self._end([number])
        return 0

    def push(self, lane: int, launches: list[Launch]) -> None:
        """Send calls behind what a lane's worker has."""
        number = self.pool.by_lane.get(lane, 0)
        if not number:
            # Its worker is dead and the core is about to hear of it; then it takes these back.
            return
        for launch in launches:
            self._give(number, launch)

    def recall(self, lane: int) -> Outcome | None:
        """Take back what a lane's worker has not read."""
        number = self.pool.by_lane.get(lane, 0)
        if not number:
            return None
        worker = self._workers[number]
        items = list(worker.pending)
        items[:0] = [item for packet in self._unread(worker) for item in packet]
        head = worker.sent[0] if worker.sent else 0
        keep: list[ToWorker] = []
        tasks = []
        for item in items:
            if not isinstance(item, Code) and item.task and item.task != head:
                tasks.append(item.task)
            else:
                keep.append(item)
        worker.pending = keep
        if keep:
            self._dirty[number] = None
        gone = set(tasks)
        worker.sent = deque(task for task in worker.sent if task not in gone)
        self._unbegun(tasks)
        return HandedBack(lane, tasks) if tasks else None

    def send(self, lane: int, task: int, number: int) -> bool:
        """Signal the tree of a lane's worker because of a task; False when the lane has none."""
        if self.groups.serves(lane):
            self.groups.send(lane, number)
            return True
        worker_number = self.pool.by_lane.get(lane, 0)
        if not worker_number:
            return False
        worker = self._workers[worker_number]
        if worker.sent and worker.sent[0] != task:
            # The core is about to hear that it ended; the signal would meet the call behind it.
            return True
        if number in (signal.SIGTERM, signal.SIGKILL):
            worker.aimed = task
        worker.link.kill(worker.token, number)
        return True

    def release(self, lane: int) -> None:
        """The lane is over: keep its worker for the next, or end what is too many."""
        if self.groups.serves(lane):
            self.groups.release(lane)
            return
        self._strikes.pop(lane, None)
        self._let_go(lane)

    def _let_go(self, lane: int) -> None:
        """Keep a lane's worker for others, or end it."""
        number = self.pool.by_lane.get(lane, 0)
        apart = self._workers[number].link if number and self.pool.seats[number].place.apart else None
        ended = self.pool.release(lane)
        if apart is not None:
            if number not in ended:
                self.pool.drop(number)
                ended.append(number)
            self._spawners.leave(apart)
        self._end(ended)

    def settle(self, condition: int, *, truth: bool) -> None:
        """Adopt the workers tagged with a condition, or end the idle ones among them."""
        self._end(self.pool.settle(condition, truth=truth))
        self.apart.settle(condition, truth=truth)
        self.groups.settle(condition, truth=truth)

    def outcomes(self) -> list[Results | Died]:
        """Return what came of calls of several ranks since the last time."""
        found = self.groups.outcomes()
        return [self._with_left(each) for each in found] if self.apart else found

    def _with_left(self, outcome: Results | Died) -> Results | Died:
        """Add where calls left files that ran ahead of a decision."""
        if isinstance(outcome, Died):
            return outcome
        ended = [
            msgspec.structs.replace(each, unpublished=self.apart.ended(each.task, good=each.failure is None))
            for each in outcome.ended
        ]
        return Results(outcome.lane, ended)

    def forget_conditions(self) -> None:
        """End the idle workers that ran under a condition: nobody will say here how it was decided."""
        for condition in {seat.tag for seat in self.pool.seats.values()} - {0}:
            self._end(self.pool.settle(condition, truth=False))

    def flush(self) -> None:
        """Send what gathered: one packet a worker."""
        dirty, self._dirty = self._dirty, {}
        for number in dirty:
            worker = self._workers.get(number)
            if worker is not None and worker.pending:
                self._send_pending(worker)

    def _send_pending(self, worker: Worker) -> None:
        """Send a worker what waits for it, in order; what it has to make room for first stays pending.

        A packet that cannot be sent for a reason of its own (no memory, no descriptors) is sent in halves; the one item
        that is left of it fails alone, see :class:`.frames.Unsent`.
        """
        ahead = [worker.pending]
        while ahead:
            items = ahead.pop()
            try:
                frames.send(worker.ours, _encoder.encode(items))
            except OSError as error:
                if error.errno in packets.FULL:
                    # It is stopped or far behind.
                    ahead.append(items)
                    break
                if error.errno in packets.GONE:
                    # Its end is being reported and blames nobody for what it never got.
                    ahead.clear()
                elif len(items) > 1:
                    middle = len(items) // 2
                    ahead += (items[middle:], items[:middle])
                elif isinstance(items[0], Unsent):
                    # Not even that goes: whoever waits for this worker hears of its end.
                    worker.link.kill(worker.token, signal.SIGKILL)
                    ahead.clear()
                else:
                    ahead.append([self._instead(worker, items[0], error)])
        worker.pending = [item for items in reversed(ahead) for item in items]
        if worker.stalled != bool(worker.pending):
            worker.stalled = not worker.stalled
            self._watch(worker.ours.fileno(), worker.stalled)

    def _instead(self, worker: Worker, item: Code | Call, error: OSError) -> Unsent:
        if isinstance(item, Code):
            # The next call of it brings it again.
            worker.known.discard(item.template)
            text = f"the function {item.name} ({len(item.code)} bytes) cannot be sent to a worker: {error.strerror}"
            return Unsent(0, item.template, Failure(Cause.SETUP, text, self._host))
        text = f"its arguments ({len(item.body)} bytes) cannot be sent to a worker: {error.strerror}"
        return Unsent(item.task, 0, Failure(Cause.SETUP, text, self._host))

    def receive(self, fd: int) -> list[Outcome] | None:
        """Return what a worker sent; None when the descriptor is not a worker's."""
        number = self._by_fd.get(fd)
        if number is None:
            return [] if self.groups.receive(fd) else None
        return self._read(number)

    def ended(self, news: Exit | Unspawned) -> list[Outcome] | None:
        """Take the end of a worker's process; None when the news is of something else."""
        old = self._ended.pop(news.token, None)
        if old is not None:
            self._logs.free(old.log)
            return []
        if news.token not in self._workers:
            return [] if self.groups.ended(news) else None
        return self._bury(news.token, news)

    def lost(self, link: Link) -> list[Outcome]:
        """The nursery died, and its workers were killed after it."""
        found: list[Outcome] = []
        for number, worker in list(self._workers.items()):
            if worker.link is link:
                found.extend(self._bury(number, None))
        for number, worker in list(self._ended.items()):
            if worker.link is link:
                del self._ended[number]
                self._logs.free(worker.log)
        self.groups.lost(link)
        return found

    def roots(self, lane: int, task: int) -> list[int]:
        """Return the processes that run a call on this node, one a rank."""
        if self.groups.serves(lane):
            return [pid for pid, theirs in self.groups.processes() if theirs == task]
        worker = self._workers.get(self.pool.by_lane.get(lane, 0))
        return [] if worker is None else [pid for pid in frames.PID.unpack_from(worker.page, frames.PID_AT) if pid]

    def worker(self, lane: int) -> int:
        """Return the number of a lane's worker, 0 for none."""
        return self.pool.by_lane.get(lane, 0)

    def renew(self, lane: int) -> bool:
        """End a lane's worker for what earlier calls left in it: nobody is to blame, and what it had runs again.

        Returns False, and does nothing, when that acts outside.
        """
        worker = self._workers.get(self.pool.by_lane.get(lane, 0))
        if worker is None or worker.outside in worker.sent:
            return False
        worker.aimed = NOBODY
        worker.link.kill(worker.token, signal.SIGKILL)
        return True

    def _is_full(self, number: int, limit: int) -> bool:
        """Return whether earlier calls left more than half of a limit, in bytes, in use in a worker."""
        pid = frames.PID.unpack_from(self._workers[number].page, frames.PID_AT)[0]
        return pid > 0 and memory.used([pid], limit // 2) > limit // 2

    def look_for_lost(self) -> tuple[list[Outcome], bool]:
        """End workers that have calls and do nothing, and ask for those that have not begun.

        Returns:
            What came of calls meanwhile, and whether there is more to look for.
        """
        busy = [
            (number, worker.sent[0], worker.page)
            for number, worker in self._workers.items()
            if worker.sent and not worker.stalled
        ]
        absent, idle = self._watchdog.look(busy)
        for number in absent:
            worker = self._workers[number]
            worker.link.look([worker.token])
        found: list[Outcome] = []
        for number in idle:
            worker = self._workers[number]
            head = worker.sent[0]
            found += self._read(number)
            if number in self._workers and worker.sent and worker.sent[0] == head:
                # Nobody is to blame. What it had begins anew, unless it is known to have ended.
                worker.aimed = NOBODY
                worker.link.kill(worker.token, signal.SIGKILL)
        return found, bool(busy)

    def processes(self) -> list[tuple[int, int]]:
        """Return ``(pid, task that it runs or 0)`` of each worker that has begun to work."""
        found = []
        for worker in self._workers.values():
            pid = frames.PID.unpack_from(worker.page, frames.PID_AT)[0]
            if pid:
                found.append((pid, frames.RUNNING.unpack_from(worker.page, frames.RUNNING_AT)[0]))
        return found + self.groups.processes()

    def close(self) -> None:
        """Close all sockets; workers end at that."""
        for number in list(self._workers):
            self._forget(number)
        self.apart.close()
        self.groups.close()

    # --- workers ------------------------------------------------------------------------------------------------------

    def _make(self, place: Place) -> int:
        link = self._spawners.nursery(self._servers[place.group], apart=bool(place.apart))
        self._bound_servers()
        token = link.next_token()
        ours, theirs = packets.socketpair()
        log = self._logs.take()
        fds: list[int] = []
        try:
            page_fd = self._spawners.running.page(token)
            fds.append(page_fd)
            page = mmap.mmap(page_fd, frames.PAGE_SIZE)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            for path in self._logs.paths(log):
                fds += [os.open(path, flags, 0o600)]
        except OSError:
            for fd in fds:
                os.close(fd)
            ours.close()
            theirs.close()
            self._logs.free(log)
            raise
        side = socket.socket(fileno=theirs.detach())
        given = os.dup(side.fileno())
        os.set_blocking(given, True)
        slot = Slot(0, place.cores, place.gpus, place.gpu_shares)
        variables = self._spawners.variables(place.group)
        more = resource_variables(slot, with_threads="OMP_NUM_THREADS" not in variables)
        if _LOKY not in variables:
            # Where processes are not bound to their cores, this is how joblib learns how many are theirs.
            more[_LOKY] = str(place.cores.bit_count() or 1)
        if EXECUTOR_VARIABLE in variables:
            more[EXECUTOR_VARIABLE] = variables[EXECUTOR_VARIABLE]
        more[ATTEMPT_VARIABLE] = ""
        cpus = self._settings.cpus(place.cores)
        link.request((FORK, token, "worker", more, cpus), (given, *fds))
        mine = socket.socket(fileno=ours.detach())
        self._workers[token] = Worker(token, link, mine, side, page, log, deque(), [], set())
        self._by_fd[mine.fileno()] = token
        self._watch(mine.fileno(), False)
        return token

    def _bound_servers(self) -> None:
        """End the fork servers of environments that were not used for longest, where nobody works."""
        servers = self._spawners.servers()
        if len(servers) <= SERVERS:
            return
        busy = {worker.link for number, worker in self._workers.items() if self.pool.seats[number].lane}
        surplus = len(servers) - SERVERS
        for environment, link in servers[:-1]:
            if not environment or link in busy or surplus <= 0:
                continue
            surplus -= 1
            idle = [number for number, worker in self._workers.items() if worker.link is link]
            for number in idle:
                self.pool.drop(number)
            self._end(idle)
            self._spawners.retire(environment)

    def _spare(self, place: Place) -> None:
        """Keep a worker in reserve at a place, with all code loaded that is known of its environment."""
        try:
            number = self._make(place)
        except OSError:
            return  # Whoever comes next tries again, and says why it cannot be.
        self._spares.add(number)
        self._end(self.pool.add_spare(number, place))
        # The latest first: a worker that knows a module as an earlier script had it cannot run what comes now.
        for template in [each for each, group in self._groups.items() if group == place.group][: -PREPARED - 1 : -1]:
            self._prepare(number, template)

    def _prepare(self, number: int, template: int) -> None:
        """Let a spare load code ahead. It is sent again with the first call: what failed to load is tried again."""
        if (worker := self._workers.get(number)) is not None:
            worker.pending.append(self._code(template))
            self._dirty[number] = None

    def _code(self, number: int) -> Code:
        template = self._templates[number]
        return Code(
            number, template.digest, template.code, template.name, template.sandbox, template.logging, template.anew
        )

    def _give(self, number: int, launch: Launch) -> None:
        worker = self._workers[number]
        self._spares.discard(number)
        if launch.template not in worker.known:
            worker.known.add(launch.template)
            worker.pending.append(self._code(launch.template))
        if self._outside and launch.template in self._outside:
            worker.outside = launch.task
            if not worker.sent:
                # An earlier attempt of it may have ended here. It waits, so nobody else writes there now.
                frames.OVER.pack_into(worker.page, frames.RUNNING_AT, 0, 0.0, 0)
        folder = self.apart.begin(launch) if launch.condition else ""
        worker.pending.append(
            Call(launch.task, launch.epoch, launch.run, launch.template, launch.body, launch.inputs, folder)
        )
        worker.sent.append(launch.task)
        self._dirty[number] = None

    def _unread(self, worker: Worker) -> list[list[ToWorker]]:
        found: list[list[ToWorker]] = []
        while True:
            try:
                packet = frames.receive(worker.theirs, self._buffer, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError:
                # What it held is lost to the worker as well.
                worker.link.kill(worker.token, signal.SIGKILL)
                return found
            if not packet:
                return found
            found.append(_to_worker.decode(packet))

    def _read(self, number: int) -> list[Outcome]:
        worker = self._workers[number]
        lane = self.pool.seats[number].lane
        apart = self.apart or None
        found: list[Outcome] = []
        ended: list[Ended] = []
        leaving: Leaving | None = None
        for item in self._heard(worker):
            if isinstance(item, Done):
                if not worker.sent or worker.sent[0] != item.task:
                    continue
                worker.sent.popleft()
                left = apart.ended(item.task, good=item.failure is None) if apart else ""
                ended.append(Ended(item.task, item.payload, item.failure, item.began, item.ended, True, left))
            elif isinstance(item, Leaving):
                leaving = item
            else:
                # What ended before is told before: the core must not start what is being handed back.
                if ended:
                    found.append(Results(lane, ended))
                    ended = []
                found.append(self._handed_back(worker, lane, item.tasks))
        if ended:
            found.append(Results(lane, ended))
        if leaving is not None:
            self.pool.drop(number)
            self._end([number])
            if lane and worker.sent:
                # Nobody is to blame: what it had not begun runs elsewhere.
                found.append(Died(lane, 0, Failure(Cause.WORKER_DIED, leaving.why, self._host)))
        elif worker.pending:
            self._dirty[number] = None
        return found

    def _heard(self, worker: Worker) -> Iterator[FromWorker]:
        """Yield what a worker has said."""
        while True:
            try:
                packet = frames.receive(worker.ours, self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # Broken; or what it said was lost on the way, and now only its end can be relied upon.
                worker.link.kill(worker.token, signal.SIGKILL)
                return
            if not packet:
                return
            try:
                items = _from_worker.decode(packet)
            except msgspec.MsgspecError:
                # Not of this protocol: dropped. (Code of the user may write to any descriptor.)
                continue
            yield from items

    def _handed_back(self, worker: Worker, lane: int, tasks: list[int]) -> HandedBack:
        back = set(tasks)
        mine = [task for task in worker.sent if task in back]
        worker.sent = deque(task for task in worker.sent if task not in back)
        self._unbegun(mine)
        return HandedBack(lane, mine, stuck=True)

    def _unbegun(self, tasks: list[int]) -> None:
        for task in tasks if self.apart else ():
            self.apart.back(task)

    def _end(self, numbers: list[int]) -> None:
        """End idle workers that the pool has already forgotten."""
        for number in numbers:
            worker = self._forget(number)
            worker.link.kill(worker.token, signal.SIGKILL)
            self._ended[number] = worker

    def _forget(self, number: int) -> Worker:
        worker = self._workers.pop(number)
        self._spawners.running.drop_page(number)
        self._spares.discard(number)
        fd = worker.ours.fileno()
        del self._by_fd[fd]
        self._unwatch(fd)
        worker.ours.close()
        worker.theirs.close()
        return worker

    def _bury(self, number: int, news: Exit | Unspawned | None) -> list[Outcome]:
        found = self._read(number)
        if number not in self._workers:
            # It had said that it leaves.
            self._logs.free(self._ended.pop(number).log)
            return found
        lane = self.pool.seats[number].lane
        worker = self._forget(number)
        self.pool.drop(number)
        self._logs.free(worker.log)
        for task in worker.sent if self.apart else ():
            # Whichever of them had begun, and run again: nothing of it may be found then.
            self.apart.ended(task, good=False)
        if not lane or not worker.sent:
            return found
        ready = frames.PID.unpack_from(worker.page, frames.PID_AT)[0]
        running, began, over = frames.OVER.unpack_from(worker.page, frames.RUNNING_AT)
        culprit = who_ends((running, over), worker.sent, worker.aimed, worker.outside)
        self._strikes[lane] = 0 if culprit else self._strikes.get(lane, 0) + 1
        if not culprit and (not ready or self._strikes[lane] >= STRIKES):
            culprit = worker.sent[0]
        ended = news.ended if isinstance(news, Exit) else 0.0
        found.append(Died(lane, culprit, self._blame(worker, news), began, ended, self._last_output(worker, news)))
        return found

    def _last_output(self, worker: Worker, news: Exit | Unspawned | None) -> bytes:
        """Return what a call wrote with which its worker died, as a payload."""
        if not isinstance(news, Exit) or not (news.out or news.err):
            return b""
        return with_output(b"", [output_of(news.out, news.err, self._logs.paths(worker.log))])

    def _blame(self, worker: Worker, news: Exit | Unspawned | None) -> Failure:
        if isinstance(news, Unspawned) and news.what == LOST:
            return Failure(Cause.PILOT_ENDED, "the request for its worker was lost on this node", self._host)
        if isinstance(news, Unspawned):
            return Failure(Cause.SETUP, f"no worker can be forked: {os.strerror(news.number)}", self._host)
        if news is None and not frames.PID.unpack_from(worker.page, frames.PID_AT)[0]:
            text = "the interpreter in which it was to run did not start"
            if said := read_file(self._spawners.errors_of(worker.link))[0].decode(errors="replace").strip():
                text += f", perhaps because of options(environment=…): {said[-TAIL:]}"
            return Failure(Cause.WORKER_DIED, text, self._host, -9)
        if news is None:
            text = "the worker that ran it was killed with its nursery"
            return Failure(Cause.SPAWNER_DIED, text, self._host, -9)
        tail = end_of(news.err)[-TAIL:].decode(errors="replace")
        if news.status == -signal.SIGKILL and not worker.aimed and self._spawners.kernel.took():
            text = "the worker that ran it was killed by the kernel's out-of-memory killer: ask for more memory"
            return Failure(Cause.OOM_KILLED, text, self._host, -9, tail, note=_which(news))
        if news.status < 0:
            how = f"was killed by signal {-news.status} ({signal_name(-news.status)})"
        else:
            how = f"exited with code {news.status}"
        text = f"the worker that ran it {how}"
        return Failure(Cause.WORKER_DIED, text, self._host, news.status, tail, note=_which(news))


def who_ends(begun: tuple[int, int], sent: Collection[int], aimed: int, outside: int) -> int:
    """Return the call that ends with its worker; 0 when whatever ran is not to blame and all that it had runs again.

    Args:
        begun: the call that ran, and the last one that ended, perhaps without a word of it.
        sent: what the worker had.
        aimed: the task that it was killed for, 0 for none.
        outside: the last task that acts outside, 0 for none.
    """
    if outside in begun and outside in sent:
        # It has acted, or may have: whoever is to blame, it must not begin again.
        return outside
    if aimed and aimed not in sent:
        # It ended by itself while the signal was under way, or nobody was meant.
        return 0
    running = begun[0]
    return running if running in sent else 0


def _which(news: Exit) -> str:
    return f"the worker was process {news.pid}"
