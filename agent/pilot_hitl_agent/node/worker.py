"""A function worker: runs calls, one after the other, in a process forked from the nursery.

The main thread runs calls; a second thread, the *watcher*, wakes only while calls wait behind one that runs, sends what
is finished and hands back what waits, so that neither ever waits for a long call. The page shared with the daemon says
which call runs, so that a death is blamed on that one alone.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.wire import current, raised
from pilot_hitl.wire.blobs import BlobMissing, BlobStore
from pilot_hitl.wire.outputs import with_output
from pilot_hitl.wire.values import dumps, loads
from pilot_hitl_agent.node import frames, packets
from pilot_hitl_agent.node.call_output import CallOutput
from pilot_hitl_agent.node.frames import Back, Call, Code, Done, ToWorker, Unsent

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
    """

    host: str
    blobs: str
    work: str
    path: list[str] = []


class Function(msgspec.Struct):
    """A function that this worker knows; ``failure`` when its code could not be loaded."""

    name: str
    sandbox: str
    target: Callable[..., Any] | None
    failure: Failure | None = None
    logging: int = 0


class Worker:
    """Runs calls that arrive on a socket until the other side closes it."""

    def __init__(self, link: socket.socket, page: mmap, settings: Settings, output: CallOutput | None = None) -> None:
        """Prepare; :meth:`serve` does the work. ``output``: where this process writes; None when others see to it."""
        self._link = link
        self._output = output
        self._page = page
        self._settings = settings
        self._blobs = BlobStore(Path(settings.blobs))
        self._functions: dict[int, Function] = {}
        self._by_digest: dict[bytes, Function] = {}
        self._waiting: deque[Call | Unsent] = deque()
        self._done: list[Done] = []
        self._began = 0.0
        # Held while calls and results change hands between the two threads, and while they are sent.
        self._lock = threading.Lock()
        self._watching = False
        self._folder = ""
        self._logging = 0

    def serve(self) -> None:
        """Work until the other side is gone."""
        buffer = mmap(-1, frames.ROOM)
        frames.PID.pack_into(self._page, frames.PID_AT, os.getpid())
        while packet := frames.receive(self._link, buffer):
            if self._output is not None:
                self._output.begin()
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
                    self._functions[item.template] = Function("", "", None, item.failure)
                else:
                    calls.append(item)
            self._run_all(calls)

    def _run_all(self, calls: list[Call | Unsent]) -> None:
        if len(calls) <= 1:
            if calls:
                self._send([self.run(calls[0])])
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
        items: list[Done | Back] = [*self._done]
        self._done.clear()
        if back:
            items.append(Back(back))
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
        known = self._by_digest.get(code.digest)
        if known is None or known.target is None:
            known = Function(code.name, code.sandbox, None)
            try:
                known.target = loads(code.code, self._blobs)
            except BaseException as error:  # boundary: unpickling runs code of the user
                known.failure = self._failure(error, Cause.PAYLOAD, f"the function {code.name} cannot be loaded here: ")
            self._by_digest[code.digest] = known
        self._functions[code.template] = Function(code.name, code.sandbox, known.target, known.failure, code.logging)

    def run(self, call: Call | Unsent) -> Done:
        """Run one call, which the shared page tells meanwhile."""
        began = time.time()
        if isinstance(call, Unsent):
            return Done(call.task, b"", call.failure, began, began)
        frames.RUNNING.pack_into(self._page, frames.RUNNING_AT, call.task, began)
        current.call = (call.task, call.epoch, call.run)
        payload, failure = self._call(call)
        current.call = None
        if self._output is not None:
            payload = with_output(payload, self._output.end(began))
        frames.RUNNING.pack_into(self._page, frames.RUNNING_AT, 0, 0.0)
        return Done(call.task, payload, failure, began, time.time())

    def _call(self, call: Call) -> tuple[bytes, Failure | None]:
        function = self._functions.get(call.template)
        if function is None or function.target is None:
            missing = Failure(Cause.PAYLOAD, "its function was never sent to this worker", self._settings.host)
            return b"", (function.failure if function else None) or missing
        if function.logging != self._logging:
            from pilot_hitl_agent.node.call_logging import set_level

            self._logging = function.logging
            set_level(function.logging)
        try:
            self._enter(function.sandbox or self._settings.work)
        except OSError as error:
            text = f"the directory of {function.name} cannot be entered: {error}"
            return b"", Failure(Cause.NO_PROGRAM, text, self._settings.host)
        try:
            args, kwargs = loads(call.body, self._blobs, dict(call.inputs) if call.inputs else None)
        except BaseException as error:  # boundary: unpickling runs code of the user
            what = (
                "a value it needs is gone: " if isinstance(error, BlobMissing) else "its arguments cannot be loaded: "
            )
            return b"", self._failure(error, Cause.PAYLOAD, what)
        try:
            value = self.invoke(function.target, args, kwargs)
            if hasattr(value, "__await__"):
                value = _wait_for(value)
        except BaseException as error:  # boundary: code of the user; SystemExit ends the call only
            return self._exception(error)
        try:
            return self.pack(value), None
        except BaseException as error:  # boundary: pickling runs code of the user
            return b"", self._failure(error, Cause.PAYLOAD, f"the result of {function.name} cannot be packed: ")

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

    def _enter(self, folder: str) -> None:
        # The call before may have gone elsewhere, and a lost directory must not spoil the next call.
        if folder != self._folder or _working_directory() != folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            os.chdir(folder)
            os.environ["PWD"] = folder
            self._folder = folder if _working_directory() == folder else ""

    def _exception(self, error: BaseException) -> tuple[bytes, Failure]:
        failure = self._failure(error, Cause.EXCEPTION, "")
        try:
            return dumps(error, self._blobs), failure
        except BaseException:  # boundary: pickling runs code of the user
            return b"", failure

    def _failure(self, error: BaseException, cause: Cause, before: str) -> Failure:
        code = raised.exit_code_of(error)
        message = before + (raised.summary(error) if code is None else raised.told(error, "it"))
        trace = raised.traceback_of(error, DETAIL_LIMIT)
        return Failure(cause, message[:MESSAGE_LIMIT], self._settings.host, code or 0, trace)


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


def become_worker(link: socket.socket, page: mmap, settings: Settings, output: CallOutput) -> None:
    """Turn a just-forked process into a worker and serve until the daemon is gone."""
    settle_in(settings)
    output.adopt()
    Worker(link, page, settings, output).serve()


def settle_in(settings: Settings) -> None:
    """Make this process look to calls as they expect it: import path, arguments, standard streams."""
    sys.path[:] = [*settings.path, *(entry for entry in sys.path if entry not in settings.path)]
    sys.argv = [""]
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    # By line, as on a terminal: in order with what others write there, and not lost when a call ends the process.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), errors="backslashreplace", line_buffering=True
    )
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), errors="backslashreplace", write_through=True
    )
