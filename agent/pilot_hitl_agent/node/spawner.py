"""The spawner: a tiny single-threaded process at the root of a node's processes.

It starts processes, sees them end, and makes sure that nothing of a task outlives it. It imports next to nothing (no
typing, no enum: they would double its start and its memory), so it is run by the path of :mod:`.spawner_main` under
``python -I -S`` and must not import anything of ours but :mod:`.packets`, :mod:`.capture` and :mod:`.proctree`, which
import as little.

Two ways to run it::

    spawner_main.py CONFIG.json      root of a node: starts the agent, starts it again when it dies, ends with it
    spawner_main.py --serve FD       a further spawner, on the socket with this number; ends when the other side closes

Packets on the ``SOCK_SEQPACKET`` link are marshalled lists of tuples; the first item says what a record is. Requests:
:data:`ENVIRONMENT`, :data:`LOG`, :data:`SPAWN`, :data:`KILL`, :data:`QUIT`, :data:`RECALL`, :data:`LOOK`; the
nursery's are :data:`FORK` and :data:`SETTINGS`. Replies: :data:`HELLO`, :data:`EXIT`, :data:`FAIL`, :data:`BACK`. What
they hold stands at the functions that read and write them, and in :mod:`.link`.

How a whole tree is found: each process leads a session of its own; what leaves it (a daemon) is handed to the spawner
by the kernel, because the spawner is a subreaper, and carries :data:`TOKEN_VARIABLE` in its environment.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module signal imports enum
import _socket
import marshal
import mmap
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = tuple[Any, ...]

if TYPE_CHECKING or __package__:
    from pilot_hitl_agent.node import capture, packets, proctree
else:
    import capture
    import packets
    import proctree

ENVIRONMENT, LOG, SPAWN, KILL, QUIT, FORK, SETTINGS, RECALL, LOOK = 1, 2, 3, 4, 5, 6, 7, 8, 9
HELLO, EXIT, FAIL, BACK = 10, 11, 12, 13

LOST = "lost"
"""What failed of a process that was never asked for here, or has ended."""
SERVE = "--serve"
ROOT = "root"
"""File beside its configuration in which the root of a node of this machine says who it is: pid and start time."""
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spawner_main.py")  # no pathlib here
"""What is run by path."""
TOKEN_VARIABLE = "PILOT_HITL_TOKEN"  # noqa: S105 - names a process, opens nothing
_TOKEN_BYTES = TOKEN_VARIABLE.encode()
NODE_VARIABLE = "PILOT_HITL_NODE"
LINK_VARIABLE = "PILOT_HITL_SPAWNER_FD"
"""Tells the agent the number of its end of the link."""
AGENT = 0
"""Token of the agent."""
RESTARTS, RESTART_WINDOW = 5, 60.0
LAST_WAIT = 5.0
"""Seconds that the last killed processes get to vanish; one in uninterruptible sleep would hold us for ever."""

GATHER = 0.005
"""Seconds that an end may wait for others while its lane has more to run: who reads it wakes up less often."""
_REPLIES_A_PACKET = 1000
_EXEC_LOOKS = 50
_CHUNK = 4096
_PR_SET_CHILD_SUBREAPER = 36
# Python ignores these two; an ignored signal would be inherited by every task.
_DEFAULT_SIGNALS = (int(_signal.SIGPIPE), int(_signal.SIGXFSZ), int(_signal.SIGINT), int(_signal.SIGTERM))


class Process:
    """One process that was asked for, with what left its session."""

    __slots__ = ("began", "doomed", "end", "err", "label", "lane", "orphans", "out", "pid", "status", "token", "usage")

    def __init__(self, token: int, label: Any, pid: int, began: float) -> None:
        self.token = token
        self.label = label
        self.lane = 0
        self.pid = pid
        self.began = began
        self.end = 0.0
        self.status: int | None = None
        self.usage: tuple[float, float, int] = (0.0, 0.0, 0)
        self.doomed = False
        self.orphans: set[int] = set()
        self.out: tuple[int, capture.Capture] | None = None
        self.err: tuple[int, capture.Capture] | None = None


class Family:
    """All processes below this one: starts nothing, sees ends, finds and kills trees."""

    def __init__(self, prefix: str) -> None:
        """Look after the children of this process; ``prefix`` tells its tokens from those of other spawners."""
        self.prefix = prefix
        self.by_token: dict[int, Process] = {}
        self.by_pid: dict[int, Process] = {}
        self.strays: dict[int, Process | None] = {}
        self._gone: dict[int, Process] = {}
        self._settling: list[Process] = []
        self._children = _open_children()

    def add(self, process: Process) -> None:
        """Look after a process that was just started."""
        self.by_token[process.token] = process
        self.by_pid[process.pid] = process

    def reap(self) -> list[Process]:
        """Take the ends of processes; return those that ended and left nothing behind."""
        seen = False
        self._gone.clear()
        try:
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                seen = True
                self._reap_one(*found)
        except ChildProcessError:
            # There are no children at all.
            pass
        if not seen:
            return []
        self._adopt()
        done = [process for process in self._settling if not process.orphans]
        if done:
            self._settling = [process for process in self._settling if process.orphans]
            for process in done:
                del self.by_token[process.token]
        return done

    def _reap_one(self, pid: int, status: int, usage: Any) -> None:
        process = self.by_pid.pop(pid, None)
        if process is None:
            owner = self.strays.pop(pid, None)
            if owner is not None:
                owner.orphans.discard(pid)
                self._gone[pid] = owner
            return
        process.end = time.time()
        process.status = os.waitstatus_to_exitcode(status)
        process.usage = (usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
        process.doomed = True
        for orphan in process.orphans:
            proctree.kill_below(orphan, 9)
        self._settling.append(process)

    def _adopt(self) -> None:
        """Find children that we did not start: what a task left behind, or let go while it runs."""
        pids = self._child_pids()
        if len(pids) == len(self.by_pid) + len(self.strays):
            return
        for pid in pids:
            if pid in self.by_pid or pid in self.strays:
                continue
            owner, known = self._owner(pid)
            self.strays[pid] = owner
            if owner is not None:
                owner.orphans.add(pid)
            if not known or (owner is not None and owner.doomed):
                proctree.kill_below(pid, 9)

    def _owner(self, pid: int) -> tuple[Process | None, bool]:
        """Return whose stray this is, and whether it may live (an unknown token is of something that ended)."""
        try:
            session = os.getsid(pid)
        except OSError:
            return None, True
        process = self.by_pid.get(session) or self._settling_of(session)
        if process is not None:
            return process, True
        token = proctree.variable_of(pid, TOKEN_VARIABLE)
        for _ in range(_EXEC_LOOKS):
            if token is not None:
                break
            if proctree.is_exiting(pid):
                # Its memory is gone and its name with it, but what is settling may be waiting for just this one.
                return (self._settling[0] if self._settling else None), True
            if proctree.token_hidden(pid):
                break
            # Between two programs it shows no environment; that takes microseconds.
            os.sched_yield()
            token = proctree.variable_of(pid, TOKEN_VARIABLE)
        if token is None:
            return None, True
        prefix, _, number = token.partition(":")
        if prefix == self.prefix:
            owner = self.by_token.get(int(number)) if number.isdigit() else None
            return owner, owner is not None
        return self._owner_of_other(prefix), False

    def _owner_of_other(self, prefix: str) -> Process | None:
        """Return whose is what a spawner below this one had started, which has ended: it is part of that tree."""
        number = prefix.partition("-")[0]
        pid = int(number) if number.isdigit() else 0
        return self._settling_of(pid) or self.strays.get(pid) or self._gone.get(pid)

    def _settling_of(self, pid: int) -> Process | None:
        for process in self._settling:
            if process.pid == pid:
                return process
        return None

    def _child_pids(self) -> list[int]:
        if self._children < 0:
            return [pid for pid, parent in proctree.parents() if parent == os.getpid()]
        text = os.pread(self._children, _CHUNK, 0)
        if len(text) > _CHUNK // 2:
            # The kernel gives a page or so at a time.
            position = len(text)
            while chunk := os.pread(self._children, _CHUNK, position):
                text += chunk
                position += len(chunk)
        return [int(pid) for pid in text.split()]

    def kill(self, token: int, number: int) -> None:
        """Send a signal to the whole tree of a process; nothing when it is gone."""
        process = self.by_token.get(token)
        if process is None:
            return
        if number == 9:
            process.doomed = True
        roots = list(process.orphans)
        grouped = False
        if process.status is None:
            roots.append(process.pid)
            # There is no such group yet while a process that was forked a moment ago has not begun to lead one.
            grouped = proctree.send_group(process.pid, number)
        for root in roots:
            for pid in (root, *proctree.descendants(root)):
                if not grouped or number == 9 or proctree.group_of(pid) != process.pid:
                    proctree.send(pid, number)
        if number == 15:
            # A stopped process would sleep through its SIGTERM.
            self.kill(token, 18)

    def abandon(self) -> None:
        """In a forked child: close what is the parent's."""
        if self._children >= 0:
            os.close(self._children)

    def end(self) -> None:
        """Kill everything below this process and wait until it is gone."""
        deadline = time.monotonic() + LAST_WAIT
        while pids := self._child_pids():
            for pid in pids:
                proctree.kill_below(pid, 9)
                proctree.send_group(pid, 9)
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        break
                except ChildProcessError:
                    break
            if time.monotonic() > deadline:
                return
            # A killed child takes microseconds to vanish; this is the last thing this process ever does.
            time.sleep(0.001)


