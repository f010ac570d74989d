"""The conditions of a study, interned: equal sets of terms are one condition.

A checkpoint that was closed (answered, expired, withdrawn) and is asked again is *reopened*: conditions that the old
answer decided stay decided, and equal terms make new conditions from then on. Inside, a term's ``checkpoint`` is
therefore ``reopened << 32 | number`` (how often); what a client sends is the number alone and means the present time.
The hub stores and restores the terms as they are here (:attr:`Condition.terms`). This is not the *generation* of a
question, which also grows while it is open: then the next answer decides what hangs on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.conditions import SchemaTest, Term, conjunction, contradictory, holds
from pilot_hitl.model.states import Truth

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk

Terms = frozenset[Term]
REOPENED_SHIFT = 32
NUMBER_MASK = (1 << REOPENED_SHIFT) - 1
UNKNOWN = 0
"""Number of no checkpoint: a term about a handle that nobody asked under is false, rather than open for ever."""


class Condition:
    """One interned condition.

    ``bulks`` are the tasks under it while it is undecided, ``parked`` those that may not speculate, ``checkpoints`` the
    requests that were asked inside it. ``impossible``: no answers can make it true. ``weight``: work under the
    heavier one of several goes first.
    """

    __slots__ = ("bulks", "checkpoints", "impossible", "number", "parked", "probability", "terms", "truth", "weight")

    def __init__(self, number: int, terms: Terms, probability: float, *, impossible: bool) -> None:
        """Start without tasks, undecided."""
        self.number = number
        self.terms = terms
        self.truth = Truth.UNDECIDED
        self.probability = probability
        self.impossible = impossible
        self.bulks: list[Bulk] = []
        self.parked: list[Bulk] = []
        self.checkpoints: list[int] = []
        self.weight = 0.5


class Conditions:
    """All conditions of a study, and the answers that decide them."""

    def __init__(self, schema_test: SchemaTest) -> None:
        """Know only the condition that is always true (number 0)."""
        self._schema_test = schema_test
        self.always = Condition(0, frozenset(), 1.0, impossible=False)
        self.always.truth = Truth.TRUE
        self._by_terms: dict[Terms, Condition] = {frozenset(): self.always}
        self._by_name: dict[int, Condition] = {0: self.always}
        self._by_number: dict[int, Condition] = {0: self.always}
        self._by_checkpoint: dict[int, list[Condition]] = {}
        self._reopened: dict[int, int] = {}
        self._answers: dict[int, str] = {}
        self._closed: set[int] = {UNKNOWN}
        self._numbers = 0

    def define(self, terms: Iterable[Term], *, name: int = 0, probability: float = -1.0) -> tuple[Condition, bool]:
        """Return the condition with these terms, and whether it is new. ``name`` becomes another name of it.

        A name that means a condition already keeps it: a client sends its definitions again after a lost connection.
        """
        condition = self._by_name.get(name) if name else None
        if condition is not None:
            new = False
        else:
            condition, new = self._intern(frozenset(self._present(term) for term in terms))
            if new:
                condition.truth = conjunction(map(self._truth, condition.terms))
        if name:
            self._by_name[name] = condition
        if probability >= 0:
            condition.probability = probability
        return condition, new

    def restore(
        self, terms: Iterable[Term], truth: Truth, *, number: int = 0, name: int = 0, probability: float = -1.0
    ) -> Condition:
        """Return the condition with exactly these terms, of an earlier life of the hub.

        What is not recorded as decided is decided by the answers that are known, so the order of restoring does not
        matter. Without ``number`` it gets the next free one.
        """
        condition, _new = self._intern(frozenset(terms), number)
        if name:
            self._by_name[name] = condition
        if probability >= 0:
            condition.probability = probability
        if truth is Truth.UNDECIDED and condition.truth is Truth.UNDECIDED:
            truth = conjunction(map(self._truth, condition.terms))
        if truth is not Truth.UNDECIDED:
            condition.truth = truth
        return condition

    def named(self, name: int) -> Condition:
        """Return the condition that somebody named, or that has this number.

        Raises:
            KeyError: there is none.
        """
        condition = self._by_name.get(name)
        return self._by_number[name] if condition is None else condition

    def known(self, terms: Terms) -> Condition | None:
        """Return the condition with these terms, None when there is none."""
        return self._by_terms.get(terms)

    def numbered(self, number: int) -> Condition:
        """Return a condition by its own number."""
        return self._by_number[number]

    def join(self, first: Condition, second: Condition) -> tuple[Condition, bool]:
        """Return the condition that holds when both do, and whether it is new."""
        if second.terms <= first.terms:
            return first, False
        if first.terms <= second.terms:
            return second, False
        condition, new = self._intern(first.terms | second.terms)
        if new:
            condition.truth = conjunction((first.truth, second.truth))
        return condition, new

    def answer(self, checkpoint: int, value: str) -> list[Condition]:
        """Note an answer (canonical JSON) and return the conditions that it decided, in order of number."""
        self._answers[checkpoint] = value
        return self._decided(checkpoint)

    def close(self, checkpoint: int) -> list[Condition]:
        """Note that a checkpoint will never be answered; return the conditions that became false."""
        self._closed.add(checkpoint)
        return self._decided(checkpoint)

    def naming(self, checkpoint: int) -> list[int]:
        """Return the numbers of the conditions that say something of a checkpoint's answer."""
        return [condition.number for condition in self._by_checkpoint.get(checkpoint, ())]

    def reopen(self, checkpoint: int, times: int) -> None:
        """Forget how a checkpoint was closed: it is asked again. Conditions that were decided stay decided."""
        self._reopened[checkpoint] = times
        self._answers.pop(checkpoint, None)
        self._closed.discard(checkpoint)

    def __iter__(self) -> Iterator[Condition]:
        """Yield all conditions."""
        return iter(self._by_number.values())

    def _intern(self, terms: Terms, number: int = 0) -> tuple[Condition, bool]:
        known = self._by_terms.get(terms)
        if known is not None:
            return known, False
        self._numbers = max(self._numbers + (not number), number)
        impossible = contradictory(terms, self._schema_test) is not None
        condition = Condition(number or self._numbers, terms, -1.0, impossible=impossible)
        self._by_terms[terms] = condition
        self._by_number[condition.number] = condition
        for checkpoint in {term.checkpoint & NUMBER_MASK for term in terms}:
            self._by_checkpoint.setdefault(checkpoint, []).append(condition)
        return condition, True

    def _present(self, term: Term) -> Term:
        number = term.checkpoint if 0 <= term.checkpoint <= NUMBER_MASK else UNKNOWN
        times = self._reopened.get(number, 0)
        if number == term.checkpoint and not times:
            return term
        return msgspec.structs.replace(term, checkpoint=times << REOPENED_SHIFT | number)

    def _decided(self, checkpoint: int) -> list[Condition]:
        decided = []
        for condition in self._by_checkpoint.get(checkpoint, ()):
            if condition.truth is Truth.UNDECIDED:
                condition.truth = conjunction(map(self._truth, condition.terms))
                if condition.truth is not Truth.UNDECIDED:
                    decided.append(condition)
        return decided

    def _truth(self, term: Term) -> Truth:
        checkpoint = term.checkpoint & NUMBER_MASK
        if term.checkpoint >> REOPENED_SHIFT < self._reopened.get(checkpoint, 0):
            # It was closed that time. Had the term been false then, its condition would not be undecided now.
            return Truth.TRUE
        answer = self._answers.get(checkpoint)
        if answer is None:
            return Truth.FALSE if checkpoint in self._closed else Truth.UNDECIDED
        return Truth.TRUE if holds(term, answer, self._schema_test) else Truth.FALSE
