"""A node for tests: a real spawner, a daemon in this process, and a loop."""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import make_id
from pilot_hitl.model.resources import NodeInventory, Slot
from pilot_hitl.model.staging import directives
from pilot_hitl.model.templates import ExecutableBody, ExecutableResult, ExecutableTemplate, FunctionTemplate
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    Changes,
    End,
    EndMode,
    Ends,
    FromNode,
    Launch,
    Launches,
    NodeLog,
    NodePublished,
    NodeTemplate,
    ToNode,
)
from pilot_hitl.wire.values import dumps, loads
from pilot_hitl_agent.node import packets, proctree, spawner
from pilot_hitl_agent.node.daemon import NodeDaemon
from pilot_hitl_agent.node.settings import NodeSettings

PATIENCE = 30.0


class Node:
    """A daemon with its spawner. Core ``i`` of the node is bit ``1 << i``."""

    def __init__(self, folder: Path, cores: int = 2, pinned: bool = False, **more: Any) -> None:
        self.folder = folder
        self.mark = f"test-{os.getpid()}-{folder.name}-{time.time_ns()}"
        (folder / "work").mkdir(parents=True)
        inventory = NodeInventory(name="here", cores=sorted(os.sched_getaffinity(0))[:cores], pinned=pinned)
        if not pinned:
            inventory = NodeInventory(name="here", cores=list(range(cores)), pinned=False)
        environment = {**os.environ, "PATH": os.environ.get("PATH", "/usr/bin:/bin")}
        settings = {
            "node": 0,
            "inventory": inventory,
            "session": "study",
            "pilot": 1,
            "home": str(folder / "home"),
            "mark": self.mark,
            "session_folder": str(folder / "session"),
            "pilot_folder": str(folder / "pilot"),
            "blobs": str(folder / "blobs"),
            "work": str(folder / "work"),
            "path": [entry for entry in sys.path if entry],
            "environment": environment,
            **more,
        }
        self.settings = NodeSettings(**settings)
        self.blobs = BlobStore(Path(self.settings.blobs))
        ours, theirs = packets.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        self.spawner = subprocess.Popen(
            [sys.executable, "-I", "-S", spawner.PROGRAM, "--serve", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**environment, "PILOT_HITL_MARK": self.mark},
        )
        theirs.close()
        self.daemon = NodeDaemon(self.settings, socket.socket(fileno=ours.detach()))
        self.changes: list[Change] = []
        self.events: list[dict[str, Any]] = []
        self.published: list[NodePublished] = []
        self._numbers = itertools.count(1)
        self._templates = itertools.count(1)

    def executable(self, executable: str, **fields: Any) -> int:
        for field in ("input_staging", "output_staging"):
            if field in fields:
                fields[field] = directives(field, fields[field], folder=self.settings.work)
        return self.template(ExecutableTemplate(executable=executable, name=executable, **fields))

    def function(self, function: Callable[..., Any], **fields: Any) -> int:
        code = dumps(function, self.blobs)
        name = getattr(function, "__name__", "function")
        return self.template(
            FunctionTemplate(digest=blake2b(code, digest_size=20).digest(), code=code, name=name, **fields)
        )

    def template(self, template: ExecutableTemplate | FunctionTemplate) -> int:
        number = next(self._templates)
        self.send(NodeTemplate(number, msgspec.msgpack.encode(template)))
        return number

    def launch(self, template: int, body: bytes, *, core: int | None = 0, chain: int = 1, **fields: Any) -> int:
        task = make_id(1, next(self._numbers))
        slots = () if core is None else (Slot(0, 1 << core),)
        values: dict[str, Any] = {
            "task": task, "epoch": 1, "run": 0, "template": template, "chain": chain, "rank": (1, 0), "condition": 0,
            "slots": slots, "body": body, **fields,
        }  # fmt: skip
        self.send(Launches([Launch(**values)]))
        return task

    def run(self, template: int, *arguments: str, sandbox: str = "", **fields: Any) -> int:
        return self.launch(template, msgspec.msgpack.encode(ExecutableBody(list(arguments), sandbox)), **fields)

    def call(self, template: int, *args: Any, **fields: Any) -> int:
        return self.launch(template, dumps((args, {}), self.blobs), **fields)

    def end(self, task: int, mode: EndMode = "kill", grace: float = 5.0, cause: Cause = Cause.CANCELED) -> None:
        self.send(Ends([End(task, mode, grace, Failure(cause, "test"))]))

    def send(self, *messages: ToNode) -> None:
        self.daemon.handle(messages)
        self.take(self.daemon.drain())

    def take(self, messages: list[FromNode]) -> None:
        for message in messages:
            if isinstance(message, Changes):
                self.changes.extend(message.changes)
            elif isinstance(message, NodeLog):
                self.events.extend(msgspec.json.decode(event) for event in message.events)
            else:
                self.published.append(message)

    def turn(self, wait: float) -> None:
        due = self.daemon.next_deadline()
        if due is not None:
            wait = max(0.0, min(wait, due - time.monotonic()))
        if select.select([self.daemon.fileno()], [], [], wait)[0]:
            self.daemon.on_readable()
        self.daemon.on_timer()
        self.take(self.daemon.drain())

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        limit = time.monotonic() + patience
        while not condition():
            left = limit - time.monotonic()
            assert left > 0, f"in vain: {self.changes[-5:]} {self.events[-3:]}"
            self.turn(min(left, 0.05))

    def finished(self, task: int) -> Change:
        """Wait for the end of a task."""
        self.until(lambda: self.last(task, ChangeKind.FINISHED))
        found = self.last(task, ChangeKind.FINISHED)
        assert found is not None
        return found

    def last(self, task: int, kind: ChangeKind) -> Change | None:
        return next((change for change in reversed(self.changes) if change.task == task and change.kind is kind), None)

    def kinds(self, task: int) -> list[str]:
        return [change.kind.name for change in self.changes if change.task == task]

    def result(self, task: int) -> ExecutableResult:
        return msgspec.msgpack.decode(self.finished(task).payload, type=ExecutableResult)

    def value(self, task: int) -> Any:
        change = self.finished(task)
        assert change.failure is None, change.failure
        return loads(change.payload, self.blobs)

    def failure(self, task: int) -> Failure:
        failure = self.finished(task).failure
        assert failure is not None
        return failure

    def marked(self) -> list[int]:
        """Processes of this node that live."""
        return [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit()
            and int(entry) != os.getpid()
            and proctree.variable_of(int(entry), "PILOT_HITL_MARK") == self.mark
        ]

    def close(self) -> None:
        self.take(self.daemon.close(0.2))
        self.spawner.wait(10)
        limit = time.monotonic() + 5
        while self.marked() and time.monotonic() < limit:
            time.sleep(0.01)
        left = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in self.marked()]
        proctree.kill_marked(self.mark)
        assert not left
