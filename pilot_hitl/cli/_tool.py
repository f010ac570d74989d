"""A short conversation with the running hub: hello as a tool, one request, its reply, good-bye."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import zmq

from pilot_hitl import errors
from pilot_hitl._hubprocess import LAST_WORDS, HubProcess, RemoteHub, elsewhere, find, sweep
from pilot_hitl.errors import HubUnreachable, PilotHitlError
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.states import PilotState
from pilot_hitl.wire import messages as wire
from pilot_hitl.wire.codec import TO_CLIENT, FrameError, encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.modes import own_umask
from pilot_hitl.wire.servicing import StopService, ToClient
from pilot_hitl.wire.sockets import dealer, keep_alive

TIMEOUT = 5.0
"""Seconds that the hub has for an answer."""

_T = TypeVar("_T")


class NoHub(HubUnreachable):
    """No hub runs, or it ended before it answered: what needs no hub can be done without it."""


def lock_path(home: Path) -> Path:
    """Return the file that a running hub holds locked."""
    return home / "hub" / "hub.lock"


def hub_runs(home: Path) -> bool:
    """Return whether a hub of this home runs, on this or (with locks over the network) another machine.

    Raises:
        OSError: the lock cannot be looked at.
    """
    try:
        handle = os.open(lock_path(home), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


class Tool:
    """A connection to the hub. One thread; close it, or use :func:`connect`."""

    def __init__(self, home: Path, session: str, timeout: float, role: str = "tool") -> None:
        """Connect; the hub hears of it with the first request.

        An ``observer`` makes the hub open its session, a ``tool`` does not.

        Raises:
            NoHub: it has just ended.
            HubUnreachable: it does not listen here within ``timeout`` seconds.
            PermissionError: the home's keys are not this user's.
        """
        self._home = home
        self._session = session
        self._role = role
        self._timeout = timeout
        self._token = 0
        self._greeted = False
        keys = keyring(home)
        self._process: HubProcess | RemoteHub = elsewhere(home) or _listening(home, timeout)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = dealer(self._context, keys, b"tool-" + secrets.token_hex(8).encode())
        if isinstance(self._process, RemoteHub):
            keep_alive(self._socket)
        if not self._process.endpoint:
            self.close()
            raise HubUnreachable(f"the hub of {home} runs on another machine and does not listen for this one yet")
        self._socket.connect(self._process.endpoint)

    def query(self, what: str, **arguments: Json) -> Json:
        """Return what the hub says; arguments that are None are left out.

        Raises:
            HubUnreachable: no reply in time.
            PilotHitlError: the hub refused, as the class that it names.
        """
        token = self._next()
        given = {key: value for key, value in arguments.items() if value is not None}
        self._send(wire.Query(token, what, json.dumps(given)))
        return self._reply(token, what)

    def answer(self, checkpoint: int, generation: int, value: str, comment: str, by: str) -> Json:
        """Return the hub's record of an accepted answer; ``value`` is JSON text.

        Raises:
            AnswerRefused: it was not accepted.
            HubUnreachable: no reply in time, so it may or may not have been accepted.
        """
        token = self._next()
        self._send(wire.Answer(token, checkpoint, generation, value, comment, "cli", by))
        return self._reply(token, "answer")

    def extend(self, checkpoint: int, seconds: float, by: str, generation: int = 0) -> Json:
        """Move a deadline to ``seconds`` from now, 0 for none; return the hub's record, which is on disk then.

        Raises:
            AnswerRefused: the request is closed.
            HubUnreachable: no reply in time.
        """
        token = self._next()
        self._send(wire.Extend(token, checkpoint, seconds, by, generation))
        return self._reply(token, "extend")

    def cancel(self, runs: list[tuple[int, int]], reason: str) -> None:
        """Cancel tasks given as ``(first, count)`` runs; on return it is on disk.

        Raises:
            HubUnreachable, PilotHitlError: as :meth:`query`.
        """
        self._flushed(wire.Cancel(runs, reason), "cancel")

    def stop_service(self, name: str, *, drain: bool, reason: str) -> Json:
        """End a service; return what became of it so far.

        Raises:
            HubUnreachable, PilotHitlError: as :meth:`query`.
        """
        token = self._next()
        self._send(StopService(token, name, drain, reason))
        return self._reply(token, "stop of a service")

    def cancel_pilot(self, pilot: int, reason: str) -> None:
        """End a pilot; on return it is on disk that it shall end.

        Raises:
            HubUnreachable, PilotHitlError: as :meth:`query`.
        """
        self._flushed(wire.CancelPilot(pilot, reason), "cancel of a pilot")

    def submit_pilots(self, descriptions: Sequence[PilotDescription]) -> list[wire.PilotUpdate]:
        """Return what becomes of new pilots: each is on its way, or cannot be had.

        Raises:
            HubUnreachable, PilotHitlError: as :meth:`query`.
        """
        tokens = [self._next() for _ in descriptions]
        found: dict[int, wire.PilotUpdate] = {}

        def update(message: ToClient) -> bool | None:
            if isinstance(message, wire.PilotUpdate) and message.state is not PilotState.NEW:
                found[message.token] = message
            return True if len(found) == len(tokens) else None

        here, environment = os.getcwd(), dict(os.environ)  # text for the wire
        self._send(
            *(
                wire.SubmitPilot(token, description, environment, here, [here], umask=own_umask())
                for token, description in zip(tokens, descriptions, strict=True)
            )
        )
        self._until(tokens[0], "pilot", update)
        return [found[token] for token in tokens]

    def close(self) -> None:
        """Say good-bye and close; may be called again."""
        if self._socket.closed:
            return
        if self._greeted:
            self._send(wire.Bye("detach"))
        self._socket.close(linger=200)
        self._context.term()
        self._process.close()

    def _next(self) -> int:
        self._token += 1
        return self._token

    def _send(self, *messages: wire.Message) -> None:
        if not self._greeted:
            hello = wire.Hello(
                self._session,
                role=self._role,
                pid=os.getpid(),
                started=_started(),
                host=socket.gethostname(),
                on_exit="detach",
            )
            messages = (hello, *messages)
            self._greeted = True
        self._socket.send(encode(messages))

    def _flushed(self, message: wire.Message, what: str) -> None:
        token = self._next()

        def flushed(heard: ToClient) -> bool | None:
            return True if isinstance(heard, wire.Flushed) and heard.token == token else None

        self._send(message, wire.Flush(token))
        self._until(token, what, flushed)

    def _reply(self, token: int, what: str) -> Json:
        def reply(message: ToClient) -> tuple[str] | None:
            return (message.body,) if isinstance(message, wire.Reply) and message.token == token else None

        (body,) = self._until(token, what, reply)
        try:
            value: Json = json.loads(body)
        except ValueError as error:
            raise HubUnreachable(f"the hub's reply to {what!r} cannot be read: {error}") from error
        return value

    def _until(self, token: int, what: str, wanted: Callable[[ToClient], _T | None]) -> _T:
        end = time.monotonic() + self._timeout
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        why = ""
        ended = self._process.handle if isinstance(self._process, HubProcess) else -1
        if ended >= 0:
            poller.register(ended, zmq.POLLIN)
        while (left := end - time.monotonic()) > 0:
            ready = [source for source, _mask in poller.poll(max(1, int(left * 1000)))]
            if ready == [ended] and not self._socket.poll(LAST_WORDS):
                raise NoHub(f"the hub ended before it answered {what!r}: run this again")
            if not ready:
                break
            try:
                heard = TO_CLIENT.decode(self._socket.recv_multipart()[-1])
            except FrameError:
                continue
            for message in heard:
                if isinstance(message, wire.Refused) and message.token in (0, token):
                    raise as_error(message)
                if isinstance(message, wire.Closed | wire.Reconnect):
                    raise NoHub("the hub ended or was started anew meanwhile: run this again")
                if isinstance(message, wire.Unwritten):
                    why = f"; {message.reason}" if message.reason else ""
                found = wanted(message)
                if found is not None:
                    return found
        if why:
            raise HubUnreachable(f"the hub cannot confirm {what!r} now: it did not within {self._timeout:g} s{why}")
        raise _silent(self._home, f"did not answer {what!r}", self._timeout)


@contextlib.contextmanager
def connect(home: Path, session: str = "", timeout: float = 0.0, role: str = "tool") -> Iterator[Tool]:
    """Yield a connection to the running hub; starts none. Without a ``timeout`` in seconds, :data:`TIMEOUT` holds.

    Raises:
        NoHub: no hub runs.
        HubUnreachable: one runs and does not listen here.
        PermissionError: the home's keys are not this user's.
    """
    if elsewhere(home) is None and not hub_runs(home):
        sweep(home)
        raise NoHub(f"no hub runs for {home}: start it with pilot-hitl hub start, or run your script")
    tool = Tool(home, session, timeout or TIMEOUT, role)
    try:
        yield tool
    finally:
        tool.close()


def closed_sessions(home: Path) -> set[str] | None:
    """Return the sessions that no hub holds open now; None when no hub runs, so that none is open.

    Raises:
        HubUnreachable: a hub runs and does not answer.
    """
    try:
        with connect(home) as tool:
            return closed_in(tool.query("sessions"))
    except NoHub:
        return None


def closed_in(told: Json) -> set[str]:
    """Return the sessions that are closed by the hub's list of sessions."""
    rows = [row for row in told if isinstance(row, dict)] if isinstance(told, list) else []
    return {str(row.get("session", row.get("name", ""))) for row in rows if not is_open(row)}


