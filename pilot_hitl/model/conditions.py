"""Conditions: which answers a task assumes.

A *term* says what one checkpoint's answer must be; a *condition* is a set of terms that must all hold.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.model.states import Truth


class Test(enum.IntEnum):
    """How a term looks at an answer."""

    __test__ = False

    EQUALS = 0
    ONE_OF = 1
    SCHEMA = 2


class Term(msgspec.Struct, frozen=True, array_like=True):
    """What one checkpoint's answer must be.

    Attributes:
        checkpoint: the asking client's id of the checkpoint.
        test: how to look at it.
        operand: canonical JSON: the value, the list of values, or the JSON Schema.
    """

    checkpoint: int
    test: Test
    operand: str


SchemaTest = Callable[[str, str], bool]
"""``(schema, answer)`` as canonical JSON -> whether the answer is valid."""


def equals(checkpoint: int, value: Json) -> Term:
    """Return the term "the answer equals ``value``"."""
    return Term(checkpoint, Test.EQUALS, canonical(value))


def one_of(checkpoint: int, values: Iterable[Json]) -> Term:
    """Return the term "the answer is one of ``values``"."""
    return Term(checkpoint, Test.ONE_OF, "[" + ",".join(sorted({canonical(value) for value in values})) + "]")


def matches(checkpoint: int, schema: Json) -> Term:
    """Return the term "the answer is valid under this JSON Schema"."""
    return Term(checkpoint, Test.SCHEMA, canonical(schema))


def members(term: Term) -> frozenset[str] | None:
    """Return the canonical answers that a term allows, or None when they cannot be listed.

    An operand that is not what it should be allows none: it came from a peer.
    """
    if term.test is Test.EQUALS:
        return frozenset({term.operand})
    if term.test is Test.ONE_OF:
        try:
            values = msgspec.json.decode(term.operand, type=list[Any])
        except msgspec.MsgspecError:
            return frozenset()
        return frozenset(canonical(value) for value in values)
    return None


def holds(term: Term, answer: str, schema_test: SchemaTest) -> bool:
    """Return whether a term is true of an answer (canonical JSON)."""
    allowed = members(term)
    if allowed is not None:
        return answer in allowed
    return schema_test(term.operand, answer)


def contradictory(terms: Iterable[Term], schema_test: SchemaTest) -> tuple[Term, Term] | None:
    """Return two terms about one checkpoint that no answer can satisfy together, or None.

    Two schemas are never called contradictory: that is not decidable cheaply, and the answer will tell.
    """
    by_checkpoint: dict[int, list[Term]] = {}
    for term in terms:
        by_checkpoint.setdefault(term.checkpoint, []).append(term)
    for group in by_checkpoint.values():
        for index, first in enumerate(group):
            for second in group[index + 1 :]:
                if not _compatible(first, second, schema_test):
                    return first, second
    return None


def _compatible(first: Term, second: Term, schema_test: SchemaTest) -> bool:
    ours, theirs = members(first), members(second)
    if ours is not None:
        return any(holds(second, answer, schema_test) for answer in ours)
    if theirs is not None:
        return any(holds(first, answer, schema_test) for answer in theirs)
    return True


def conjunction(truths: Iterable[Truth]) -> Truth:
    """Return the state of a condition from the states of its terms."""
    result = Truth.TRUE
    for truth in truths:
        if truth is Truth.FALSE:
            return Truth.FALSE
        if truth is Truth.UNDECIDED:
            result = Truth.UNDECIDED
    return result
