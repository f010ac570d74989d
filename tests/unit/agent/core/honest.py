"""Nodes that answer honestly, late, and in any order between each other: what the core's tests drive it with.

The nodes keep their own books, so that a core that is wrong about its own is found out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pilot_hitl.model.failures import UNFINISHED, Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, NodeInventory, Shape, Slot
from pilot_hitl.model.states import Tier
from pilot_hitl_agent.core import (
    FINISHED,
    RESUMED,
    RETRACTED,
    STARTED,
    SUSPENDED,
    Ahead,
    Bulk,
    Changed,
    End,
    Event,
    Instruction,
    Lend,
    NodeChanges,
    NodeDown,
    NodeUp,
    Over,
    Restored,
    Retract,
    Return,
    SchedulingCore,
    Start,
    Submit,
    Unchain,
)

CRASH = Failure(Cause.EXIT, "exit code 1", exit_code=1)


@dataclass
class Running:
    chain: int
    slots: tuple[Slot, ...]
    chainable: bool = True
    suspended: bool = False
    reason: Failure | None = None


@dataclass
class Held:
    task: int
    chain: int
    rank: tuple[int, int]


class HonestNode:
    """One node daemon: it obeys instructions in order and reports in order."""

    def __init__(self, cluster: Cluster, identifier: int, inventory: NodeInventory) -> None:
        self.cluster = cluster
        self.id = identifier
        self.inventory = inventory
        self.running: dict[int, Running] = {}
        self.held: list[Held] = []
        self.inbox: deque[Instruction] = deque()
        self.outbox: deque[list[Changed]] = deque()

    def change(self, task: int, kind: int, after: int = 0, failure: Failure | None = None) -> Changed:
        epoch, run = self.cluster.numbers[task]
        return Changed(task, epoch, run, kind, after, failure)

    def obey(self) -> None:
        match self.inbox.popleft():
            case Start(placed=placed):
                for one in placed:
                    assert one.task not in self.running, f"{one.task} started twice on node {self.id}"
                    self._verify(one.task, one.slots)
                    self.running[one.task] = Running(one.chain, one.slots)
                    self.outbox.append([self.change(one.task, STARTED)])
            case Ahead(chain=chain, rank=rank, tasks=tasks):
                self.held.extend(Held(task, chain, rank) for task in tasks)
            case Retract(tasks=tasks):
                for task in tasks:
                    self._retract(task)
            case Unchain(tasks=tasks):
                for task in tasks:
                    if task in self.running:
                        self.running[task].chainable = False
            case End() as instruction:
                for task in instruction.tasks:
                    self._end(task, instruction)
            case other:
                raise AssertionError(other)

    def _verify(self, task: int, slots: tuple[Slot, ...]) -> None:
        """By the node's own books: nobody else uses these cores, GPUs and this memory."""
        cores, memory = 0, sum(slot.memory for slot in slots)
        gpus = dict.fromkeys(self.inventory.gpus, 0)
        mine = 0
        for slot in slots:
            assert slot.node == self.id
            assert not mine & slot.cores, "two ranks on one core"
            mine |= slot.cores
            assert slot.cores < 1 << len(self.inventory.cores)
        shape = self.cluster.shapes[task]
        asked = {(choice.cores, choice.memory, choice.gpu_shares) for choice in shape.choices}
        given = {(slot.cores.bit_count(), slot.memory, len(slot.gpus) * slot.gpu_shares) for slot in slots}
        assert given <= asked, f"{given} given, {asked} asked for"
        assert len(given) == 1, f"ranks of one task differ: {given}"
        assert len(slots) <= (shape.ranks_per_node or shape.ranks)
        for node in self.cluster.nodes.values():
            for other in node.running if shape.colocate and node is not self else ():
                assert self.cluster.shapes[other].colocate != shape.colocate, f"{task} is not where {other} is"
        for other, running in self.running.items():
            memory += sum(slot.memory for slot in running.slots)
            for slot in running.slots:
                for device in slot.gpus:
                    gpus[device] += slot.gpu_shares
            if running.suspended:
                continue
            taken = 0
            for slot in running.slots:
                taken |= slot.cores
            alone = shape.exclusive or self.cluster.shapes[other].exclusive
            assert not alone, "an exclusive task shares a node"
            if other in self.cluster.lending:
                parent = self.cluster.bulks[task].parent
                # A parent that had borrowed these cores may have ended since this was decided.
                child = parent == other or parent in self.cluster.lent
                assert not mine & taken or task in self.cluster.soft or child, "needed work on lent cores"
            else:
                cores |= taken
        assert not cores & mine, f"a core of node {self.id} used twice, by {task}"
        for slot in slots:
            for device in slot.gpus:
                gpus[device] += slot.gpu_shares
        assert all(share <= GPU_SHARES for share in gpus.values()), "a GPU used twice"
        assert not self.inventory.memory or memory <= self.inventory.memory, "memory used twice"
        started = {other for node in self.cluster.nodes.values() for other in node.running}
        launched = sum(1 for other in {*started, task} if self.cluster.shapes[other].launcher)
        assert not shape.launcher or launched <= self.cluster.launchers, "more launchers than the site bears"

    def _retract(self, task: int) -> None:
        for held in self.held:
            if held.task == task:
                self.held.remove(held)
                self.outbox.append([self.change(task, RETRACTED)])
                return
        # Else it was answered by STARTED before.

    def _end(self, task: int, instruction: End) -> None:
        running = self.running.get(task)
        if running is None:
            self._retract(task)
        elif instruction.mode == "suspend":
            if running.reason is None and not running.suspended:
                running.suspended, running.chainable = True, False
                self.outbox.append([self.change(task, SUSPENDED)])
        elif instruction.mode == "resume":
            assert running.suspended
            self._unsuspend(task, running)
        else:
            running.reason = instruction.reason
            running.chainable = False

    def _unsuspend(self, task: int, running: Running) -> None:
        mine = 0
        for slot in running.slots:
            mine |= slot.cores
        for other, there in self.running.items():
            if other != task and not there.suspended and other not in self.cluster.lending:
                assert not any(slot.cores & mine for slot in there.slots), f"{task} resumed on used cores"
        running.suspended = False
        self.outbox.append([self.change(task, RESUMED)])

    def finish(self, task: int, *, crash: bool = False, follow: bool = True) -> None:
        """An attempt ends; the best one held ahead of its chain follows it."""
        running = self.running.pop(task)
        failure = running.reason or (CRASH if crash else None)
        changes = [self.change(task, FINISHED, failure=failure)]
        waiting = [held for held in self.held if held.chain == running.chain]
        if waiting and follow and running.chainable:
            best = min(waiting, key=lambda held: held.rank)
            self.held.remove(best)
            self.running[best.task] = Running(running.chain, running.slots)
            changes.append(self.change(best.task, STARTED, after=task))
        self.outbox.append(changes)


