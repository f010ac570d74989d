"""A function worker: runs calls, one after the other, in a process forked from the nursery.

The main thread runs calls; a second thread, the *watcher*, wakes only while calls wait behind one that runs, sends what
is finished and hands back what waits, so that neither ever waits for a long call. The page shared with the daemon says
which call runs, so that a death is blamed on that one alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.wire import current, raised
from pilot_hitl.wire.blobs import BlobMissing, BlobStore
from pilot_hitl.wire.modes import asked_folder
from pilot_hitl.wire.modulefinder import OtherVersion, use
from pilot_hitl.wire.outputs import with_output
from pilot_hitl.wire.scriptmodule import BARE, MAIN, Loading
from pilot_hitl.wire.values import dumps, loads
from pilot_hitl_agent.node import ahead, frames, packets
from pilot_hitl_agent.node.call_output import CallOutput, Taker, flush_output
from pilot_hitl_agent.node.frames import Back, Call, Code, Done, Leaving, ToWorker, Unsent
from pilot_hitl_agent.node.plainness import ATOMS, changes_nothing
from pilot_hitl_agent.node.process_state import ProcessState

PATIENCE = 0.002
"""Seconds that a result or a waiting call may be behind a running one."""
IDLE_LOOKS = 50
"""The watcher ends when it saw nothing to watch this often; the next packet of several calls starts it again."""
MESSAGE_LIMIT = 2000
DETAIL_LIMIT = 20_000

_decoder = msgspec.msgpack.Decoder(list[ToWorker])
_encoder = msgspec.msgpack.Encoder()


class Settings(msgspec.Struct, frozen=True):
    """What all workers of a node need.

    Attributes:
        host: named in failures.
        blobs: folder of large values.
        work: directory that calls run in.
        path: the client's ``sys.path``, so that what was pickled by reference can be imported.
        pythonpath: the client's ``PYTHONPATH``: what of ``path`` comes from there is replaced by the worker's own.
    """

    host: str
    blobs: str
    work: str
    path: list[str] = []
    pythonpath: str = ""


class Loaded(msgspec.Struct):
    """Code that this worker knows.

    Attributes:
        code: the packed function.
        target: what is called; None when it must be loaded (again).
        failure: why it could not be loaded.
        anew: each call loads one of its own.
        main: the ``__main__`` that it expects.
        plain: it cannot change anything of this process when its arguments are plain values.
    """

    code: bytes
    target: Callable[..., Any] | None
    failure: Failure | None
    anew: bool
    main: ModuleType
    plain: bool = False


class Function(msgspec.Struct):
    """A function that this worker knows."""

    name: str
    sandbox: str
    loaded: Loaded
    logging: int = 0


class Worker:
    """Runs calls that arrive on a socket until the other side closes it."""

    def __init__(
        self,
        link: socket.socket,
        page: mmap,
        settings: Settings,
        output: Taker | None = None,
        state: ProcessState | None = None,
    ) -> None:
        """Prepare; :meth:`serve` does the work.

        ``output``: where this process writes; None when others see to it. ``state`` is put back after each call.
        """
        self._link = link
        self._output = output
        self._page = page
        self._settings = settings
        self._blobs = BlobStore(Path(settings.blobs))
        self._functions: dict[int, Function] = {}
        self._by_digest: dict[bytes, Loaded] = {}
        self._waiting: deque[Call | Unsent] = deque()
        self._done: list[Done] = []
        self._began = 0.0
        # Held while calls and results change hands between the two threads, and while they are sent.
        self._lock = threading.Lock()
        self._watching = False
        self._folder = ""
        self._watch = ahead.Watch()
        self._logging = 0
        self._pid = os.getpid()
        self._plain = False
        # Whether what was written before this packet is told apart from what its calls write.
        self._apart = False
        # Why it must not run another call.
        self._unfit = ""
        # Templates that it cannot run, and why: it knows other versions of the script's modules.
        self._stale: dict[int, str] = {}
        self._modules = use(self._blobs)
        self._state = state
        if state is not None:
            Loading.kept = state.take
        os.register_at_fork(after_in_child=self._forked)

    def serve(self) -> None:
        """Work until the other side is gone or a call left something that cannot be put back."""
        buffer = mmap(-1, frames.ROOM)
        frames.PID.pack_into(self._page, frames.PID_AT, os.getpid())
        while not self._unfit and (packet := frames.receive(self._link, buffer)):
            self._apart = False
            try:
                items = _decoder.decode(packet)
            except msgspec.MsgspecError:
                # Not of this protocol; dropped.
                continue
            calls: list[Call | Unsent] = []
            for item in items:
                if isinstance(item, Code):
                    self.learn(item)
                elif isinstance(item, Unsent) and item.template:
                    self._functions[item.template] = Function("", "", Loaded(b"", None, item.failure, False, BARE))
                else:
                    calls.append(item)
            fit = self._fit(calls) if self._stale else len(calls)
            self._run_all(calls[:fit])
            if fit < len(calls) and not self._unfit:
                with self._lock:
                    self._unfit = self._stale[calls[fit].template]
                    self._flush()

    def _fit(self, calls: list[Call | Unsent]) -> int:
        """Return how many calls this worker may run before the first that needs another one."""
        return next((at for at, call in enumerate(calls) if call.template in self._stale), len(calls))

    def _run_all(self, calls: list[Call | Unsent]) -> None:
        if len(calls) <= 1:
            if calls:
                done = self.run(calls[0])
                self._send([done, Leaving(self._unfit)] if self._unfit else [done])
            return
        call: Call | Unsent | None = calls[0]
        with self._lock:
            # What waits is always behind a call that runs; so whatever the watcher gives back was not begun.
            self._waiting.extend(calls[1:])
            self._began = time.monotonic()
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watcher, name="pilot-hitl watcher", daemon=True).start()
        while call is not None:
            done = self.run(call)
            with self._lock:
                self._done.append(done)
                self._began = time.monotonic()
                if self._unfit:
                    self._waiting.clear()
                call = self._waiting.popleft() if self._waiting else None
                if call is None:
                    self._flush()

    def _watcher(self) -> None:
        """Send what is finished and give back what waits whenever a call takes long."""
        idle = 0
        while True:
            time.sleep(PATIENCE)
            with self._lock:
                busy = bool(self._waiting or self._done)
                idle = 0 if busy else idle + 1
                if idle > IDLE_LOOKS:
                    self._watching = False
                    return
                late = busy and time.monotonic() - self._began >= PATIENCE
                if late:
                    back = [call.task for call in self._waiting]
                    self._waiting.clear()
                    self._flush(back)

    def _flush(self, back: list[int] | None = None) -> None:
        """Send what is finished and what is handed back; the lock is held, so that packets leave in order."""
        items: list[Done | Back | Leaving] = [*self._done]
        self._done.clear()
        if back:
            items.append(Back(back))
        if self._unfit:
            items.append(Leaving(self._unfit))
        if items:
            self._send(items)

    def _send(self, items: list[Any]) -> None:
        while items:
            try:
                frames.send(self._link, _encoder.encode(items))
            except OSError as error:
                if error.errno in packets.GONE:
                    raise
                if error.errno in packets.FULL:
                    # The user has too many descriptors on their way between processes, here or elsewhere.
                    time.sleep(PATIENCE)
                    continue
                if len(items) > 1:
                    self._send(items[:1])
                    items = items[1:]
                    continue
                items = [self._instead(items[0], error)]
                continue
            return

    def _instead(self, item: Any, error: OSError) -> Done:
        """Return what is told of a call whose result cannot be sent.

        Raises:
            OSError: not even that.
        """
        if not isinstance(item, Done) or not item.payload:
            raise error
        text = f"its result ({len(item.payload)} bytes) cannot be sent to the node's daemon: {error.strerror}"
        return Done(item.task, b"", Failure(Cause.PAYLOAD, text, self._settings.host), item.began, item.ended)

    def learn(self, code: Code) -> None:
        """Load a function, unless it is known."""
        self._stale.pop(code.template, None)
        if why := self._modules.changed():
            self._stale[code.template] = why
        known = self._by_digest.get(code.digest)
        # To load it may run code that goes elsewhere.
        self._plain = False
        if known is None or known.failure is not None:
            known = Loaded(code.code, None, None, code.anew, BARE)
            try:
                known.target, known.main = self._load(code.code)
                known.plain = not code.anew and changes_nothing(known.target)
            except OtherVersion as error:
                self._stale[code.template] = str(error)
                known.failure = self._failure(error, Cause.PAYLOAD, "")
            except BaseException as error:  # boundary: unpickling runs code of the user
                known.failure = self._failure(error, Cause.PAYLOAD, f"the function {code.name} cannot be loaded here: ")
            self._by_digest[code.digest] = known
        self._functions[code.template] = Function(code.name, code.sandbox, known, code.logging)

    def run(self, call: Call | Unsent) -> Done:
        """Run one call, which the shared page tells meanwhile."""
        began = time.time()
        if isinstance(call, Unsent):
            return Done(call.task, b"", call.failure, began, began)
        frames.RUNNING.pack_into(self._page, frames.RUNNING_AT, call.task, began)
        current.call = (call.task, call.epoch, call.run)
        payload, failure = self._call(call) if not call.folder else self._call_ahead(call)
        current.call = None
        ended = time.time()
        if not self._plain:
            # What changes nothing writes nothing either.
            self._tidy()
            if self._output is not None:
                payload = with_output(payload, self._output.end(began))
        frames.RUNNING.pack_into(self._page, frames.RUNNING_AT, 0, 0.0)
        return Done(call.task, payload, failure, began, ended)

    def _tidy(self) -> None:
        """Put back what a call may have changed; a child that it forked ends here."""
        self._end_fork(None)
        if self._state is not None:
            self._unfit = self._state.put_back()
        if self._output is not None:
            self._output.restore()
        self._modules.note()

    def _call_ahead(self, call: Call) -> tuple[bytes, Failure | None]:
        """Run a call in a folder of its own, without what a needed one would find."""
        function = self._functions.get(call.template)
        current.folder = (function.sandbox if function else "") or self._settings.work
        self._watch.begin(call.folder, current.folder)
        try:
            payload, failure = self._call(call)
        finally:
            missed = self._watch.end()
            current.folder = ""
        if missed:
            text = f"it ran ahead of a decision and looked for {missed}: it is tried again once it counts"
            return b"", Failure(Cause.NO_PROGRAM, text, self._settings.host, 0, failure.detail if failure else "")
        return payload, failure

    def _call(self, call: Call) -> tuple[bytes, Failure | None]:
        still, self._plain = self._plain, False
        function = self._functions.get(call.template)
        if function is None or function.loaded.failure is not None:
            missing = Failure(Cause.PAYLOAD, "its function was never sent to this worker", self._settings.host)
            return b"", (function.loaded.failure if function else None) or missing
        if function.logging != self._logging:
            from pilot_hitl_agent.node.call_logging import set_level

            self._logging = function.logging
            set_level(function.logging)
        try:
            self._enter(call.folder or function.sandbox or self._settings.work, still=still)
        except OSError as error:
            text = f"the directory of {function.name} cannot be entered: {error}"
            return b"", Failure(Cause.NO_PROGRAM, text, self._settings.host)
        loaded = function.loaded
        if sys.modules.get(MAIN) is not loaded.main:
            sys.modules[MAIN] = loaded.main
        if not (loaded.plain or self._apart):
            self._set_apart()
        what = "its arguments cannot be loaded: "
        try:
            args, kwargs = loads(call.body, self._blobs, dict(call.inputs) if call.inputs else None)
            self._plain = loaded.plain and not kwargs and ATOMS.issuperset(map(type, args))
            if not (self._plain or self._apart):
                self._set_apart()
            what = f"the function {function.name} cannot be loaded here: "
            target = self._target(loaded)
        except BaseException as error:  # boundary: unpickling runs code of the user
            self._end_fork(error)
            if isinstance(error, BlobMissing):
                what = "a value it needs is gone: "
            return b"", self._failure(error, Cause.PAYLOAD, what)
        try:
            value = self.invoke(target, args, kwargs)
            if hasattr(value, "__await__"):
                value = _wait_for(value)
        except BaseException as error:  # boundary: code of the user; SystemExit ends the call only
            self._end_fork(error)
            return self._exception(error)
        if not self._plain:
            self._end_fork(None)
        try:
            return self.pack(value), None
        except BaseException as error:  # boundary: pickling runs code of the user
            return b"", self._failure(error, Cause.PAYLOAD, f"the result of {function.name} cannot be packed: ")

    def _set_apart(self) -> None:
        """Let what was written before the calls of this packet be none of theirs."""
        self._apart = True
        if self._output is not None:
            self._output.begin()

    def _load(self, code: bytes) -> tuple[Callable[..., Any], ModuleType]:
        Loading.module = BARE
        target = loads(code, self._blobs)
        return target, Loading.module

    def _target(self, loaded: Loaded) -> Callable[..., Any]:
        target = loaded.target
        if loaded.anew:
            loaded.target = None
        return self._load(loaded.code)[0] if target is None else target

    def _forked(self) -> None:
        """In a child of this process: let go of what is the worker's."""
        if os.getpid() == self._pid:
            return
        with contextlib.suppress(OSError, ValueError):
            self._link.close()
        with contextlib.suppress(BufferError, ValueError):
            self._page.close()

    def _end_fork(self, error: BaseException | None) -> None:
        """End here when this is a child that the call forked: it is at its end, and nobody waits for its answer."""
        if os.getpid() == self._pid:
            return
        code = end_of_fork(error)
        flush_output()
        os._exit(code)

    def invoke(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call code of the user.

        Raises:
            Whatever that raises.
        """
        return target(*args, **kwargs)

    def pack(self, value: object) -> bytes:
        """Return a result as it travels.

        Raises:
            Whatever pickling raises.
        """
        return dumps(value, self._blobs)

    def _enter(self, folder: str, *, still: bool) -> None:
        # The call before may have gone elsewhere (unless it changed nothing at all), and a lost directory must not
        # spoil the next call.
        if folder != self._folder or not (still or _working_directory() == folder):
            asked_folder(Path(folder), self._blobs.folder.parent)
            os.chdir(folder)
            os.environ["PWD"] = folder
            self._folder = folder if _working_directory() == folder else ""

    def _exception(self, error: BaseException) -> tuple[bytes, Failure]:
        failure = self._failure(error, Cause.EXCEPTION, "")
        packed, _ = raised.attempt(lambda: dumps(error, self._blobs), BaseException)
        return packed or b"", failure

    def _failure(self, error: BaseException, cause: Cause, before: str) -> Failure:
        code = raised.exit_code_of(error)
        message = before + (raised.summary(error) if code is None else raised.told(error, "it"))
        trace = raised.traceback_of(error, DETAIL_LIMIT)
        return Failure(cause, message[:MESSAGE_LIMIT], self._settings.host, code or 0, trace)


def end_of_fork(error: BaseException | None) -> int:
    """Return the exit code of a process whose code ended like this; what must be said is said on standard error."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        text = f"{error.code}\n"
    else:
        text = raised.traceback_of(error, DETAIL_LIMIT)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
    return 1


def _working_directory() -> str:
    try:
        return os.getcwd()  # once a call: a Path costs ten times as much
    except OSError:
        return ""


def _wait_for(value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def become_worker(link: socket.socket, page: mmap, settings: Settings, started: list[str], output: CallOutput) -> None:
    """Turn a just-forked process into a worker and serve until the daemon is gone."""
    settle_in(settings, started)
    # By line, as on a terminal: in order with what others write there, and not lost when a call ends the process.
    cast("Any", sys.stdout).reconfigure(line_buffering=True)
    output.adopt()
    state = ProcessState(descriptors=1)
    state.keep_imports()
    Worker(link, page, settings, output, state).serve()


def settle_in(settings: Settings, started: list[str] | None = None) -> None:
    """Make this process look to calls as they expect it: import path and arguments.

    ``started`` is the import path with which the interpreter began.
    """
    mine = sys.path if started is None else started
    sys.path[:] = import_path(settings, os.environ.get("PYTHONPATH", ""), mine)
    sys.argv = [""]


def import_path(settings: Settings, given: str, started: list[str]) -> list[str]:
    """Return the client's import path with the ``PYTHONPATH`` that is ``given`` here, then what is only found here."""
    base = _entries(settings.pythonpath, settings.work)
    new = _entries(given, settings.work)
    path = list(settings.path)
    if base != new:
        own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
        own |= {entry for entry in path if entry.endswith(".zip")}
        at = next((index for index, entry in enumerate(path) if entry in base), -1)
        if at < 0:
            at = next((index for index, entry in enumerate(path) if entry in own), len(path))
        before = [entry for entry in path[:at] if entry not in base]
        path = [*before, *new, *(entry for entry in path[at:] if entry not in base)]
    return path + [entry for entry in started if entry and entry not in path and entry not in base]


def _entries(pythonpath: str, work: str) -> list[str]:
    if not pythonpath:
        return []
    # Relative ones are seen from where the script was started; text, as the import path is.
    return [os.path.normpath(os.path.join(work, entry)) for entry in pythonpath.split(os.pathsep)]
