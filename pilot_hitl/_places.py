"""Where in a script, or in a task, some code runs, and what follows from that for all that it submits and waits for.

Three things make a *place*: a ``with`` block of a branch, which only declares; the body of an ``@cp.on``, which sees
held values; and a task, whose work is its own. Places nest, and the conditions of all of them join. A place belongs to
a context (:mod:`contextvars`), so other threads of the script do not notice it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from pilot_hitl import errors
from pilot_hitl._keys import KeyMaker
from pilot_hitl._staging import innermost
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.states import Truth

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._lending import Lender
    from pilot_hitl._staging import Staging
    from pilot_hitl._submitter import Submitter
    from pilot_hitl.gates import Checkpoint

Terms = frozenset[Term]


class Ground:
    """What work of one origin shares: the script, a body or one attempt of a task.

    Attributes:
        parent: the task inside which all this happens, 0 for a script.
        asked: the checkpoints that were asked so far, by key.
    """

    def __init__(self, keys: Callable[[], KeyMaker], asks: Ground | None = None, parent: int = 0) -> None:
        """``keys`` is called once, when a key is first wanted; checkpoints are asked on the ground ``asks``."""
        self.parent: int = parent if asks is None else asks.parent
        self._asks = self if asks is None else asks
        self._make = keys
        self._keys: KeyMaker | None = None
        self._lock = threading.Lock()
        self.asked: dict[bytes, Checkpoint] = {}

    @property
    def keys(self) -> KeyMaker:
        """Makes the resume keys of tasks."""
        made = self._keys
        if made is None:
            with self._lock:
                made = self._keys = self._keys or self._make()
        return made

    @property
    def asks(self) -> Ground:
        """Whose names the names of checkpoints are: the script's or the task's, also in a body."""
        return self._asks


class Body:
    """What a place knows of the body that runs in it; see :mod:`pilot_hitl.bodies`.

    Attributes:
        over: why the body must end, once it must.
    """

    def __init__(self) -> None:
        """Start without an end."""
        self.over: BaseException | None = None
        self._asleep: list[threading.Condition] = []
        self._guard = threading.Lock()

    def check(self) -> None:
        """Raise what ends the body, once it must end."""
        if self.over is not None:
            raise errors.fresh(self.over)

    @contextmanager
    def sleeping(self, condition: threading.Condition) -> Iterator[None]:
        """Wake the sleepers on a condition when the body must end."""
        with self._guard:
            self._asleep.append(condition)
        try:
            yield
        finally:
            with self._guard:
                self._asleep.remove(condition)

    def end(self, reason: BaseException) -> None:
        """Let the next, or present, call of ours in the body raise this."""
        self.over = reason
        with self._guard:
            asleep = list(self._asleep)
        for condition in asleep:
            with condition:
                condition.notify_all()


class Place:
    """Where code runs.

    Attributes:
        client: the session that this is about.
        terms: what is assumed here.
        ground: whose work this is.
        block: the ``with`` block whose place this is.
        body: the body that runs here.
        lender: lends the task's cores while it waits.
        seen: whether held values under what ``values`` assumes count here, as they do in bodies and tasks.
    """

    def __init__(
        self,
        client: Client,
        ground: Ground,
        terms: Terms = frozenset(),
        *,
        block: Staging | None = None,
        body: Body | None = None,
        lender: Lender | None = None,
        values: Terms | None = None,
        outer: Place | None = None,
    ) -> None:
        """Keep them; ``values`` None: no held value is seen here."""
        self.client = client
        self.ground = ground
        self.terms = terms
        self.block = block
        self.body = body
        self.lender = lender
        self.values = values
        self.outer = outer
        self.scopes: dict[int, tuple[Submitter, Any]] = {}
        """By identity of a handle: the handle itself, and the one that stands for it here."""

    @property
    def staging(self) -> Staging | None:
        """What the block around this declared so far; None when work is sent at once."""
        return None if self.block is None else innermost(self.block)

    def check(self) -> None:
        """Raise BranchDiscarded when the body that runs here must end."""
        if self.body is not None:
            self.body.check()

    def sees(self, terms: Terms) -> bool:
        """Return whether held values under these terms may be looked at here."""
        return self.values is not None and terms <= self.values

    def refuse_wait(self, terms: Terms, name: str, *, staged: bool = False) -> None:
        """In a block that only declares, refuse to wait for what is undecided.

        Raises:
            Undecided: with what to do instead.
        """
        if self.staging is None:
            return
        if staged:
            why = "it is declared in this block and sent at its end"
        elif self.client.truth(terms - (self.values or frozenset())) is Truth.UNDECIDED:
            why = f"it depends on {self.client.describe(terms)}, which nobody has answered yet"
        else:
            return
        raise errors.Undecided(
            f"{name} has no value here: {why}. A with block of a branch only declares: pass the future on to another "
            "call, wait for it after the block, or write the code that needs the value as @cp.on(…)"
        )


_place: ContextVar[Place | None] = ContextVar("pilot_hitl_place", default=None)


def here(client: Client) -> Place | None:
    """Return where the calling code runs, None for nowhere special.

    Raises:
        BranchDiscarded: in a body whose branch was not chosen.
    """
    place = _place.get()
    while place is not None and place.client is not client:
        place = place.outer
    if place is None:
        return client.task_place() if client.in_task else None
    place.check()
    return place


def ground_here(client: Client) -> Ground:
    """Return whose work it is that the calling code submits."""
    place = here(client)
    return client.ground if place is None else place.ground


def staging_here(client: Client) -> Staging | None:
    """Return what the block around the calling code has declared, None outside of any."""
    place = here(client)
    return None if place is None else place.staging


def enter(place: Place) -> Token[Place | None]:
    """Make this the place of the calling context; undone by :func:`leave`."""
    place.outer = _place.get()
    return _place.set(place)


def leave(token: Token[Place | None]) -> None:
    """Go back to where :func:`enter` was called."""
    _place.reset(token)


def is_here(place: Place) -> bool:
    """Return whether this is the innermost place of the calling context."""
    return _place.get() is place
