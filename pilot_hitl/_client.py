"""The client of one session: what the public face is a face of.

It knows everything that is in flight (tasks, maps, pilots, checkpoints, questions to the hub), gives ids, and resolves
what the hub tells. Methods may be called from any thread; what is named ``_on_…`` runs in the link's I/O thread.
"""

from __future__ import annotations

import _socket
import itertools
import json
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet, WeakValueDictionary

from pilot_hitl import _results, _reuse, _silence, _templates, _waiting, errors
from pilot_hitl._conditions import Conditions
from pilot_hitl._functions import FunctionPacker, interpreter_flags
from pilot_hitl._held import HeldValues, merged
from pilot_hitl._hubprocess import socket_path
from pilot_hitl._keys import KeyMaker
from pilot_hitl._leaving import Left, left, want_left
from pilot_hitl._lending import Lender
from pilot_hitl._link import Link, error_named
from pilot_hitl._maps import MapSequence
from pilot_hitl._outbox import Kind, Marks
from pilot_hitl._places import Ground, Place
from pilot_hitl._silence import Silence, Wanted
from pilot_hitl._staging import Declarations, Staging
from pilot_hitl._waiting import PilotsLeft
from pilot_hitl.bodies import Bodies
from pilot_hitl.futures import Canceled, Ended, Origin, TaskFuture, explain_inherited
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import make_id, task_name
from pilot_hitl.model.reuse import Tally
from pilot_hitl.model.states import State, Truth
from pilot_hitl.pilots import Pilot
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.current import CurrentAttempt, current_attempt
from pilot_hitl.wire.keys import Keyring, keyring
from pilot_hitl.wire.modes import own_umask
from pilot_hitl.wire.places import hub_address
from pilot_hitl.wire.processes import start_time

if TYPE_CHECKING:
    from pilot_hitl._hubprocess import HubProcess, RemoteHub
    from pilot_hitl.endpoints import Services
    from pilot_hitl.gates import Checkpoint

_alive: WeakSet[Client] = WeakSet()
LEAVE_TIMEOUT = 60.0
"""Seconds that leaving may take, unless it drains."""
NOT_SENT = "it was not submitted"
"""How the failures of tasks begin that the hub never heard of."""


