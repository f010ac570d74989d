"""The rank shim: which rank it is, what that rank gets, and what it refuses to become."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pilot_hitl_agent.node import shim
from pilot_hitl_agent.node.gangs import SHIM, Part, exit_status, first_to_fail, told_by_mpi, told_by_shim
from pilot_hitl_agent.node.launchers import Choice, Flavour, Tool

WORD = "secret-1"


def job(folder: Path, *argv: str, **fields: Any) -> Path:
    """Two nodes, of two ranks and of one."""
    cpus = sorted(os.sched_getaffinity(0))
    values = {
        "secret": WORD, "method": "srun", "launcher": "launcher='srun:pmix'", "flavour": "", "pmix": False,
        "called": "an MPICH program", "remedy": "use another", "program": argv[0], "argv": list(argv),
        "cwd": str(folder), "variables": {"PILOT_HITL_TASK": "task.1.000001", "WORLD_SIZE": "3"},
        "shares": [
            {"node": 4, "name": "n4", "variables": {"PILOT_HITL_MARK": "m/4"}, "ranks": [
                {"cpus": cpus[-1:], "variables": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}},
                {"cpus": [], "variables": {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"}}]},
            {"node": 6, "name": "n6", "variables": {"PILOT_HITL_MARK": "m/6"}, "ranks": [
                {"cpus": [], "variables": {"OMP_NUM_THREADS": "3"}}]},
        ], **fields,
    }  # fmt: skip
    path = folder / shim.JOB
    path.write_bytes(marshal.dumps(values))
    return path


def run(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", SHIM, str(path)]
    environment = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("method", "variables", "rank"),
    [
        ("srun", {"SLURM_PROCID": "3"}, 3),
        ("mpirun", {"OMPI_COMM_WORLD_RANK": "2", "SLURM_PROCID": "0"}, 2),
        ("mpirun", {"PMIX_RANK": "1", "SLURM_PROCID": "0"}, 1),
        ("mpiexec", {"PMI_RANK": "5", "SLURM_PROCID": "1"}, 5),
        ("prte", {"PMIX_RANK": "4"}, 4),
        ("flux", {"FLUX_TASK_RANK": "6", "SLURM_PROCID": "1", "PMI_RANK": "0"}, 6),
        ("srun", {"PMI_RANK": "7"}, 7),
        ("srun", {}, -1),
        ("srun", {"SLURM_PROCID": "x"}, -1),
    ],
)
def test_rank_discovery(method: str, variables: dict[str, str], rank: int) -> None:
    assert shim.rank_of(variables, method) == rank


@pytest.mark.parametrize(
    ("flavour", "pmix", "variables", "fits"),
    [
        ("openmpi", False, {"PMIX_RANK": "0"}, True),
        ("openmpi", False, {"OMPI_COMM_WORLD_RANK": "0"}, True),
        ("openmpi", False, {"SLURM_PROCID": "0"}, False),
        ("mpich", False, {"PMI_RANK": "0", "PMI_FD": "9"}, True),
        ("mpich", False, {"PMIX_RANK": "0"}, False),
        ("mpich", True, {"PMIX_RANK": "0"}, True),
        ("mpich", False, {}, False),
        ("cray", False, {"PMI_CONTROL_PORT": "1"}, True),
        ("cray", False, {}, False),
        ("", False, {}, True),
        ("any", False, {}, True),
    ],
)
def test_what_an_mpi_waits_for(flavour: str, pmix: bool, variables: dict[str, str], fits: bool) -> None:
    assert (shim.mismatch(flavour, pmix, variables) == "") is fits


def test_a_rank_has_its_cores_variables_and_place(tmp_path: Path) -> None:
    show = "import os; print(sorted(os.sched_getaffinity(0)), *(os.environ.get(n, '-') for n in %r.split()))"
    names = "PILOT_HITL_RANK RANK LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK WORLD_SIZE OMP_NUM_THREADS "
    names += "CUDA_VISIBLE_DEVICES PILOT_HITL_MARK PILOT_HITL_TASK MORE"
    path = job(tmp_path, sys.executable, "-c", show % names)
    cpus = sorted(os.sched_getaffinity(0))
    expected = {
        "0": f"{cpus[-1:]} 0 0 0 2 0 3 1 0 m/4 task.1.000001 x",
        "1": f"{cpus} 1 1 1 2 0 3 2 1 m/4 task.1.000001 x",
        "2": f"{cpus} 2 2 0 1 1 3 3 - m/6 task.1.000001 x",
    }
    for rank, line in expected.items():
        done = run(path, SLURM_PROCID=rank, MORE="x")
        assert done.stdout.strip() == line, done.stderr


@pytest.mark.parametrize(
    ("fields", "variables", "kind", "words"),
    [
        ({}, {}, "shim", ["no rank"]),
        ({}, {"SLURM_PROCID": "3"}, "shim", ["a rank 3"]),
        ({}, {"SLURM_PROCID": "2", "SLURMD_NODENAME": "n4"}, "shim", ["rank 2 on n4 instead of n6"]),
        ({"flavour": "mpich"}, {"SLURM_PROCID": "0", "PMIX_RANK": "0"}, "shim",
         ["an MPICH program", "PMI-1 or PMI-2", "launcher='srun:pmix'", "rank 0", "use another"]),
        ({"cwd": "/nowhere"}, {"SLURM_PROCID": "0"}, "shim", ["/nowhere"]),
        ({"argv": ["/nowhere/solver"]}, {"SLURM_PROCID": "1"}, "program", ["/nowhere/solver", "No such file"]),
    ],
)  # fmt: skip
def test_what_it_does_not_become_is_said_once(
    tmp_path: Path, fields: dict[str, Any], variables: dict[str, str], kind: str, words: list[str]
) -> None:
    done = run(job(tmp_path, "/bin/echo", **fields), **variables)
    assert done.returncode == shim.FAILED
    told = told_by_shim(WORD, b"before\n" + done.stderr.encode() * 2 + b"after\n")
    assert told is not None
    assert told[0] == kind
    for word in words:
        assert word in told[1]
    assert told[2] == b"before\nafter"


def test_the_check_can_be_switched_off(tmp_path: Path) -> None:
    path = job(tmp_path, "/bin/echo", "ran", flavour="mpich", variables={shim.CHECK_VARIABLE: "0"})
    assert run(path, SLURM_PROCID="0", PMIX_RANK="0").stdout == "ran\n"


def test_a_script_without_a_first_line_is_the_shell_s(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $RANK $1\n")
    script.chmod(0o755)
    assert run(job(tmp_path, str(script), "x"), SLURM_PROCID="2").stdout == "2 x\n"


def test_an_attempt_that_is_over_starts_nothing(tmp_path: Path) -> None:
    path = job(tmp_path, "/bin/echo", "ran")
    (tmp_path / "state.4").write_text("ended")
    done = run(path, SLURM_PROCID="0")
    assert (done.stdout, done.stderr) == ("", "")
    assert run(path, SLURM_PROCID="2").stdout == "ran\n"
    path.unlink()
    done = run(path, SLURM_PROCID="2")
    assert (done.returncode, done.stdout, done.stderr) == (shim.FAILED, "", "")


def test_a_suspended_attempt_s_ranks_wait(tmp_path: Path) -> None:
    path = job(tmp_path, "/bin/echo", "ran")
    (tmp_path / "state.4").write_text("stopped")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", SHIM, str(path)], env={"SLURM_PROCID": "0"}, stdout=subprocess.PIPE
    ) as rank:
        limit = time.monotonic() + 30
        while Path(f"/proc/{rank.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < limit
            time.sleep(0.01)
        (tmp_path / "state.4").unlink()
        rank.send_signal(signal.SIGCONT)
        assert rank.communicate(timeout=30)[0] == b"ran\n"


def test_memory_node_of_cpus(tmp_path: Path) -> None:
    for node, cpus in (("node0", "0-3,8"), ("node1", "4-7")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cpus}\n")
    root = str(tmp_path)
    assert shim.numa_node([0, 8], root) == 0
    assert shim.numa_node([5], root) == 1
    assert shim.numa_node([3, 4], root) == -1
    assert shim.numa_node([0], str(tmp_path / "absent")) == -1
    (tmp_path / "node1" / "cpulist").unlink()
    (tmp_path / "node1").rmdir()
    # There is only one: nothing to prefer.
    assert shim.numa_node([0], root) == -1


def test_preferring_a_memory_node_reaches_the_kernel() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(SHIM).parent)!r}); import shim, ctypes\n"
        "shim.prefer_memory(0)\n"
        "mode = ctypes.c_int(-1)\n"
        "print(ctypes.CDLL(None).syscall({'x86_64': 239, 'aarch64': 236}[__import__('os').uname().machine],"
        " ctypes.byref(mode), None, 0, None, 0), mode.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    if done.stdout.split()[0] == "-1":
        pytest.xfail("the kernel, or what guards it, refuses memory policies")
    assert done.stdout.split()[1] == str(shim._MPOL_PREFERRED)


def test_words_of_srun_and_open_mpi() -> None:
    err = (b"srun: error: n2: task 2: Exited with exit code 7\nsrun: launch/slurm: _step_signal: Terminating\n"
           b"srun: error: n1: tasks 0-1: Terminated\n")  # fmt: skip
    assert first_to_fail(err) == (7, "rank 2", "n2")
    assert first_to_fail(b"srun: error: n1: task 0: Segmentation fault (core dumped)\n") == (-11, "rank 0", "n1")
    assert first_to_fail(b"my own words\n") is None
    assert exit_status(139) == -11
    assert exit_status(7) == 7
    assert exit_status(255) == 255
    part = Part("a", "f", True, Flavour("openmpi"), choice=Choice("srun", Tool("srun", "/srun", "slurm"), "pmi2"))
    failure = told_by_mpi(part, "solver", "n1", b"but OMPI was not built with SLURM's PMI support and therefore\n")
    assert failure is not None
    assert "launcher='srun:pmi2'" in failure.message
    assert told_by_mpi(part, "solver", "n1", b"other\n") is None
