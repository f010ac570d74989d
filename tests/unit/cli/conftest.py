from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pilot_hitl.cli.main import app
from pilot_hitl.wire.places import HOME_VARIABLE
from tests.unit.cli.fakes import FakeHub

Cli = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("PILOT_HITL_SESSION", raising=False)
    monkeypatch.delenv("PILOT_HITL_DEBUG", raising=False)
    return folder


@pytest.fixture
def cli(home: Path) -> Cli:
    """Run a command line; the result has stdout, stderr and exit_code."""
    runner = CliRunner()

    def run(*arguments: str) -> Result:
        assert home.is_dir()
        return runner.invoke(app, list(arguments))

    return run


@pytest.fixture
def hub(home: Path) -> Iterator[FakeHub]:
    with FakeHub(home).running() as running:
        yield running