class Spawner:
    """Serves one link."""

    def __init__(self, link: _socket.socket | None) -> None:
        """Become a subreaper; ``link`` is the socket to the daemon, None until there is one."""
        _become_subreaper()
        self.family = Family(f"{os.getpid()}-{time.time_ns():x}")
        self._prefix = self.family.prefix.encode()
        self.link = link
        self.running = True
        self._environments: dict[int, dict[bytes, bytes]] = {}
        self._replies: list[Record] = []
        self._patient = 0
        self._flush_at = 0.0
        self._blocked = False
        self._lanes: dict[int, list[Record]] = {}
        self._buffer = mmap.mmap(-1, packets.PACKET)
        self._affinity: tuple[int, ...] = ()
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._wake = _watch_children()
        self._poller = select.epoll()
        self._poller.register(self._wake[0], select.EPOLLIN)
        if link is not None:
            self._poller.register(link.fileno(), select.EPOLLIN)
        self.captures = capture.Captures(self._poller)

    def serve(self) -> None:
        """Work until told to quit or, without an agent to start again, until the link closes; leave nothing behind."""
        while self.running:
            wait = self.captures.wait()
            if self._patient:
                flush = max(0.0, self._flush_at - time.monotonic())
                wait = flush if wait < 0 else min(wait, flush)
            for fd, _event in self._poller.poll(wait):
                if fd == self._wake[0]:
                    os.read(fd, 4096)
                    for process in self.family.reap():
                        self.ended(process)
                elif not self.captures.on_readable(fd):
                    self._receive()
            self.captures.on_time()
            if len(self._replies) != self._patient or (self._patient and time.monotonic() >= self._flush_at):
                self._flush()
        self.family.end()

    def ended(self, process: Process) -> None:
        """Report a process that is gone, tree and all, and start what waits for its lane."""
        usage = process.usage
        self._replies.append((
            EXIT, process.token, process.pid, process.status, process.began, process.end,
            self.captures.end(*process.out) if process.out is not None else b"",
            self.captures.end(*process.err) if process.err is not None else b"",
            usage[0], usage[1], usage[2],
        ))  # fmt: skip
        if not process.lane:
            return
        waiting = self._lanes[process.lane]
        if not waiting:
            del self._lanes[process.lane]
            return
        self._start(waiting.pop(0), [])
        if waiting:
            # This lane does not run dry while its daemon sleeps on.
            if not self._patient:
                self._flush_at = time.monotonic() + GATHER
            self._patient += 1

    def link_closed(self) -> None:
        """React to the end of the other side."""
        self.running = False

    def hello(self, restarts: int) -> None:
        """Say first who we are and which processes run."""
        running = [
            (process.token, process.label, process.pid, process.began)
            for process in self.family.by_token.values()
            if process.token != AGENT
        ]
        self._replies.insert(0, (HELLO, os.getpid(), self.family.prefix, running, restarts))

    def _receive(self) -> None:
        """Take one packet: where there are more, polling returns at once."""
        if self.link is None:
            return
        try:
            packet, fds = packets.receive(self.link, self._buffer, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            # Broken; or a packet was lost, and with it what somebody waits for: the end of the link tells them.
            packet, fds = b"", []
        if not packet:
            self._close_link()
            self.link_closed()
            return
        try:
            records = marshal.loads(packet)  # from our own pair
        except (ValueError, EOFError, TypeError):
            records = []
        for record in records if type(records) is list else ():
            if type(record) is tuple and record:
                self.handle(record, fds)
        for fd in fds:
            os.close(fd)

    def _close_link(self) -> None:
        if self.link is not None:
            self._poller.unregister(self.link.fileno())
            self.link.close()
            self.link = None
            self._blocked = False
        # Who comes next numbers lanes anew, and nobody waits any more for what has not begun.
        self._lanes.clear()
        for process in self.family.by_token.values():
            process.lane = 0

    def handle(self, record: Record, fds: list[int]) -> None:
        """Do what one record asks; a malformed one is dropped."""
        kind = record[0]
        try:
            if kind == SPAWN:
                waiting = self._lanes.get(record[10]) if record[10] else None
                if waiting is not None:
                    waiting.append(record)
                else:
                    self._start(record, fds)
            elif kind == KILL:
                if record[2] == 9:
                    self._look((record[1],))
                self.family.kill(record[1], record[2])
                self._forget(record[1], record[2])
            elif kind == LOOK:
                self._look(record[1])
            elif kind == RECALL:
                self._give_back(record[1])
            elif kind == LOG:
                self.captures.open_log(record[1], record[2], record[3])
            elif kind == ENVIRONMENT:
                # Bytes, because posix_spawn would encode every variable again for every process.
                self._environments[record[1]] = {
                    os.fsencode(key): os.fsencode(value) for key, value in record[2].items()
                }
            elif kind == QUIT:
                self.running = False
        except (IndexError, KeyError, TypeError, ValueError):
            # A record that is not of this protocol is dropped; if it asked for a process, somebody waits for it.
            if kind == SPAWN and len(record) > 1:
                self._replies.append((FAIL, record[1], 22, "request", "malformed"))

    def _start(self, record: Record, fds: list[int]) -> None:
        """Start a process now. When that fails, what waits for its lane goes back first: the lane may be needed."""
        try:
            failure = self.spawn(record, fds)
        except (IndexError, KeyError, TypeError, ValueError):
            failure = (FAIL, record[1], 22, "request", "malformed")
        if failure is not None:
            self._give_back(record[10])
            self._lanes.pop(record[10], None)
            self._replies.append(failure)
        elif record[10]:
            self._lanes.setdefault(record[10], [])

    def _give_back(self, lane: int) -> None:
        """Tell which processes of a lane have not begun and never will."""
        if waiting := self._lanes.get(lane):
            self._replies.append((BACK, [record[1] for record in waiting]))
            waiting.clear()

    def _forget(self, token: int, number: int) -> None:
        """What is ended while it still waits for its lane never begins."""
        for waiting in self._lanes.values() if number in (9, 15) else ():
            for record in [record for record in waiting if record[1] == token]:
                waiting.remove(record)
                self._replies.append((FAIL, token, 3, "program", "it was ended before it began"))

    def _look(self, tokens: Any) -> None:
        """Tell which of these processes are not here: who asked for one that never arrived waits for it."""
        known = {record[1] for waiting in self._lanes.values() for record in waiting} | self.family.by_token.keys()
        self._replies.extend((FAIL, token, 3, LOST, "") for token in tokens if token not in known)

    def spawn(self, record: Record, fds: list[int]) -> Record | None:
        """Start ``(SPAWN, token, label, argv, environment, more, cwd, cpus, out, err, lane)``; returns why it failed.

        ``out`` and ``err`` are numbers of logs, or paths of files to write anew. Received descriptors become 3, 4, …
        """
        _, token, label, argv, environment, more, cwd, cpus, out, err, lane = record
        what, where = "program", argv[0]
        opened: list[int] = []
        process = Process(token, label, 0, 0.0)
        try:
            what, where = "directory", cwd
            os.chdir(cwd)
            if cpus and cpus != self._affinity:
                what, where = "affinity", str(cpus)
                os.sched_setaffinity(0, cpus)
                self._affinity = cpus
            what, where = "stdout", str(out)
            process.out = self._output(2 * out if type(out) is int else out, opened)
            what, where = "stderr", str(err)
            if type(err) is not str or err != out:
                process.err = self._output(2 * err + 1 if type(err) is int else err, opened)
            what, where = "program", argv[0]
            actions = [
                (os.POSIX_SPAWN_DUP2, self._null, 0),
                (os.POSIX_SPAWN_DUP2, opened[0], 1),
                (os.POSIX_SPAWN_DUP2, opened[-1], 2),
            ]
            actions.extend((os.POSIX_SPAWN_DUP2, fd, 3 + index) for index, fd in enumerate(fds))
            variables = self._environments[environment].copy()
            variables[b"PWD"] = os.fsencode(cwd)
            for key, value in more.items():
                variables[key.encode()] = os.fsencode(value)
            variables[_TOKEN_BYTES] = b"%s:%d" % (self._prefix, token)
            process.began = time.time()
            process.pid = os.posix_spawn(
                argv[0], argv, variables, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
            )
            process.lane = lane
            self.family.add(process)
        except OSError as error:
            for stream in (process.out, process.err):
                if stream is not None:
                    self.captures.end(*stream)
            return (FAIL, token, error.errno or 5, what, where)
        finally:
            for fd in opened:
                os.close(fd)
        return None

    def _output(self, target: int | str, opened: list[int]) -> tuple[int, capture.Capture] | None:
        if isinstance(target, str):
            opened.append(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666))
            return None
        taken, writing = self.captures.begin(target)
        opened.append(writing)
        return target, taken

    def _abandon(self) -> None:
        """In a forked child: close what is the parent's."""
        self.captures.abandon()
        self._poller.close()
        if self.link is not None:
            self.link.close()
            self.link = None
        os.close(self._wake[0])
        os.close(self._wake[1])
        os.close(self._null)
        self.family.abandon()

    def _flush(self) -> None:
        self._patient = 0
        while self._replies and self.link is not None:
            try:
                packets.send(self.link, marshal.dumps(self._replies[:_REPLIES_A_PACKET]))
            except OSError as error:
                # Its end is seen when we read; what could not be told is kept for the next agent. What cannot be told
                # at the moment, for lack of memory or descriptors, is tried again when it can be written.
                if error.errno not in packets.GONE:
                    self._poller.modify(self.link.fileno(), select.EPOLLIN | select.EPOLLOUT)
                    self._blocked = True
                return
            del self._replies[:_REPLIES_A_PACKET]
            if not self._replies and self._blocked:
                self._poller.modify(self.link.fileno(), select.EPOLLIN)
                self._blocked = False


