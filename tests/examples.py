"""Runs an example of the guide as a person would: by its command, in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"


def run(home: Path, *command: str, timeout: float = 60, **variables: str) -> list[str]:
    """Return the lines that an example prints, with sessions in ``home`` and more variables set."""
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PILOT_HITL_HOME": str(home), **variables},
        cwd=FOLDER,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
