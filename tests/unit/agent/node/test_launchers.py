"""Launch methods: which one is taken, and what its command line says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from pilot_hitl.model.resources import Slot
from pilot_hitl.wire.node import Share
from pilot_hitl_agent.node.launchers import (
    PROBE,
    Choice,
    Flavour,
    Found,
    Gang,
    Host,
    NoLauncherError,
    Tool,
    choose,
    compose,
    in_launch_order,
    parse,
    starts_directly,
)
from pilot_hitl_agent.node.link import Unspawned
from pilot_hitl_agent.node.probing import Probes

if TYPE_CHECKING:
    from pilot_hitl_agent.node.spawners import Spawners

SRUN = Tool("srun", "/usr/bin/srun", "slurm", ("pmix", "none", "pmi2", "pmix_v4"))
CRAY = Tool("srun", "/usr/bin/srun", "slurm", ("cray_shasta", "none"))
OPEN_MPI = Tool("mpirun", "/usr/bin/mpirun", "openmpi")
HYDRA = Tool("mpiexec.hydra", "/opt/mpich/bin/mpiexec.hydra", "mpich")
FLUX = Tool("flux", "/usr/bin/flux", "flux")
PRTE = Tool("prterun", "/usr/bin/prterun", "prrte")
ALL = Found((SRUN, OPEN_MPI, HYDRA))
OPEN, MPICH, PLAIN = Flavour("openmpi"), Flavour("mpich"), Flavour()


def take(asked: str = "", flavour: Flavour = OPEN, found: Found = ALL, nodes: int = 2, slurm: bool = True) -> str:
    return choose(asked, flavour, found, nodes=nodes, slurm=slurm, where="n1").text


@pytest.mark.parametrize(
    ("flavour", "found", "nodes", "slurm", "expected"),
    [
        (OPEN, ALL, 2, True, "srun:pmix"),
        (MPICH, ALL, 2, True, "srun:pmi2"),
        (Flavour("mpich", pmix=True), ALL, 2, True, "srun:pmix"),
        (Flavour("cray"), Found((CRAY,)), 2, True, "srun:cray_shasta"),
        (Flavour("any"), ALL, 2, True, "srun:pmix"),
        # Only a version of pmix is listed.
        (OPEN, Found((msgspec.structs.replace(SRUN, plugins=("pmix_v3", "pmix_v4")),)), 2, True, "srun:pmix_v4"),
        # srun has nothing for them, so it is their own launcher.
        (OPEN, Found((msgspec.structs.replace(SRUN, plugins=("none", "pmi2")), HYDRA, OPEN_MPI)), 2, True, "mpirun"),
        (MPICH, Found((msgspec.structs.replace(SRUN, plugins=("none",)), OPEN_MPI, HYDRA)), 2, True, "mpiexec"),
        (OPEN, ALL, 1, False, "mpirun"),
        (MPICH, ALL, 1, False, "mpiexec"),
        (OPEN, Found((FLUX,)), 2, False, "flux"),
        (OPEN, Found((PRTE,)), 1, False, "prte"),
        # Left to a launcher because of its staging.
        (PLAIN, ALL, 2, True, "srun:none"),
    ],
)  # fmt: skip
def test_choice_by_what_is_there(flavour: Flavour, found: Found, nodes: int, slurm: bool, expected: str) -> None:
    assert take("", flavour, found, nodes, slurm) == expected


@pytest.mark.parametrize(
    ("asked", "flavour", "expected"),
    [
        ("srun", OPEN, "srun:pmix"),
        ("srun", MPICH, "srun:pmi2"),
        ("srun", PLAIN, "srun:none"),
        ("srun:pmi2", OPEN, "srun:pmi2"),
        ("mpirun", OPEN, "mpirun"),
        ("mpiexec", OPEN, "mpirun"),
        ("mpirun", MPICH, "mpiexec"),
        ("mpirun", PLAIN, "mpirun"),
    ],
)
def test_choice_that_is_asked_for(asked: str, flavour: Flavour, expected: str) -> None:
    assert take(asked, flavour) == expected


@pytest.mark.parametrize(
    ("asked", "flavour", "found", "nodes", "slurm", "words"),
    [
        ("srun:pmi3", OPEN, ALL, 2, True, ["no such MPI plug-in", "pmix, none, pmi2"]),
        ("srun", OPEN, Found(), 2, True, ["srun is not in the task's PATH on n1", 'launcher="fork"']),
        ("srun", OPEN, ALL, 1, False, ["no job of Slurm", "mpirun, mpiexec"]),
        ("mpirun", OPEN, Found((SRUN,)), 2, True, ["neither mpirun nor mpiexec", "there is srun"]),
        ("mpirun", MPICH, Found((OPEN_MPI,)), 1, False, ["Open MPI's", "an MPICH program", "MPICH's mpiexec"]),
        ("mpirun", OPEN, ALL, 2, False, ["one node only"]),
        ("prte", OPEN, ALL, 2, True, ["prterun is not in the task's PATH"]),
        ("flux", OPEN, Found((msgspec.structs.replace(FLUX, ready=False),)), 2, True, ["outside of any Flux instance"]),
        ("", OPEN, Found((HYDRA,)), 1, False, ["an Open MPI program", "Open MPI's mpirun"]),
        ("fork", PLAIN, ALL, 2, True, ["on 2 nodes nobody is there to stage", "there is srun"]),
        ("", MPICH, Found(), 2, True, ["an MPICH program", "--mpi=pmi2", "n1"]),
    ],
)
def test_no_launcher_is_named_with_the_remedy(
    asked: str, flavour: Flavour, found: Found, nodes: int, slurm: bool, words: list[str]
) -> None:
    with pytest.raises(NoLauncherError) as caught:
        take(asked, flavour, found, nodes, slurm)
    for word in words:
        assert word in str(caught.value)


def test_what_each_node_starts_itself() -> None:
    assert starts_directly("", PLAIN, staged=False)
    assert starts_directly("fork", OPEN, staged=False)
    # Somebody has to be first where files are staged.
    assert not starts_directly("", PLAIN, staged=True)
    assert not starts_directly("fork", PLAIN, staged=True)
    assert not starts_directly("", OPEN, staged=False)
    assert not starts_directly("srun", PLAIN, staged=False)
    assert take("", PLAIN, Found(), 1, False) == take("fork", OPEN, Found(), 1, False) == "local"


GANG = Gang(
    title="task.1.000001",
    hosts=(Host("n3", 1), Host("n1", 2)),
    folder="/shared/gangs/t",
    program=("python", "-I", "-S", "shim.py", "/shared/gangs/t/job"),
    job="77",
)


def gang(**fields: Any) -> Gang:
    return msgspec.structs.replace(GANG, **fields)


def test_srun_names_a_host_a_rank_and_takes_nothing_from_other_steps() -> None:
    command = compose("srun", gang(binds=False), SRUN, "pmix")
    assert command.files == {"hosts": "n3\nn1\nn1\n"}
    assert command.environment == {"SLURM_HOSTFILE": "/shared/gangs/t/hosts"}
    for option in ("--jobid=77", "--nodes=2", "--ntasks=3", "--distribution=arbitrary", "--overlap", "--overcommit",
                   "--mem=0", "--gres=none", "--mpi=pmix", "--kill-on-bad-exit=1", "--input=none"):  # fmt: skip
        assert option in command.argv
    shared = compose("srun", gang(pinned=False), SRUN, "pmix")
    assert shared.environment["OMPI_MCA_mpi_yield_when_idle"] == "1"
    # Where Slurm binds nothing, to forbid it costs a line on standard error.
    assert "--cpu-bind=none" not in command.argv
    assert "--cpu-bind=none" in compose("srun", gang(), SRUN, "pmix").argv
    # Ranks with devices must be able to open those of the job.
    assert "--gres=none" not in compose("srun", gang(gpus=True), SRUN, "pmix").argv
    assert command.argv[-5:] == ["python", "-I", "-S", "shim.py", "/shared/gangs/t/job"]


def test_open_mpi_gets_slots_a_host_and_starts_its_daemons_beside_the_pilot() -> None:
    command = compose("mpirun", gang(root=True, pinned=False, binds=False), OPEN_MPI, "")
    assert command.files == {"hosts": "n3 slots=1\nn1 slots=2\n"}
    assert command.argv[:5] == ["/usr/bin/mpirun", "--np", "3", "--hostfile", "/shared/gangs/t/hosts"]
    assert "--allow-run-as-root" in command.argv
    for prefix in ("OMPI", "PRTE"):
        assert command.environment[f"{prefix}_MCA_ras"] == "^slurm"
        arguments = command.environment[f"{prefix}_MCA_plm_slurm_args"].split()
        assert arguments == ["--overlap", "--overcommit", "--mem=0", "--gres=none", "--nodelist=n1"]
    assert command.environment["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert command.environment["SLURM_JOB_ID"] == "77"


def test_open_mpi_on_one_host_needs_no_slurm() -> None:
    command = compose("mpirun", gang(hosts=(Host("n1", 3),), pinned=True), OPEN_MPI, "")
    assert command.files == {"hosts": "localhost slots=3\n"}
    assert not [name for name in command.environment if "plm" in name or name.startswith("SLURM")]
    assert "--allow-run-as-root" not in command.argv
    assert "OMPI_MCA_mpi_yield_when_idle" not in command.environment


def test_hydra() -> None:
    command = compose("mpiexec", gang(timeout=9.6, binds=False), HYDRA, "")
    assert command.argv[:7] == [HYDRA.path, "-n", "3", "-f", "/shared/gangs/t/hosts", "-bootstrap", "slurm"]
    assert command.files == {"hosts": "n3:1\nn1:2\n"}
    assert "--overlap" in command.environment["HYDRA_LAUNCHER_EXTRA_ARGS"]
    assert command.environment["MPIEXEC_TIMEOUT"] == "10"
    alone = compose("mpiexec", gang(hosts=(Host("n1", 3),)), HYDRA, "")
    assert alone.argv[:5] == [HYDRA.path, "-n", "3", "-bootstrap", "fork"]
    assert not alone.files


def test_local() -> None:
    command = compose("local", gang(), Tool("shim", "", "shim"), "")
    assert command.argv == ["python", "-I", "-S", "shim.py", "--all", "/shared/gangs/t/job"]


def test_prte_and_flux() -> None:
    command = compose("prte", gang(), PRTE, "")
    assert command.argv[:3] == ["/usr/bin/prterun", "--np", "3"]
    assert command.environment["PRTE_MCA_ras"] == "^slurm"
    command = compose("flux", gang(hosts=(Host("n3", 2), Host("n1", 2))), FLUX, "")
    assert command.argv[:2] == ["/usr/bin/flux", "run"]
    assert "--requires=hosts:n3,n1" in command.argv
    assert "--taskmap=hostfile:/shared/gangs/t/hosts" in command.argv
    assert command.files == {"hosts": "n3\nn3\nn1\nn1\n"}
    with pytest.raises(NoLauncherError, match="1 on n3, 2 on n1; give ranks_per_node"):
        compose("flux", gang(), FLUX, "")


def test_launch_order_is_the_one_in_which_a_method_numbers_ranks() -> None:
    layout = tuple(Share(node, f"n{node}", "", (Slot(node, 1),)) for node in (2, 3, 0, 1))
    order = {
        method: [share.node for share in in_launch_order(method, layout)] for method in ("srun", "mpirun", "mpiexec")
    }
    assert order == {"srun": [2, 3, 0, 1], "mpirun": [2, 0, 1, 3], "mpiexec": [0, 1, 2, 3]}


ANSWERS = """=== srun /usr/bin/srun
MPI plugin types are...
\tpmix
\tnone
\tpmi2
specific pmix plugin versions available: pmix_v4
TaskPlugin              = task/affinity,task/cgroup
=== mpirun /usr/bin/mpirun
mpirun (Open MPI) 4.1.4

