"""The lazy sequence of futures that ``map`` returns.

A million futures would cost half a gigabyte; here an element costs one pointer until it ends and its packed value
after that. A :class:`TaskFuture` is made when somebody asks for it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from weakref import WeakValueDictionary

from pilot_hitl import errors
from pilot_hitl._places import Place, here, staging_here
from pilot_hitl.futures import Ended, Origin, TaskFuture
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.ids import task_name

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Wanted

T = TypeVar("T")
Run = tuple[int, int]


class MapSequence(Sequence[TaskFuture[T]], Generic[T]):
    """The futures of a ``map``, in the order of its arguments: length, index, slice, iteration.

    As an argument of a call it stands for the list of its values.
    """

    __slots__ = (
        "__weakref__",
        "_client",
        "_condition",
        "_count",
        "_ended",
        "_firsts",
        "_futures",
        "_keys",
        "_live",
        "_never",
        "_origins",
        "_starts",
        "growing",
    )

    def __init__(self, client: Client) -> None:
        """Start empty; the session adds tasks as it submits them."""
        self._client = client
        self.growing = True
        self._ended: list[Ended | None] = []
        self._keys: list[bytes] = []
        self._firsts: list[int] = []  # of each run of consecutive ids: the first id,
        self._starts: list[int] = []  # and its index
        self._origins: list[Origin] = []
        self._count = 0  # how many ended; only the session's I/O thread writes it
        self._never = 0  # how many were never submitted; only the submitting thread writes it
        self._condition = threading.Condition()
        self._live: dict[int, TaskFuture[T]] = {}
        self._futures: WeakValueDictionary[int, TaskFuture[T]] = WeakValueDictionary()

    # --- what a session does ------------------------------------------------------------------------------------

    def extend(self, first: int, keys: list[bytes], count: int, origin: Origin) -> bool:
        """Add tasks ``first … first+count-1``; return whether they begin a new run of ids."""
        follows = bool(self._firsts) and self._origins[-1] is origin and self._id(len(self._ended) - 1) + 1 == first
        if not follows:
            self._firsts.append(first)
            self._starts.append(len(self._ended))
            self._origins.append(origin)
        self._ended.extend([None] * count)
        if keys:
            self._keys.extend([b""] * (len(self._ended) - count - len(self._keys)))
            self._keys.extend(keys)
        return not follows

    def end(self, start: int, task: int, ended: Ended) -> Callable[[], None] | None:
        """Take the end of a task of the run that starts at index ``start``; see :meth:`TaskFuture.end`.

        Whoever waits is told by :meth:`tell`.
        """
        run = bisect_right(self._starts, start) - 1
        index = start + task - self._firsts[run]
        if self._ended[index] is not None:
            return None
        self._ended[index] = ended
        self._count += 1
        if not self._live:
            return None
        future = self._live.pop(index, None)
        return None if future is None else future.end(ended)

    def end_unsent(self, start: int, ended: list[Ended]) -> list[Callable[[], None]]:
        """Take the ends of tasks, from index ``start`` on, that were never submitted, in the submitting thread."""
        callbacks: list[Callable[[], None]] = []
        for index, each in enumerate(ended, start):
            self._ended[index] = each
            future = self._live.pop(index, None)
            if future is not None and (callback := future.end(each)) is not None:
                callbacks.append(callback)
        self._never += len(ended)
        self.tell()
        return callbacks

    def tell(self) -> None:
        """Wake whoever waits."""
        with self._condition:
            self._condition.notify_all()

    @property
    def unfinished(self) -> bool:
        """Whether an end may still come: some task has not ended, or the map is still being submitted."""
        return self.growing or len(self._ended) > self._count + self._never

    @property
    def pending(self) -> int:
        """How many have not ended."""
        return len(self._ended) - self._count - self._never

    def pending_where(self, wanted: Callable[[frozenset[Term]], bool]) -> int:
        """How many have not ended and assume answers of which this is true."""
        chosen = [wanted(origin.terms) for origin in self._origins]
        if all(chosen):
            return self.pending
        return sum(
            sum(1 for each in self._ended[start : start + count] if each is None)
            for (_first, count, start), wanted_here in zip(self.runs(), chosen, strict=True)
            if wanted_here
        )

    def runs(self) -> list[tuple[int, int, int]]:
        """Return ``(first id, count, index)`` of each run of consecutive ids."""
        ends = [*self._starts[1:], len(self._ended)]
        return [(first, end - start, start) for first, start, end in zip(self._firsts, self._starts, ends, strict=True)]

    def waiting(self) -> list[Run]:
        """Return ``(first, count)`` of the ids that have not ended."""
        found: list[Run] = []
        for first, count, start in self.runs():
            begin = -1
            for offset in range(count + 1):
                open_ = offset < count and self._ended[start + offset] is None
                if open_ and begin < 0:
                    begin = offset
                elif not open_ and begin >= 0:
                    found.append((first + begin, offset - begin))
                    begin = -1
        return found

    # --- the face -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ended)

    @overload
    def __getitem__(self, index: int) -> TaskFuture[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture[T]]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[T] | list[TaskFuture[T]]:
        """Return one future, or the list of those in a slice."""
        if isinstance(index, slice):
            return [self._future(each) for each in range(*index.indices(len(self._ended)))]
        position = index + len(self._ended) if index < 0 else index
        if not 0 <= position < len(self._ended):
            raise IndexError(f"{index} is not one of the {len(self._ended)} elements of this map")
        return self._future(position)

    def __iter__(self) -> Iterator[TaskFuture[T]]:
        for index in range(len(self._ended)):
            yield self._future(index)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all ended; return whether they did within ``timeout`` seconds.

        In the body of an ``@cp.on``, held values of that branch count as well.

        Raises:
            PilotFailed: no pilot is left that could do what has not ended.
            Undecided: in a ``with`` block of a branch, when an element depends on an answer that is not there.
            BranchDiscarded: in a body whose branch was not chosen.
        """
        place = here(self._client)
        if place is None or not self.pending:
            return self._client.pilots_left.wait(place, self._condition, lambda: not self.pending, timeout, self._want)
        self._prepare(place)
        left = [index for index, ended in enumerate(self._ended) if ended is None]

        def all_there() -> bool:
            while left and self._there(left[-1], place):
                left.pop()
            return not left and not self.growing

        return self._client.pilots_left.wait(place, self._condition, all_there, timeout, self._want)

    def done(self) -> bool:
        """Return whether all ended."""
        return not self.pending

    def results(self, timeout: float | None = None) -> list[T]:
        """Return all values, in order; wait up to ``timeout`` seconds for them.

        In the body of an ``@cp.on``, held values of that branch count as well.

        Raises:
            TimeoutError: not all ended in time.
            PilotFailed: no pilot is left that could do what has not ended.
            Undecided: in a ``with`` block of a branch, when an element depends on an answer that is not there.
            BranchDiscarded: in a body whose branch was not chosen.
            The error of the first element that did not end well, as soon as it and all before it ended.
        """
        return list(self.iter_results(timeout))

    def iter_results(self, timeout: float | None = None) -> Iterator[T]:
        """Yield the values in order, each as soon as it and those before it are there; raises as :meth:`results`."""
        end = None if timeout is None else time.monotonic() + timeout
        place = here(self._client)
        if place is not None and self.pending:
            self._prepare(place)
        return self._values_in_order(place, end)

    def _values_in_order(self, place: Place | None, end: float | None) -> Iterator[T]:
        look_into = self._client.look_into
        for index in range(len(self._ended)):
            if self._ended[index] is None and self._wait_for(index, end, place):
                yield self._future(index).result()
                continue
            ended = self._ended[index]
            if type(ended) is not bytes:
                self._future(index).result()
                assert ended is not None  # it was waited for
            value, error = look_into(self._id(index), ended, self._origin(index))
            if error is not None:
                raise errors.fresh(error)
            yield value

    def cancel(self) -> bool:
        """Ask for the end of all that have not ended; return whether there were any."""
        runs = self.waiting()
        if runs:
            self._client.cancel(runs, staging=staging_here(self._client))
        return bool(runs)

    def __repr__(self) -> str:
        if not self._ended:
            return "<MapSequence empty>"
        return (
            f"<MapSequence {self._origins[0].name}: {task_name(self._firsts[0])} and on, {len(self._ended)} tasks, "
            f"{self.pending} pending>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the list of its futures."""
        return list, (tuple(self),)

    # --- inside -------------------------------------------------------------------------------------------------

    def _run_of(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1 if len(self._starts) > 1 else 0

    def _id(self, index: int) -> int:
        run = self._run_of(index)
        return self._firsts[run] + index - self._starts[run]

    def _origin(self, index: int) -> Origin:
        return self._origins[self._run_of(index)]

    def _future(self, index: int) -> TaskFuture[T]:
        with self._condition:
            future = self._futures.get(index)
            if future is None:
                key = self._keys[index] if index < len(self._keys) else b""
                future = TaskFuture(self._client, self._id(index), key, self._origin(index))
                self._futures[index] = future
                if self._ended[index] is None:
                    self._live[index] = future
            ended = self._ended[index]
        # Between the two looks the end may have come and found the future live, or not yet: both end it once.
        if ended is not None and not future.done():
            self._live.pop(index, None)
            self._client.call_back(future.end(ended))
        return future

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`."""
        wanted.tasks += self.waiting()

    def _prepare(self, place: Place) -> None:
        """Get ready to wait in a place; raises Undecided where that is not allowed."""
        for first, count in self.waiting():
            terms = self._origins[bisect_right(self._firsts, first) - 1].terms
            place.refuse_wait(terms, task_name(first), staged=self._client.staged(first))
            if place.sees(terms):
                self._client.held.watch([(first, count)])

    def _there(self, index: int, place: Place | None) -> bool:
        """Return whether an element ended, or has a held value that counts in a place."""
        if self._ended[index] is not None or place is None:
            return self._ended[index] is not None
        return self._id(index) in self._client.held.payloads and place.sees(self._origin(index).terms)

    def _wait_for(self, index: int, end: float | None, place: Place | None) -> bool:
        """Wait for the end of an element; return whether it is a held value instead, that counts in this place."""
        left = None if end is None else max(0.0, end - time.monotonic())
        wait = self._client.pilots_left.wait
        if not wait(place, self._condition, lambda: self._there(index, place), left, self._want):
            raise TimeoutError(f"{task_name(self._id(index))} ({self._origin(index).name}) did not end in time")
        return self._ended[index] is None