def is_open(row: Mapping[str, Json]) -> bool:
    """Return whether the hub holds the session of which this is its view; when it does not say, it does."""
    return row.get("state", "open") == "open"


def as_error(refused: wire.Refused) -> PilotHitlError:
    """Return the error that a refusal names."""
    cls = getattr(errors, refused.code, None)
    if isinstance(cls, type) and issubclass(cls, PilotHitlError):
        return cls(refused.message)
    return errors.SessionError(f"{refused.message} ({refused.code})")


def _listening(home: Path, timeout: float) -> HubProcess:
    """The hub's process once it listens: it may be starting, or ending, at this very moment."""
    end = time.monotonic() + timeout
    while (found := find(home)) is None:
        if not hub_runs(home):
            raise NoHub("the hub has just ended: run this again")
        if time.monotonic() >= end:
            raise _silent(home, "does not listen", timeout)
        time.sleep(0.02)
    return found


def _silent(home: Path, what: str, timeout: float) -> HubUnreachable:
    return HubUnreachable(
        f"the hub of {home} {what} within {timeout:g} s: it hangs or runs on another machine; "
        f"see {home / 'hub' / 'hub.log'}, or end it with pilot-hitl hub stop --force"
    )


def _started() -> int:
    """Start time of this process in clock ticks since boot."""
    text = Path("/proc/self/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])
