"""The examples of the guide run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import FOLDER, run


def test_the_ensemble_finds_its_results_again_and_a_changed_walk_gives_new_ones_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "ensemble.py"
    text = (FOLDER / "ensemble.py").read_text()
    texts = [text, text, text.replace("dice.gauss(0.0, noise)", "dice.gauss(0.5, noise)")]
    assert texts[0] != texts[2]
    told = []
    for text in texts:
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        ended = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "PILOT_HITL_HOME": str(tmp_path / "home")},
        )
        told.append((ended.stdout.splitlines(), ended.stderr))
    (first, _), (again, _), (changed, said) = told
    assert len(first) == 5
    assert first[:4] == again[:4]
    assert " 0 results were there" in first[4]
    assert " 36 results were there" in again[4]
    assert not set(first[:4]) & set(changed[:4])
    assert " 0 results were there" in changed[4]
    assert "32 tasks run again" in said
    assert f"{script} changed" in said


def test_tasks_in_all_their_forms_are_as_the_guide_says(tmp_path: Path) -> None:
    first = run(tmp_path / "home", "tasks.py")
    assert first == run(tmp_path / "home", "tasks.py")
    assert first == [
        "largest: 12",
        "written: ['$UNIT ~ *', 'in metre']",
        "call: 3.5 | half of 7, 3 cores are just a word",
        "lines: 2",
        r"TaskFailed: sh returned exit code 3; exit code 3, stdout 'half way\n'",
        "DependencyFailed: True, because of TaskFailed",
        "TaskFailed: leave called sys.exit('no licence'); exit code 1, stdout ''",
        "ValueError: invalid literal for int() with base 10: 'seven'",
        "executor: [0.0, 0.5, 1.0]",
        "asyncio: [5.0, 10.0]",
        "as_completed: 2475.0",
    ]


def test_the_gate_goes_on_with_either_answer(tmp_path: Path) -> None:
    for answer in ("fine", "coarse"):
        lines = run(tmp_path / "home", "gate.py", "0.5", answer)
        assert lines[0] == "answer with: pilot-hitl inbox answer gate/1 fine"
        assert lines[1].startswith(f"{answer} by ")
        assert "pi is 3.14159265" in lines[1]


def test_the_steps_go_on_under_likely_answers(tmp_path: Path) -> None:
    (line,) = run(tmp_path / "home", "steps.py", "1")
    assert line == "5 terms, an error of 3.9e-01; 5 questions were ready, 3 answered"


@pytest.mark.requires("openmpi")
def test_the_mpi_program_is_one_program_of_two_ranks(tmp_path: Path) -> None:
    lines = run(tmp_path / "home", "mpi_program.py")
    assert [line.partition(" on ")[0] for line in lines[:2]] == ["rank 1 of 2", "rank 0 of 2"]
    assert lines[2] == "pi is 3.141592736923"
    assert lines[5] == "pi is 3.141592653590"


@pytest.mark.long
@pytest.mark.requires("torch")
def test_training_goes_on_while_nobody_has_answered(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (line,) = run(home, "torch_training.py", "local", "1", "0.2", timeout=110)
    assert line.startswith("2 epochs count, loss 0.0")
    assert run(home, "torch_training.py", "local", "1", "0.2")[0].startswith("2 epochs count, loss 0.0")


@pytest.mark.long
@pytest.mark.requires("openmpi", "mpi4py")
def test_the_solver_runs_every_call_on_the_same_ranks(tmp_path: Path) -> None:
    first, second = run(tmp_path / "home", "distributed_solver.py", "60")
    assert first.startswith("60 solves on 2 ranks, ")
    assert " by 2 processes: " in second


def test_gpus_are_shared_as_they_were_asked_for(tmp_path: Path) -> None:
    lines = run(tmp_path / "home", "gpu_set.py")
    assert lines[0] == "2 GPUs on 1 nodes"
    assert {line.partition("CUDA_VISIBLE_DEVICES=")[2] for line in lines[1:3]} == {"0", "1"}
    words = lines[-1].partition(": ")[2].removesuffix(" on one device").split(", ")
    counts = {word.split()[1]: word.split()[0] for word in words}
    assert counts["whole"] == "1"
    assert int(counts["quarter"]) in range(1, 5)


def test_pilots_of_an_array_share_the_work(tmp_path: Path) -> None:
    lines = run(tmp_path / "home", "pilot_array.py")
    assert lines[-1] == "sum 2646700"
    assert sum(int(line.split()[3]) for line in lines if " ran " in line) == 200


def test_each_step_of_a_long_study_counts_once(tmp_path: Path) -> None:
    assert run(tmp_path / "home", "renewing_pilot.py")[-1] == "each step once: True"
