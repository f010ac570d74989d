"""What the agent keeps of the tasks that it holds: bodies, and where they run."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pilot_hitl.model.failures import UNFINISHED, Cause, Failure
from pilot_hitl.model.outputs import Output
from pilot_hitl.model.resources import NodeInventory, Slot
from pilot_hitl.model.states import State, Tier
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire.messages import Report
from pilot_hitl.wire.node import Change
from pilot_hitl.wire.outputs import bare, outputs_of, with_output


class Batch(msgspec.Struct):
    """Tasks that arrived as one dispatch; ``bodies[i]`` belongs to task ``first + i``."""

    first: int
    epoch: int
    run: int
    template: int
    ranks: int
    condition: int
    bodies: list[bytes]
    inputs: list[tuple[int, bytes]]
    tier: Tier = Tier.NEEDED
    exclusive: bool = False


_result = msgspec.msgpack.Decoder(ExecutableResult)
Place = tuple[int, tuple[Slot, ...]]


class Jobs:
    """The tasks that an agent holds, by id."""

    def __init__(self, nodes: Mapping[int, NodeInventory]) -> None:
        """Start without any."""
        self.batches: dict[int, Batch] = {}
        self._places: dict[int, Place] = {}
        self._ends: dict[int, Change] = {}
        self._nodes = nodes
        self._parts: dict[int, dict[int, bytes]] = {}
        """What each node of a gang said of its part."""
        self._cpus: dict[tuple[int, int], list[int]] = {}

    def add(self, batch: Batch) -> None:
        """Hold the tasks of a batch; one that is held already is replaced."""
        for task in range(batch.first, batch.first + len(batch.bodies)):
            self.batches[task] = batch

    def known(self) -> list[tuple[int, int, int]]:
        """Return ``(task, epoch, run)`` of everything held."""
        return [(task, batch.epoch, batch.run) for task, batch in self.batches.items()]

    def place(self, task: int, node: int, slots: tuple[Slot, ...]) -> None:
        """Note where a task was put; a gang's lowest node leads and stands for it."""
        known = self._places.get(task)
        if known is None or node < known[0]:
            self._places[task] = (node, slots)

    def has_place(self, task: int) -> bool:
        """Return whether a task was put somewhere."""
        return task in self._places

    def follow(self, task: int, before: int) -> None:
        """Note that a task took over another's slots."""
        place = self._places.get(before)
        if place is not None:
            self._places[task] = place

    def end(self, change: Change, node: int) -> None:
        """Note how an attempt ended on a node; of a gang, the first failure counts, else what its leading part says."""
        earlier = self._ends.get(change.task)
        batch = self.batches.get(change.task)
        if batch is not None and batch.ranks > 1 and change.payload:
            self._parts.setdefault(change.task, {})[node] = change.payload
        if earlier is None:
            self._ends[change.task] = change
        elif earlier.failure is None:
            place = self._places.get(change.task)
            if change.failure is not None or (place is not None and place[0] == node):
                self._ends[change.task] = change

    def over(self, task: int) -> Report | None:
        """Forget a task that ended everywhere and return what to report of it."""
        batch = self.batches.pop(task, None)
        node, slots = self._places.pop(task, (0, ()))
        change = self._ends.pop(task, None)
        parts = self._parts.pop(task, None) if self._parts else None
        if batch is None or change is None:
            return None
        if parts is not None and (len(parts) > 1 or not change.payload):
            change = msgspec.structs.replace(change, payload=joined(change, parts))
        return Report(
            task,
            batch.epoch,
            batch.run,
            reported_state(change.failure),
            change.payload,
            change.failure,
            node,
            self._cpu_numbers(node, slots),
            change.began,
            change.ended,
            change.unpublished,
        )

    def give_back(self, task: int, failure: Failure) -> Report | None:
        """Forget a task that got no end of its own and return what to report of it."""
        batch = self.batches.pop(task, None)
        self._places.pop(task, None)
        change = self._ends.pop(task, None)
        self._parts.pop(task, None)
        if batch is None:
            return None
        began, ended = (change.began, change.ended) if change else (0.0, 0.0)
        state = State.FAILED if failure.cause is Cause.UNFIT else State.QUEUED
        if failure.cause is Cause.CANCELED:
            state = State.CANCELED
        return Report(task, batch.epoch, batch.run, state, b"", failure, 0, [], began, ended)

    def _cpu_numbers(self, node: int, slots: tuple[Slot, ...]) -> list[int]:
        bits = 0
        for slot in slots:
            bits |= slot.cores
        numbers = self._cpus.get((node, bits))
        if numbers is None:
            cores = self._nodes[node].cores
            numbers = [cores[index] for index in range(bits.bit_length()) if bits >> index & 1]
            self._cpus[(node, bits)] = numbers
        return numbers


def joined(end: Change, parts: Mapping[int, bytes]) -> bytes:
    """Return how a gang ended with what was captured on its other nodes; as it is, when it is of another kind.

    Of a call, that is so also when it failed. Output that all nodes wrote to one file is there already.
    """
    payload = end.payload
    if any(outputs_of(part) for part in parts.values()):
        outputs = [each for _node, part in sorted(parts.items()) for each in outputs_of(part)]
        return with_output(bare(payload), outputs)
    if end.failure is not None:
        return payload
    try:
        result = _result.decode(payload)
        others = [_result.decode(part) for _node, part in sorted(parts.items()) if part != payload]
    except msgspec.MsgspecError:
        return payload
    seen = {result.stdout_at.path, result.stderr_at.path} - {""}
    more = [
        Output(each.stdout, each.stderr, each.stdout_at, each.stderr_at)
        for each in others
        if not seen & {each.stdout_at.path, each.stderr_at.path}
    ]
    return msgspec.msgpack.encode(msgspec.structs.replace(result, others=more))


def reported_state(failure: Failure | None) -> State:
    """Return the state in which an attempt with this end is reported."""
    if failure is None:
        return State.DONE
    if failure.cause is Cause.CANCELED:
        return State.CANCELED
    return State.QUEUED if failure.cause in UNFINISHED or failure.cause is Cause.DISCARDED else State.FAILED
