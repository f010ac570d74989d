from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl.session import Session
from tests.unit.client.fakehub import FakeHub


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: the paths of sockets must stay short.
    with tempfile.TemporaryDirectory(prefix="ph-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def hub(home: Path) -> Iterator[FakeHub]:
    hub = FakeHub(home)
    yield hub
    hub.stop()


@pytest.fixture
def session(hub: FakeHub) -> Iterator[Session]:
    with Session("study", home=hub.home) as session:
        yield session
