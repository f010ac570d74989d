"""What a user does with Slurm alone: parallel srun in an allocation, a job array, single jobs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from pilot_hitl.errors import PilotError

SRUNS = 32
"""At least so many for one rate."""
ARRAY, SINGLES = 100, 50
POLL = 0.05
PATIENCE = 120.0


class NoSlurm(PilotError):
    """What is to be measured is not here."""


def words(*command: str, check: bool = True) -> str:
    """Return what a command of Slurm prints.

    Raises:
        NoSlurm: it is not there, or fails; with its own words.
    """
    if shutil.which(command[0]) is None:
        raise NoSlurm(f"{command[0]} is not in PATH: bench slurm runs where Slurm's commands are, e.g. on a login node")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if check and done.returncode:
        raise NoSlurm(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def idle_nodes() -> tuple[int, int]:
    """Return how many nodes of the default partition are idle, and the cores of each, the least.

    Raises:
        NoSlurm: there is none.
    """
    lines = words("sinfo", "--noheader", "--Node", "--states=idle", "--format=%n %c %P").splitlines()
    found = {name: int(cores) for name, cores, partition in map(str.split, lines) if partition.endswith("*")}
    if not found:
        raise NoSlurm("no node of Slurm's default partition is idle now (sinfo): try later")
    return len(found), min(found.values())


class Allocation:
    """Whole nodes for sruns, as ``salloc`` gives them, between ``with`` and its end."""

    def __init__(self, nodes: int) -> None:
        """Ask for nothing yet."""
        self._nodes = nodes
        self._job = ""

    def __enter__(self) -> Self:
        done = subprocess.run(
            ["salloc", f"--nodes={self._nodes}", "--exclusive", "--no-shell", "--time=10"],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        numbers = [word for word in done.stderr.split() if word.isdigit()]
        if done.returncode or not numbers:
            raise NoSlurm(f"salloc: {done.stderr.strip()}")
        self._job = numbers[0]
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", self._job], check=False, timeout=PATIENCE)
        _wait_for([self._job])

    def srun_rate(self, width: int, program: str) -> float:
        """Return how many single-core steps a second so many sruns at a time start and end."""
        command = [
            "srun", f"--jobid={self._job}", "--nodes=1", "--ntasks=1", "--exact", "--mem=0", "--quiet", program,
        ]  # fmt: skip
        count = max(SRUNS, 2 * width)
        began = time.perf_counter()
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(lambda _: _quiet(command), range(count)))
        return count / (time.perf_counter() - began)


def array_rate(program: str) -> float:
    """Return how many elements of a job array a second are done."""
    with tempfile.TemporaryDirectory(prefix="pilot-hitl-bench-") as folder:
        began = time.perf_counter()
        job = _sbatch(folder, program, f"--array=0-{ARRAY - 1}")
        _wait_for([job])
        return ARRAY / (time.perf_counter() - began)


def sbatch_rate(program: str) -> float:
    """Return how many single jobs a second are submitted and done."""
    with tempfile.TemporaryDirectory(prefix="pilot-hitl-bench-") as folder:
        began = time.perf_counter()
        jobs = [_sbatch(folder, program) for _ in range(SINGLES)]
        _wait_for(jobs)
        return SINGLES / (time.perf_counter() - began)


def _sbatch(folder: str, program: str, *more: str) -> str:
    text = words(
        "sbatch", "--parsable", "--ntasks=1", "--time=5", "--output=/dev/null", f"--chdir={folder}", *more,
        f"--wrap={program}",
    )  # fmt: skip
    return text.strip().partition(";")[0]


def _wait_for(jobs: Sequence[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while words("squeue", "--noheader", f"--jobs={','.join(jobs)}", "--format=%i", check=False).strip():
        if time.monotonic() > limit:
            raise NoSlurm(f"jobs {jobs[0]} … are not done within {PATIENCE:g} s")
        time.sleep(POLL)


def _quiet(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
