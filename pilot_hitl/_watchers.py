"""Who waits for a future in the way of others: by the standard library's ``wait()``, by asyncio, by a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pilot_hitl._silence import Silence, Wanted


class Watched(Protocol):
    """A future of a session, as far as it is watched."""

    def _silence(self) -> Silence: ...

    def _want(self, wanted: Wanted) -> None: ...


class Watchers(list[Any]):
    """The list in which a future keeps who waits for it, or is to be called: so it is known that somebody does.

    Guarded by the future's lock, as the base class of futures does it. :meth:`over` ends it with the future.
    """

    __slots__ = ("_future", "_number")

    def __init__(self, future: Watched | None) -> None:
        """Start empty; ``None``: the future has ended."""
        super().__init__()
        self._future = future
        self._number = -1

    def append(self, watcher: Any) -> None:
        """Take one that waits and is told of long waits only from here on."""
        super().append(watcher)
        if self._number < 0 and self._future is not None:
            self._number = self._future._silence().begin(self._future._want)

    def add_heard(self, watcher: Any) -> None:
        """Take one that is told of long waits by other means, or waits for nobody."""
        super().append(watcher)

    def remove(self, watcher: Any) -> None:
        """Forget one: it waits no more, or has waited in vain."""
        super().remove(watcher)
        if not self and self._number >= 0 and self._future is not None:
            self._future._silence().gave_up(self._number)
            self._number = -1

    def over(self) -> None:
        """The future ended."""
        if self._number >= 0 and self._future is not None:
            self._future._silence().end(self._number)
        self._number, self._future = -1, None  # also breaks the cycle with the future


def watch_quietly(future: Future[Any], callback: Callable[[Future[Any]], object]) -> None:
    """Call ``callback(future)`` once it is done, as ``add_done_callback`` does; that alone means that nobody waits."""
    base: Any = future  # the stubs leave the base's own parts out
    condition: threading.Condition = base._condition
    with condition:
        callbacks = base._done_callbacks
        if isinstance(callbacks, Watchers) and not future.done():
            callbacks.add_heard(callback)
            return
    future.add_done_callback(callback)
