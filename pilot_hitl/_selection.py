"""What becomes real: the future, or the futures, of whichever branch is chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, TypeVar, overload

from pilot_hitl import errors
from pilot_hitl._maps import MapSequence
from pilot_hitl._places import Place, here
from pilot_hitl._waiting import PilotsLeft
from pilot_hitl._watchers import watch_quietly
from pilot_hitl.futures import Canceled, LocalFuture, TaskFuture

if TYPE_CHECKING:
    from pilot_hitl._silence import Wanted
    from pilot_hitl.branches import Branch
    from pilot_hitl.gates import Checkpoint

R = TypeVar("R")


class SelectedFuture(LocalFuture[R]):
    """The future of whichever branch becomes real; see :meth:`Checkpoint.select`."""

    def __init__(self, checkpoint: Checkpoint, table: dict[Branch, Future[R]]) -> None:
        """Follow the checkpoint, then the chosen future.

        Raises:
            DescriptionError: not everything in the table is a future.
        """
        super().__init__(checkpoint.client, f"the selection of checkpoint {checkpoint.name!r}")
        if not all(isinstance(value, Future) for value in table.values()):
            raise errors.DescriptionError(
                "select: give a future (of a task or a body) for every answer, or a sequence of them for every answer"
            )
        self._checkpoint = checkpoint
        self._table = table
        self._follows: Future[R] | None = None
        checkpoint.when_done(self._chosen)

    @property
    def pilots_left(self) -> PilotsLeft | None:
        """Whether anything is left that could do the work; None before the answer, which people give."""
        return getattr(self._follows, "pilots_left", None)

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`: the answer, then the chosen one."""
        want = self._checkpoint._want if self._follows is None else getattr(self._follows, "_want", None)
        if want is not None:
            want(wanted)

    def _chosen(self) -> None:
        try:
            chosen = self._checkpoint.choose(self._table)
        except errors.PilotHitlError as error:
            self.settle(None, error)
            return
        with self._condition:
            self._follows = chosen
            self._condition.notify_all()
        watch_quietly(chosen, self._follow)

    def _follow(self, chosen: Future[R]) -> None:
        error: BaseException | None
        try:
            error = chosen.exception()
        except CancelledError:  # futures of others raise it themselves
            error = Canceled(f"{self._name} chose a future that was canceled")
        self.settle(None if error is not None else chosen.result(), error)


class SelectedSequence(Sequence[TaskFuture[R]]):
    """The futures of whichever branch becomes real; whatever looks into it waits for the answer."""

    def __init__(self, checkpoint: Checkpoint, table: dict[Branch, Sequence[TaskFuture[R]]]) -> None:
        """Keep the candidates."""
        self._checkpoint = checkpoint
        self._table = table

    @property
    def chosen(self) -> Sequence[TaskFuture[R]]:
        """The real ones; waits for the answer.

        Raises:
            Discarded: the answer is none of those that were selected for.
            Undecided: in a ``with`` block of a branch, before the answer.
        """
        place: Place | None = here(self._checkpoint.client)
        if place is not None and not self._checkpoint.done():
            place.refuse_wait(frozenset(), f"the selection of checkpoint {self._checkpoint.name!r}", staged=True)
        return self._checkpoint.choose(self._table)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> TaskFuture[R]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskFuture[R]]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[R] | Sequence[TaskFuture[R]]:
        """Return from the real ones."""
        return self.chosen[index]

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        return iter(self.chosen)

    def results(self, timeout: float | None = None) -> list[R]:
        """Return all values of the real ones, in order; see :meth:`MapSequence.results`."""
        chosen = self.chosen
        if isinstance(chosen, MapSequence):
            return chosen.results(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        return [each.result(None if end is None else max(0.0, end - time.monotonic())) for each in chosen]
