"""What idle cores are lent to while people think: small rules, exchangeable by name.

A policy says whether work under an undecided condition may run, whether cores that are kept for a decision's
continuation are lent meanwhile, and in which order speculative work goes. It knows no tasks: it sees a :class:`Group`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Group(NamedTuple):
    """Speculative tasks of one kind under one condition.

    Attributes:
        probability: of the condition, 0 to 1.
        source: where the probability comes from, in words.
        runtime: expected seconds of one of them; 0 while nothing is known.
        criticality: how much of the longest chain of work that is left under the condition starts with one of these, as
            a share: 1 on the critical path.
        cores: of one of them, over all ranks.
    """

    probability: float
    source: str
    runtime: float
    criticality: float
    cores: int


class Judgement(NamedTuple):
    """A score, higher first, and why in words."""

    score: float
    reason: str


class Policy(Protocol):
    """A rule.

    Attributes:
        name: by which sessions ask for it.
        speculates: whether tasks under undecided conditions may run.
        lends: whether reserved cores are lent to lower tiers while people think.
    """

    name: str
    speculates: bool
    lends: bool

    def judge(self, group: Group) -> Judgement:
        """Return the score of a group; among equals, the one that arrived first goes first."""
        ...


class Block:
    """Nothing runs ahead of a decision, and the cores that it will need stay idle: as without this runtime."""

    name = "block"
    speculates = False
    lends = False

    def judge(self, group: Group) -> Judgement:
        """Return zero: nothing of it runs before the answer."""
        del group
        return Judgement(0.0, "policy block: it waits for the answer")


class Backfill:
    """Nothing runs ahead of a decision; the cores that it will need are lent to the backfill tier."""

    name = "backfill"
    speculates = False
    lends = True

    def judge(self, group: Group) -> Judgement:
        """Return zero: nothing of it runs before the answer."""
        del group
        return Judgement(0.0, "policy backfill: it waits for the answer")


class Fifo:
    """All branches run ahead, in order of arrival."""

    name = "fifo"
    speculates = True
    lends = True

    def judge(self, group: Group) -> Judgement:
        """Return the same for everybody."""
        del group
        return Judgement(0.5, "policy fifo: in order of arrival")


class Score:
    """The work that most probably saves most of the critical path, per core, runs first.

    A second of work that runs ahead saves a second after the answer if the answer comes true and the work lies on the
    longest chain that is left. Hence probability times criticality, over the cores that it occupies for that second
    (compare expected critical-path reduction in speculative execution, arXiv 2604.16469).
    """

    name = "score"
    speculates = True
    lends = True

    def judge(self, group: Group) -> Judgement:
        """Return the expected saving on the critical path per core-second."""
        score = group.probability * group.criticality / max(1, group.cores)
        of_what = f"about {group.runtime:.2g} s each" if group.runtime else "run time not known yet"
        return Judgement(
            score,
            f"score {score:.3g} = probability {group.probability:.3g} ({group.source}) x {group.criticality:.2g} "
            f"of the critical path / {group.cores} core{'s' if group.cores != 1 else ''}, {of_what}",
        )


DEFAULT = "score"
POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Block, Backfill, Fifo, Score)}
"""By name."""


def policy_named(name: str) -> Policy:
    """Return a policy; the default one for an empty name.

    Raises:
        KeyError: there is none of this name.
    """
    return POLICIES[name or DEFAULT]()
