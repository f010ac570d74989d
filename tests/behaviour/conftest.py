"""Fixtures of the behaviour tests: one suite for every back end.

``PILOT_HITL_BACKENDS="local slurm"`` (in CI) runs every test against each of them. Without it, tests run against
pilots on this machine, and those of ALSO_SLURM against a real Slurm as well. There a pilot's cores lie on up to four
nodes, except in tests with the mark ``one_node``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.studies import Study
from tests.slurm.cluster import Cluster
from tests.slurm.fixtures import cluster

BACKENDS = os.environ.get("PILOT_HITL_BACKENDS", "").split()
ALSO_SLURM = {
    "test_a_task_asks",
    "test_errors_arrive_as_they_are",
    "test_nothing_of_an_outer_allocation",
    "test_ranks_and_cores",
    "test_staging",
    "test_ways_to_fail",
}
"""A little of everything that differs between back ends: some 15 s."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "study" not in metafunc.fixturenames:
        return
    function = metafunc.definition
    chosen = BACKENDS or (["local", "slurm"] if function.originalname in ALSO_SLURM else ["local"])
    marks = {"slurm": [pytest.mark.requires("slurm")]}
    metafunc.parametrize("study", [pytest.param(name, marks=marks.get(name, [])) for name in chosen], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = {item for item in items if item.get_closest_marker("only_local") and _backend(item) != "local"}
    config.hook.pytest_deselected(items=list(elsewhere))
    items[:] = [item for item in items if item not in elsewhere]


def _backend(item: pytest.Item) -> str:
    return str(item.callspec.params.get("study", "local")) if hasattr(item, "callspec") else "local"


@pytest.fixture(scope="session")
def wide_slurm() -> Iterator[Cluster]:
    """Four nodes, each with more cores than any test asks for."""
    with cluster(cpus=80) as made:
        yield made


@pytest.fixture
def study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A home of the test's own; at the end nothing of it may run or lie about."""
    backend = getattr(request, "param", "local")
    where = request.getfixturevalue("wide_slurm") if backend == "slurm" else None
    # Short: socket paths are.
    base = Path(tempfile.mkdtemp(prefix="phb"))
    made = Study(base, backend, where)
    made.spread = request.node.get_closest_marker("one_node") is None
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield made
        left = made.finish()
        assert not left, "left behind:\n" + "\n".join(left)
    finally:
        made.finish()
        shutil.rmtree(base, ignore_errors=True)
