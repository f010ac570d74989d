"""The study, as a script against the public face.

1. A *survey*: one executable a simulation, all over the parameter plane.
2. A *reduction* by function tasks: a summary a region, then the three best regions.
3. A *gate*: a person chooses the region to refine. Meanwhile the continuation of every choice runs speculatively, with
   the probability that :func:`~pilot_hitl.cli.demo_study.analysis.predict` computes from the survey.
4. The *continuation*: a finer grid in the chosen region, a fit, fresh simulations that test the fit.

Nothing here knows whether a task ran before or after the answer, and no number depends on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pilot_hitl as ph
from pilot_hitl.branches import Branch
from pilot_hitl.cli.demo_study import analysis, pictures, plan
from pilot_hitl.cli.demo_study.analysis import Finding, Fit, Summary, Survey
from pilot_hitl.cli.demo_study.plan import Point, Region, Scale
from pilot_hitl.gates import Answer, Checkpoint

GATE = "refine-region"
MODULE = "pilot_hitl.cli.demo_study.simulate"
QUESTION = """\
Which region of the parameter plane shall be refined?

The survey looked for patterns that are strong *and* at rest (strength = contrast x steadiness). The choices are the
three strongest regions. A region that holds patterns only in part lies at the border to the empty soup; one with low
steadiness never comes to rest."""


class Board(Protocol):
    """What the study tells of its progress."""

    def say(self, text: str) -> None:
        """Tell one thing."""
        ...

    def follow(self, title: str, tasks: list[ph.TaskFuture[Any]]) -> None:
        """Show how many of these tasks have ended."""
        ...


class Reviewer(Protocol):
    """Who answers the gate, from this process or from another."""

    def begin(self, gate: Checkpoint, survey: Survey) -> None:
        """Take notice of the question; returns at once."""
        ...

    def end(self) -> None:
        """Nobody waits for the answer any more."""
        ...


class Continuation(NamedTuple):
    """What follows one answer."""

    simulations: list[ph.TaskFuture[ph.Completed]]
    fit: ph.TaskFuture[Fit]
    checks: list[ph.TaskFuture[Any]]
    finding: ph.TaskFuture[Finding]

    @property
    def tasks(self) -> list[ph.TaskFuture[Any]]:
        """All of them, in the order in which they were submitted."""
        return [*self.simulations, self.fit, *self.checks, self.finding]


@dataclass
class Outcome:
    """How the study went.

    Attributes:
        survey, answer, finding: the results.
        early: of each choice the tasks that were submitted before the answer.
        tasks: every task of the study.
        asked_at: when the question was put, seconds since 1970.
        first_at: when the script held the first result of the continuation.
        done_at: when it held the last.
    """

    survey: Survey
    answer: Answer
    finding: Finding
    early: Mapping[str, list[ph.TaskFuture[Any]]]
    tasks: list[ph.TaskFuture[Any]]
    asked_at: float
    first_at: float
    done_at: float

    @property
    def predicted(self) -> str:
        """The most probable choice."""
        return self.survey.candidates[0].region.name

    @property
    def chosen(self) -> str:
        """The region that was chosen."""
        return str(self.answer.value)


@dataclass
class Study:
    """One run of the study in an open session that has a pilot."""

    session: ph.Session
    scale: Scale
    seed: int
    board: Board
    speculation: bool = True
    tasks: list[ph.TaskFuture[Any]] = field(default_factory=list)

    def run(self, reviewer: Reviewer) -> Outcome:
        """Run it to its end.

        Raises:
            TaskError: a task failed for good.
            CheckpointError: the gate was withdrawn or answered with what is no choice.
        """
        survey = self.survey()
        asked_at = time.time()
        gate = self.ask(survey)
        early = self.speculate(gate, survey) if self.speculation else {}
        reviewer.begin(gate, survey)
        try:
            answer = gate.answer()
        finally:
            reviewer.end()
        chosen = str(answer.value)
        self.board.say(f"answered: {chosen} (by {answer.by or 'somebody'}, {answer.channel})")
        finding: Future[Finding]
        if chosen in early:
            final = early[chosen]
            finding = gate.select({name: item.finding for name, item in early.items()})
        else:
            final = self.continuation(self.session, _region_of(survey, chosen))
            finding = final.finding
        self.board.follow(f"refine {chosen}", final.tasks)
        ph.wait(final.simulations, return_when=ph.FIRST_COMPLETED)
        first_at = time.time()
        result = finding.result()
        return Outcome(
            survey=survey,
            answer=answer,
            finding=result,
            early={name: item.tasks for name, item in early.items()},
            tasks=self.tasks,
            asked_at=asked_at,
            first_at=first_at,
            done_at=time.time(),
        )

    def survey(self) -> Survey:
        """Simulate all over the plane and return the response surface."""
        regions = plan.regions(self.scale)
        points = [plan.survey_points(region, self.scale, self.seed) for region in regions]
        simulations = [self.session.submit([self._task(point) for point in inside]) for inside in points]
        summaries = [
            self.session.call(analysis.summarise, region, done)
            for region, done in zip(regions, simulations, strict=True)
        ]
        ranked = self.session.call(analysis.rank, summaries)
        tasks: list[ph.TaskFuture[Any]] = [*(task for done in simulations for task in done), *summaries, ranked]
        self.tasks += tasks
        self.board.follow("survey", tasks)
        return ranked.result()

    def ask(self, survey: Survey) -> Checkpoint:
        """Put the question, with what a person needs to see for it."""
        return self.session.checkpoint(
            GATE,
            question=QUESTION,
            choices=[item.region.name for item in survey.candidates],
            show=[table(survey), fenced(pictures.surface(survey)), fenced(thumbnails(survey))],
        )

    def speculate(self, gate: Checkpoint, survey: Survey) -> dict[str, Continuation]:
        """Submit what follows each answer, the likeliest first, under the condition that it is given."""
        return {
            candidate.region.name: self.continuation(
                gate.branch(candidate.region.name, probability=probability), candidate.region
            )
            for candidate, probability in zip(survey.candidates, survey.probabilities, strict=True)
        }

    def continuation(self, to: ph.Session | Branch, region: Region) -> Continuation:
        """Submit what follows the choice of a region, for real or to a branch."""
        points = plan.refined_points(region, self.scale, self.seed)
        simulations = to.submit([self._task(point) for point in points])
        fitted = to.call(analysis.fit, region, simulations)
        seeds = plan.check_seeds(region, self.scale, self.seed)
        checks = [to.call(analysis.check, fitted, seed, self.scale) for seed in seeds]
        made = Continuation(simulations, fitted, checks, to.call(analysis.conclude, fitted, checks))
        self.tasks += made.tasks
        return made

    def _task(self, point: Point) -> ph.TaskDescription:
        return ph.TaskDescription(
            executable=sys.executable,
            arguments=["-m", MODULE, *point.arguments(self.scale, analysis.RESULT_NAME)],
            name=f"simulate F={point.feed:.4f} k={point.kill:.4f}",
            # One core each: a linear algebra library that starts a thread for every core of the node only disturbs.
            environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            # It writes nothing but its result, so it may be ended at once when its cores are wanted.
            grace=1.0,
        )


def table(survey: Survey) -> list[dict[str, object]]:
    """Return the candidates as rows for a person. Without the probabilities: they would steer the answer."""
    return [
        {
            "region": item.region.name,
            "F": f"{item.region.feed[0]:.4f} - {item.region.feed[1]:.4f}",
            "k": f"{item.region.kill[0]:.4f} - {item.region.kill[1]:.4f}",
            "strength": f"{item.strength:.4f}",
            "contrast": f"{item.contrast:.4f}",
            "steadiness": f"{item.steadiness:.3f}",
            "with pattern": f"{item.patterns:.0%}",
            "wavelength": f"{item.wavelength:.1f}",
        }
        for item in survey.candidates
    ]


def thumbnails(survey: Survey) -> str:
    """Return what the strongest simulation of each candidate looks like."""
    top = max((float(item.thumbnail.max()) for item in survey.candidates), default=0.0)
    return pictures.side_by_side({title(item): pictures.picture(item.thumbnail, 24, top) for item in survey.candidates})


def title(item: Summary) -> str:
    """Return a region's title for a picture."""
    return f"{item.region.name}: {item.strength:.4f}"


def fenced(text: str) -> str:
    """Return text as a Markdown code block, in which every space counts."""
    return f"```\n{text}\n```"


def _region_of(survey: Survey, name: str) -> Region:
    return next(item.region for item in survey.candidates if item.region.name == name)
