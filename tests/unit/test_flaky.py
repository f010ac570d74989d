"""What tools/flaky reports of several runs, and in which order they are."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import seeds
from tests.behaviour.studies import further
from tools.flaky import ROOT, Run, differences, perform, read
from tools.search import searching_tests

SUITE = """
import os, pytest
def test_good(): pass
def test_odd():
    if int(os.environ["PILOT_HITL_SEED"]) % 2:
        print("half way")
        raise RuntimeError("by chance")
def test_skipped(): pytest.skip("nothing to do")
"""


def run_of(number: int, **outcomes: str) -> Run:
    return Run(number, number * 10, loaded=number == 2, outcomes=outcomes, ended=int("failed" in outcomes.values()))


def test_what_passes_everywhere_is_not_named() -> None:
    assert differences([run_of(1, a="passed", b="skipped"), run_of(2, a="passed", b="passed")]) == []


def test_what_failed_is_named_with_its_runs_and_last_lines() -> None:
    second = run_of(2, a="failed", b="passed")
    second.said["a"] = ["E   by chance"]
    assert differences([run_of(1, a="passed", b="passed"), second]) == [
        "a: failed in 1 of 2 runs",
        "  run 2 (PILOT_HITL_SEED=20, a core kept busy)",
        "    E   by chance",
    ]


def test_what_did_not_run_is_named() -> None:
    broken = run_of(3)
    broken.ended = 3
    assert differences([run_of(1, a="passed"), broken]) == [
        "a: did not end in run 3",
        "run 3 (PILOT_HITL_SEED=30): pytest exited with 3, and no test failed",
    ]


@pytest.mark.parametrize("options", [["1", "--idle"], ["--idle", "1"]])
def test_arguments_of_pytest_follow_two_hyphens(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "test_suite.py").write_text("def test_good(): pass")
    command = [sys.executable, "-m", "tools.flaky", *options, "--", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("flaky: nothing differed in 1 runs\n"), done.stdout + done.stderr


def test_a_run_is_one_of_pytest_with_its_seed(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    runs = [Run(1, 4, loaded=False), Run(2, 7, loaded=True)]
    for run, more in zip(runs, ([], ["-n", "2"]), strict=True):
        perform(run, ["-p", "no:cacheprovider", "-c", "/dev/null", *more, str(tmp_path)])
    assert [run.ended for run in runs] == [0, 1]
    (first, *rest) = differences(runs)
    assert first.endswith("test_odd: failed in 1 of 2 runs")
    assert "RuntimeError: by chance" in "\n".join(rest)
    assert list(runs[0].outcomes.values()) == ["passed", "passed", "skipped"]
    assert not any("test_good" in line or "test_skipped" in line for line in rest)


def test_a_failure_after_the_test_is_one() -> None:
    run = run_of(1)
    read(run, ['["a", "call", "passed", ""]', '["a", "teardown", "failed", "left behind\\n\\nE 7"]'])
    assert run.outcomes == {"a": "failed"}
    assert run.said == {"a": ["in its teardown:", "left behind", "E 7"]}


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_another_seed_is_another_order_of_files_and_of_their_tests() -> None:
    names = [f"{file}.py::test_{number}" for file in "abcd" for number in range(5)]
    orders = set()
    for seed in range(4):
        items = [Item(name) for name in names]
        seeds.shuffle(items, seed)
        again = [Item(name) for name in reversed(names)]
        seeds.shuffle(again, seed)
        order = [item.nodeid for item in items]
        assert order == [item.nodeid for item in again], "also when they were found in another order"
        assert sorted(order) == names
        files = [name.partition("::")[0] for name in order]
        assert len([one for one, other in itertools.pairwise(files) if one != other]) == 3
        orders.add(tuple(order))
    assert len(orders) == 4


@pytest.mark.parametrize("seed", further(1, [3, 5]))
def test_hypothesis_tells_other_stories_with_another_seed_and_the_same_with_the_same(seed: int, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_story.py").write_text(
        "from hypothesis import given, strategies as st\n"
        f"said = open({str(tmp_path / 'said')!r}, 'a')\n"
        "@given(st.integers())\ndef test_story(x): print(x, file=said)\n"
    )
    told = []
    for each in (seed, seed, seed + 100):
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)],
            env={"PILOT_HITL_SEED": str(each), "PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        told.append((tmp_path / "said").read_text())
        (tmp_path / "said").write_text("")
    assert told[0] == told[1] != told[2]


def test_the_search_runs_every_state_machine() -> None:
    files = searching_tests()
    assert {"tests/unit/agent/core/test_seeds.py", "tests/unit/study/test_machine.py"} <= set(files)
    machine = re.compile(r"^class \w+\(RuleBasedStateMachine\)", re.MULTILINE)
    machines = [path for path in (ROOT / "tests").rglob("test_*.py") if machine.search(path.read_text())]
    assert {str(path.relative_to(ROOT)) for path in machines} <= set(files)
