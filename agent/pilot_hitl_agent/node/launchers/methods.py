"""The command lines of the launch methods.

What they have in common: the number of ranks and their order over the hosts are given, the launcher binds nothing (the
shim does), and the program is always the shim, so that no argument of the user's is ever read by a launcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pilot_hitl.wire.node import Share
from pilot_hitl_agent.node.launchers.detect import Tool
from pilot_hitl_agent.node.launchers.gang import Command, Gang, NoLauncherError, step_options

HOSTS = "hosts"
ALL = "--all"
Method = Callable[[Gang, Tool, str], Command]
"""``(gang, tool, plug-in)`` → command."""


def srun(gang: Gang, tool: Tool, plugin: str) -> Command:
    """One step of the pilot's own job; the host file names a host a rank, so that each lands where it was meant to."""
    argv = [
        tool.path,
        f"--job-name={gang.title}",
        f"--jobid={gang.job}",
        f"--nodes={len(gang.hosts)}",
        f"--ntasks={gang.ranks}",
        "--distribution=arbitrary",
        *step_options(gang),
        "--input=none",
        "--kill-on-bad-exit=1",
        f"--mpi={plugin or 'none'}",
        *gang.program,
    ]
    lines = "".join(f"{host.name}\n" * host.ranks for host in gang.hosts)
    environment = {"SLURM_HOSTFILE": f"{gang.folder}/{HOSTS}", **_waiting(gang)}
    return Command(argv, environment, {HOSTS: lines})


def mpirun(gang: Gang, tool: Tool, _plugin: str) -> Command:
    """Open MPI's. Its settings travel as variables: versions 4 (``OMPI_``) and 5 (``PRTE_``) name the options apart."""
    argv = [tool.path, "--np", str(gang.ranks), "--hostfile", f"{gang.folder}/{HOSTS}"]
    argv += ["--map-by", "slot", "--bind-to", "none"]
    if gang.root:
        argv.append("--allow-run-as-root")
    environment = _open_mpi_settings(gang)
    return Command([*argv, *gang.program], environment, {HOSTS: _slots(gang)})


def prterun(gang: Gang, tool: Tool, _plugin: str) -> Command:
    """PRRTE: a virtual machine of its own for each run."""
    argv = [tool.path, "--np", str(gang.ranks), "--hostfile", f"{gang.folder}/{HOSTS}"]
    argv += ["--map-by", "slot", "--bind-to", "none"]
    if gang.root:
        argv.append("--allow-run-as-root")
    return Command([*argv, *gang.program], _open_mpi_settings(gang), {HOSTS: _slots(gang)})


def hydra(gang: Gang, tool: Tool, _plugin: str) -> Command:
    """MPICH's and Intel's. It was seen to spin after all ranks had ended, so it gets the task's timeout as well."""
    argv = [tool.path, "-n", str(gang.ranks)]
    environment = {}
    files = {}
    if _is_local(gang):
        argv += ["-bootstrap", "fork"]
    else:
        argv += ["-f", f"{gang.folder}/{HOSTS}", "-bootstrap", "slurm"]
        files[HOSTS] = "".join(f"{host.name}:{host.ranks}\n" for host in gang.hosts)
        extra = " ".join(step_options(gang))
        environment["HYDRA_LAUNCHER_EXTRA_ARGS"] = extra
        environment["I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS"] = extra
        environment["SLURM_JOB_ID"] = environment["SLURM_JOBID"] = gang.job
    if gang.timeout:
        environment["MPIEXEC_TIMEOUT"] = str(max(1, round(gang.timeout)))
    return Command([*argv, *gang.program], environment, files)


def flux(gang: Gang, tool: Tool, _plugin: str) -> Command:
    """Flux, inside an instance of it: hosts are asked for, and a file says which rank goes to which of them.

    Raises:
        NoLauncherError: Flux shares ranks out evenly, and these are not.
    """
    counts = {host.ranks for host in gang.hosts}
    if len(counts) > 1:
        shares = ", ".join(f"{host.ranks} on {host.name}" for host in gang.hosts)
        raise NoLauncherError(
            f'launcher="flux" puts equally many ranks on each node, and these lie {shares}; '
            "give ranks_per_node a divisor of ranks"
        )
    argv = [
        tool.path,
        "run",
        f"--job-name={gang.title}",
        f"--nodes={len(gang.hosts)}",
        f"--ntasks={gang.ranks}",
        f"--requires=hosts:{','.join(host.name for host in gang.hosts)}",
        f"--taskmap=hostfile:{gang.folder}/{HOSTS}",
        "-ocpu-affinity=off",
        "-ogpu-affinity=off",
        "-oexit-on-error",
        *gang.program,
    ]
    return Command(argv, {}, {HOSTS: "".join(f"{host.name}\n" * host.ranks for host in gang.hosts)})


def local(gang: Gang, _tool: Tool, _plugin: str) -> Command:
    """The shim itself starts all ranks of this node."""
    *shim, job = gang.program
    return Command([*shim, ALL, job])


METHODS: dict[str, Method] = {
    "local": local,
    "srun": srun,
    "mpirun": mpirun,
    "mpiexec": hydra,
    "prte": prterun,
    "flux": flux,
}
"""By the name that a choice gives them; "mpirun" is Open MPI's whatever its file is called, "mpiexec" is Hydra."""


def compose(method: str, gang: Gang, tool: Tool, plugin: str) -> Command:
    """Return the command that starts a gang."""
    return METHODS[method](gang, tool, plugin)


def in_launch_order(method: str, layout: Sequence[Share]) -> tuple[Share, ...]:
    """Return the shares in the order in which a method numbers their ranks.

    srun keeps any order. The daemons of Open MPI, PRRTE and Hydra are numbered as Slurm sorts their nodes, which is the
    order of the pilot's nodes; Open MPI's and PRRTE's first one is always where they were started.
    """
    if method in ("srun", "flux"):
        return tuple(layout)
    others = sorted(layout[1:], key=lambda share: share.node)
    if method == "mpiexec":
        return tuple(sorted(layout, key=lambda share: share.node))
    return (layout[0], *others)


def _is_local(gang: Gang) -> bool:
    return len(gang.hosts) == 1


def _slots(gang: Gang) -> str:
    if _is_local(gang):
        return f"localhost slots={gang.ranks}\n"
    return "".join(f"{host.name} slots={host.ranks}\n" for host in gang.hosts)


def _waiting(gang: Gang) -> dict[str, str]:
    """Ranks that are not pinned may share cores: who waits in Open MPI must let the others go on."""
    return {} if gang.pinned else {"OMPI_MCA_mpi_yield_when_idle": "1"}


def _open_mpi_settings(gang: Gang) -> dict[str, str]:
    """The hosts are those of the file, never all of the job's, and daemons come up beside the pilot's own step."""
    settings: dict[str, str] = {}
    mca = {"ras": "^slurm"}
    if not _is_local(gang):
        # Given a file, Open MPI 4 leaves it to srun on which nodes its daemons come up.
        others = ",".join(host.name for host in gang.hosts[1:])
        mca["plm_slurm_args"] = " ".join([*step_options(gang), f"--nodelist={others}"])
        settings["SLURM_JOB_ID"] = settings["SLURM_JOBID"] = gang.job
    for name, value in mca.items():
        settings[f"PRTE_MCA_{name}"] = settings[f"OMPI_MCA_{name}"] = value
    settings.update(_waiting(gang))
    if gang.root:
        settings["OMPI_ALLOW_RUN_AS_ROOT"] = settings["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        settings["PRTE_ALLOW_RUN_AS_ROOT"] = settings["PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return settings