class Root(Spawner):
    """The spawner at the root of a node: it starts the agent and ends with it."""

    def __init__(self, config: str, command: list[str]) -> None:
        """Prepare to run ``command``; ``config`` is only shown."""
        super().__init__(None)
        self.config = config
        self.exit_code = 0
        self._command = command
        self._starts: list[float] = []
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _signal.signal(_signal.SIGTERM, self._pass_on)

    def start_agent(self) -> None:
        """Start the agent with a new link; it first hears which processes run and which ended meanwhile."""
        ours, theirs = packets.socketpair()
        self._starts.append(time.monotonic())
        environment = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
        environment[LINK_VARIABLE] = "3"
        process = Process(AGENT, "agent", 0, time.time())
        process.pid = os.posix_spawn(
            self._command[0], self._command, environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, self._null, 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
            setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS,
        )  # fmt: skip
        theirs.close()
        self.family.add(process)
        self._close_link()
        self.link = ours
        self._poller.register(ours.fileno(), select.EPOLLIN)
        self.hello(len(self._starts) - 1)
        # At once: the agent reports for duty when it knows that nothing of an earlier one runs.
        self._flush()

    def ended(self, process: Process) -> None:
        """Report an end; start the agent again when it was the agent's and it was not meant."""
        if process.token != AGENT:
            super().ended(process)
            return
        if process.status == 0 or self.exit_code:
            self.running = False
            return
        now = time.monotonic()
        self._starts = [start for start in self._starts if now - start < RESTART_WINDOW]
        if len(self._starts) > RESTARTS:
            self.exit_code = 1
            self.running = False
            return
        # The dead agent cannot have cleaned its logs' numbers or environments: the next one says them anew.
        self.start_agent()

    def link_closed(self) -> None:
        """Wait for the agent's end, which decides."""

    def _pass_on(self, number: int, _frame: object) -> None:
        self.family.kill(AGENT, number)


