"""A plugin of pytest, ``-p tools.outcomes``: writes what becomes of each test into a file, a line of JSON each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "PILOT_HITL_OUTCOMES"
"""Environment variable: the file."""


def pytest_configure(config: pytest.Config) -> None:
    # With pytest-xdist, the process that collects the reports of the others is told all of them.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(Path(os.environ[VARIABLE])))


class Writer:
    """Writes what it is told into a file."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``."""
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of a test, and what was wrong before and after it."""
        if report.passed and report.when != "call":
            return
        line = json.dumps([report.nodeid, report.when, report.outcome, report.longreprtext])
        with self.path.open("a") as file:
            file.write(f"{line}\n")
