"""What unit tests have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pilot_hitl.wire.modulefinder import Here


@pytest.fixture(autouse=True)
def _no_finder_stays() -> Iterator[None]:
    """Take away what code of a worker, run in this process, left: it would find modules in folders of another test."""
    yield
    if Here.finder is not None:
        sys.meta_path.remove(Here.finder)
        Here.finder = None