Report bugs to http://www.open-mpi.org/community/help/
=== mpiexec /opt/intel/bin/mpiexec
Intel(R) MPI Library for Linux* OS, Version 2021.9
=== mpiexec.hydra /usr/bin/mpiexec.hydra
HYDRA build details:
    Version:                                 4.0.2
=== prterun /usr/bin/prterun
prterun (PRRTE) 3.0.1
=== mpirun.mpich not-a-path
=== flux /usr/bin/flux
FLUX_URI=
"""


def test_answers_of_launchers() -> None:
    found = parse(ANSWERS)
    assert [(tool.name, tool.family) for tool in found.tools] == [
        ("srun", "slurm"), ("mpirun", "openmpi"), ("mpiexec", "intel"), ("mpiexec.hydra", "mpich"),
        ("prterun", "prrte"), ("flux", "flux"),
    ]  # fmt: skip
    srun = found.tools[0]
    assert srun.plugins == ("pmix", "none", "pmi2", "pmix_v4")
    assert srun.binds
    assert not found.tools[-1].ready
    # Slurm 20 and older put their name before each line.
    old = parse("=== srun /bin/srun\nsrun: MPI types are...\nsrun: pmi2\nsrun: none\nTaskPlugin = task/none\n").tools[0]
    assert old.plugins == ("pmi2", "none")
    assert not old.binds
    assert parse("").tools == ()
    assert not parse("").complete
    assert parse("=== srun /bin/srun\nsomething went wrong\n").tools[0].binds


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("=== end\n", True),
        (f"{ANSWERS}=== end\n", True),
        (ANSWERS, False),  # the shell ended before it had asked them all
        ("=== mpirun /usr/bin/mpirun\n/bin/sh: 1: Cannot fork\n=== end\n", False),
        ("=== mpirun /usr/bin/mpirun\nmpirun: error while loading: Too many open files\n=== end\n", False),
    ],
)
def test_an_answer_that_was_cut_short_is_known_as_such(text: str, complete: bool) -> None:
    assert parse(text).complete == complete
    assert "end" not in [tool.name for tool in parse(text).tools]


class Asked:
    """Spawners that start a probe and say how it ended: with what is next in ``answers``, or not at all."""

    def __init__(self, folder: Path, answers: list[str | None]) -> None:
        self.folder, self.answers, self.token = folder, answers, 0

    def look(self, script: str, environment: int, name: str) -> tuple[int, str]:
        assert (script, environment) == (PROBE, 7)
        self.token += 1
        out = self.folder / f"{name}.txt"
        if (answer := self.answers.pop(0)) is not None:
            out.write_text(answer)
        return self.token, str(out)


def test_what_was_cut_short_is_asked_again_and_never_remembered(tmp_path: Path) -> None:
    whole = "=== mpirun /usr/bin/mpirun\nmpirun (Open MPI) 4\n=== end\n"
    spawners = Asked(tmp_path, [None, "=== mpirun /x\n", "", None, whole])
    probes = Probes(cast("Spawners", spawners), "launchers")
    for tries in range(3):
        probes.ask("/bin", 7)
        assert spawners.token == tries + 1, "once at a time"
        assert probes.answered(Unspawned(spawners.token, 24, "stdout", "/x")) == ("/bin" if tries == 2 else None)
    found = probes.known("/bin")
    assert found is not None
    assert not found.complete
    probes.forget("/bin")
    assert probes.known("/bin") is None, "there may be launchers"
    probes.ask("/bin", 7)
    assert probes.answered(Unspawned(spawners.token, 24, "stdout", "/x")) is None
    assert probes.answered(Unspawned(spawners.token, 24, "stdout", "/x")) == "/bin"
    probes.forget("/bin")
    assert [tool.family for tool in (probes.known("/bin") or Found()).tools] == ["openmpi"]


def test_the_probe_asks_each_launcher_once() -> None:
    names = re.search(r"for name in (.*); do", PROBE)
    assert names is not None
    assert len(set(names[1].split())) == len(names[1].split())


def test_a_choice_is_written_as_people_ask_for_it() -> None:
    assert Choice("srun", SRUN, "pmix").text == "srun:pmix"
    assert Choice("mpirun", OPEN_MPI).text == "mpirun"
