"""The conditions of one client: their ids, how likely they are, and whether they are decided."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pilot_hitl import errors
from pilot_hitl.model.conditions import Term, conjunction, contradictory
from pilot_hitl.model.states import Truth
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._staging import Staging

Terms = frozenset[Term]
MAX_DEPTH = 8
"""So many undecided answers may be assumed at once: each level is less likely than the one before."""


class Conditions:
    """Interns conditions and makes them known. Safe to use from several threads."""

    def __init__(self, client: Client, new_id: Callable[[], int]) -> None:
        """Know only the condition that is always true."""
        self._client = client
        self._new_id = new_id
        self._ids: dict[Terms, int] = {frozenset(): 0}
        self._probabilities: dict[Term, float] = {}
        self._decided: dict[Terms, Truth] = {frozenset(): Truth.TRUE}
        self._making = threading.Lock()

    def number(self, terms: Terms, staging: Staging | None = None) -> int:
        """Return the id of the condition that all terms hold, made known when it is new.

        Raises:
            ContradictoryCondition: no answers can satisfy all terms.
            DescriptionError: it assumes too many undecided answers.
            Undecided: it speaks of a checkpoint that a block declares which has not ended.
        """
        if not terms:
            return 0
        declared = self._client.declared.asking(terms, staging)
        known = self._ids.get(terms)
        if known is not None:
            return known
        self.check(terms)
        with self._making:
            known = self._ids.get(terms)
            if known is None:
                ordered = sorted(terms, key=lambda term: (term.checkpoint, term.test, term.operand))
                known = self._new_id()
                message = m.PutCondition(known, ordered, self._probability(ordered))
                if declared is not None:
                    declared.conditions.append(terms)
                self._client.put(message, declared)
                self._ids[terms] = known
        return known

    def forget(self, terms: Terms) -> None:
        """Forget a condition that was never sent."""
        self._ids.pop(terms, None)

    def check(self, terms: Terms) -> None:
        """Check that work may assume these terms.

        Raises:
            ContradictoryCondition, DescriptionError: see :meth:`number`.
        """
        if clash := contradictory(terms, _matches):
            raise errors.ContradictoryCondition(
                f"the task would need checkpoint {self._name(clash[0])!r} to be answered both with {clash[0].operand} "
                f"and with {clash[1].operand}: pass it futures of one branch only, or join the branches with select()"
            )
        undecided = {term.checkpoint for term in terms if self._truth(term) is Truth.UNDECIDED}
        if len(undecided) > MAX_DEPTH:
            names = sorted({self._name(term) for term in terms if term.checkpoint in undecided})
            raise errors.DescriptionError(
                f"this would assume {len(undecided)} answers that nobody has given yet ({', '.join(names[:4])}, …), "
                f"and {MAX_DEPTH} is the limit: wait for the earlier ones with result(), or ask fewer questions ahead"
            )

    def expect(self, term: Term, probability: float) -> None:
        """Say how likely a term is; conditions made later are weighed by it."""
        self._probabilities[term] = probability

    def expected(self, terms: Terms) -> float:
        """Return how likely all terms are together, as far as somebody said; one half for each unknown one."""
        whole = 1.0
        for term in terms:
            whole *= self._probabilities.get(term, 0.5)
        return whole

    def _probability(self, terms: list[Term]) -> float:
        whole = 1.0
        for term in terms:
            part = self._probabilities.get(term)
            if part is None:
                return -1.0
            whole *= part
        return whole

    def truth(self, terms: Terms) -> Truth:
        """Return whether the terms hold, as far as this client has heard."""
        known = self._decided.get(terms)
        if known is not None:
            return known
        truth = conjunction(map(self._truth, terms))
        if truth is not Truth.UNDECIDED:
            self._decided[terms] = truth
        return truth

    def _truth(self, term: Term) -> Truth:
        checkpoint = self._client.checkpoints.get(term.checkpoint)
        return Truth.UNDECIDED if checkpoint is None else checkpoint.truth(term)

    def describe(self, terms: Terms, truth: Truth) -> str:
        """Name the checkpoints of those terms that have this truth."""
        names = sorted({repr(self._name(term)) for term in terms if self._truth(term) is truth})
        return f"checkpoint{'s' if len(names) > 1 else ''} {', '.join(names) or '?'}"

    def why_false(self, terms: Terms) -> str:
        """Return in words why work under these terms is not wanted."""
        known = [(term, self._client.checkpoints.get(term.checkpoint)) for term in terms]
        wrong = [(term, each) for term, each in known if each is not None and each.truth(term) is Truth.FALSE]
        # The answer rather than what followed from it: questions of its branch are taken back.
        for term, checkpoint in sorted(wrong, key=lambda pair: not pair[1].answered):
            return f"it assumes {term.operand} for checkpoint {checkpoint.name!r}, {checkpoint.outcome()}"
        return "its branch was not chosen"

    def _name(self, term: Term) -> str:
        return str(getattr(self._client.checkpoints.get(term.checkpoint), "name", "?"))


def _matches(schema: str, answer: str) -> bool:
    from pilot_hitl.inbox.forms import matches

    return matches(schema, answer)
