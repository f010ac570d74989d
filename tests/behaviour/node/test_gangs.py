"""Gangs on one machine: real launchers without Slurm, and parts that only follow. Every run has a limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilot_hitl.model.failures import Cause
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.resources import Slot
from pilot_hitl.model.templates import ExecutableBody
from pilot_hitl.wire.node import ChangeKind, LeadEnded, Share
from pilot_hitl_agent.node.gangs import SHIM
from tests.behaviour.node.harness import Node
from tests.behaviour.studies import further

LIMIT = 60.0
SOURCE = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int rank, size, sum;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  printf("rank %d of %d sum %d ours %s/%s threads %s\n", rank, size, sum, getenv("PILOT_HITL_RANK"),
         getenv("WORLD_SIZE"), getenv("OMP_NUM_THREADS"));
  fflush(stdout);
  if (argc > 2 && atoi(argv[2]) == rank) exit(7);
  if (argc > 1) sleep(atoi(argv[1]));
  MPI_Finalize();
  return 0;
}
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program, compiled by each MPI that is here."""
    folder = tmp_path_factory.mktemp("mpi")
    (folder / "hello.c").write_text(SOURCE)
    for kind in ("openmpi", "mpich"):
        if compiler := shutil.which(f"mpicc.{kind}"):
            subprocess.run([compiler, "-o", folder / kind, folder / "hello.c"], check=True, timeout=60)
    return folder


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node", cores=4)
    yield made
    made.close()


def start(node: Node, template: int, *arguments: str, ranks: int = 2, **fields: Any) -> int:
    slots = tuple(Slot(0, 1 << core) for core in range(ranks))
    body = msgspec.msgpack.encode(ExecutableBody(list(arguments)))
    layout = (Share(0, "here", "", slots),)
    return node.launch(template, body, slots=slots, ranks=ranks, layout=layout, **fields)


def lines(node: Node, task: int) -> list[str]:
    change = node.finished(task)
    assert change.failure is None, change.failure
    return sorted(line for line in node.result(task).stdout.decode().splitlines() if line.startswith("rank"))


EXPECTED = [f"rank {rank} of 2 sum 1 ours {rank}/2 threads 1" for rank in range(2)]


@pytest.mark.requires("openmpi")
@pytest.mark.parametrize("launcher", further(1, ["", "mpirun", "mpiexec"]))
def test_open_mpi_program_is_one_program_of_several_ranks(gang: Node, programs: Path, launcher: str) -> None:
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT, launcher=launcher)
    assert lines(gang, start(gang, template)) == EXPECTED
    # What is there was asked once; what a gang leaves in its folder is gone.
    assert lines(gang, start(gang, template)) == EXPECTED
    assert not os.listdir(Path(gang.settings.pilot_folder) / "gangs")
    assert len(list(gang.settings.logs.glob("launchers-*"))) == 1


@pytest.mark.requires("mpich")
@pytest.mark.parametrize("launcher", further(1, ["", "mpiexec"]))
def test_mpich_program_is_one_program_of_several_ranks(gang: Node, programs: Path, launcher: str) -> None:
    template = gang.executable(str(programs / "mpich"), timeout=LIMIT, launcher=launcher)
    assert lines(gang, start(gang, template)) == EXPECTED


@pytest.mark.requires("openmpi", "mpi4py")
def test_a_python_program_of_mpi4py_is_seen_to_be_one(gang: Node, tmp_path: Path) -> None:
    script = tmp_path / "solve.py"
    script.write_text(
        "from mpi4py import MPI\nimport os\nw = MPI.COMM_WORLD\n"
        "line = (f'rank {w.rank} of {w.size} sum {w.allreduce(w.rank)} ours {os.environ[\"PILOT_HITL_RANK\"]}/'"
        ' f\'{os.environ["WORLD_SIZE"]} threads {os.environ["OMP_NUM_THREADS"]}\')\n'
        # In one piece: nobody orders what two processes write.
        "os.write(1, f'{line}\\n'.encode())\n"
    )
    environment = {"MPI4PY_MPIABI": "openmpi"}
    template = gang.executable(sys.executable, timeout=LIMIT, environment=environment)
    assert lines(gang, start(gang, template, str(script))) == EXPECTED


@pytest.mark.requires("openmpi")
def test_a_rank_that_fails_ends_all_with_its_exit_code(gang: Node, programs: Path) -> None:
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT)
    failure = gang.failure(start(gang, template, "30", "1"))
    assert failure.cause is Cause.EXIT
    assert failure.exit_code == 7
    assert not gang_processes(gang)


