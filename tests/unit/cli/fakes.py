"""A home with sessions, and a hub that answers from a script over the real wire: real sockets, keys and lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from pilot_hitl.inbox import requests
from pilot_hitl.inbox.requests import Request
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire import messages as wire
from pilot_hitl.wire.codec import TO_HUB, encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import SessionPlaces, private_folder, runtime_folder
from pilot_hitl.wire.sockets import Doorkeeper, router

_M = TypeVar("_M", bound=wire.Message)
Answerer = Callable[[wire.Message], list[wire.Message]]


def publish(home: Path, session: str = "mesh", number: int = 1, name: str = "accept-mesh", **fields: Json) -> Request:
    """Make a session with an open request."""
    texts = {"choices": ["accept", "refine"], "form": {"enum": ["accept", "refine"]}, "show": [], **fields}
    deadline = texts.pop("deadline_at", None)
    assignees = texts.pop("assignees", [])
    choices = texts["choices"]
    assert isinstance(choices, list)
    assert isinstance(assignees, list)
    assert deadline is None or isinstance(deadline, float)
    generation = texts.pop("generation", 1)
    assert isinstance(generation, int)
    request = Request(
        id=requests.request_id(session, number, generation),
        session=session,
        name=name,
        generation=generation,
        choices=choices,
        form=texts["form"],
        show=list(texts["show"]) if isinstance(texts["show"], list) else [],
        question=str(fields.get("question", "Is the mesh good enough?")),
        opened_at=1.7e9,
        deadline_at=deadline,
        default=texts.get("default", msgspec.UNSET),
        assignees=[str(who) for who in assignees],
    )
    requests.publish(SessionPlaces(home, session), request)
    return request


class FakeHub:
    """Answers queries from ``replies`` (by their ``what``) and everything else as ``answerer`` says.

    ``heard`` holds every message, in order.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.replies: dict[str, Json | wire.Refused] = {}
        self.answerer: Answerer = lambda _message: []
        self.silent = False
        self.heard: list[wire.Message] = []
        self.ready = threading.Event()
        self._stop = threading.Event()

    def run(self) -> None:
        """Serve until told to stop."""
        keys = keyring(self.home)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        door = Doorkeeper(context, keys)
        socket = router(context, keys)
        try:
            socket.bind(f"ipc://{private_folder(runtime_folder(self.home))}/hub.sock")
            poller = zmq.Poller()
            poller.register(door.socket, zmq.POLLIN)
            poller.register(socket, zmq.POLLIN)
            self.ready.set()
            while not self._stop.is_set():
                ready = dict(poller.poll(20))
                if door.socket in ready:
                    door.answer()
                if socket in ready:
                    peer, frame = socket.recv_multipart()
                    answers = [answer for message in TO_HUB.decode(frame) for answer in self._answers(message)]
                    if answers:
                        with contextlib.suppress(zmq.ZMQError):  # the peer may have left already
                            socket.send_multipart([peer, encode(answers)])
        finally:
            socket.close()
            door.socket.close()
            context.term()

    def _answers(self, message: wire.Message) -> list[wire.Message]:
        self.heard.append(message)
        if self.silent:
            return []
        if isinstance(message, wire.Hello):
            return [wire.Welcome(0, "", os.getpid(), 0, 1)]
        if isinstance(message, wire.Flush):
            return [wire.Flushed(message.token)]
        if isinstance(message, wire.Query):
            reply = self.replies.get(message.what, [])
            if isinstance(reply, wire.Refused):
                return [wire.Refused(reply.code, reply.message, message.token)]
            return [wire.Reply(message.token, json.dumps(reply))]
        return self.answerer(message)

    def said(self, kind: type[_M]) -> list[_M]:
        """Return the messages of a kind that it heard."""
        return [message for message in self.heard if isinstance(message, kind)]

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Hold the lock and serve in a thread."""
        folder = private_folder(private_folder(self.home) / "hub")
        handle = os.open(folder / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600)
        thread = threading.Thread(target=self.run, name="fake hub", daemon=True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            thread.start()
            assert self.ready.wait(10)
            yield self
        finally:
            self._stop.set()
            thread.join(10)
            os.close(handle)
            shutil.rmtree(runtime_folder(self.home), ignore_errors=True)
