"""The examples of the guide run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def _run(home: Path, *command: str) -> list[str]:
    environment = {**os.environ, "PILOT_HITL_HOME": str(home)}
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=EXAMPLES,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_the_ensemble_finds_its_results_again(tmp_path: Path) -> None:
    first = _run(tmp_path / "home", "ensemble.py")
    second = _run(tmp_path / "home", "ensemble.py")
    assert len(first) == 5
    assert first[:4] == second[:4]
    assert " 0 results were there" in first[4]
    assert " 36 results were there" in second[4]


def test_the_gate_goes_on_with_either_answer(tmp_path: Path) -> None:
    for answer in ("fine", "coarse"):
        lines = _run(tmp_path / "home", "gate.py", "0.5", answer)
        assert lines[0] == "answer with: pilot-hitl inbox answer gate/1 fine"
        assert lines[1].startswith(f"{answer} by ")
        assert "pi is 3.14159265" in lines[1]


def test_the_steps_go_on_under_likely_answers(tmp_path: Path) -> None:
    (line,) = _run(tmp_path / "home", "steps.py", "1")
    assert line == "5 terms, an error of 3.9e-01; 5 questions were ready, 3 answered"
