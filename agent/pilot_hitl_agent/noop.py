"""A node that runs no processes: every task ends at once. For measuring everything else."""

from __future__ import annotations

import pickle
import time
from collections import defaultdict

import msgspec

from pilot_hitl.model.failures import Failure
from pilot_hitl.model.templates import ExecutableResult, ExecutableTemplate, Template
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    Changes,
    Ends,
    FromNode,
    Launch,
    Launches,
    NodeTemplate,
    Retract,
    ToNode,
)

_template = msgspec.msgpack.Decoder(Template)
_NONE = b"\0" + pickle.dumps(None, 5)
_EXECUTABLE = msgspec.msgpack.encode(ExecutableResult(0, ""))


class NoopNode:
    """Answers for one node as its daemon would, without doing anything."""

    def __init__(self, node: int) -> None:
        """Start idle."""
        self.node = node
        self._payloads: dict[int, bytes] = {}
        self._held: defaultdict[int, list[Launch]] = defaultdict(list)
        self._changes: list[Change] = []

    def handle(self, messages: list[ToNode]) -> None:
        """Act upon messages of the agent: all of them are taken in before anything runs, as tasks take some time."""
        started: list[Launch] = []
        for message in messages:
            if isinstance(message, NodeTemplate):
                kind = _template.decode(message.blob)
                executable = isinstance(kind, ExecutableTemplate)
                self._payloads[message.template] = _EXECUTABLE if executable else _NONE
            elif isinstance(message, Launches):
                for launch in message.launches:
                    if launch.slots:
                        started.append(launch)
                    else:
                        self._held[launch.chain].append(launch)
            elif isinstance(message, Retract):
                self._retract(set(message.tasks), None)
            elif isinstance(message, Ends):
                for end in message.ends:
                    self._retract({end.task}, end.reason)
        self._launch(started)

    def drain(self) -> list[FromNode]:
        """Return what happened since the last call."""
        if not self._changes:
            return []
        changes, self._changes = self._changes, []
        return [Changes(self.node, changes)]

    def _launch(self, started: list[Launch]) -> None:
        for launch in started:
            self._run(launch, 0)
            held = self._held.pop(launch.chain, [])
            before = launch.task
            for follower in sorted(held, key=lambda item: item.rank):
                self._run(follower, before)
                before = follower.task

    def _run(self, launch: Launch, after: int) -> None:
        now = time.time()
        number = (launch.task, launch.epoch, launch.run)
        self._changes.append(Change(*number, ChangeKind.STARTED, after))
        payload = self._payloads.get(launch.template, _NONE)
        self._changes.append(Change(*number, ChangeKind.FINISHED, 0, payload, None, now, now))

    def _retract(self, tasks: set[int], reason: Failure | None) -> None:
        for chain, held in self._held.items():
            for launch in [item for item in held if item.task in tasks]:
                held.remove(launch)
                number = (launch.task, launch.epoch, launch.run)
                self._changes.append(Change(*number, ChangeKind.RETRACTED, failure=reason))
            self._held[chain] = held
