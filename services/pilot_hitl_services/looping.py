"""The event loop of a replica: one, made when the handler first gives something to be awaited, and kept to the end.

So what a handler made in ``setup`` (clients, locks, tasks in the background) is of the loop that its calls run on.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pilot_hitl.wire.raised import attempt

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
GOODBYE = 1.0
"""Seconds that the handler's own tasks have to end in when the replica ends."""


class Loops:
    """The replica's event loop, of the main thread.

    Attributes:
        running: whether it runs, so that calls may be suspended; otherwise :meth:`wait` runs it for one of them.
    """

    def __init__(self) -> None:
        """Make none yet: importing asyncio is a good part of a small replica's start."""
        self.running = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def wait(self, work: Awaitable[T]) -> T:
        """Await something while nothing else of the loop is wanted; call it in the main thread.

        Raises:
            Whatever it raises.
        """

        async def whole() -> T:
            return await work

        return self.loop.run_until_complete(whole())

    def run_beside(self, serve: Callable[[], None]) -> None:
        """Run the loop until ``serve``, in a thread of its own, returns.

        Raises:
            What ``serve`` raised.
        """
        loop, over = self.loop, threading.Event()
        ends: list[BaseException | None] = []

        def beside() -> None:
            ends.append(attempt(serve, BaseException)[1])
            over.set()
            loop.call_soon_threadsafe(loop.stop)

        thread = threading.Thread(target=beside, name="pilot-hitl-serving", daemon=True)
        self.running = True
        loop.call_soon(thread.start)
        while not over.is_set():
            _none, error = attempt(loop.run_forever, BaseException)
            if error is not None:  # of a task that the handler started: nobody waits for it
                traceback.print_exception(error, file=sys.stderr)
        self.running = False
        thread.join()
        if ends[0] is not None:
            raise ends[0]

    def close(self) -> None:
        """End what the handler left running in the loop."""
        loop = self._loop
        if loop is None:
            return
        import asyncio

        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            attempt(partial(loop.run_until_complete, asyncio.wait(tasks, timeout=GOODBYE)), BaseException)
        attempt(partial(loop.run_until_complete, loop.shutdown_asyncgens()), BaseException)
