"""What waits to be sent, what was sent and is not yet on the hub's disk, and how much of both there may be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from pilot_hitl._staging import Staging, innermost
from pilot_hitl.errors import DescriptionError, fresh
from pilot_hitl.model.resources import Shape
from pilot_hitl.wire.codec import TO_HUB, FrameError, encode, pack_bodies
from pilot_hitl.wire.messages import Message, Submit

BULK_TASKS = 256
BULK_BYTES = 64 * 1024
FRAME_BYTES = 512 * 1024
MAX_TASKS = 200_000
MAX_BYTES = 64 * 1024 * 1024
"""More than these many unacknowledged tasks or bytes, and whoever submits waits."""


class Kind(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What tasks must have in common to travel in one bulk. Fields as in :class:`Submit`."""

    template: int
    shape: Shape
    priority: int = 0
    backfill: bool = False
    pilot: int = 0
    retries: int = 0
    effects_outside: bool = False
    deps: tuple[int, ...] = ()
    condition: int = 0
    parent: int = 0
    site: str = ""
    keeps_failures: bool = False


class Marks(NamedTuple):
    """What a later run finds tasks by: their resume keys, and notes on the files behind them; none, or one a task."""

    keys: list[bytes]
    notes: list[bytes]


UNMARKED = Marks([], [])
Job = tuple[Kind, int, list[bytes], Marks]
"""``(kind, first task, bodies, marks)``."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Messages as they are sent, how many tasks they hold and how many bytes of bodies."""

    content: bytes
    tasks: int
    size: int


class Outbox:
    """The way out of a client: many threads put in, one takes out.

    Frames that were taken are kept until they are acknowledged, so that they can be sent again.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake`` is called, in the putting thread, after each put."""
        self._wake = wake
        self._room = threading.Condition(threading.Lock())
        self._items: list[Message | Job] = []
        self._tasks = 0
        self._bytes = 0
        self._sent: deque[Frame] = deque()
        self._acknowledged = 0
        self._broken: BaseException | None = None
        self.drainer = 0

    def put(self, message: Message, staging: Staging | None = None) -> None:
        """Put a message in line, or keep it with what a block declares that has not ended.

        Raises:
            DescriptionError: the hub could not read it; the message names the field.
            The error that broke the outbox, see :meth:`fail`.
        """
        _check(message)
        with self._room:
            if self._broken is not None:
                raise fresh(self._broken)
            block = None if staging is None else innermost(staging)
            if block is not None:
                block.items.append(message)
                return
            self._items.append(message)
        self._wake()

    def put_together(self, messages: Sequence[Message]) -> None:
        """Put messages in line that the hub is to see in one turn.

        Raises:
            DescriptionError: the hub could not read one of them; the message names the field.
            The error that broke the outbox, see :meth:`fail`.
        """
        for message in messages:
            _check(message)
        with self._room:
            if self._broken is not None:
                raise fresh(self._broken)
            self._items.extend(messages)
        self._wake()

    def submit(
        self,
        kind: Kind,
        number: Callable[[int], int],
        bodies: list[bytes],
        marks: Marks,
        staging: Staging | None = None,
    ) -> int:
        """Put tasks in line and return the first one's id; ``number(count)`` gives it, called under this lock.

        With ``staging`` they are kept there instead. Waits while too much is unacknowledged, except in the drainer's
        own thread.

        Raises:
            The error that broke the outbox, see :meth:`fail`.
        """
        size = len(bodies[0]) if len(bodies) == 1 else sum(map(len, bodies))
        with self._room:
            block = None if staging is None else innermost(staging)
            if block is not None:
                if self._broken is not None:
                    raise fresh(self._broken)
                first = number(len(bodies))
                block.add((kind, first, bodies, marks), size)
                return first
            if self._tasks >= MAX_TASKS or self._bytes >= MAX_BYTES:
                self._wait_for_room()
            if self._broken is not None:
                raise fresh(self._broken)
            self._tasks += len(bodies)
            self._bytes += size
            first = number(len(bodies))
            self._items.append((kind, first, bodies, marks))
        self._wake()
        return first

    def close(self, staging: Staging, *, drop: bool = False) -> bool:
        """Put everything that a block declared in line, in one go, or give it to the block around it, or ``drop`` it.

        Returns whether it is in line. Waits as :meth:`submit`.

        Raises:
            The error that broke the outbox, see :meth:`fail`.
        """
        with self._room:
            staging.closed = True
            outer = innermost(staging)
            if drop or outer is not None:
                if outer is not None and not drop:
                    outer.merge(staging)
                return False
            if staging.tasks and (self._tasks >= MAX_TASKS or self._bytes >= MAX_BYTES):
                self._wait_for_room()
            if self._broken is not None:
                raise fresh(self._broken)
            self._tasks += staging.tasks
            self._bytes += staging.size
            self._items += staging.items
        self._wake()
        return True

    def number(self, count: int, number: Callable[[int], int]) -> int:
        """Return the first of ``count`` ids that ``number(count)`` gives, for tasks that are never sent."""
        with self._room:
            return number(count)

    def _wait_for_room(self) -> None:
        if threading.get_ident() == self.drainer:
            return
        while self._broken is None and (self._tasks >= MAX_TASKS or self._bytes >= MAX_BYTES):
            self._room.wait()

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._items

    @property
    def settled(self) -> bool:
        """Whether nothing waits and everything taken is acknowledged."""
        return not self._items and not self._sent

    @property
    def outstanding(self) -> int:
        """How many frames were taken and are not acknowledged."""
        return len(self._sent)

    def take(self) -> list[bytes]:
        """Return the frames for everything that waits, in order; they stay until acknowledged."""
        with self._room:
            items, self._items = self._items, []
        frames = _frames(items)
        self._sent.extend(frames)
        return [frame.content for frame in frames]

    def unacknowledged(self) -> list[bytes]:
        """Return the frames to send again on a new connection; acknowledgements count from the first of them."""
        self._acknowledged = 0
        return [frame.content for frame in self._sent]

    def acknowledge(self, frames: int) -> None:
        """Forget everything up to this many frames of this connection."""
        tasks = size = 0
        while self._acknowledged < frames and self._sent:
            frame = self._sent.popleft()
            self._acknowledged += 1
            tasks += frame.tasks
            size += frame.size
        if tasks:
            with self._room:
                self._tasks -= tasks
                self._bytes -= size
                self._room.notify_all()

    def abandon(self, error: BaseException) -> None:
        """As :meth:`fail`, in a forked child, where the lock may be held by a thread that does not exist."""
        self._room = threading.Condition(threading.Lock())
        self._broken = error

    def fail(self, error: BaseException) -> None:
        """Break the outbox: whoever waits for room, or puts something in later, gets this error."""
        with self._room:
            self._broken = error
            self._items.clear()
            self._room.notify_all()
        self._sent.clear()


