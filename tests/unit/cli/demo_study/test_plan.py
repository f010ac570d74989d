"""The plan of the demo: the plane is covered once, and every simulation has a seed of its own."""

from __future__ import annotations

import pytest

from pilot_hitl.cli.demo_study import plan
from pilot_hitl.cli.demo_study.plan import SCALES, Scale


@pytest.fixture(params=list(SCALES.values()), ids=list(SCALES))
def scale(request: pytest.FixtureRequest) -> Scale:
    chosen: Scale = request.param
    return chosen


def test_regions_cover_the_plane_without_overlap(scale: Scale) -> None:
    found = plan.regions(scale)
    area = sum((item.feed[1] - item.feed[0]) * (item.kill[1] - item.kill[0]) for item in found)
    assert area == pytest.approx((plan.FEED[1] - plan.FEED[0]) * (plan.KILL[1] - plan.KILL[0]))
    assert len({item.name for item in found}) == len(found) == scale.regions**2
    assert found[0].name == "A1"


def test_points_lie_inside_their_region(scale: Scale) -> None:
    for region in plan.regions(scale):
        points = [*plan.survey_points(region, 1), *plan.refined_points(region, scale, 1)]
        assert len(points) == 2 + scale.refined**2
        assert all(region.feed[0] < point.feed < region.feed[1] for point in points)
        assert all(region.kill[0] < point.kill < region.kill[1] for point in points)


def test_no_two_simulations_share_a_seed(scale: Scale) -> None:
    seeds = [
        seed
        for region in plan.regions(scale)
        for seed in [
            *(point.seed for point in plan.survey_points(region, 1)),
            *(point.seed for point in plan.refined_points(region, scale, 1)),
            *plan.infill_seeds(region, scale, 1),
            *plan.check_seeds(region, scale, 1),
        ]
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_study_seed_decides_all_seeds(scale: Scale) -> None:
    region = plan.regions(scale)[0]
    assert plan.survey_points(region, 1) == plan.survey_points(region, 1)
    assert plan.survey_points(region, 1) != plan.survey_points(region, 2)


def test_a_command_line_carries_the_numbers_exactly(scale: Scale) -> None:
    point = plan.Point(feed=0.1 + 0.2, kill=1 / 3, seed=7)
    arguments = dict(item.removeprefix("--").split("=") for item in point.arguments(scale, "out.npz"))
    assert (float(arguments["feed"]), float(arguments["kill"])) == (point.feed, point.kill)
    assert (arguments["seed"], arguments["cells"], arguments["out"]) == ("7", str(scale.cells), "out.npz")
