"""The life of requests to people: PENDING, OPEN, then ANSWERED, EXPIRED or WITHDRAWN. Knows nothing of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.canonical import cut
from pilot_hitl.model.resources import Resources
from pilot_hitl.model.states import CheckpointState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilot_hitl.study.conditions import Condition
    from pilot_hitl.study.events import AskPeople


class Checkpoint:
    """One request.

    Attributes:
        ask: as it was asked last.
        inside: the condition under which it is asked: the branch's, and those of the tasks it shows.
        missing: the shown tasks whose values are not there yet, None for none.
        closed: when no answer was taken any more.
        deadline: the moment at which it expires, 0 for none.
        answer: canonical JSON, empty while there is none.
        generation: of the question, counted from 1: it grows when people are asked something else, or once more. An
            answer names the one that its author saw, and no other answer counts.
        reopened: how often it was asked again after it had been closed; see :mod:`pilot_hitl.study.conditions`.
        reserved_on: the pilot that keeps its reservation, 0 for none.
        unreserve_at: when the reservation ends, 0 for "not yet known".
    """

    __slots__ = (
        "answer",
        "ask",
        "asker",
        "closed",
        "deadline",
        "generation",
        "inside",
        "missing",
        "number",
        "opened",
        "reopened",
        "reserve",
        "reserved_on",
        "state",
        "unreserve_at",
    )

    def __init__(self, number: int, ask: AskPeople, inside: Condition) -> None:
        """Start PENDING."""
        self.number = number
        self.answer = ""
        self.generation = 1
        self.reopened = 0
        self.reserved_on = 0
        self._asked(ask, inside)

    def ask_again(self, ask: AskPeople, inside: Condition) -> None:
        """Become a new generation of the question: PENDING again, without an answer.

        One that never opened stays what it is: nobody saw it.
        """
        self.answer = ""
        self.generation += self.state is not CheckpointState.PENDING
        self.reopened += self.state.closed
        self._asked(ask, inside)

    def _asked(self, ask: AskPeople, inside: Condition) -> None:
        self.ask = ask
        self.asker = ask.asker
        self.inside = inside
        self.reserve: Resources | None = ask.reserve
        self.state = CheckpointState.PENDING
        self.missing: set[int] | None = None
        self.opened = 0.0
        self.closed = 0.0
        self.deadline = 0.0
        self.unreserve_at = 0.0

    def open(self, now: float) -> None:
        """Let people answer; the clock starts."""
        self.state = CheckpointState.OPEN
        self.opened = now
        self.deadline = now + self.ask.deadline if self.ask.deadline else 0.0

    def close(self, state: CheckpointState, answer: str, now: float) -> None:
        """Take no answer any more; the reservation outlives it by ``linger`` seconds."""
        self.state = state
        self.answer = answer
        self.missing = None
        self.closed = now
        self.deadline = 0.0
        if self.reserve is not None:
            self.unreserve_at = now + self.ask.linger


REASONS = {
    CheckpointState.PENDING: (
        "pending",
        "it is not open yet: what it shows, or the branch it belongs to, is undecided",
    ),
    CheckpointState.ANSWERED: ("already-answered", "it was answered before: {answer}"),
    CheckpointState.EXPIRED: ("expired", "its deadline passed, and {answer} was taken"),
    CheckpointState.WITHDRAWN: ("withdrawn", "it was taken back"),
}


def stale(checkpoint: Checkpoint, generation: int) -> tuple[str, str] | None:
    """Return the code and the sentence with which an answer to another generation is refused; None for the present."""
    if generation == checkpoint.generation:
        return None
    if not 0 < generation < checkpoint.generation:
        return "unknown", f"it was never asked for the {ordinal(generation)} time, only {checkpoint.generation} times"
    return "asked-again", (
        f"it was asked again since, and this answer is to the {ordinal(generation)} version of the question: look at "
        f"the {ordinal(checkpoint.generation)}, and answer that"
    )


def ordinal(number: int) -> str:
    """Return a place in an order as ``1st``, ``2nd``, ``3rd`` or ``4th``."""
    teens = 10 < number % 100 < 14
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def refusal(checkpoint: Checkpoint | None) -> tuple[str, str]:
    """Return the code and the sentence with which an answer is refused."""
    if checkpoint is None:
        return "unknown", "there is no such request"
    code, sentence = REASONS[checkpoint.state]
    return code, sentence.format(answer=cut(checkpoint.answer) or "nothing")


class Checkpoints:
    """All requests of a study, by number and by key."""

    def __init__(self) -> None:
        """Start without any."""
        self._by_number: dict[int, Checkpoint] = {}
        self._unsettled: dict[int, Checkpoint] = {}
        self._numbers = 0

    def add(self, ask: AskPeople, inside: Condition) -> Checkpoint:
        """Make a request; it gets ``ask.checkpoint`` as its number, or the next free one."""
        self._numbers = max(self._numbers + (not ask.checkpoint), ask.checkpoint)
        checkpoint = Checkpoint(ask.checkpoint or self._numbers, ask, inside)
        self._by_number[checkpoint.number] = checkpoint
        self._unsettled[checkpoint.number] = checkpoint
        return checkpoint

    def get(self, number: int) -> Checkpoint | None:
        """Return a request, None when there is no such number."""
        return self._by_number.get(number)

    def __iter__(self) -> Iterator[Checkpoint]:
        """Yield all of them."""
        return iter(self._by_number.values())

    def reopened(self, checkpoint: Checkpoint) -> None:
        """Note that a request that was closed can have a deadline again."""
        self._unsettled[checkpoint.number] = checkpoint

    def next_deadline(self) -> float | None:
        """Return when the next deadline passes or reservation lapses, None when there is none."""
        times = [
            moment
            for checkpoint in self.unsettled()
            for moment in (checkpoint.deadline, checkpoint.unreserve_at)
            if moment
        ]
        return min(times, default=None)

    def due(self, now: float) -> list[Checkpoint]:
        """Return the open requests whose deadline has passed, earliest first."""
        late = [c for c in self.unsettled() if c.state is CheckpointState.OPEN and 0 < c.deadline <= now]
        return sorted(late, key=lambda checkpoint: checkpoint.deadline)

    def lapsed(self, now: float) -> list[Checkpoint]:
        """Return the requests whose reservation ends now."""
        return [c for c in self.unsettled() if 0 < c.unreserve_at <= now]

    def unsettled(self) -> list[Checkpoint]:
        """Return the requests that time can still do something to: a study may have thousands that are over."""
        settled = [c.number for c in self._unsettled.values() if c.state.closed and not c.unreserve_at]
        for number in settled:
            del self._unsettled[number]
        return list(self._unsettled.values())
