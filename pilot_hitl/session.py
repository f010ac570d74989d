"""A session: one named study, durable, resumed by running the script again.

This module is light on purpose: the hub is started before the rest of the client is loaded, so that both load at the
same time.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypeVar, overload

from pilot_hitl import _hubprocess, errors
from pilot_hitl.model.ids import check_session_name
from pilot_hitl.wire.current import ATTEMPT_VARIABLE, SESSION_VARIABLE, current_attempt
from pilot_hitl.wire.places import HOME_VARIABLE
from pilot_hitl.wire.places import home as default_home

if TYPE_CHECKING:
    from typing import Self, Unpack

    from pilot_hitl._ask import CheckpointRequest
    from pilot_hitl._client import Client
    from pilot_hitl._maps import MapSequence
    from pilot_hitl._places import Place
    from pilot_hitl.branches import Scope
    from pilot_hitl.endpoints import Service
    from pilot_hitl.futures import TaskFuture, Waitable
    from pilot_hitl.gates import Checkpoint
    from pilot_hitl.model.descriptions import PilotDescription, TaskDescription
    from pilot_hitl.model.services import ServiceDescription
    from pilot_hitl.pilots import Pilot
    from pilot_hitl.wire.completed import Completed

    Unended = TaskFuture[Any] | MapSequence[Any]

P = ParamSpec("P")
R = TypeVar("R")
OnExit = Literal["stop", "drain", "detach"]
RUN_AGAIN = 75
"""Exit code of a script that ended because an answer is not there: EX_TEMPFAIL, run me again."""


class Session:
    """A named study: its pilots, tasks, checkpoints and their store. Safe to use from several threads.

    Opening starts this user's hub when none runs. Leaving the ``with`` block (or :meth:`close`, or the end of the
    script) writes everything, and then

    * ``on_exit="stop"`` ends its pilots; what has not ended is resumed when the script runs again, and one line on
      standard error says how much that is (:meth:`wait` waits for it first);
    * ``on_exit="drain"`` waits for everything that was submitted first;
    * ``on_exit="detach"`` leaves pilots running.

    When the same thread opens it again, as a cell of a notebook does that is run again, and it is not in a ``with``
    block, the earlier handle is closed as at the end of a script, and the session goes on with the new one.

    An exception or Ctrl-C leaves at once; running tasks are given back as unfinished, not failed. Ctrl-C leaves pilots
    on a batch system to the next run of the script, with what runs there.

    Attributes:
        name: of the session.
        on_exit: as given.
    """

    def __init__(  # noqa: PLR0913 - a study's options, all but the name by keyword
        self,
        name: str,
        *,
        on_exit: OnExit = "stop",
        fresh: bool = False,
        namespace: str = "",
        home: str | os.PathLike[str] | None = None,
        role: Literal["owner", "observer", "task"] = "owner",
        policy: str = "",
        on_interrupt: Literal["keep", "stop"] = "keep",
        retry_failed: bool = True,
        quiet: bool = False,
    ) -> None:
        """Open the session.

        Args:
            name: 1 to 64 letters, digits, ``.``, ``_``, ``-``.
            on_exit: what happens to pilots when the script ends.
            fresh: forget what the session held.
            namespace: of resume keys; two scripts with different namespaces can share a session.
            home: folder of all sessions; default ``$PILOT_HITL_HOME`` or ``~/.pilot-hitl``.
            role: ``"observer"`` only asks.
            policy: what idle cores do while people think: ``"score"`` (default of a new session), ``"fifo"``,
                ``"backfill"`` or ``"block"``; see :mod:`pilot_hitl.study.policies`. Empty leaves the one of
                an open session; a session that nobody had open starts with the default again.
            on_interrupt: what Ctrl-C does to pilots on a batch system, which may have waited long for their nodes:
                ``"keep"`` leaves them to the next run of the script, ``"stop"`` ends them. Local ones end.
            retry_failed: whether tasks that failed in an earlier run of the script run again. With False they fail
                again at once, with the same error; options and descriptions can say otherwise.
            quiet: do not say on standard error what is missing when something that is waited for does not move for ten
                seconds. Sessions inside tasks never say it: what a task writes is part of its output.

        Raises:
            SessionBusy: another live script has it open under this namespace, or this one in a ``with`` block or in
                another thread.
            HubUnreachable: the hub cannot be started.
            DescriptionError: an argument cannot be meant; the message names it.
        """
        _check("name", name)
        try:
            self.name = check_session_name(name)
        except ValueError as error:
            raise errors.DescriptionError(str(error)) from error
        self.on_exit: OnExit = on_exit
        self._ends_batch = on_interrupt == "stop"
        _check("on_exit", on_exit, "stop", "drain", "detach")
        _check("on_interrupt", on_interrupt, "keep", "stop")
        _check("role", role, "owner", "observer", "task")
        _check("policy", policy)
        _check("namespace", namespace)
        for what, given in (("fresh", fresh), ("retry_failed", retry_failed), ("quiet", quiet)):
            if not isinstance(given, bool):
                raise errors.DescriptionError(f"{what}: {given!r} is neither True nor False")
        _check_policy(policy)
        if home is not None and not isinstance(os.fspath(home) if isinstance(home, os.PathLike) else home, str):
            raise errors.DescriptionError(f"home: {home!r:.200} is no path")
        place = default_home() if home is None else Path(home).expanduser().absolute()
        self._key = (place, name, namespace)
        if role == "owner":
            _close_earlier(self._key)
        process = _hubprocess.find_or_start(place)
        # Loaded here, while the hub is starting.
        from pilot_hitl._client import Client
        from pilot_hitl.branches import Scope
        from pilot_hitl.model.descriptions import CallOptions
        from pilot_hitl.wire.messages import Hello

        hello = Hello(session=name, namespace=namespace, role=role, fresh=fresh, on_exit=on_exit, policy=policy)
        self._pid = os.getpid()
        self._home = place
        self._role = role
        self._exit_code = 0
        self._leaving = threading.Lock()
        self._client: Client = Client(place, process, hello, quiet=quiet)
        self._client.retry_failed = retry_failed
        self._client.open()
        self._entered = False
        self._thread = threading.current_thread()
        if role == "owner":
            self._client.leave = self._leave_until_answered
            _opened[self._key] = self
        self._scope: Scope = Scope(self._client, CallOptions(), frozenset())
        atexit.register(self._at_exit)

    # --- leaving ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; at once when the block was left by an exception."""
        self._entered = False
        if kind is None:
            self.close()
            if self._exit_code:  # a body ended the session; the script has to say so
                raise SystemExit(self._exit_code)
            return
        if self._exit_code and issubclass(kind, errors.SessionClosed):
            raise SystemExit(self._exit_code) from None  # as above; this thread was waiting when it happened
        on_exit: OnExit | Literal["keep"] = "stop" if self.on_exit == "drain" else self.on_exit
        if on_exit == "stop" and issubclass(kind, KeyboardInterrupt) and not self._ends_batch:
            on_exit = "keep"
        with suppress(errors.PilotHitlError):  # the script's own error says more
            self._leave(on_exit, f"the script was left by {kind.__name__}", wait=False)

    def close(self, on_exit: OnExit | None = None) -> None:
        """Write everything and leave; harmless when it is closed already.

        After return everything submitted is on disk, and with ``"stop"`` nothing of ours runs any more. Bodies of
        branches that were chosen return first; all others end.

        Raises:
            HubUnreachable: the hub is gone and could not be started again, so the last submits may be lost.
        """
        self._leave(on_exit or self.on_exit, "", wait=True)

    def _leave(self, on_exit: OnExit | Literal["keep"], reason: str, *, wait: bool) -> None:
        atexit.unregister(self._at_exit)
        if _opened.get(self._key) is self:
            del _opened[self._key]
        if self._client.closed is not None:
            return
        written = self._client.close(on_exit, reason, wait=wait)
        self._tell_left(on_exit)
        if not written and wait:
            raise errors.HubUnreachable(
                f"session {self.name!r}: the hub did not confirm that everything is on disk; run the script again"
            )

    def _tell_left(self, on_exit: str) -> None:
        """Say on standard error, in a line each, what was taken over of earlier runs and what had not ended, if any."""
        if self._role != "owner":
            return
        for line in (self._client.taken.describe(self.name), self._client.left.describe(self.name, on_exit)):
            if line:
                with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                    sys.stderr.write(f"{line}\n")

    def _leave_until_answered(self, checkpoint: Checkpoint) -> NoReturn:
        """End the script because somebody has to answer first: write everything, leave, say how to go on."""
        with self._leaving:
            first = not self._exit_code
            self._exit_code = RUN_AGAIN
        if first:
            answers = checkpoint.describe_answers()
            self.flush()
            atexit.unregister(self._at_exit)
            self._client.close(self.on_exit, f"the script waits for an answer to {checkpoint.id}", decided=True)
            if taken := self._client.taken.describe(self.name):
                sys.stderr.write(f"{taken}\n")
            command = "pilot-hitl"
            if self._home != default_home():
                command = f"{HOME_VARIABLE}={shlex.quote(str(self._home))} {command}"
            sys.stderr.write(
                f"Checkpoint {checkpoint.name!r} waits for an answer. This script ends with exit code {RUN_AGAIN}; run "
                f"it again once somebody has answered.\n"
                f"  answer:  {command} inbox answer {checkpoint.id} VALUE    ({answers})\n"
                f"  go on:   {command} session resume {self.name}\n"
            )
        raise SystemExit(RUN_AGAIN)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:
            self._leave(self.on_exit, "the script ended", wait=True)

    # --- pilots and tasks ---------------------------------------------------------------------------------------

    @overload
    def submit_pilot(self, description: PilotDescription) -> Pilot: ...
    @overload
    def submit_pilot(self, description: Iterable[PilotDescription]) -> list[Pilot]: ...
    def submit_pilot(self, description: PilotDescription | Iterable[PilotDescription]) -> Pilot | list[Pilot]:
        """Ask for a pilot, or for many; returns at once, and tasks can be submitted before they are up.

        Raises:
            DescriptionError: the description cannot be meant.
            SessionClosed, HubUnreachable: the session ended.
        """
        from pilot_hitl._templates import checked_pilots

        pilots = self._client.submit_pilots(checked_pilots(description))
        return pilots if isinstance(description, Iterable) else pilots[0]

    def submit_pilots(self, descriptions: Iterable[PilotDescription]) -> list[Pilot]:
        """Ask for pilots; on a batch system those that are described alike become one job array.

        Raises:
            DescriptionError: a description cannot be meant; none of them is submitted.
            SessionClosed, HubUnreachable: the session ended.
        """
        from pilot_hitl._templates import checked_pilots

        wanted = checked_pilots(descriptions)
        return self._client.submit_pilots(wanted)

    def start_service(self, description: ServiceDescription) -> Service:
        """Start a service; returns at once, and requests can be sent before a replica is ready.

        A service that runs under this name and is described alike is returned as it is, also on a re-run of the script.
        It ends with :meth:`Service.stop`, or with the session's local pilots.

        Raises:
            DescriptionError: the description cannot be meant.
            PayloadError: the handler or its ``kwargs`` cannot be pickled.
            SessionClosed, HubUnreachable: the session ended.
        """
        return self._client.services.start(description)

    def service(self, name: str) -> Service:
        """Return a service of this session, whoever started it.

        Raises:
            UnknownService: there is none of this name.
        """
        return self._client.services.find(name)

    @overload
    def submit(self, tasks: TaskDescription, *, after: Waitable | Iterable[Waitable] = ()) -> TaskFuture[Completed]: ...
    @overload
    def submit(
        self, tasks: Iterable[TaskDescription], *, after: Waitable | Iterable[Waitable] = ()
    ) -> list[TaskFuture[Completed]]: ...
    def submit(
        self, tasks: TaskDescription | Iterable[TaskDescription], *, after: Waitable | Iterable[Waitable] = ()
    ) -> TaskFuture[Completed] | list[TaskFuture[Completed]]:
        """Submit an executable, or many as one bulk, to start ``after`` futures; see :meth:`Submitter.submit`."""
        return self._scope.submit(tasks, after=after)

    def call(self, function: Callable[P, R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Run a function on the pilot; all keywords are its own; see :meth:`Submitter.call`."""
        return self._scope.call(function, *args, **kwargs)

    def map(self, function: Callable[..., R], /, *iterables: Iterable[Any]) -> MapSequence[R]:
        """Run a function for each element; returns a lazy sequence of futures; see :meth:`Submitter.map`."""
        return self._scope.map(function, *iterables)

    def options(self, **options: Any) -> Scope:
        """Return a handle whose calls have these options; see :class:`CallOptions`, and ``cores, gpus, memory``."""
        return self._scope.options(**options)

    def checkpoint(self, name: str, **request: Unpack[CheckpointRequest]) -> Checkpoint:
        """Ask people; returns at once; see :class:`CheckpointRequest` and :meth:`Scope.checkpoint`."""
        return self._scope.checkpoint(name, **request)

    def cancel(self, *futures: TaskFuture[Any] | MapSequence[Any]) -> None:
        """Ask for the end of tasks, whether they run or not."""
        for future in futures:
            future.cancel()

    def task_place(self) -> Place | None:
        """Return what the running task is to this session, None outside of a task and for other sessions."""
        return self._client.task_place() if self._client.in_task else None

    def wait(self, timeout: float | None = None) -> tuple[set[Unended], set[Unended]]:
        """Wait until every task that this script submitted has ended; return ``(done, not_done)`` as :func:`wait` does.

        Also those count whose futures nobody kept. Tasks in branches that nobody has decided yet are not waited for:
        they stay in ``not_done``, which is empty otherwise, unless ``timeout`` seconds passed. What became of a task is
        not raised: ask its future. A map stands for all of its tasks.

        Args:
            timeout: seconds; default any.

        Returns:
            What had not ended before and has now, and what has not.

        Raises:
            PilotFailed: no pilot is left that could do what has not ended.
            Undecided: in a ``with`` block of a branch, which only declares.
            SessionClosed: the session ended meanwhile.
        """
        from pilot_hitl import _leaving

        return _leaving.wait(self._client, timeout)

    # --- looking ------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything submitted is on disk: it survives whatever happens from here.

        Raises:
            TimeoutError: not within ``timeout`` seconds.
        """
        self._client.flush(timeout)

    def explain(self, task: TaskFuture[Any] | str) -> str:
        """Return in words what a task (a future, or a name such as ``task.1.000017``) waits for.

        Raises:
            DescriptionError: the text is no task's name.
        """
        if not isinstance(task, str):
            return task.explain()
        from pilot_hitl.model.ids import parse_task

        try:
            return self._client.explain(parse_task(task))
        except ValueError as error:
            raise errors.DescriptionError(str(error)) from error

    def explain_reuse(self, task: TaskFuture[Any] | str) -> str:
        """Return in words why a task (a future, or a name) took over a result of an earlier run, or why it did not.

        Raises:
            DescriptionError: the text is no task's name.
            SessionError: the session has no such task.
        """
        from pilot_hitl import _reuse
        from pilot_hitl.model.ids import parse_task

        try:
            number = parse_task(task if isinstance(task, str) else task.task)
        except ValueError as error:
            raise errors.DescriptionError(str(error)) from error
        return _reuse.why(self._client, number)

    def query(self, what: str, **arguments: Any) -> Any:
        """Ask the hub about something (``session``, ``tasks``, ``pilots``, ``inbox``, …); return JSON, decoded.

        Raises:
            SessionError: the hub does not know it.
        """
        return self._client.query(what, {"session": self.name, **arguments})

    @property
    def folder(self) -> Path:
        """Where the session's files are."""
        return self._client.folder

    @property
    def resumed(self) -> int:
        """How many ended tasks of earlier runs the session held when it was opened."""
        return self._client.resumed

    @property
    def reused(self) -> int:
        """How many results of earlier runs this run of the script took over so far."""
        return self._client.reused

    @property
    def incarnation(self) -> int:
        """Which client of the session this is, counted from 1."""
        return self._client.incarnation

    @property
    def closed(self) -> bool:
        """Whether it was closed, here or by the hub."""
        return self._client.closed is not None

    def __repr__(self) -> str:
        return f"<Session {self.name!r} {'closed' if self.closed else 'open'}>"


def _check(what: str, given: object, *allowed: str) -> None:
    """Check an argument that is a text, of these if any are named; nothing is loaded for that: the hub is to start."""
    if not isinstance(given, str) or not given.isprintable() or (allowed and given not in allowed):
        wanted = f"none of {', '.join(allowed)}" if allowed else "not a text of one line"
        raise errors.DescriptionError(f"{what}: {given!r:.200} is {wanted}")


def _check_policy(name: str) -> None:
    if not name:
        return
    from pilot_hitl.study.policies import POLICIES

    if name not in POLICIES:
        raise errors.DescriptionError(f"policy: {name!r} is none of {', '.join(POLICIES)}")


_opened: dict[tuple[Path, str, str], Session] = {}
"""The sessions that this process has open as their owner, by home, name and namespace."""


def _close_earlier(key: tuple[Path, str, str]) -> None:
    """Close the handle that this thread opened before, unless it is in use in a ``with`` block."""
    earlier = _opened.get(key)
    if earlier is None or earlier._entered or earlier._pid != os.getpid():
        return
    if earlier._thread is threading.current_thread() or not earlier._thread.is_alive():
        on_exit: OnExit = "stop" if earlier.on_exit == "drain" else earlier.on_exit
        earlier._leave(on_exit, "it was opened again in the same process", wait=False)


_current: Session | None = None
_opening = threading.Lock()


def current_session() -> Session:
    """Return the session that the running task belongs to; opened at the first call in a process.

    What is submitted and asked through it belongs to the task that does it: it assumes what the task assumes, has
    keys that follow from the task's, and waiting for it lends the task's cores.

    Raises:
        SessionError: this code does not run inside a task.
    """
    global _current  # noqa: PLW0603 - a process has one
    with _opening:
        attempt = current_attempt()
        if _current is not None and attempt is not None and _current._client.served_before(attempt):
            _current.close()
        if _current is None or _current.closed:
            name = os.environ.get(SESSION_VARIABLE)
            if not name or attempt is None:
                raise errors.SessionError(
                    "this code does not run inside a task: open a Session instead (inside one, "
                    f"{SESSION_VARIABLE} and {ATTEMPT_VARIABLE} say which)"
                )
            _current = Session(name, on_exit="detach", home=os.environ.get(HOME_VARIABLE), role="task")
        return _current


def checkpoint(name: str, **request: Unpack[CheckpointRequest]) -> Checkpoint:
    """Ask people from inside a running task; see :meth:`Session.checkpoint`."""
    return current_session().checkpoint(name, **request)


def service(name: str) -> Service:
    """Return a service from inside a running task; see :meth:`Session.service`."""
    return current_session().service(name)
