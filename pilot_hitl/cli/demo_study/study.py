"""The study, as a script against the public face.

1. A *survey*: one executable a simulation, all over the parameter plane, and a summary a region by function tasks.
2. A *surrogate*: a service that is retrained whenever a row of regions is done, and then predicts the whole plane.
3. A *gate*: a person chooses the region to refine. Meanwhile the continuation of every choice runs speculatively, with
   the probability that :func:`~pilot_hitl.cli.demo_study.ranking.predict` computes from survey and surrogate.
4. The *continuation*: a finer grid in the chosen region, simulations that the retrained surrogate asks for, and fresh
   ones that test its prediction.

Nothing here knows whether a task ran before or after the answer, and no number depends on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pilot_hitl as ph
from pilot_hitl.branches import Branch
from pilot_hitl.cli.demo_study import analysis, pictures, plan, plot, ranking, refinement, service
from pilot_hitl.cli.demo_study.analysis import Summary
from pilot_hitl.cli.demo_study.plan import Point, Region, Scale
from pilot_hitl.cli.demo_study.ranking import Standing, Survey
from pilot_hitl.cli.demo_study.refinement import Finding
from pilot_hitl.cli.demo_study.surrogate import Training
from pilot_hitl.gates import Answer, Checkpoint

GATE = "refine-region"
MODULE = "pilot_hitl.cli.demo_study.simulate"
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A linear algebra library that starts a thread for every core of the node only disturbs."""
PLOT = "surface.png"
"""In the folder of the session: the picture that the gate shows."""
QUESTION = """\
Which region of the parameter plane shall be refined?

The survey looked for patterns that are strong and at rest (strength =
contrast x steadiness). The choices are the three most promising regions, by
what was observed and by what the surrogate predicts. A region that holds
patterns only in part lies at the border to the empty soup; one with low
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

    tasks: list[ph.TaskFuture[Any]]
    """All of them, in the order in which they were submitted."""
    finding: ph.TaskFuture[Finding]


@dataclass
class Outcome:
    """How the study went.

    Attributes:
        survey, answer, finding: the results.
        branches: of each choice the tasks that were submitted before the answer.
        tasks: every task of the study.
        asked_at: when the question was put, seconds since 1970.
        done_at: when the script held the finding.
    """

    survey: Survey
    answer: Answer
    finding: Finding
    branches: Mapping[str, list[ph.TaskFuture[Any]]]
    tasks: list[ph.TaskFuture[Any]]
    asked_at: float
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
    """One run of the study in an open session.

    Attributes:
        session: it runs in; its pilot has at least two cores, because one is the surrogate's.
        scale, seed: what is computed.
        board: where progress is shown.
        tasks: all that were submitted.
    """

    session: ph.Session
    scale: Scale
    seed: int
    board: Board
    tasks: list[ph.TaskFuture[Any]] = field(default_factory=list)

    def run(self, reviewer: Reviewer) -> Outcome:
        """Run it to its end.

        Raises:
            TaskError: a task failed for good.
            ServiceError: the surrogate cannot be kept running.
            CheckpointError: the gate was withdrawn or answered with what is no choice.
        """
        surrogate = self.session.start_service(
            ph.ServiceDescription(name=service.NAME, handler=service.HANDLER, max_batch=8, environment=ONE_CORE)
        )
        survey = self.survey(surrogate)
        asked_at = time.time()
        gate = self.ask(survey)
        branches = self.speculate(gate, survey)
        finding = gate.select({name: item.finding for name, item in branches.items()})
        reviewer.begin(gate, survey)
        try:
            answer = gate.answer()
        finally:
            reviewer.end()
        chosen = str(answer.value)
        self.board.say(f"answered: {chosen} (by {answer.by or 'somebody'}, {answer.channel})")
        self.board.follow(f"refine {chosen}", branches[chosen].tasks)
        return Outcome(
            survey=survey,
            answer=answer,
            finding=finding.result(),
            branches={name: item.tasks for name, item in branches.items()},
            tasks=self.tasks,
            asked_at=asked_at,
            done_at=time.time(),
        )

    def survey(self, surrogate: service.Endpoint) -> Survey:
        """Simulate all over the plane, teach the surrogate, and return what both say."""
        regions = plan.regions(self.scale)
        points = [plan.survey_points(region, self.seed) for region in regions]
        simulations = [self.session.submit([self._task(point) for point in inside]) for inside in points]
        # Ahead of the simulations that wait: the surrogate learns while they run.
        soon = self.session.options(priority=1)
        summaries = [
            soon.call(analysis.summarise, region, done) for region, done in zip(regions, simulations, strict=True)
        ]
        tasks: list[ph.TaskFuture[Any]] = [*(task for done in simulations for task in done), *summaries]
        self.tasks += tasks
        self.board.follow("survey", tasks)
        ready: list[Summary] = []
        where = ranking.places(self.scale)
        while True:
            # A row of regions at a time, in their order: so each round learns from the same simulations in every run.
            ready += [task.result() for task in summaries[len(ready) : len(ready) + self.scale.regions]]
            training = Training.of(item for summary in ready for item in summary.measures)
            expected = service.ask(surrogate, training, where)
            doubt = float(expected.deviation.mean())
            self.board.say(f"surrogate trained on {len(training)} simulations: knows strengths to ± {doubt:.3f}")
            if len(ready) == len(summaries):
                return ranking.rank(ready, training, expected)

    def ask(self, survey: Survey) -> Checkpoint:
        """Put the question, with what a person needs to see for it."""
        return self.session.checkpoint(
            GATE,
            question=QUESTION,
            choices=[item.region.name for item in survey.candidates],
            show=[table(survey), self._plot(survey), fenced(pictures.surface(survey)), fenced(thumbnails(survey))],
        )

    def speculate(self, gate: Checkpoint, survey: Survey) -> dict[str, Continuation]:
        """Submit what follows each answer, the likeliest first, under the condition that it is given."""
        return {
            candidate.region.name: self.continuation(
                gate.branch(candidate.region.name, probability=probability), candidate.region, survey.training
            )
            for candidate, probability in zip(survey.candidates, survey.probabilities, strict=True)
        }

    def continuation(self, to: Branch, region: Region, known: Training) -> Continuation:
        """Submit to a branch what follows the choice of a region."""
        scale, seed = self.scale, self.seed
        simulations = to.submit([self._task(point) for point in plan.refined_points(region, scale, seed)])
        proposal = to.call(refinement.propose, region, known, simulations, scale.infill)
        probes = [
            to.call(refinement.probe, proposal, index, each, scale)
            for index, each in enumerate(plan.infill_seeds(region, scale, seed))
        ]
        peak = to.call(refinement.locate, region, proposal, probes)
        checks = [to.call(refinement.check, peak, each, scale) for each in plan.check_seeds(region, scale, seed)]
        finding = to.call(refinement.conclude, peak, checks)
        made = Continuation([*simulations, proposal, *probes, peak, *checks, finding], finding)
        self.tasks += made.tasks
        return made

    def _plot(self, survey: Survey) -> Path:
        path = self.session.folder / PLOT
        path.write_bytes(plot.surface_png(survey))
        return path

    def _task(self, point: Point) -> ph.TaskDescription:
        return ph.TaskDescription(
            executable=sys.executable,
            arguments=["-m", MODULE, *point.arguments(self.scale, analysis.RESULT_NAME)],
            name=f"simulate F={point.feed:.4f} k={point.kill:.4f}",
            environment=ONE_CORE,
            # It writes nothing but its result, so it may be ended at once when its cores are wanted.
            grace=0.2,
        )


def table(survey: Survey) -> list[dict[str, object]]:
    """Return the candidates as rows for a person. Without the probabilities: they would steer the answer."""
    return [
        {
            "region": item.region.name,
            "F": f"{item.region.feed[0]:.3f}-{item.region.feed[1]:.3f}",
            "k": f"{item.region.kill[0]:.3f}-{item.region.kill[1]:.3f}",
            "observed": f"{item.summary.strength:.4f}",
            "predicted": f"{item.predicted:.3f} ± {item.deviation:.3f}",
            "steady": f"{item.summary.steadiness:.3f}",
            "patterns": f"{item.summary.patterns:.0%}",
        }
        for item in survey.candidates
    ]


def thumbnails(survey: Survey) -> str:
    """Return what the strongest simulation of each candidate looks like."""
    top = max((float(item.summary.thumbnail.max()) for item in survey.candidates), default=0.0)
    return pictures.side_by_side(
        {title(item): pictures.picture(item.summary.thumbnail, 22, top) for item in survey.candidates}
    )


def title(item: Standing) -> str:
    """Return a region's title for a picture."""
    return f"{item.region.name}: {item.promise:.4f}"


def fenced(text: str) -> str:
    """Return text as a Markdown code block, in which every space counts."""
    return f"```\n{text}\n```"
