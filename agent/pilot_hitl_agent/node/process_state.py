"""What a call finds in its process, and how that is put back after the call before.

Environment, umask, signal handlers and timers, standard streams and their descriptors, soft limits, CPU affinity,
niceness, locale, import path, arguments, trace functions, default socket timeout, garbage collection. The working
directory is set before each call anyway. What cannot be put back makes the process unfit for another call.

What the import of a module does stays, because it is imported once. Not put back either, as in a process pool: modules
and what they hold (warnings filters, random generators, contexts), threads that still run, files left open.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import os
import socket
import sys
from _thread import get_ident
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader, SourceFileLoader, SourcelessFileLoader
from typing import Any, TextIO, cast


def _quietly(name: str) -> Any:
    """Return a module, which is not among those that this process has imported because of that."""
    there = name in sys.modules
    module = importlib.import_module(name)
    if not there:
        del sys.modules[name]
    return module


# Whoever has not imported these cannot have changed what they change: that saves looking after each call.
_locale, resource, _signal = _quietly("_locale"), _quietly("resource"), _quietly("_signal")
_NUMBERS = tuple(sorted(int(number) for number in _signal.valid_signals() if number not in (9, 19) and number < 32))
_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
_LIMITS = tuple(sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}))
_get_limit, _set_limit = resource.getrlimit, resource.setrlimit
_get_handler = _signal.getsignal
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class ProcessState:
    """The state of this process when this was made, or its last :meth:`take`. For the main thread only."""

    def __init__(self, descriptors: int = 3) -> None:
        """Take the state as it is now; only the first so many ``descriptors`` are put back by this object."""
        self._thread = get_ident()
        self._importing = False
        self._fds = [_high_duplicate(number) for number in range(descriptors)]
        self.take()

    def take(self) -> None:
        """Let what holds now be what later calls find."""
        self._environment = os.environ
        self._variables: dict[Any, Any] = vars(os.environ)["_data"]
        self._were = dict(self._variables)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = [_get_handler(number) for number in _NUMBERS]
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._streams: list[TextIO | None] = [getattr(sys, name) for name, _ in _STREAMS]
        self._formats = _formats(self._streams)
        self._limits = {number: _get_limit(number) for number in _LIMITS}
        self._affinity = os.sched_getaffinity(0)
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._locale = _locale.setlocale(_locale.LC_ALL)
        self._path, self._path_were = sys.path, list(sys.path)
        self._argv, self._argv_were = sys.argv, list(sys.argv)
        self._trace, self._profile = sys.gettrace(), sys.getprofile()
        self._timeout = socket.getdefaulttimeout()
        self._collecting = gc.isenabled()

    def put_back(self) -> str:
        """Make the state what it was; return why this process must not run another call, empty when it may.

        A few microseconds when nothing was changed.
        """
        if os.environ is not self._environment or self._variables != self._were:
            self._put_back_environment()
        if os.umask(self._umask) != self._umask:
            os.umask(self._umask)
        if sys.path is not self._path or self._path != self._path_were:
            sys.path = self._path
            self._path[:] = self._path_were
        self._put_back_interpreter()
        modules = sys.modules
        try:
            if "signal" in modules:
                self._put_back_signals()
            if "resource" in modules:
                self._put_back_limits()
            if "_locale" in modules and _locale.setlocale(_locale.LC_ALL) != self._locale:
                _try("the locale", _locale.setlocale, _locale.LC_ALL, self._locale)
            if "multiprocessing.forkserver" in modules:
                _end_fork_server()
            self._put_back_streams()
            if os.sched_getaffinity(0) != self._affinity:
                _try("the CPU affinity", os.sched_setaffinity, 0, self._affinity)
            if os.getpriority(os.PRIO_PROCESS, 0) != self._nice:
                _try("the niceness", os.setpriority, os.PRIO_PROCESS, 0, self._nice)
        except _Unfit as error:
            return str(error)
        return ""

    def keep_imports(self) -> None:
        """From now on keep what the import of a module does to variables, import path and handlers: it happens once."""
        for loader in (SourceFileLoader, SourcelessFileLoader, ExtensionFileLoader):
            type.__setattr__(loader, "exec_module", self._keeping(loader.exec_module))

    def _keeping(self, run: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def exec_module(loader: Any, module: Any) -> None:
            if self._importing or get_ident() != self._thread:
                run(loader, module)
                return
            self._importing = True
            before = (dict(self._variables), list(sys.path), list(map(_get_handler, _NUMBERS)))
            try:
                run(loader, module)
            finally:
                self._importing = False
                self._keep(*before)

        # So that the interpreter leaves it out of tracebacks, with its own frames around it.
        exec_module.__code__ = exec_module.__code__.replace(co_filename="<frozen importlib._bootstrap_external>")
        return exec_module

    def _keep(self, variables: dict[Any, Any], path: list[str], handlers: list[Any]) -> None:
        now = self._variables
        if now != variables:
            for name in variables.keys() | now.keys():
                if name not in now:
                    self._were.pop(name, None)
                elif now[name] != variables.get(name):
                    self._were[name] = now[name]
        if sys.path != path:
            added = [entry for entry in sys.path if entry not in path and entry not in self._path_were]
            before = sys.path.index(added[0]) == 0 if added else False
            self._path_were = [*added, *self._path_were] if before else [*self._path_were, *added]
        for index, number in enumerate(_NUMBERS):
            if (handler := _get_handler(number)) is not handlers[index]:
                self._handlers[index] = handler

    def _put_back_interpreter(self) -> None:
        if sys.argv is not self._argv or self._argv != self._argv_were:
            sys.argv = self._argv
            self._argv[:] = self._argv_were
        if sys.gettrace() is not self._trace:
            sys.settrace(self._trace)
        if sys.getprofile() is not self._profile:
            sys.setprofile(self._profile)
        if socket.getdefaulttimeout() != self._timeout:
            socket.setdefaulttimeout(self._timeout)
        if gc.isenabled() is not self._collecting:
            (gc.enable if self._collecting else gc.disable)()

    def _put_back_environment(self) -> None:
        vars(os)["environ"] = self._environment
        before, now = self._were, self._variables
        zone = before.get(b"TZ") != now.get(b"TZ")
        decode = os.fsdecode
        for name in [name for name in now if name not in before]:
            del os.environ[decode(name)]
        for name, value in before.items():
            if now.get(name) != value:
                os.environ[decode(name)] = decode(value)
        if zone:
            import time

            time.tzset()

    def _put_back_signals(self) -> None:
        for number, handler in zip(_NUMBERS, self._handlers, strict=True):
            if _get_handler(number) is not handler and handler is not None:
                _signal.signal(number, handler)
        for timer in _TIMERS:
            if _signal.getitimer(timer)[0]:
                _signal.setitimer(timer, 0)
        if (mask := _signal.pthread_sigmask(_signal.SIG_BLOCK, ())) != self._mask:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, mask - self._mask)
        _signal.set_wakeup_fd(-1)

    def _put_back_limits(self) -> None:
        for number, limits in self._limits.items():
            now = _get_limit(number)
            if now == limits:
                continue
            try:
                _set_limit(number, limits)
            except (OSError, ValueError):
                _try("a resource limit", _set_limit, number, (limits[0], now[1]))

    def _put_back_streams(self) -> None:
        streams, out, err = self._streams, self._streams[1], self._streams[2]
        now = [sys.stdin, sys.stdout, sys.stderr]
        if now != streams or _formats(streams) != self._formats:
            for index, stream in enumerate(now):
                self._put_back_stream(index, stream)
        try:
            # Into wherever the call led their descriptors, as it would have been at the end of a process.
            if out is not None:
                out.flush()
            if err is not None:
                err.flush()
        except (OSError, ValueError):
            # A full disk: its loss, not the worker's.
            sys.exc_info()
        try:
            for number, fd in enumerate(self._fds):
                os.dup2(fd, number)
        except OSError as error:
            raise _Unfit(f"the standard descriptors cannot be put back: {error}") from error

    def _put_back_stream(self, index: int, current: Any) -> None:
        name, mode = _STREAMS[index]
        if current is not self._streams[index]:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                current.flush()
        if _formats([self._streams[index]]) != [self._formats[index]]:
            self._streams[index] = self._mended(index, mode)
        setattr(sys, name, self._streams[index])

    def _mended(self, index: int, mode: str) -> TextIO | None:
        """Return a standard stream as it was, made anew where a call closed or detached it."""
        wanted, stream = self._formats[index], self._streams[index]
        if wanted is None:
            return stream
        encoding, errors, lines, through = wanted
        if _formats([stream]) != [None]:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                cast("Any", stream).reconfigure(
                    encoding=encoding, errors=errors, line_buffering=lines, write_through=through
                )
                return stream
        raw = io.FileIO(index, mode, closefd=False)
        raw.name = f"<{_STREAMS[index][0]}>"
        buffer = io.BufferedWriter(raw) if index else io.BufferedReader(raw)
        return io.TextIOWrapper(buffer, encoding, errors, None, lines, through)


def _end_fork_server() -> None:
    """End the server that ``multiprocessing`` started, if nothing of it is in use, and remove its folder.

    It would end with the interpreter, but a worker may be killed.
    """
    server: Any = vars(sys.modules["multiprocessing.forkserver"]).get("_forkserver")
    process: Any = sys.modules["multiprocessing.process"]
    if getattr(server, "_forkserver_pid", None) is None or process.active_children():
        return
    with contextlib.suppress(OSError, AttributeError):
        # Before it is waited for: copies of the pipe whose end it waits for may be open anywhere.
        os.kill(server._forkserver_pid, _signal.SIGKILL)
        server._stop()
    with contextlib.suppress(OSError, AttributeError, KeyError):
        os.rmdir(process.current_process()._config["tempdir"])
        del process.current_process()._config["tempdir"]


class _Unfit(Exception):
    """Something cannot be put back."""


def _try(what: str, function: Callable[..., object], *arguments: Any) -> None:
    try:
        function(*arguments)
    except (OSError, ValueError, _locale.Error) as error:
        raise _Unfit(f"{what} cannot be put back: {error}") from error


def _formats(streams: list[Any]) -> list[tuple[str, str, bool, bool] | None]:
    """Return how text streams write; None for one that is closed, detached or no text stream."""
    try:
        return [
            None if each.closed else (each.encoding, each.errors, each.line_buffering, each.write_through)
            for each in streams
        ]
    except (AttributeError, ValueError):
        return [None] if len(streams) == 1 else [_formats([each])[0] for each in streams]


def _high_duplicate(number: int) -> int:
    """Return a duplicate of a descriptor that no child inherits; -1 when there is nothing to duplicate."""
    try:
        # Far up, where nobody who closes or counts the first few meets it.
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 100)
    except OSError:
        return -1


__all__ = ["ProcessState"]
