"""Fixtures of the behaviour tests: one suite for every back end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.studies import Study
from tests.slurm.fixtures import slurm

__all__ = ["slurm"]
BACKENDS = os.environ.get("PILOT_HITL_BACKENDS", "local").split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "study" not in metafunc.fixturenames:
        return
    metafunc.parametrize(
        "study",
        [pytest.param(name, marks=pytest.mark.requires(name)) if name != "local" else name for name in BACKENDS],
        indirect=True,
    )


@pytest.fixture
def study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A home of the test's own; at the end nothing of it may run or lie about."""
    # Short: socket paths are.
    backend = getattr(request, "param", "local")
    cluster = request.getfixturevalue(backend) if backend != "local" else None
    base = Path(tempfile.mkdtemp(prefix="phb"))
    made = Study(base, backend, cluster)
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