@pytest.mark.requires("openmpi")
def test_a_killed_gang_leaves_nothing(gang: Node, programs: Path) -> None:
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT)
    task = start(gang, template, "50")
    gang.until(lambda: len(ranks_up(gang)) == 2)
    gang.end(task, grace=5.0)
    assert gang.failure(task).cause is Cause.CANCELED
    assert not gang_processes(gang)


@pytest.mark.requires("openmpi")
def test_suspending_stops_the_ranks(gang: Node, programs: Path) -> None:
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT, on_preempt="suspend")
    task = start(gang, template, "3")
    gang.until(lambda: len(ranks_up(gang)) == 2)
    gang.end(task, mode="suspend")
    gang.until(lambda: all(state(pid) == "T" for pid in ranks_up(gang)))
    gang.end(task, mode="resume")
    assert lines(gang, task) == EXPECTED


@pytest.mark.requires("openmpi", "mpich")
def test_the_wrong_launcher_is_named(gang: Node, programs: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    (only / "mpirun").symlink_to(shutil.which("mpirun.openmpi") or "")
    template = gang.executable(
        str(programs / "mpich"), timeout=LIMIT, launcher="mpirun", environment={"PATH": f"{only}"}
    )
    failure = gang.failure(start(gang, template))
    assert failure.cause is Cause.NO_PROGRAM
    assert "Open MPI's" in failure.message
    assert "an MPICH program" in failure.message
    assert "mpiexec" in failure.message


@pytest.mark.requires("openmpi")
def test_ranks_that_would_be_singletons_are_noticed_before_they_run(gang: Node, programs: Path, tmp_path: Path) -> None:
    """A launcher that sets nothing of what the program's MPI waits for."""
    tool = tmp_path / "bin" / "mpirun"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "mpirun (Open MPI) 4.1.4"; exit 0; fi\n'
        "for last; do :; done\n"
        f'exec env SLURM_PROCID=0 {sys.executable} -I -S {SHIM} "$last"\n'
    )
    tool.chmod(0o755)
    environment = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT, launcher="mpirun", environment=environment)
    failure = gang.failure(start(gang, template))
    assert failure.cause is Cause.SETUP
    for part in ("an Open MPI program", "PMIx", "launcher='mpirun'", "rank 0", 'launcher="srun:pmix"'):
        assert part in failure.message


@pytest.mark.requires("openmpi", "mpich")
def test_singletons_behind_a_script_are_noticed_while_they_run(gang: Node, programs: Path, tmp_path: Path) -> None:
    script = tmp_path / "solve"
    script.write_text(f"#!/bin/sh\n{programs}/mpich 2\n")
    script.chmod(0o755)
    path = str(Path(shutil.which("mpirun.openmpi") or "").parent)
    template = gang.executable(str(script), timeout=LIMIT, launcher="mpirun", environment={"PATH": f"{path}:/bin"})
    task = start(gang, template)
    assert gang.finished(task).failure is None
    assert gang.result(task).stdout.decode().count("of 1 sum 0") == 2
    gang.until(lambda: [event for event in gang.events if event["event"] == "mpi_mismatch"])
    (told,) = [event for event in gang.events if event["event"] == "mpi_mismatch"]
    assert told["task"] == task
    assert "an MPICH library" in told["message"]
    assert "launcher='mpirun'" in told["message"]


def test_a_missing_launcher_is_one_clear_error(gang: Node) -> None:
    for launcher, word in (("prte", "prterun"), ("flux", "flux"), ("srun", "srun")):
        template = gang.executable("/bin/echo", launcher=launcher, environment={"PATH": "/nowhere"})
        failure = gang.failure(start(gang, template))
        assert failure.cause is Cause.NO_PROGRAM
        assert word in failure.message
        assert 'launcher="fork"' in failure.message
        # Refused at once now that it is known what there is; its folder is used again.
        assert gang.failure(start(gang, template)) == failure
        assert len(os.listdir(gang.settings.tasks)) == 1


@pytest.mark.requires("openmpi")
def test_a_program_that_is_not_there_is_named(gang: Node) -> None:
    template = gang.executable("./nothing", timeout=LIMIT, launcher="mpirun")
    failure = gang.failure(start(gang, template))
    assert failure.cause is Cause.NO_PROGRAM
    assert "nothing" in failure.message


