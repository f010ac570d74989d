"""A small peer that speaks the real wire: a ROUTER in a thread that runs calls itself and keeps what it was sent."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import msgspec
import zmq

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import CheckpointState, PilotState, State
from pilot_hitl.model.templates import ExecutableBody, ExecutableResult, ExecutableTemplate, FunctionTemplate, Template
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import values
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.codec import TO_HUB, encode, unpack_bodies
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import private_folder, runtime_folder
from pilot_hitl.wire.processes import start_time
from pilot_hitl.wire.sockets import Doorkeeper, router

_templates: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)
_body = msgspec.msgpack.Decoder(ExecutableBody)


class FakeHub:
    """Runs until :meth:`stop`. ``seen`` holds every message in order; ``hold`` keeps outcomes back until released.

    What is held back is told to who watches it. ``idle`` is what it says of its cores, ``answers`` are those that it
    has already, by checkpoint.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.seen: list[m.Message] = []
        self.hold = False
        self.acknowledge = True
        self.refuse: m.Refused | None = None
        self.hellos: list[m.Hello] = []
        self.deaf = 0
        """How many greetings are taken along without a word, as by a hub that is killed."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keys = keyring(home)
        self._door = Doorkeeper(self._context, keys)
        self._router = router(self._context, keys)
        folder = private_folder(runtime_folder(home))
        self._router.bind(f"ipc://{folder}/hub.sock")
        self._orders, self._order_in = os.pipe()
        self._actions: list[Callable[[], None]] = []
        self._templates: dict[int, Any] = {}
        self._payloads: dict[int, bytes] = {}
        self._held: list[m.Outcome] = []
        self._peer = b""
        self._frames = 0
        self.incarnation = 0
        self.idle = True
        self.answers: dict[str, str] = {}
        self._watched: set[int] = set()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.do(lambda: setattr(self, "_over", True))
        self._thread.join(5)
        for handle in (self._orders, self._order_in):
            os.close(handle)
        shutil.rmtree(runtime_folder(self.home), ignore_errors=True)

    def do(self, action: Callable[[], None]) -> None:
        """Run something in the hub's thread."""
        self._actions.append(action)
        os.write(self._order_in, b"!")

    def listen(self) -> str:
        """Listen on TCP as well, and return where."""
        found: Queue[str] = Queue()

        def bind() -> None:
            self._router.bind("tcp://127.0.0.1:*")
            found.put(self._router.getsockopt_string(zmq.LAST_ENDPOINT))

        self.do(bind)
        return found.get(timeout=10)

    def release(self) -> None:
        """Tell the outcomes that were held back."""

        def tell() -> None:
            self.hold = False
            held, self._held = self._held, []
            self.send(m.Outcomes(held))

        self.do(tell)

    def tell(self, *messages: m.Message) -> None:
        """Send messages to the client."""
        self.do(lambda: self.send(*messages))

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the messages of a kind that came in."""
        return [message for message in self.seen if type(message) is kind]

    # --- in the thread ------------------------------------------------------------------------------------------

    def send(self, *messages: m.Message) -> None:
        with suppress(zmq.ZMQError):  # a client that left does not take what comes after
            self._router.send_multipart([self._peer, encode(messages)])

    def _run(self) -> None:
        poller = zmq.Poller()
        for each in (self._router, self._door.socket, self._orders):
            poller.register(each, zmq.POLLIN)
        try:
            while not self._over:
                for ready, _ in poller.poll():
                    if ready is self._door.socket:
                        self._door.answer()
                    elif ready == self._orders:
                        os.read(self._orders, 1)
                        self._actions.pop(0)()
                    else:
                        self._take(*self._router.recv_multipart())
        finally:
            self._context.destroy(linger=0)

    def _take(self, peer: bytes, frame: bytes) -> None:
        messages = TO_HUB.decode(frame)
        self.seen += messages
        if isinstance(messages[0], m.Hello):
            if self.deaf:
                self.deaf -= 1
                return
            self._peer, self._frames = peer, 0
            self._hello(messages[0])
            return
        self._frames += 1
        for message in messages:
            handler = getattr(self, f"_on_{type(message).__name__.lower()}", None)
            if handler is not None:
                handler(message)
        if self.acknowledge:
            self.send(m.Acknowledged(self._frames))

    def _hello(self, hello: m.Hello) -> None:
        self.hellos.append(hello)
        if self.refuse is not None:
            self.send(self.refuse)
            return
        self.incarnation = hello.incarnation or self.incarnation + 1
        folder = self.home / "sessions" / hello.session
        self._blobs = BlobStore(folder / "blobs")
        self.send(m.Welcome(self.incarnation, str(folder), os.getpid(), start_time(os.getpid()), 1))

    def _on_puttemplate(self, put: m.PutTemplate) -> None:
        self._templates[put.template] = _templates.decode(put.blob)

    def _on_submit(self, submit: m.Submit) -> None:
        template = self._templates[submit.template]
        outcomes = [
            self._outcome(submit.first + offset, template, body)
            for offset, body in enumerate(unpack_bodies(submit.bodies))
        ]
        if self.hold:
            self._held += outcomes
            self._tell_held()
        else:
            self.send(m.Outcomes(outcomes))

    def _on_watch(self, watch: m.Watch) -> None:
        self._watched |= {task for first, count in watch.runs for task in range(first, first + count)}
        self._tell_held()

    def _tell_held(self) -> None:
        told = [each for each in self._held if each.task in self._watched and each.state is State.DONE]
        if told:
            self.send(m.HeldOutcomes([msgspec.structs.replace(each, state=State.HELD) for each in told]))

    def _outcome(self, task: int, template: Any, body: bytes) -> m.Outcome:
        if isinstance(template, ExecutableTemplate):
            arguments = _body.decode(body).arguments
            code = int(arguments[0]) if arguments and arguments[0].isdecimal() else 0
            payload = msgspec.msgpack.encode(ExecutableResult(code, "/nowhere", b"out\xff", b"err"))
            failure = Failure(Cause.EXIT, f"exit code {code}", "host", code) if code else None
            return m.Outcome(task, State.FAILED if code else State.DONE, 1, 0, payload, failure, "host")
        assert isinstance(template, FunctionTemplate)
        try:
            function = values.loads(template.code, self._blobs)
            args, kwargs = values.loads(body, self._blobs, self._payloads)
            payload = values.dumps(function(*args, **kwargs), self._blobs)
        except Exception as error:  # whatever the test's function raises
            failure = Failure(Cause.EXCEPTION, str(error), "host", detail="Traceback (far away)")
            return m.Outcome(task, State.FAILED, 1, 0, values.dumps(error, self._blobs), failure, "host")
        self._payloads[task] = payload
        return m.Outcome(task, State.DONE, 1, 0, payload)

    def _on_cancel(self, cancel: m.Cancel) -> None:
        tasks = {task for first, count in cancel.runs for task in range(first, first + count)}
        self._held = [outcome for outcome in self._held if outcome.task not in tasks]
        self.send(m.Outcomes([m.Outcome(task, State.CANCELED) for task in sorted(tasks)]))

    def _on_submitpilot(self, submit: m.SubmitPilot) -> None:
        self.send(m.PilotUpdate(submit.token, 1, PilotState.ACTIVE))

    def _on_ask(self, ask: m.Ask) -> None:
        number = next(at for at, each in enumerate(self.of(m.Ask), 1) if each is ask)
        if (answer := self.answers.get(ask.name)) is not None:
            self.send(m.CheckpointUpdate(ask.handle, number, CheckpointState.ANSWERED, answer))
        else:
            self.send(m.CheckpointUpdate(ask.handle, number, CheckpointState.OPEN))

    def _on_answer(self, answer: m.Answer) -> None:
        ask = self.of(m.Ask)[answer.checkpoint - 1]
        if ask.choices and answer.value not in ask.choices:
            self.send(m.Refused("AnswerRefused", "invalid: not one of the choices", answer.token))
            return
        record = json.dumps({"by": "ana", "channel": answer.channel, "comment": answer.comment, "answered_at": 1.5})
        closed = m.CheckpointUpdate(ask.handle, answer.checkpoint, CheckpointState.ANSWERED, answer.value, record)
        self.send(closed, m.Reply(answer.token, "{}"))

    def _on_query(self, query: m.Query) -> None:
        if query.what == "nothing":
            self.send(m.Refused("UnknownSession", "there is none", query.token))
        elif query.what == "explain":
            self.send(m.Reply(query.token, json.dumps({"text": "it waits for cores"})))
        elif query.what == "idle":
            self.send(m.Reply(query.token, json.dumps({"idle": self.idle})))
        elif query.what == "key":
            self.send(m.Reply(query.token, json.dumps({"key": json.loads(query.arguments)["task"].encode().hex()})))
        else:
            self.send(m.Reply(query.token, query.arguments))

    def _on_extend(self, extend: m.Extend) -> None:
        self.send(m.Reply(extend.token, "{}"))

    def _on_lend(self, lend: m.Lend) -> None:
        self.send(m.Reply(lend.token, "{}"))

    def _on_flush(self, flush: m.Flush) -> None:
        self.send(m.Flushed(flush.token))

    def _on_bye(self, _bye: m.Bye) -> None:
        self.send(m.Closed())
