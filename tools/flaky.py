"""Run the tests again and again, each time in another order and with other seeds, and say what differed.

    tools/flaky N [--idle | --loaded] [-- pytest arguments]

Each of the N rounds runs them on the machine as it is, and once more with one core kept busy. A test that did not pass
in every run is named with the runs it failed in, how to repeat such a run, and the last lines of what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools import outcomes

ROOT = Path(__file__).resolve().parent.parent
SEED = "PILOT_HITL_SEED"
"""Environment variable: the seed of the tests' order, and of what they try at random; see tests/conftest.py."""
LAST_LINES = 12


@dataclass
class Run:
    """One run of the tests: what became of each, and the last lines of those that failed."""

    number: int
    seed: int
    loaded: bool
    ended: int = 0
    outcomes: dict[str, str] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"run {self.number} ({SEED}={self.seed}{', a core kept busy' if self.loaded else ''})"


def read(run: Run, lines: Iterable[str]) -> None:
    """Take what became of each test from the lines that :mod:`tools.outcomes` wrote."""
    for line in lines:
        name, when, outcome, said = json.loads(line)
        if outcome == "failed":
            # What fails in its set-up or afterwards fails as a test does; the first failure is told.
            run.said.setdefault(name, [f"in its {when}:", *[part for part in said.splitlines() if part][-LAST_LINES:]])
            run.outcomes[name] = outcome
        else:
            run.outcomes.setdefault(name, outcome)


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the report on what did not pass, or did not run, in all of these runs; empty when there is nothing."""
    lines: list[str] = []
    names = dict.fromkeys(name for run in runs for name in run.outcomes)
    for name in names:
        failed = [run for run in runs if run.outcomes.get(name) == "failed"]
        absent = [run for run in runs if name not in run.outcomes]
        if failed:
            lines.append(f"{name}: failed in {len(failed)} of {len(runs)} runs")
            for run in failed:
                lines.append(f"  {run}")
                lines += [f"    {line}" for line in run.said.get(name, [])]
        if absent:
            lines.append(f"{name}: did not end in {', '.join(f'run {run.number}' for run in absent)}")
    for run in runs:
        if run.ended and "failed" not in run.outcomes.values():
            lines.append(f"{run}: pytest exited with {run.ended}, and no test failed")
    return lines


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            yield
        finally:
            loop.kill()


def perform(run: Run, arguments: Sequence[str]) -> None:
    """Run the tests once, as ``run`` says, and note in it what became of them."""
    with tempfile.TemporaryDirectory(prefix="flaky-") as folder:
        told = Path(folder, "outcomes")
        told.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-p", outcomes.__name__, *arguments]
        environment = {**os.environ, SEED: str(run.seed), outcomes.VARIABLE: str(told)}
        with busy_core() if run.loaded else contextlib.nullcontext():
            run.ended = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        read(run, told.read_text().splitlines())


def main(arguments: Sequence[str]) -> int:
    """Run the tests; return 0 when every test passed in every run."""
    parser = argparse.ArgumentParser(
        prog="tools/flaky", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rounds", type=int)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--idle", action="store_true", help="no runs with a core kept busy")
    how.add_argument("--loaded", action="store_true", help="only runs with a core kept busy")
    parser.epilog = "pytest arguments: -n 3 --dist worksteal when there are none"
    split = arguments.index("--") if "--" in arguments else len(arguments)  # argparse takes none after an option
    given = parser.parse_args(arguments[:split])
    pytest_arguments = arguments[split + 1 :] or ["-n", "3", "--dist", "worksteal"]
    loads = [loaded for loaded in (False, True) if not (loaded and given.idle) and not (given.loaded and not loaded)]
    runs: list[Run] = []
    for _ in range(given.rounds):
        for loaded in loads:
            run = Run(len(runs) + 1, secrets.randbelow(1 << 30), loaded)
            runs.append(run)
            print(f"flaky: {run}", flush=True)
            perform(run, pytest_arguments)
    found = differences(runs)
    print("\n".join(found) if found else f"flaky: nothing differed in {len(runs)} runs")
    return 1 if found or not any(run.outcomes for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