def _open_children() -> int:
    """Return a descriptor of the kernel's list of our children; -1 where the kernel was built without it."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _become_subreaper() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _watch_children() -> tuple[int, int]:
    """Return a pipe whose first end becomes readable when a child ended."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.signal(_signal.SIGCHLD, _nothing)
    _signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading, writing


def _nothing(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor tells."""


def _run_root(config: str) -> int:
    import json

    with open(config, "rb") as file:  # no pathlib here
        settings = json.load(file)
    # That of the user's tasks: all that is started here has it, and the agent sets its own.
    os.umask(settings.get("umask", 0o022))
    # Nodes of one job may share a machine; a step of its own counts its nodes anew.
    node = os.environ.get(NODE_VARIABLE) or os.environ.get("SLURM_NODEID", "0")
    mark = settings.get("mark", "") + ("/" + node if settings.get("system") else "")
    if not settings.get("system"):
        # By which whoever comes after the hub that started it knows it again.
        path = os.path.join(os.path.dirname(config), ROOT)  # no pathlib here
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the tasks' umask is
            file.write(f"{os.getpid()} {proctree.started(os.getpid())}\n")
    if mark:
        os.environ[proctree.MARK_VARIABLE] = mark
        proctree.kill_marked(mark)
    command = settings.get("agent_command") or [sys.executable, "-m", "pilot_hitl_agent", config]
    root = Root(config, command)
    root.start_agent()
    root.serve()
    return root.exit_code


def main(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    if len(arguments) == 2 and arguments[0] == SERVE:
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        link = _socket.socket(fileno=int(arguments[1]))
        os.set_inheritable(link.fileno(), False)
        link.setblocking(False)
        spawner = Spawner(link)
        spawner.hello(0)
        spawner.serve()
        return 0
    if len(arguments) == 1:
        if not sys.flags.no_site:
            # Started with -m: begin anew without site, which saves the memory and the modules of site's .pth files.
            os.execv(sys.executable, [sys.executable, "-I", "-S", PROGRAM, *arguments])
        return _run_root(os.path.abspath(arguments[0]))
    sys.stderr.write("usage: spawner_main.py CONFIG.json | --serve FD\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
