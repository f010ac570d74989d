"""The continuation's function tasks, with a surrogate in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import analysis, plan, refinement, simulate
from pilot_hitl.cli.demo_study.refinement import Finding, Peak, Proposal
from pilot_hitl.cli.demo_study.surrogate import Training
from tests.unit.cli.demo_study.samples import REGION, TINY, ask, hill, measures

KNOWN = Training.of([measures(0.015, 0.05, 0.0), measures(0.05, 0.065, 0.0)])


@dataclass(frozen=True)
class Done:
    sandbox: str


def _proposal(side: int = 5) -> Proposal:
    refined = [measures(feed, kill, hill(feed, kill)) for feed, kill in REGION.grid(side).tolist()]
    return Proposal(KNOWN + Training.of(refined), refined, [(0.03, 0.055), (0.031, 0.056)])


@pytest.fixture
def simulated(tmp_path: Path) -> list[Done]:
    done = []
    for index, point in enumerate(plan.refined_points(REGION, TINY, 1)):
        folder = tmp_path / str(index)
        folder.mkdir()
        simulate.main(point.arguments(TINY, str(folder / analysis.RESULT_NAME)))
        done.append(Done(str(folder)))
    return done


def test_proposals_lie_apart_inside_of_the_region(simulated: list[Done]) -> None:
    found = refinement.propose(REGION, KNOWN, list(simulated), 6, ask)
    assert len(found.refined) == 9
    assert found.training == KNOWN + Training.of(found.refined)
    assert len(found.places) == len(set(found.places)) == 6
    shares = np.array([((feed - 0.02) / 0.02, (kill - 0.05) / 0.01) for feed, kill in found.places])
    assert ((shares > 0) & (shares < 1)).all()
    apart = np.hypot(*(shares[:, None] - shares[None]).transpose(2, 0, 1))
    assert apart[~np.eye(6, dtype=bool)].min() >= refinement.APART - 1e-9


def test_a_proposal_does_not_depend_on_the_order_of_simulations(simulated: list[Done]) -> None:
    first = refinement.propose(REGION, KNOWN, list(simulated), 3, ask)
    other = refinement.propose(REGION, KNOWN, list(reversed(simulated)), 3, ask)
    assert (first.training, first.places) == (other.training, other.places)


def test_a_proposed_place_is_simulated() -> None:
    found = refinement.probe(_proposal(), 1, 7, TINY)
    before, after = simulate.trajectory(0.031, 0.056, 7, TINY.cells, TINY.steps, TINY.window)
    assert found == analysis.measure(0.031, 0.056, before, after)


def test_the_top_of_a_hill_is_found() -> None:
    probes = [measures(*REGION.place(0.4, 0.6), hill(*REGION.place(0.4, 0.6)))]
    found = refinement.locate(REGION, _proposal(), probes, ask)
    assert found.feed == pytest.approx(0.03, abs=0.001)
    assert found.kill == pytest.approx(0.055, abs=0.0005)
    assert found.strength == pytest.approx(0.2, rel=0.02)
    assert (found.region, found.simulations, found.patterns) == ("B2", 26, 26)
    assert len(found.training) == len(KNOWN) + 26


def test_the_place_is_one_of_which_the_surrogate_is_sure() -> None:
    # Strength rises with feed, but the half of the region towards which it rises makes no patterns.
    refined = [
        measures(feed, kill, 2 * feed if feed < 0.03 else 0.0, 0.1 if feed < 0.03 else 0.0)
        for feed, kill in REGION.grid(6).tolist()
    ]
    proposal = Proposal(KNOWN + Training.of(refined), refined, [])
    found = refinement.locate(REGION, proposal, [], ask)
    assert 0.024 < found.feed < 0.03
    assert (found.simulations, found.patterns) == (36, 18)


def _finding(measured: float, *, alive: bool = True) -> Finding:
    peak = Peak("B2", _proposal().training, 9, 9, 0.03, 0.055, 0.2, 0.001, 0.002)
    shown = measures(0.03, 0.055, measured, 0.1 if alive else 0.0)
    return refinement.conclude(peak, [(shown, np.zeros((4, 4), dtype=np.float32))] * 2, ask)


def test_fresh_simulations_bear_the_prediction_out_or_not() -> None:
    assert _finding(0.201).agrees
    assert not _finding(0.22).agrees
    assert not _finding(0.201, alive=False).agrees


def test_the_last_word_has_learned_from_the_test() -> None:
    low, high = _finding(0.19), _finding(0.21)
    assert 0.19 < low.strength < high.strength < 0.21
    assert low.measured == pytest.approx(0.19)
    strengths = [low.strength, replace(low, strength=1.0).strength]
    assert strengths[0] < strengths[1]