class Client:
    """One session's client.

    Attributes:
        name, namespace, folder, incarnation, resumed: of the session.
        reused: how many results of earlier runs came.
        blobs: its folder of large values.
        keys: makes resume keys of the script's own work.
        ground: the script's own work.
        packer: packs functions.
        conditions, held, declared, bodies: what they are about.
        checkpoints: by handle; ``questions`` guards them all, and is notified when one of them changes.
        pilots, others: those that this script submitted, and by number those of the session that it did not.
        in_task: whether this is a session of code inside tasks.
        left, taken: how many tasks had not ended when it was closed, and what was taken over of earlier runs.
        leave: closes the session with the exit code of a script that is to be run again.
        retry_failed: whether what failed in an earlier run runs again.
    """

    def __init__(self, home: Path, process: HubProcess | RemoteHub, hello: m.Hello, *, quiet: bool = False) -> None:
        """Prepare; :meth:`open` connects to the hub that ``process`` is or becomes; ``quiet``: tell of no waits."""
        self.name = hello.session
        self.namespace = hello.namespace
        self.folder = home / "sessions" / hello.session
        self.incarnation = 0
        self.resumed = self.reused = 0
        self.blobs = BlobStore(self.folder / "blobs")
        self.keys = KeyMaker(hello.namespace, _key_of, self.folder)
        self.ground = Ground(lambda: self.keys)
        self.packer = FunctionPacker(self.blobs, self.keys)
        self.policy = hello.policy
        self.in_task = hello.role == "task"
        self.retry_failed = True
        self.leave: Callable[[Checkpoint], NoReturn] | None = None
        self.checkpoints: dict[int, Checkpoint] = {}
        self.questions = threading.Condition()
        self.pilots: list[Pilot] = []
        self.others: dict[int, m.PilotUpdate] = {}
        self.left = Left(0, 0)
        self.taken = Tally()
        self.silence = Silence(self._standstill, quiet=quiet, report=self._tell_waits if self.in_task else None)
        self.pilots_left = PilotsLeft(self.flush, self.silence)
        self.closed: BaseException | None = None
        self._greeting = hello
        self._link = Link(home, process, self._hello, self._on_messages, self._on_broken)
        self._outbox = self._link.outbox
        self._next = 1
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)
        # Order of locks: making, outbox, running.
        self._making = threading.Lock()  # guards what is made once: templates and questions
        self._running = threading.Lock()  # guards the runs of maps
        self._templates: dict[bytes, int] = {}
        self.conditions = Conditions(self, self.new_handle)
        self.held = HeldValues(self)
        self.declared = Declarations(self)
        self.bodies = Bodies(self)
        self._task: tuple[CurrentAttempt, Place] | None = None
        self._served: dict[int, CurrentAttempt] = {}
        self._futures: dict[int, TaskFuture[Any]] = {}
        # First ids, and which map and index each begins. One pair, so that a reader without the lock sees both alike.
        self._runs: tuple[list[int], list[tuple[MapSequence[Any], int]]] = ([], [])
        self._roots: WeakValueDictionary[int, TaskFuture[Any]] = WeakValueDictionary()
        self._requests: dict[int, tuple[Future[Any], m.Message]] = {}
        self._idle = threading.Condition()
        self._callbacks: SimpleQueue[Callable[[], None] | None] | None = None
        self._welcomed_before = False
        self._unwritten = ""
        self._home = home
        self._services: Services | None = None
        self._handlers: dict[type[m.Message], Callable[[Any], None]] = {
            m.Outcomes: lambda x: self.take_outcomes(x.outcomes),
            m.HeldOutcomes: self._on_held,
            m.Flushed: lambda x: self._answer(x.token, None),
            m.Reply: lambda x: self._answer(x.token, x.body),
            m.Refused: self._on_refused,
            m.PilotUpdate: self._on_pilot,
            m.CheckpointUpdate: self._on_checkpoint,
            m.Welcome: self._on_welcome,
            m.Unwritten: self._on_unwritten,
            sv.ServiceUpdate: self._on_service,
        }
        _alive.add(self)

    # --- opening and closing ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect.

        Raises:
            HubUnreachable, SessionBusy, SessionError: see :meth:`Link.open`.
        """
        welcome = self._link.open()
        self.incarnation, self.resumed = welcome.incarnation, welcome.resumed
        self.folder = Path(welcome.folder)

    def close(self, on_exit: str, reason: str = "", *, wait: bool = True, decided: bool = False) -> bool:
        """Write everything, say goodbye, and resolve what is left; return whether everything is on the hub's disk.

        ``wait=False``: leave at once, because the script was interrupted or failed. ``decided``: leave without what
        waits for an answer.
        """
        if self.closed is not None:
            return True
        flushed: Future[Any] = Future()
        try:
            if wait and decided:
                # Bodies may wait for people as well; the script is run again, and finds what they did.
                if on_exit == "drain":
                    self.drain(decided=True)
            elif wait:
                self._finish(drain=on_exit == "drain")
            self.left = left(self)
            self.taken = _reuse.tally(self, wait=wait)
            token = next(self._tokens)
            flush = m.Flush(token)
            self._requests[token] = (flushed, flush)
            patience = None if on_exit == "drain" and wait else LEAVE_TIMEOUT
            self._link.leave([flush, m.Bye(on_exit, reason)], patience)
        finally:
            self._link.stop()
            self._end(errors.SessionClosed(f"session {self.name!r} was closed; run the script again to resume it"))
        return flushed.done() and flushed.exception() is None

    def _finish(self, *, drain: bool) -> None:
        """Let the bodies of real branches return, and with ``drain`` all tasks end: either may make more of both."""
        self.bodies.join()
        while drain:
            self.drain()
            if not self.bodies.join():
                return

    def drain(self, *, decided: bool = False) -> None:
        """Wait until every task that was submitted ended; with ``decided``, only those that assume no open answer.

        Raises:
            PilotFailed: no pilot is left that could do what has not ended.
            The error that ended the session meanwhile.
        """
        count = self.pending_decided if decided else lambda: self.pending
        want = partial(want_left, self, decided=decided)
        self.pilots_left.wait(None, self._idle, lambda: self.closed is not None or not count(), None, want)
        if self.closed is not None:
            raise errors.fresh(self.closed)

    def pending_decided(self) -> int:
        """How many tasks have not ended although nobody's answer is missing."""
        truth = self.conditions.truth
        with self._running:
            sequences = list({id(sequence): sequence for sequence, _ in self._runs[1]}.values())
        alone = sum(1 for future in list(self._futures.values()) if truth(future.condition) is not Truth.UNDECIDED)
        return alone + sum(each.pending_where(lambda terms: truth(terms) is not Truth.UNDECIDED) for each in sequences)

    @property
    def pending(self) -> int:
        """How many tasks have not ended."""
        with self._running:
            runs = {id(sequence): sequence for sequence, _ in self._runs[1]}
        return len(self._futures) + sum(sequence.pending for sequence in runs.values())

    # --- tasks --------------------------------------------------------------------------------------------------

    def submit(
        self, kind: Kind, origin: Origin, body: bytes, key: bytes, note: bytes = b"", staging: Staging | None = None
    ) -> TaskFuture[Any]:
        """Submit one task, or keep it with what a block declares; what is known to be unwanted ends here."""
        if origin.terms and self.conditions.truth(origin.terms) is Truth.FALSE:
            return self._never(origin, key)
        future: TaskFuture[Any]

        def register(_count: int) -> int:
            nonlocal future
            number = self.incarnation << 32 | self._next
            self._next += 1
            future = self._futures[number] = TaskFuture(self, number, key, origin)
            return number

        self._outbox.submit(kind, register, [body], Marks([key] if key else [], [note] if note else []), staging)
        return future  # register was called, or submit raised

    def submit_bulk(
        self,
        kind: Kind,
        origin: Origin,
        bodies: list[bytes],
        marks: Marks,
        sequence: MapSequence[Any],
        staging: Staging | None = None,
    ) -> None:
        """Submit some tasks of a map as :meth:`submit` does."""
        if origin.terms and self.conditions.truth(origin.terms) is Truth.FALSE:
            self._never_bulk(origin, len(bodies), marks.keys, sequence)
            return

        def register(count: int) -> int:
            number = self.incarnation << 32 | self._next
            self._next += count
            with self._running:
                start = len(sequence)
                if sequence.extend(number, marks.keys, count, origin):
                    self._runs[0].append(number)
                    self._runs[1].append((sequence, start))
            return number

        self._outbox.submit(kind, register, bodies, marks, staging)

    def _never(self, origin: Origin, key: bytes) -> TaskFuture[Any]:
        """Return the future of a task of a branch that was not chosen: it is not submitted."""
        number = self._outbox.number(1, self._take_numbers)
        future: TaskFuture[Any] = TaskFuture(self, number, key, origin)
        future.end(self._unwanted(number, origin))
        return future

    def _never_bulk(self, origin: Origin, count: int, keys: list[bytes], sequence: MapSequence[Any]) -> None:
        number = self._outbox.number(count, self._take_numbers)
        with self._running:
            start = len(sequence)
            # A run of its own, also where ids and origin follow those before: those are known to the hub.
            sequence.extend(number, keys, count, Origin(origin.name, terms=origin.terms, deps=origin.deps))
        ends: list[Ended] = [self._unwanted(number + at, origin) for at in range(count)]
        for callback in sequence.end_unsent(start, ends):
            self.call_back(callback)

    def _take_numbers(self, count: int) -> int:
        number = self.incarnation << 32 | self._next
        self._next += count
        return number

    def _unwanted(self, task: int, origin: Origin) -> m.Outcome:
        why = self.conditions.why_false(origin.terms)
        return m.Outcome(task, State.DISCARDED, failure=Failure(Cause.DISCARDED, f"{NOT_SENT}: {why}"))

    def close_block(self, staging: Staging, *, drop: bool = False) -> bool:
        """Send, or drop, what a block declared; see :meth:`Outbox.close`."""
        return self._outbox.close(staging, drop=drop)

    def staged(self, task: int) -> bool:
        """Return whether a task is declared in a block that has not ended."""
        return self.declared.staged(task)

    def check_declared(self, tasks: Iterable[int], staging: Staging | None) -> None:
        """Check that tasks can be depended on; raises Undecided, see :meth:`Declarations.check`."""
        self.declared.check(tasks, staging)

    def grown(self, sequence: MapSequence[Any]) -> None:
        """Take note that nothing more is added to a map."""
        sequence.growing = False
        if not sequence.pending:
            self._forget_runs()

    def template(self, blob: bytes) -> int:
        """Return the id of a template, made known when it is new."""
        with self._making:
            known = self._templates.get(blob)
            if known is None:
                known = make_id(self.incarnation, next(self._numbers))
                self._outbox.put(m.PutTemplate(known, blob))
                self._templates[blob] = known
        return known

    def condition(self, terms: frozenset[Term], staging: Staging | None = None) -> int:
        """Return the id of a condition; see :meth:`Conditions.number`."""
        return self.conditions.number(terms, staging)

    def truth(self, terms: frozenset[Term]) -> Truth:
        """Return whether terms hold, as far as this client has heard."""
        return self.conditions.truth(terms)

    def describe(self, terms: frozenset[Term]) -> str:
        """Name the checkpoints of terms that are undecided."""
        return self.conditions.describe(terms, Truth.UNDECIDED)

    def task_place(self) -> Place | None:
        """Return the place that the running task is, None between two tasks. See :mod:`pilot_hitl._places`."""
        attempt = current_attempt()
        if attempt is None:
            return None
        known = self._task
        if known is None or known[0] != attempt:
            ground = Ground(lambda: self._keys_of(attempt), parent=attempt.task)
            place = Place(self, ground, lender=Lender(self, attempt), values=frozenset())
            known = self._task = (attempt, place)
            self._served[attempt.task] = attempt
        return known[1]

    def served_before(self, attempt: CurrentAttempt) -> bool:
        """Return whether an earlier attempt of the same task used this client.

        What it computed is found by key only by another client: within one, equal calls are different tasks.
        """
        return self._served.get(attempt.task, attempt) != attempt

    def _keys_of(self, attempt: CurrentAttempt) -> KeyMaker:
        """Return what makes the keys of a task's own work: they follow from the task's key, which outlives its id."""
        key = self.query("key", {"session": self.name, "task": attempt.name})["key"]
        return KeyMaker(f"task {key or attempt.name}", _key_of, self.folder)

    def new_keys(self, namespace: str) -> KeyMaker:
        """Return what makes the keys of work that has a name of its own."""
        return KeyMaker(namespace, _key_of, self.folder)

    def cancel(
        self, runs: list[tuple[int, int]], reason: str = "canceled by the script", staging: Staging | None = None
    ) -> None:
        """Ask for the end of these tasks; in a block, at its end, after they were submitted."""
        self.put(m.Cancel(runs, reason), staging)

    def future_of(self, value: object) -> TaskFuture[Any] | None:
        """Return the value when it is a future of this session, None when it is no future.

        Raises:
            PayloadError: it is a future that cannot be an argument.
        """
        if isinstance(value, TaskFuture):
            if value._client is not self:  # a future belongs to its client
                raise errors.PayloadError(f"{value!r} belongs to another session: pass its result() instead")
            return value
        if isinstance(value, Future):
            raise errors.PayloadError(f"{value!r} is no task's future: pass its result() instead")
        return None

    def look_into(self, task: int, ended: Ended, origin: Origin) -> tuple[Any, BaseException | None]:
        """Return ``(value, None)`` or ``(None, error)`` for how a task ended."""
        if isinstance(ended, bytes):
            try:
                return _results.value_of(ended, origin.executable, self.blobs), None
            except KeyboardInterrupt:  # the person's own
                raise
            except BaseException as error:  # boundary: unpickling runs anybody's code
                return None, _results.payload_error(task, error)
        if isinstance(ended, BaseException):
            return None, errors.fresh(ended)  # many tasks may have ended with this one
        made = _results.error_of(ended, origin, self.blobs)
        if isinstance(made, errors.TaskCanceled):
            canceled = Canceled(*made.args)
            canceled.__dict__.update(made.__dict__)
            return None, canceled
        sent = ended.failure is None or not ended.failure.message.startswith(NOT_SENT)
        if isinstance(made, errors.Discarded) and sent and self.truth(origin.terms) is Truth.FALSE:
            # The hub knows the answer, this client also what it means.
            made.args = (f"it does not count: {self.conditions.why_false(origin.terms)}",)
        if isinstance(made, errors.DependencyFailed) and ended.failure is not None:
            explain_inherited(made, origin, ended.failure.root, self._roots)
        return None, made

    @property
    def services(self) -> Services:
        """The services that this client uses; loaded when one is."""
        if self._services is None:
            from pilot_hitl.endpoints import Services

            with self._making:
                self._services = self._services or Services(self)
        return self._services

    def keyring(self) -> Keyring:
        """Return the home's keys."""
        return keyring(self._home)

    def hub_endpoint(self) -> str:
        """Return where the hub is reached from here."""
        address = hub_address(self._home)
        if address is None:
            return f"ipc://{socket_path(self._home)}"
        return address.ipc if address.host == _socket.gethostname() else address.tcp

    # --- pilots, people, questions ------------------------------------------------------------------------------

    def submit_pilots(self, descriptions: Sequence[PilotDescription]) -> list[Pilot]:
        """Ask for pilots, all at once.

        Raises:
            DescriptionError: this script's working directory has a name that is no UTF-8.
        """
        environment, here, path = _templates.surroundings()
        pilots = [Pilot(self, next(self._tokens), description) for description in descriptions]
        mine = (environment, here, path, interpreter_flags(), own_umask())
        messages = [m.SubmitPilot(pilot.token, pilot.description, *mine) for pilot in pilots]
        self.pilots += pilots  # before the hub can say anything of them
        self.pilots_left.found()
        try:
            self._outbox.put_together(messages)
        except errors.DescriptionError:
            self.pilots = [each for each in self.pilots if each not in pilots]
            raise
        return pilots

    def cancel_pilot(self, number: int, reason: str) -> None:
        """End a pilot; its unfinished tasks stay, for another one to do."""
        self._outbox.put(m.CancelPilot(number, reason or "canceled by the script"))

    def new_handle(self) -> int:
        """Return an id for a checkpoint."""
        return make_id(self.incarnation, next(self._numbers))

    def ask(self, checkpoint: Checkpoint, ask: m.Ask, ground: Ground, staging: Staging | None) -> Checkpoint:
        """Ask people; return the checkpoint, or the one that asks the same already.

        Raises:
            CheckpointExists: this script, or this attempt of a task, asked something else under this key before.
        """
        with self._making:
            if (before := ground.asked.get(ask.key)) is not None:
                if before.asks == checkpoint.asks:
                    return before
                raise errors.CheckpointExists(
                    f"checkpoint {ask.name!r} was asked before in this {'task' if ground.parent else 'script'}, with "
                    "another question, form or show: give each its own name, or iteration=n"
                )
            self.checkpoints[ask.handle] = checkpoint
            self.put(ask, staging)
            if staging is not None:
                staging.checkpoints[ask.handle] = checkpoint
            ground.asked[ask.key] = checkpoint
        return checkpoint

    def unask(self, checkpoint: Checkpoint, error: BaseException) -> None:
        """Take a question back that was never sent; its name is free again."""
        checkpoint.forget_name()
        self.call_back(checkpoint.fail(error))
        self.bodies.look()

    def new_token(self) -> int:
        """Return a token for a message whose answer nobody waits for."""
        return next(self._tokens)

    def tell(self, message: m.Message) -> None:
        """Send a message that has no answer."""
        self._outbox.put(message)

    def put(self, message: m.Message, staging: Staging | None) -> None:
        """Send a message, or keep it with what a block declares."""
        self._outbox.put(message, staging)

    def request(self, make: Callable[[int], m.Message], timeout: float | None = 60.0) -> Any:
        """Send the message that ``make(token)`` returns and return what the hub answers to that token.

        Raises:
            TimeoutError: no answer within ``timeout`` seconds.
            PilotHitlError: the hub refuses.
        """
        token = next(self._tokens)
        answer: Future[Any] = Future()
        message = make(token)
        self._requests[token] = (answer, message)
        try:
            self._outbox.put(message)
            return answer.result(timeout)
        except TimeoutError as error:
            why = f": {self._unwritten}" if self._unwritten else ""
            raise TimeoutError(f"the hub did not answer {type(message).__name__} within {timeout} s{why}") from error
        finally:
            self._requests.pop(token, None)

    def flush(self, timeout: float | None) -> None:
        """Wait until everything submitted is on disk; raises as :meth:`request`."""
        with self.silence.waiting(self._want_written):
            self.request(m.Flush, timeout)

    def _want_written(self, wanted: Wanted) -> None:
        why = f" ({self._unwritten})" if self._unwritten else ""
        wanted.said["written"] = f"the hub has not confirmed yet that what was submitted is on disk{why}"

    def query(self, what: str, arguments: dict[str, Any], timeout: float | None = 60.0) -> Any:
        """Ask the hub for something to look at; return its JSON, decoded."""
        text = json.dumps(arguments)
        return json.loads(self.request(lambda token: m.Query(token, what, text), timeout))

    def _standstill(self, runs: list[tuple[int, int]], seconds: float) -> Any:
        return self.query("standstill", {"session": self.name, "tasks": runs}, seconds)

    def _tell_waits(self, wanted: Wanted) -> None:
        """Tell the hub what the running task waits for, for those who wait for the task."""
        if (task := self._task) is not None and not self._link.leaving:
            with suppress(errors.PilotHitlError):  # the session ends
                self.tell(_silence.as_message(task[0].task, wanted))

    def explain(self, task: int) -> str:
        """Return in words what a task waits for, or how it ended."""
        if self.staged(task):
            return f"{task_name(task)} is declared in a with block and sent at the block's end"
        reply = self.query("explain", {"session": self.name, "task": task_name(task)})
        if isinstance(reply, dict):
            text = reply.get("text") or reply.get("explanation")
            return str(text) if text else json.dumps(reply, indent=2)
        return str(reply)

    def call_back(self, callback: Callable[[], None] | None) -> None:
        """Run a future's callbacks in the session's callback thread, so that they may block."""
        if callback is None:
            return
        if self._callbacks is None:
            self._callbacks = SimpleQueue()
            threading.Thread(
                target=_run_callbacks, args=(self._callbacks,), name="pilot-hitl-callbacks", daemon=True
            ).start()
        self._callbacks.put(callback)

    # --- in the I/O thread --------------------------------------------------------------------------------------

    def _on_unwritten(self, message: m.Unwritten) -> None:
        self._unwritten = message.reason
        text = f"results wait: {message.reason}" if message.reason else "results are written again"
        self.call_back(lambda: self.silence.say(text))  # standard error may be a pipe that nobody reads

    def _hello(self, before: m.Welcome | None) -> m.Hello:
        hello = self._greeting
        again = before is not None
        return m.Hello(
            session=hello.session,
            namespace=hello.namespace,
            role=hello.role,
            incarnation=before.incarnation if before is not None else 0,
            fresh=hello.fresh and not again,
            pid=os.getpid(),
            started=start_time(os.getpid()),
            host=_socket.gethostname(),
            on_exit=hello.on_exit,
            waiting=self._waiting() if again else [],
            policy=hello.policy,
            watching=self.held.watched if again else [],
            resent=self._outbox.outstanding,
        )

    def _waiting(self) -> list[tuple[int, int]]:
        runs = merged(sorted(self._futures))
        with self._running:
            sequences = {id(sequence): sequence for sequence, _ in self._runs[1]}
        for sequence in sequences.values():
            runs += sequence.waiting()
        return runs

    def _on_messages(self, messages: list[m.Message]) -> None:
        for message in messages:
            handler = self._handlers.get(type(message))
            if handler is not None:
                handler(message)

    def _on_welcome(self, _welcome: m.Welcome) -> None:
        if not self._welcomed_before:
            self._welcomed_before = True
            return
        # A hub that was lost after it acknowledged a question may have lost the question.
        for _, message in list(self._requests.values()):
            self._outbox.put(message)
        if self._services is not None:
            self._services.reopened()

    def _on_held(self, message: m.HeldOutcomes) -> None:
        self.held.arrived(message)
        firsts, runs = self._runs
        for outcome in message.outcomes:
            if (future := self._futures.get(outcome.task)) is not None:
                future.wake()
            elif (place := bisect_right(firsts, outcome.task) - 1) >= 0:
                runs[place][0].tell()

    def take_outcomes(self, outcomes: list[m.Outcome]) -> None:
        """Take the ends of tasks in: in the link's thread, or in that of a block whose tasks were never sent."""
        futures = self._futures
        told: dict[int, MapSequence[Any]] = {}
        shared = b""
        for outcome in outcomes:
            task = outcome.task
            self.reused += outcome.reused
            ended: Ended = outcome
            if outcome.state is State.DONE:
                # No-op results are all alike; a million copies of the same bytes would only fill memory.
                ended = shared = shared if outcome.payload == shared else outcome.payload
            future = futures.pop(task, None)
            if future is not None:
                self.call_back(future.end(ended))
                self.held.ended(task)
                continue
            firsts, runs = self._runs
            place = bisect_right(firsts, task) - 1
            if place >= 0:
                sequence, start = runs[place]
                self.call_back(sequence.end(start, task, ended))
                self.held.ended(task)
                told[id(sequence)] = sequence
        for sequence in told.values():
            sequence.tell()
        if any(not sequence.unfinished for sequence in told.values()):
            self._forget_runs()
        with self._idle:
            self._idle.notify_all()

    def _forget_runs(self) -> None:
        with self._running:
            firsts, runs = self._runs
            done = sum(1 for sequence, _ in runs if not sequence.unfinished)
            if done * 2 < len(runs):
                return
            kept = [each for each in zip(firsts, runs, strict=True) if each[1][0].unfinished]
            self._runs = ([first for first, _ in kept], [run for _, run in kept])

    def _on_pilot(self, update: m.PilotUpdate) -> None:
        for pilot in self.pilots:
            if pilot.token == update.token if update.token else pilot.number == update.pilot:
                pilot.update(update)
                break
        else:
            if update.state.final and update.pilot not in self.others:
                return  # It was told to end before we came: it never was one for this script.
            self.others[update.pilot] = update
        self._look_for_pilots(f"pilot {update.pilot} is {update.state.name} ({update.message})")

    def _look_for_pilots(self, why: str) -> None:
        """Tell everybody who waits for results when the last pilot ended: nothing would come any more.

        Nothing ends by that: what is unfinished is done by the next pilot, whoever submits it.
        """
        if self._link.leaving:
            return
        states = [each.state for each in self.others.values()] + [each.state for each in self.pilots]
        if not states or not all(state.final for state in states):
            self.pilots_left.found()
        elif not self.pilots_left.why:
            self.pilots_left.lost(why)

    def _on_checkpoint(self, update: m.CheckpointUpdate) -> None:
        checkpoint = self.checkpoints.get(update.handle)
        if checkpoint is not None:
            self.call_back(checkpoint.update(update))
            if update.state.closed:
                self.bodies.look()
                with self._idle:
                    self._idle.notify_all()

    def _on_service(self, update: sv.ServiceUpdate) -> None:
        self.services.on_update(update)

    def _on_refused(self, refused: m.Refused) -> None:
        error = error_named(refused.code, refused.message)
        request = self._requests.pop(refused.token, None)
        if request is not None:
            request[0].set_exception(error)
        elif self._services is not None and self._services.refused(refused.token, error):
            pass
        elif refused.token in self.checkpoints:
            self.call_back(self.checkpoints[refused.token].fail(error))
            self.bodies.look()
        else:
            for pilot in self.pilots:
                if pilot.token == refused.token:
                    pilot.fail(error)
                    self._look_for_pilots(f"{pilot.name} was refused ({error})")

    def _answer(self, token: int, body: str | None) -> None:
        request = self._requests.pop(token, None)
        if request is not None:
            request[0].set_result(body)

    def _on_broken(self, reason: BaseException) -> None:
        self._end(reason)

    def _end(self, reason: BaseException) -> None:
        """Resolve everything: no future stays pending for ever."""
        with self._running:
            if self.closed is not None:
                return
            self.closed = reason
        self.silence.close()
        self._resolve(reason)
        for answer, _ in list(self._requests.values()):
            if not answer.done():
                answer.set_exception(reason)
        for checkpoint in list(self.checkpoints.values()):
            self.call_back(checkpoint.fail(reason))
        self.bodies.end(reason)
        for pilot in self.pilots:
            pilot.fail(reason)
        if self._services is not None:
            self._services.close(reason)
        with self._idle:
            self._idle.notify_all()
        if self._callbacks is not None:
            self._callbacks.put(None)

    def _resolve(self, reason: BaseException) -> None:
        """End all futures."""
        with self._running:
            runs, self._runs = self._runs[1], ([], [])
        futures, self._futures = self._futures, {}
        for task, future in futures.items():
            self.call_back(future.end(_about(reason, task)))
        for sequence in {id(sequence): sequence for sequence, _ in runs}.values():
            for first, count, start in sequence.runs():
                for task in range(first, first + count):
                    self.call_back(sequence.end(start, task, reason))
            sequence.tell()

    def abandon(self) -> None:
        """Give up in a forked child: the session, with its thread and its sockets, is the parent's."""
        self.closed = error = errors.SessionClosed(
            f"session {self.name!r} belongs to the process that forked this one (pid {os.getppid()}): open another one"
        )
        self._outbox.abandon(error)
        self.silence.close()
        if self._services is not None:
            self._services.abandon(error)
        for future in self._futures.values():
            future.end(error)


def _abandon_all() -> None:
    for client in _alive:
        client.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _about(reason: BaseException, task: int) -> BaseException:
    if isinstance(reason, errors.SessionClosed):
        return errors.SessionClosed(
            f"{task_name(task)} had not ended when its session was closed: run the script again to resume it"
        )
    return reason


def _key_of(value: object) -> bytes | None:
    return value._key if isinstance(value, TaskFuture) else None


def _run_callbacks(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    _waiting.run_callbacks(iter(queue.get, None))
    # What those that came last ended has callbacks of its own.
    _waiting.run_callbacks(iter(lambda: None if queue.empty() else queue.get(), None))