@pytest.mark.requires("openmpi")
def test_pre_exec_is_each_rank_s_and_staging_is_the_task_s(gang: Node, programs: Path) -> None:
    work = Path(gang.settings.work)
    (work / "in.txt").write_text("x")
    template = gang.executable(
        str(programs / "openmpi"),
        timeout=LIMIT,
        pre_exec=["touch pre.$PILOT_HITL_RANK", "export OMP_NUM_THREADS=3"],
        post_exec=["touch post.$PILOT_HITL_RANK"],
        input_staging=[{"action": "move", "source": "in.txt", "target": "in.txt"}],
        output_staging=[{"action": "copy", "source": "post.1", "target": "out.txt"}],
    )
    task = start(gang, template)
    assert lines(gang, task) == [line.replace("threads 1", "threads 3") for line in EXPECTED]
    sandbox = Path(gang.result(task).sandbox)
    assert {path.name for path in sandbox.iterdir()} == {"in.txt", "pre.0", "pre.1", "post.0", "post.1"}
    assert (work / "out.txt").exists()
    assert not (work / "in.txt").exists()


@pytest.mark.parametrize("launcher", ["", "fork"])
def test_ranks_without_mpi_stage_once(gang: Node, launcher: str) -> None:
    work = Path(gang.settings.work)
    (work / "in.txt").write_text("x")
    template = gang.executable(
        "/bin/sh",
        launcher=launcher,
        input_staging=[{"action": "move", "source": "in.txt", "target": "in.txt"}],
        output_staging=[{"action": "move", "source": "out.1", "target": "out.txt"}],
    )
    task = start(gang, template, "-c", "cat in.txt; echo $RANK > out.$RANK; exec cat /proc/self/stat > stat.$RANK")
    change = gang.finished(task)
    assert change.failure is None, change.failure
    assert gang.result(task).stdout == b"xx"
    assert (work / "out.txt").read_text() == "1\n"
    stats = [(Path(gang.result(task).sandbox) / f"stat.{rank}").read_text().split() for rank in range(2)]
    # Each leads a session of its own.
    assert len({stat[5] for stat in stats}) == 2


@pytest.mark.parametrize(("mode", "grace"), [("soft", 20.0), ("hard", 0.0)])
def test_ranks_that_stage_end_like_others(gang: Node, tmp_path: Path, mode: str, grace: float) -> None:
    template = gang.executable("/bin/sh", input_staging=[{"action": "link", "source": ".", "target": "w"}])
    command = f"trap 'sleep 0.3; touch {tmp_path}/saved.$RANK; exit 0' TERM; touch {tmp_path}/up.$RANK; "
    task = start(gang, template, "-c", command + "while :; do sleep 0.1; done")
    gang.until(lambda: all((tmp_path / f"up.{rank}").exists() for rank in range(2)))
    gang.end(task, grace=grace)
    assert gang.failure(task).cause is Cause.CANCELED
    assert len(list(tmp_path.glob("saved.*"))) == (2 if mode == "soft" else 0)
    assert not gang_processes(gang)


def test_a_rank_that_fails_ends_those_that_staged_with_it(gang: Node) -> None:
    template = gang.executable("/bin/sh", input_staging=[{"action": "link", "source": ".", "target": "w"}])
    failure = gang.failure(start(gang, template, "-c", "[ $RANK = 1 ] && exit 5; sleep 60"))
    assert (failure.cause, failure.exit_code) == (Cause.EXIT, 5)
    assert not gang_processes(gang)


def test_direct_ranks_know_their_place_in_the_whole(gang: Node) -> None:
    """This node's part of a gang that each node starts by itself: ranks 3 and 4 of 6."""
    here = tuple(Slot(0, 1 << core) for core in range(2))
    there = tuple(Slot(1, 1 << core) for core in range(3))
    layout = (
        Share(1, "n1", "10.0.0.1", there),
        Share(0, "here", "10.0.0.2", here),
        Share(2, "n2", "10.0.0.3", (Slot(2, 1),)),
    )
    names = "PILOT_HITL_RANK PILOT_HITL_RANKS RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR"
    template = gang.executable("/bin/sh")
    body = msgspec.msgpack.encode(ExecutableBody(["-c", "echo " + " ".join(f"${name}" for name in names.split())]))
    task = gang.launch(template, body, slots=here, ranks=6, layout=layout)
    assert sorted(gang.result(task).stdout.decode().splitlines()) == [
        "3 6 3 6 0 2 1 10.0.0.1",
        "4 6 4 6 1 2 1 10.0.0.1",
    ]


