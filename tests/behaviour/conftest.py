"""Fixtures of the behaviour tests: one suite for every back end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.studies import Study

BACKENDS = ["local"]


@pytest.fixture(params=BACKENDS)
def study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A home of the test's own; at the end nothing of it may run or lie about."""
    # Short: socket paths are.
    base = Path(tempfile.mkdtemp(prefix="phb"))
    made = Study(base, request.param)
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
