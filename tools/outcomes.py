"""A plugin of pytest, ``-p tools.outcomes``: writes what becomes of each test into a file, a line of JSON each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "PILOT_HITL_OUTCOMES"
"""Environment variable: the file."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # With pytest-xdist, the process that collects the reports of the others calls this too, and says which one it was.
    if report.passed and report.when != "call":
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    line = json.dumps([report.nodeid, report.when, report.outcome, report.longreprtext])
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(f"{line}\n")