def _check(message: Message) -> None:
    """Refuse here what the hub could not read: there it would be too late to say so to whoever wrote it."""
    try:
        TO_HUB.check(message)
    except FrameError as error:
        raise DescriptionError(f"{type(message).__name__}: {error}") from error


def _frames(items: list[Message | Job]) -> list[Frame]:
    frames: list[Frame] = []
    messages: list[Message] = []
    tasks = size = 0
    for message, bytes_ in bulks(items):
        messages.append(message)
        if type(message) is Submit:
            tasks += message.count
            size += bytes_
        if size >= FRAME_BYTES:
            frames.append(Frame(encode(messages), tasks, size))
            messages, tasks, size = [], 0, 0
    if messages:
        frames.append(Frame(encode(messages), tasks, size))
    return frames


def bulks(items: list[Message | Job]) -> Iterator[tuple[Message, int]]:
    """Yield the messages for items in the same order, neighbouring tasks of one kind merged; and their bodies' size."""
    bulk: _Bulk | None = None
    for item in items:
        if not isinstance(item, tuple):
            if bulk is not None:
                yield bulk.message(), bulk.size
                bulk = None
            yield item, 0
            continue
        kind, first, bodies, marks = item
        if bulk is None or not bulk.takes(kind, first, len(bodies), bool(marks.keys)):
            if bulk is not None:
                yield bulk.message(), bulk.size
            bulk = _Bulk(kind, first, bool(marks.keys))
        bulk.add(bodies, marks)
    if bulk is not None:
        yield bulk.message(), bulk.size


class _Bulk:
    __slots__ = ("bodies", "first", "keyed", "keys", "kind", "notes", "size")

    def __init__(self, kind: Kind, first: int, keyed: bool) -> None:
        self.kind = kind
        self.first = first
        self.keyed = keyed
        self.bodies: list[bytes] = []
        self.keys: list[bytes] = []
        self.notes: list[bytes] = []
        self.size = 0

    def takes(self, kind: Kind, first: int, count: int, keyed: bool) -> bool:
        return (
            len(self.bodies) + count <= BULK_TASKS
            and self.size < BULK_BYTES
            and first == self.first + len(self.bodies)
            and keyed is self.keyed
            and (kind is self.kind or kind == self.kind)
        )

    def add(self, bodies: list[bytes], marks: Marks) -> None:
        if marks.notes:
            self.notes += [b""] * (len(self.bodies) - len(self.notes))
            self.notes += marks.notes
        self.bodies += bodies
        self.keys += marks.keys
        self.size += len(bodies[0]) if len(bodies) == 1 else sum(map(len, bodies))

    def message(self) -> Submit:
        kind = self.kind
        if self.notes:
            self.notes += [b""] * (len(self.bodies) - len(self.notes))
        return Submit(
            self.first,
            len(self.bodies),
            kind.template,
            kind.shape,
            pack_bodies(self.bodies),
            b"".join(self.keys),
            kind.priority,
            kind.backfill,
            kind.pilot,
            kind.retries,
            kind.effects_outside,
            list(kind.deps),
            kind.condition,
            parent=kind.parent,
            site=kind.site,
            notes=pack_bodies(self.notes) if self.notes else b"",
            keeps_failures=kind.keeps_failures,
        )
