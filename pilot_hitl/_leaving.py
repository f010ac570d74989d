"""What has not ended: waiting for it, and saying so when a script leaves before."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pilot_hitl import errors
from pilot_hitl._places import here
from pilot_hitl.model.states import Truth

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._maps import MapSequence
    from pilot_hitl._silence import Wanted
    from pilot_hitl.futures import TaskFuture
    from pilot_hitl.model.conditions import Term

    Work: TypeAlias = TaskFuture[Any] | MapSequence[Any]


class Left(NamedTuple):
    """How many tasks have not ended: those that count whatever people answer, and those that wait for an answer."""

    needed: int
    undecided: int

    def describe(self, session: str, on_exit: str) -> str:
        """Return what becomes of them when a script leaves, in one line; empty when there are none."""
        count = self.needed + self.undecided
        if not count:
            return ""
        tasks = f"{count} task{'s' if count > 1 else ''} of session {session!r}"
        if self.undecided:
            tasks += f" ({self.undecided} in branches that nobody has decided yet)"
        if on_exit == "detach":
            on = "go on" if count > 1 else "goes on"
            return f"pilot-hitl: {tasks} had not ended and {on} with its pilots: run the script again for the results"
        wait = "; session.wait(), or on_exit='drain', waits for them" if self.needed else ""
        back = "are given back" if count > 1 else "is given back"
        return f"pilot-hitl: {tasks} had not ended and {back} as unfinished: run the script again to go on{wait}"


def left(client: Client) -> Left:
    """Return how many tasks of this client have not ended."""
    undecided = client.pending - client.pending_decided()
    return Left(client.pending - undecided, undecided)


def wait(client: Client, timeout: float | None) -> tuple[set[Work], set[Work]]:
    """Wait until nothing that is needed is left; see :meth:`Session.wait`."""
    place = here(client)
    if place is not None:
        place.refuse_wait(frozenset(), "session.wait()", staged=True)
    before = _unended(client)

    def over() -> bool:
        return client.closed is not None or not _needs_some(client)

    client.pilots_left.wait(place, client._idle, over, timeout, partial(want_left, client, decided=True))
    if client.closed is not None:
        raise errors.fresh(client.closed)
    after = _unended(client)
    return before - after, after


def want_left(client: Client, wanted: Wanted, *, decided: bool) -> None:
    """Say what has not ended, see :class:`Wanted`; ``decided``: without what waits for an answer."""
    truth = client.conditions.truth
    for task, future in list(client._futures.items()):
        if not decided or truth(future.condition) is not Truth.UNDECIDED:
            wanted.tasks.append((task, 1))
    for sequence in _sequences(client):
        wanted.tasks += sequence.waiting()


def _unended(client: Client) -> set[Work]:
    return {*list(client._futures.values()), *(each for each in _sequences(client) if each.pending)}


def _sequences(client: Client) -> list[MapSequence[Any]]:
    with client._running:
        return list({id(sequence): sequence for sequence, _start in client._runs[1]}.values())


def _needs_some(client: Client) -> bool:
    """Return whether a task has not ended although nobody's answer is missing; looked at whenever some ended."""
    truth = client.conditions.truth

    def needed(terms: frozenset[Term]) -> bool:
        return truth(terms) is not Truth.UNDECIDED

    if any(needed(future.condition) for future in list(client._futures.values())):
        return True
    return any(each.pending and each.pending_where(needed) for each in _sequences(client))
