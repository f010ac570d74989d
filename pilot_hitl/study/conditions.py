"""The conditions of a study, interned: equal sets of terms are one condition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pilot_hitl.model.conditions import SchemaTest, Term, conjunction, contradictory, holds
from pilot_hitl.model.states import Truth

if TYPE_CHECKING:
    from pilot_hitl.study.bulk import Bulk

Terms = frozenset[Term]


class Condition:
    """One interned condition. ``bulks`` are the tasks under it while it is undecided, ``parked`` those that may not
    speculate, ``checkpoints`` the requests that were asked inside it."""

    __slots__ = ("bulks", "checkpoints", "number", "parked", "probability", "terms", "truth")

    def __init__(self, number: int, terms: Terms, truth: Truth, probability: float) -> None:
        """Start without tasks."""
        self.number = number
        self.terms = terms
        self.truth = truth
        self.probability = probability
        self.bulks: list[Bulk] = []
        self.parked: list[Bulk] = []
        self.checkpoints: list[int] = []

    @property
    def score(self) -> float:
        """Order among speculative work: its probability, one half when nobody said."""
        return self.probability if self.probability >= 0 else 0.5


class Conditions:
    """All conditions of a study, and the answers that decide them."""

    def __init__(self, schema_test: SchemaTest) -> None:
        """Know only the condition that is always true (number 0)."""
        self._schema_test = schema_test
        self.always = Condition(0, frozenset(), Truth.TRUE, 1.0)
        self._by_terms: dict[Terms, Condition] = {frozenset(): self.always}
        self._by_name: dict[int, Condition] = {0: self.always}
        self._by_number: dict[int, Condition] = {0: self.always}
        self._by_checkpoint: dict[int, list[Condition]] = {}
        self._answers: dict[int, str] = {}
        self._closed: set[int] = set()

    def define(self, terms: Iterable[Term], *, name: int = 0, probability: float = -1.0) -> tuple[Condition, bool]:
        """Return the condition with these terms, and whether it is new. ``name`` becomes another name of it."""
        key: Terms = frozenset(terms)
        condition, new = self._by_terms.get(key), False
        if condition is None:
            condition, new = Condition(len(self._by_number), key, Truth.UNDECIDED, probability), True
            self._by_terms[key] = condition
            self._by_number[condition.number] = condition
            # Names start at 2**32, so a number is a name too: joined conditions have no other.
            self._by_name[condition.number] = condition
            for checkpoint in {term.checkpoint for term in key}:
                self._by_checkpoint.setdefault(checkpoint, []).append(condition)
            condition.truth = self.evaluate(condition)
        elif probability >= 0:
            condition.probability = probability
        if name:
            self._by_name[name] = condition
        return condition, new

    def named(self, name: int) -> Condition:
        """Return the condition that somebody named.

        Raises:
            KeyError: nobody did.
        """
        return self._by_name[name]

    def numbered(self, number: int) -> Condition:
        """Return a condition by its own number."""
        return self._by_number[number]

    def join(self, first: Condition, second: Condition) -> tuple[Condition, bool]:
        """Return the condition that holds when both do, and whether it is new."""
        if second.terms <= first.terms:
            return first, False
        if first.terms <= second.terms:
            return second, False
        condition, new = self.define(first.terms | second.terms)
        if new and first.probability >= 0 and second.probability >= 0:
            condition.probability = first.probability * second.probability
        return condition, new

    def contradictory(self, condition: Condition) -> bool:
        """Return whether no answers can ever make it true."""
        return contradictory(condition.terms, self._schema_test) is not None

    def answer(self, checkpoint: int, value: str) -> list[Condition]:
        """Note an answer (canonical JSON) and return the conditions that it decided, in order of number."""
        self._answers[checkpoint] = value
        return self._decided(checkpoint)

    def close(self, checkpoint: int) -> list[Condition]:
        """Note that a checkpoint will never be answered; return the conditions that became false."""
        self._closed.add(checkpoint)
        return self._decided(checkpoint)

    def reopen(self, checkpoint: int) -> None:
        """Forget an answer, because the question changed. Conditions that it decided stay decided."""
        self._answers.pop(checkpoint, None)
        self._closed.discard(checkpoint)

    def evaluate(self, condition: Condition) -> Truth:
        """Return the state of a condition under the answers so far."""
        return conjunction(self._truth(term) for term in condition.terms)

    def __iter__(self) -> Iterable[Condition]:
        """Yield all conditions."""
        return iter(self._by_number.values())

    def _decided(self, checkpoint: int) -> list[Condition]:
        decided = []
        for condition in self._by_checkpoint.get(checkpoint, ()):
            if condition.truth is Truth.UNDECIDED:
                condition.truth = self.evaluate(condition)
                if condition.truth is not Truth.UNDECIDED:
                    decided.append(condition)
        return decided

    def _truth(self, term: Term) -> Truth:
        answer = self._answers.get(term.checkpoint)
        if answer is None:
            return Truth.FALSE if term.checkpoint in self._closed else Truth.UNDECIDED
        return Truth.TRUE if holds(term, answer, self._schema_test) else Truth.FALSE