@dataclass
class Cluster:
    """Nodes, the core, and what must come out of the core exactly once."""

    core: SchedulingCore
    launchers: int = 100
    now: float = 0.0
    nodes: dict[int, HonestNode] = field(default_factory=dict)
    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)
    bulks: dict[int, Bulk] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    lending: set[int] = field(default_factory=set)
    lent: set[int] = field(default_factory=set)
    soft: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    over: list[int] = field(default_factory=list)
    returned: dict[int, Failure] = field(default_factory=dict)
    restored: list[int] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    log: list[Instruction] = field(default_factory=list)

    def tell(self, *happened: Event) -> list[Instruction]:
        out = self.core.steps(happened, self.now)
        self.core.check()
        for instruction in out:
            self._route(instruction)
        self.log.extend(out)
        return out

    def _route(self, instruction: Instruction) -> None:
        match instruction:
            case Over(tasks=tasks):
                for task in tasks:
                    self._leave(task)
                    self.over.append(task)
            case Return(tasks=runs, failure=failure):
                for first, count in runs:
                    for task in range(first, first + count):
                        self._leave(task)
                        self.returned[task] = failure
            case Restored(tasks=tasks):
                self.restored.extend(tasks)
                # At once: a later attempt of it may lend before anybody looks.
                self.lending.difference_update(tasks)
            case Start() | Ahead() | Retract() | Unchain() | End():
                self._to_node(instruction)

    def _to_node(self, instruction: Start | Ahead | Retract | Unchain | End) -> None:
        if isinstance(instruction, Start):
            self.decided.extend(one.task for one in instruction.placed)
            self.soft.update(one.task for one in instruction.placed if one.rank[0] >= Tier.SPECULATIVE)
        elif isinstance(instruction, Ahead):
            self.decided.extend(instruction.tasks)
            assert instruction.tasks
        elif isinstance(instruction, Retract):
            assert not self.asked.intersection(instruction.tasks), "asked back twice"
            self.asked.update(instruction.tasks)
        if instruction.node in self.nodes:
            self.nodes[instruction.node].inbox.append(instruction)

    def _leave(self, task: int) -> None:
        assert task in self.live, f"{task} ended twice"
        self.live.discard(task)
        self.lending.discard(task)
        self.asked.discard(task)
        self.soft.discard(task)

    # --- what tests say ----------------------------------------------------------------------------------------------

    def up(self, identifier: int, cores: int, gpus: int = 0, memory: int = 0) -> None:
        name = f"n{identifier}"
        inventory = NodeInventory(name=name, cores=list(range(cores)), gpus=list(range(gpus)), memory=memory)
        self.nodes[identifier] = HonestNode(self, identifier, inventory)
        self.tell(NodeUp(identifier, inventory))

    def down(self, identifier: int) -> None:
        node = self.nodes.pop(identifier)
        self.asked.difference_update(held.task for held in node.held)
        for instruction in node.inbox:
            if isinstance(instruction, Ahead):
                self.asked.difference_update(instruction.tasks)
        self.tell(NodeDown(identifier))

    def restart(self, identifier: int) -> None:
        """A node's daemon dies with all that it ran, and is there again before anybody missed it."""
        node = self.nodes[identifier]
        self.asked.difference_update(held.task for held in node.held)
        for instruction in node.inbox:
            if isinstance(instruction, Ahead):
                self.asked.difference_update(instruction.tasks)
        self.nodes[identifier] = HonestNode(self, identifier, node.inventory)
        self.tell(NodeUp(identifier, node.inventory))

    def submit(self, *bulks: Bulk) -> list[Instruction]:
        for bulk in bulks:
            for task in range(bulk.first, bulk.first + bulk.count):
                self.note(task, bulk)
        return self.tell(Submit(list(bulks)))

    def note(self, task: int, bulk: Bulk) -> None:
        assert task not in self.live
        self.live.add(task)
        self.numbers[task] = (bulk.epoch, bulk.run)
        self.shapes[task] = bulk.shape
        self.bulks[task] = bulk
        self.returned.pop(task, None)

    def lend(self, task: int) -> None:
        """A task waits: its nodes let nothing follow it from the moment on when they pass that on."""
        for node in self.nodes.values():
            if task in node.running:
                node.running[task].chainable = False
        self.lending.add(task)
        self.lent.add(task)
        self.tell(Lend(task, True))

    def take_back(self, task: int) -> None:
        self.tell(Lend(task, False))

    # --- what the world does -----------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Let nodes obey and report until there is nothing to say."""
        while True:
            busy = False
            for node in list(self.nodes.values()):
                while node.inbox:
                    node.obey()
                    busy = True
                while node.outbox:
                    self.report(node)
                    busy = True
            if not busy:
                return

    def report(self, node: HonestNode, most: int = 1) -> None:
        """Deliver the oldest reports of a node as one event."""
        changes: list[Changed] = []
        while node.outbox and most:
            changes.extend(node.outbox.popleft())
            most -= 1
        self.asked.difference_update(change.task for change in changes)
        self.tell(NodeChanges(node.id, changes))

    def running(self) -> list[tuple[int, int]]:
        """Return ``(node, task)`` of everything that runs and is not suspended."""
        return [
            (node.id, task)
            for node in self.nodes.values()
            for task, running in node.running.items()
            if not running.suspended
        ]

    def tasks(self) -> set[int]:
        """Return the tasks that run somewhere."""
        return {task for _, task in self.running()}

    def finish(self, *tasks: int, crash: bool = False) -> None:
        """End attempts on all their nodes, and let everybody hear of it."""
        self.deliver()
        for task in tasks:
            for node in list(self.nodes.values()):
                if task in node.running:
                    node.finish(task, crash=crash)
        self.deliver()

    def obey_ends(self) -> None:
        """Let everything that was told to end do so."""
        self.deliver()
        for node in list(self.nodes.values()):
            for task, running in list(node.running.items()):
                if running.reason is not None:
                    node.finish(task)
        self.deliver()

    def run_dry(self, limit: int = 100_000) -> None:
        """Let everything that runs end, until nothing does."""
        self.deliver()
        for _ in range(limit):
            running = self.running()
            if not running:
                return
            for identifier, task in running:
                node = self.nodes[identifier]
                if task in node.running:
                    node.finish(task)
            self.deliver()
        raise AssertionError("it does not end")


def unfinished(failure: Failure) -> bool:
    """Return whether a task is to be tried again."""
    return failure.cause in UNFINISHED


def cluster(cores: Sequence[int], *, gpus: int = 0, memory: int = 0, credit: int = 2, launchers: int = 100) -> Cluster:
    """Return nodes with so many cores each, all up."""
    made = Cluster(SchedulingCore(credit=credit, nodes=len(cores), launchers=launchers), launchers)
    for identifier, count in enumerate(cores):
        made.up(identifier, count, gpus, memory)
    return made
