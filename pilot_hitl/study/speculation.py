"""The order of speculation: scores of groups, kept up to date as questions, run times and work become known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot_hitl.model.conditions import SchemaTest, Term, Test, holds, members
from pilot_hitl.model.states import Truth
from pilot_hitl.study.conditions import NUMBER_MASK
from pilot_hitl.study.estimates import Answers, Runtimes
from pilot_hitl.study.policies import Group, Judgement, Policy, policy_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilot_hitl.study.bulk import Bulk, Table
    from pilot_hitl.study.checkpoints import Checkpoints
    from pilot_hitl.study.conditions import Condition, Conditions

ASSUMED = 1.0
"""Seconds that work takes of which nothing is known: only ratios matter."""
CHANGE = 0.01
"""A score that moved by less than this share is not told again."""


class Kind:
    """What is known of the tasks of one kind under one condition.

    Attributes:
        left: how many of them have not ended.
        ahead: seconds of the longest chain that starts with one of them, itself included.
        cores: of one of them.
    """

    __slots__ = ("ahead", "bulks", "cores", "judgement", "left", "told")

    def __init__(self, cores: int) -> None:
        """Start without tasks."""
        self.left = 0
        self.ahead = 0.0
        self.cores = cores
        self.bulks: list[Bulk] = []
        self.judgement = Judgement(0.0, "not judged yet")
        self.told = -1.0


class Speculation:
    """Scores speculative work.

    ``stale`` holds the conditions whose scores are to be looked at again, at the end of the step.
    """

    def __init__(
        self, tasks: Table, conditions: Conditions, checkpoints: Checkpoints, schema_test: SchemaTest, policy: str = ""
    ) -> None:
        """Judge by the default policy."""
        self.policy: Policy = policy_named(policy)
        self.runtimes = Runtimes()
        self.answers = Answers()
        self.stale: dict[int, Condition] = {}
        self._tasks = tasks
        self._conditions = conditions
        self._checkpoints = checkpoints
        self._schema_test = schema_test
        self._kinds: dict[int, dict[int, Kind]] = {}

    # --- what happens -------------------------------------------------------------------------------------------------

    def use(self, policy: str) -> bool:
        """Change the policy; return whether that is another one than before."""
        if not policy or policy == self.policy.name:
            return False
        try:
            self.policy = policy_named(policy)
        except KeyError:
            return False
        for number in self._kinds:
            self._touch(self._conditions.numbered(number))
        return True

    def added(self, bulk: Bulk) -> None:
        """Know of work under an undecided condition, and that what it depends on is the longer for it."""
        if bulk.outside:
            return  # It never runs ahead of an answer.
        condition = bulk.condition
        kinds = self._kinds.setdefault(condition.number, {})
        kind = kinds.get(bulk.kind)
        if kind is None:
            kind = kinds[bulk.kind] = Kind(bulk.shape.ranks * bulk.shape.cores)
        kind.left += sum(1 for _ in bulk.open())
        kind.bulks.append(bulk)
        kind.ahead = max(kind.ahead, self._seconds(bulk))
        self._touch(condition)
        self._lengthen(bulk)

    def ended(self, bulk: Bulk) -> None:
        """One task of a bulk ended, for now or for good."""
        kind = self._kinds.get(bulk.condition.number, {}).get(bulk.kind)
        if kind is not None and not bulk.outside:
            kind.left -= 1
            if not kind.left:
                self._touch(bulk.condition)

    def decided(self, condition: Condition) -> None:
        """Forget a condition that is not undecided any more."""
        self._kinds.pop(condition.number, None)
        self.stale.pop(condition.number, None)

    def ran(self, kind: int, seconds: float) -> None:
        """Learn from a run time."""
        if not self.runtimes.learn(kind, max(seconds, 0.0)):
            return
        for number, kinds in self._kinds.items():
            if kind in kinds:
                for bulk in kinds[kind].bulks:
                    self._lengthen(bulk)
                self._touch(self._conditions.numbered(number))

    def answered(self, checkpoint: int, value: str) -> None:
        """Count an answer; what waits on other questions of this name is judged anew."""
        asked = self._checkpoints.get(checkpoint)
        if asked is None:
            return
        self.answers.note(asked.ask.name, value)
        for number in list(self._kinds):
            condition = self._conditions.numbered(number)
            if any(self._name(term) == asked.ask.name for term in condition.terms):
                self._touch(condition)

    def _touch(self, condition: Condition) -> None:
        if condition.truth is Truth.UNDECIDED:
            self.stale[condition.number] = condition

    def expected(self, condition: Condition) -> None:
        """A probability was said, or a question asked."""
        if condition.number in self._kinds:
            self._touch(condition)

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(self, condition: Condition) -> Iterator[tuple[int, Judgement]]:
        """Look at a condition anew; yield ``(kind, judgement)`` of each kind whose score moved."""
        probability, source = self.probability(condition)
        condition.weight = probability if self.policy.name == "score" else 0.5
        kinds = self._kinds.get(condition.number, {})
        longest = max((kind.ahead for kind in kinds.values() if kind.left), default=0.0)
        for number, kind in kinds.items():
            criticality = min(1.0, kind.ahead / longest) if longest > 0 else 1.0
            runtime = self.runtimes.expected(number)
            kind.judgement = self.policy.judge(Group(probability, source, runtime, criticality, kind.cores))
            if abs(kind.judgement.score - kind.told) > CHANGE * max(kind.told, 1e-9):
                kind.told = kind.judgement.score
                yield number, kind.judgement

    def scores(self, condition: Condition) -> dict[int, float]:
        """Return the present scores by kind."""
        return {number: kind.judgement.score for number, kind in self._kinds.get(condition.number, {}).items()}

    def judgement(self, condition: Condition, kind: int) -> Judgement | None:
        """Return how a kind of work under a condition was judged last; None when there is none."""
        found = self._kinds.get(condition.number, {}).get(kind)
        return None if found is None else found.judgement

    def probability(self, condition: Condition) -> tuple[float, str]:
        """Return how likely a condition is, and where that comes from."""
        if condition.probability >= 0:
            return condition.probability, "said by the script"
        whole, sources = 1.0, []
        for term in condition.terms:
            part, source = self._term(term)
            whole *= part
            if source not in sources:
                sources.append(source)
        return whole, " and ".join(sources)

    def _term(self, term: Term) -> tuple[float, str]:
        alone = self._conditions.known(frozenset((term,)))
        if alone is not None and alone.probability >= 0:
            return alone.probability, "said by the script"
        asked = self._checkpoints.get(term.checkpoint & NUMBER_MASK)
        if asked is None:
            return 0.5, "the question is not known yet"
        if asked.ask.expected:
            fitting = sum(part for answer, part in asked.ask.expected if holds(term, answer, self._schema_test))
            return min(1.0, fitting), "predicted by the script"
        name = asked.ask.name
        matching = sum(times for answer, times in self.answers.given(name) if holds(term, answer, self._schema_test))
        total = self.answers.total(name)
        allowed = len(members(term) or (0,)) if term.test is not Test.SCHEMA else 1
        chance = self.answers.probability(name, matching, allowed, asked.ask.choices or 2)
        return chance, f"{matching} of {total} earlier answers" if total else "no answer so far"

    def _name(self, term: Term) -> str:
        asked = self._checkpoints.get(term.checkpoint & NUMBER_MASK)
        return asked.ask.name if asked is not None else ""

    # --- chains -------------------------------------------------------------------------------------------------------

    def _seconds(self, bulk: Bulk) -> float:
        """Return how long the longest chain is that starts with a task of a bulk."""
        return self._runtime(bulk) + bulk.tail

    def _runtime(self, bulk: Bulk) -> float:
        learned = self.runtimes.expected(bulk.kind)
        if learned:
            return learned
        bucket = bulk.shape.runtime_bucket
        return float(2**bucket) if bucket >= 0 else ASSUMED

    def _lengthen(self, bulk: Bulk) -> None:
        """Tell what a bulk depends on, up to the border of speculation, how much hangs on it."""
        pending = [bulk]
        while pending:
            child = pending.pop()
            chain = self._seconds(child)
            kind = self._kinds.get(child.condition.number, {}).get(child.kind)
            if kind is not None:
                kind.ahead = max(kind.ahead, chain)
            for dep in child.deps:
                parent = self._tasks.find(dep)
                if parent is None or parent.condition.truth is not Truth.UNDECIDED or parent.tail >= chain:
                    continue
                parent.tail = chain
                self._touch(parent.condition)
                pending.append(parent)