@pytest.mark.requires("openmpi")
def test_a_gang_that_was_held_ahead_takes_the_slots_of_the_one_before(gang: Node, programs: Path) -> None:
    template = gang.executable(str(programs / "openmpi"), timeout=LIMIT)
    first = start(gang, template, "1")
    body = msgspec.msgpack.encode(ExecutableBody([]))
    second = gang.launch(template, body, slots=(), ranks=2)
    assert lines(gang, first) == EXPECTED
    assert lines(gang, second) == EXPECTED


def follow(node: Node, template: int, ranks: int = 2) -> int:
    """A part that does not lead."""
    here = (Slot(0, 1),)
    layout = (Share(1, "n1", "10.0.0.1", (Slot(1, 1),)), Share(0, "here", "10.0.0.2", here))
    body = msgspec.msgpack.encode(ExecutableBody(["60"]))
    return node.launch(template, body, slots=here, ranks=ranks, layout=layout)


@contextlib.contextmanager
def rank_of(node: Node, task: int, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A rank as a launcher of another node would start it here."""
    variables = {
        "PILOT_HITL_ATTEMPT": f"{task_name(task)}:1.0",
        "PILOT_HITL_RANK": "1",
        "PILOT_HITL_MARK": node.mark,
        "PATH": "/usr/bin:/bin",
    }
    rank = subprocess.Popen(list(command), env=variables, start_new_session=True)
    try:
        yield rank
    finally:
        rank.kill()
        rank.wait(10)


def test_a_part_that_follows_owns_the_ranks_of_its_node(gang: Node) -> None:
    template = gang.executable("/bin/sleep", launcher="srun")
    task = follow(gang, template)
    assert gang.kinds(task) == ["STARTED"]
    with rank_of(gang, task, "/bin/sleep", "60") as rank, rank_of(gang, task + 1, "/bin/sleep", "60") as other:
        assert [each for each in gang.daemon.processes() if each["kind"] == "task"] == [
            {"kind": "task", "pid": rank.pid, "task": task}
        ]
        gang.end(task, mode="suspend")
        gang.until(lambda: state(rank.pid) == "T")
        gang.end(task, mode="resume")
        gang.until(lambda: state(rank.pid) == "S")
        gang.end(task, grace=5.0)
        gang.until(lambda: rank.poll() is not None)
        assert rank.returncode == -signal.SIGTERM
        assert gang.finished(task).failure is None
        assert other.poll() is None


def test_a_part_that_follows_kills_what_ignores_sigterm(gang: Node, tmp_path: Path) -> None:
    template = gang.executable("/bin/sleep", launcher="srun")
    task = follow(gang, template)
    ready = tmp_path / "ready"
    command = f"trap '' TERM; touch {ready}; while :; do sleep 0.2; done"
    with rank_of(gang, task, "/bin/sh", "-c", command) as rank:
        gang.until(ready.exists)
        gang.end(task, grace=0.3)
        assert gang.last(task, ChangeKind.FINISHED) is None
        gang.until(lambda: rank.poll() is not None)
        assert rank.returncode == -signal.SIGKILL
        gang.finished(task)


def test_a_part_that_follows_ends_with_the_leading_one(gang: Node) -> None:
    template = gang.executable("/bin/sleep", launcher="srun")
    task = follow(gang, template)
    gang.send(LeadEnded([task]))
    assert gang.finished(task).failure is None


def test_ranks_of_its_own_go_on_when_the_leading_part_ended(gang: Node) -> None:
    template = gang.executable("/bin/sleep", launcher="fork")
    here = (Slot(0, 1),)
    layout = (Share(1, "n1", "10.0.0.1", (Slot(1, 1),)), Share(0, "here", "10.0.0.2", here))
    task = gang.launch(template, msgspec.msgpack.encode(ExecutableBody(["0.5"])), slots=here, ranks=2, layout=layout)
    gang.send(LeadEnded([task]))
    assert gang.last(task, ChangeKind.FINISHED) is None
    assert gang.finished(task).failure is None


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def gang_processes(node: Node) -> list[int]:
    return [pid for pid in node.marked() if b"PILOT_HITL_ATTEMPT" in Path(f"/proc/{pid}/environ").read_bytes()]


def ranks_up(node: Node) -> list[int]:
    found = []
    for pid in node.marked():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if b"PILOT_HITL_RANK=" in variables and name == "openmpi":
            found.append(pid)
    return found
