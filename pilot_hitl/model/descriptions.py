"""What users describe: tasks and pilots. Attribute names and meanings are RADICAL-Pilot's wherever it has one.

Source of names: ``radical.pilot`` 1.104 ``TaskDescription`` and ``PilotDescription``. Ours beside them:
``container, retries, on_preempt, effects, expected_runtime, reads, key, site, backfill, grace, alternatives``.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self

import msgspec

from pilot_hitl.model import checks, staging
from pilot_hitl.model.checks import Check, Described, Table
from pilot_hitl.model.files import File
from pilot_hitl.model.resources import GPU_SHARES, Resources, Shape, runtime_bucket

OnPreempt = Literal["kill", "suspend", "requeue", "finish"]
Effects = Literal["sandbox", "outside"]
MAX_RANKS = 1_000_000
MAX_ALTERNATIVES = 8
MAX_HERE = 1 << 24
"""Cores, or GPUs, of all nodes of a local pilot, simulated ones included."""
LAUNCHERS = ("", "fork", "srun", "mpirun", "mpiexec", "prte", "flux")
"""Values of ``TaskDescription.launcher``."""
MAX_RUNTIME = 366 * 24 * 60
"""Minutes."""


class TaskDescription(
    msgspec.Struct, metaclass=Described, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One executable task: ``ranks`` processes of ``executable arguments…``.

    Attributes:
        executable: program; an absolute path, a name looked up in PATH, or a path relative to the sandbox.
        arguments: its arguments, as text. The program gets them as they are, in every form of a task: no shell looks at
            them, so ``$NAME``, ``~``, ``*`` and quotes are literal. The same holds for ``stdout`` and ``stderr``.
        name: display name; default the executable's.
        ranks: processes that start together. Default 1.
        cores_per_rank: whole cores each rank is bound to. Default 1.
        gpus_per_rank: GPUs of each rank; a fraction shares one device. Default 0.
        mem_per_rank: MB (2**20 bytes) of each rank; 0 for "not counted", and then there is no limit. It bounds how many
            run at once, and is enforced: the memory of a rank's processes together is looked at several times a second
            (mapped files and the page cache are not counted, what processes share is counted once), and an attempt
            with a rank above it is killed and fails with ``OutOfMemory``. Default 0.
        alternatives: other amounts a rank that would do, as ``[ph.Resources(cores=8)]`` beside ``gpus_per_rank=1``:
            taken in this order when what is asked for first is not free, or not there. ``cores`` of each rank are then
            those of the alternative; the task sees what it got by its CPU mask and ``CUDA_VISIBLE_DEVICES``.
        ranks_per_node: upper bound of ranks on one node, 0 for none.
        environment: variables set for the task, over those that the script had when the pilot was submitted
            (``submit_pilot``): what the script sets in ``os.environ`` later reaches its tasks only here. The same for
            calls, whose interpreter is started with them.
        named_env: an environment that the pilot prepared; refused, since no pilot does.
        pre_exec: shell lines run before the executable, in the same shell and sandbox, by every rank; what they export,
            and where they go with ``cd``, holds for it. A line that fails, or leaves the shell, fails the task.
        post_exec: shell lines run after it, whatever its exit code; if it failed, that is what counts.
        input_staging: a list of directives: ``"source > target"``, ``"source"``, ``(future, "name")`` or a mapping with
            ``source``, ``target`` and ``action`` (copy, link, move). A source is a path, a pattern, a place such as
            ``"session:///in.dat"`` or ``"pilot:///in.dat"``, or ``(future, "name")``: a file in the sandbox of another
            task, which this one then waits for.
        output_staging: same, without futures; done once the task counts as done (after commit, for speculative tasks).
        sandbox: working directory. Default: a folder of the attempt's own. A speculative attempt always runs in a
            folder of its own; what it wrote appears in ``sandbox`` when its branch is committed.
        stdout: file (relative to the sandbox) for standard output. Default: captured.
        stderr: file for standard error. Default: captured.
        timeout: seconds of run time after which the attempt is ended with cause TIMEOUT; 0 for none.
        priority: higher goes first within its tier. Default 0.
        tags: ``{"colocate": text}``, ``{"exclusive": True}``.
        container: image to run in; refused, since no agent enters one.
        retries: how many times an attempt that failed by itself is tried again. Default 0.
        on_preempt: what happens when its cores are wanted for a higher tier. Default ``"kill"``.
        effects: ``"outside"`` when it changes things outside its sandbox, so it never runs speculatively and is never
            run again by itself. Default ``"sandbox"``.
        expected_runtime: seconds; 0 for unknown. A task that cannot end before its pilot does is not started.
        reads: files that it reads beside those that are known by themselves: paths, patterns, folders, and
            ``ph.File(path, hash=True)``. When one has changed on the next run, the task runs again. Nothing is placed
            by them yet.
        key: resume key; default a fingerprint of this description and of the files that it depends on.
        retry_failed: whether it runs again on the next run of the script when it failed; default the session's.
        pilot: name or number of the pilot that must run it; default any.
        site: label of the site that must run it.
        backfill: run only in gaps and give way to everything else.
        grace: seconds between SIGTERM and SIGKILL when it is ended. Default 5.
        launcher: what starts several ranks: ``"fork"`` (each node its own ranks, without MPI), ``"srun"``,
            ``"mpirun"``, ``"mpiexec"``, ``"prte"`` or ``"flux"``; for srun also with its MPI plug-in, as
            ``"srun:pmix"``. Default: for an MPI program what is there and fits its MPI, for any other one ``"fork"``.
    """

    executable: str = ""
    arguments: list[str] = []
    name: str = ""
    ranks: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: float = 0.0
    mem_per_rank: int = 0
    ranks_per_node: int = 0
    environment: dict[str, str] = {}
    named_env: str = ""
    pre_exec: list[str] = []
    post_exec: list[str] = []
    input_staging: list[str | tuple[Any, str] | dict[str, Any]] = []
    output_staging: list[str | dict[str, Any]] = []
    sandbox: str = ""
    stdout: str = ""
    stderr: str = ""
    timeout: float = 0.0
    priority: int = 0
    tags: dict[str, str | bool] = {}
    container: str = ""
    retries: int = 0
    on_preempt: OnPreempt = "kill"
    effects: Effects = "sandbox"
    expected_runtime: float = 0.0
    reads: list[Any] = []  # texts and files, see File
    key: str = ""
    retry_failed: bool | None = None
    pilot: str = ""
    site: str = ""
    backfill: bool = False
    grace: float = 5.0
    launcher: str = ""
    alternatives: list[Resources] = []

    def verify(self) -> Self:
        """Return the description with plain values: itself, where all are already.

        Raises:
            ValueError: the description cannot be meant; the message names the attribute and the remedy.
        """
        if isinstance(self.executable, str) and not self.executable:
            raise ValueError("executable: name the program to run, e.g. TaskDescription(executable='/bin/date')")
        return _TASKS.plain(self)


class CallOptions(msgspec.Struct, metaclass=Described, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What ``session.options(…)`` says of a function call; attributes as in :class:`TaskDescription`.

    ``cores``, ``gpus`` and ``memory`` are short for ``cores_per_rank``, ``gpus_per_rank``, ``mem_per_rank``.
    """

    name: str = ""
    ranks: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: float = 0.0
    mem_per_rank: int = 0
    ranks_per_node: int = 0
    environment: dict[str, str] = {}
    sandbox: str = ""
    timeout: float = 0.0
    priority: int = 0
    tags: dict[str, str | bool] = {}
    retries: int = 0
    on_preempt: OnPreempt = "kill"
    effects: Effects = "sandbox"
    expected_runtime: float = 0.0
    reads: list[Any] = []  # texts and files, see File
    key: str = ""
    retry_failed: bool | None = None
    pilot: str = ""
    site: str = ""
    backfill: bool = False
    grace: float = 5.0
    alternatives: list[Resources] = []

    def verify(self) -> Self:
        """Return the options with plain values: these, where all are already.

        Raises:
            ValueError: see :meth:`TaskDescription.verify`.
        """
        return _OPTIONS.plain(self)


def _launcher(name: str, value: Any) -> str:
    made = checks.text(name, value)
    method, colon, plugin = made.partition(":")
    if method not in LAUNCHERS or (plugin and method != "srun") or (colon and not plugin):
        known = ", ".join(filter(None, LAUNCHERS))
        raise ValueError(f"{name}: {checks.shown(made)} is none of {known}, or srun:PLUGIN such as srun:pmix")
    return made


def _tags(name: str, value: Any) -> dict[str, str | bool]:
    made = checks.mapping_of(name, value, "a mapping, such as {'colocate': 'db'}")
    for tag in made:
        if tag not in ("colocate", "exclusive"):
            raise ValueError(f"{name}: {checks.shown(tag)} is unknown; known are colocate, exclusive")
    if "colocate" in made:
        made["colocate"] = _colocate(f"{name}: colocate", made["colocate"])
    if "exclusive" in made:
        made["exclusive"] = checks.flag(f"{name}: exclusive", made["exclusive"])
    plain = type(value) is dict and all(made[tag] is value[tag] for tag in made)
    return value if plain else made


_colocate = checks.filled(checks.line, "tasks with an equal text run on one node")


def _alternative(name: str, value: Any) -> Resources:
    if not isinstance(value, Resources):
        raise ValueError(f"{name}: {checks.shown(value)} is no Resources; write [ph.Resources(cores=8)]")
    if value.cores < 1:
        raise ValueError(f"{name}: {value} has no core, and a rank needs at least one")
    if value.gpus > 1 and value.gpus != int(value.gpus):
        raise ValueError(f"{name}: gpus={value.gpus} is above one, so it must be whole")
    return value


def _absent(remedy: str) -> Check:
    """Refuse an attribute of RADICAL-Pilot's that nothing here can fulfil; empty it may be."""

    def check(name: str, value: Any) -> str:
        made = checks.text(name, value)
        if made:
            raise ValueError(f"{name}: {checks.shown(made)} cannot be had: {remedy}")
        return made

    return check


def pilot_named(name: str, value: Any) -> str:
    """Check the name or number of a pilot."""
    made = checks.line(name, value)
    if made.isdecimal() and len(made) > 9:
        raise ValueError(f"{name}: {checks.shown(made)} is no number of a pilot")
    return made


def _directives(field: staging.Field) -> Check:
    """Check directives as far as their words say; the client converts them once it knows where its paths start."""

    def check(name: str, value: Any) -> list[Any]:
        made = checks.as_list(name, value, "directives", "['in.dat > data/in.dat']")
        staging.directives(field, made)
        return made

    return check


def _shell_line(name: str, value: Any) -> str:
    if isinstance(value, dict):
        checks.wrong(name, value, "a text", "the lines are the same for all ranks; they can look at $PILOT_HITL_RANK")
    return checks.text(name, value)


_shell_lines = checks.several(_shell_line, "texts, one for each shell line", "['module load gcc']")


def _file(name: str, value: Any) -> str | File:
    if isinstance(value, File):
        return value
    made: str = _file_name(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    return made


_file_name = checks.filled(checks.path, "name a file")
_seconds = checks.number(0, checks.MAX_SECONDS, "seconds")
_COMMON: dict[str, Check] = {
    "name": checks.label,
    "ranks": checks.whole(1, MAX_RANKS),
    "cores_per_rank": checks.whole(1, 1 << 20),
    "gpus_per_rank": checks.gpus,
    "mem_per_rank": checks.whole(0, 1 << 40),
    "ranks_per_node": checks.whole(0, MAX_RANKS),
    "environment": checks.variables,
    "sandbox": checks.path,
    "timeout": _seconds,
    "priority": checks.whole(-(1 << 31), (1 << 31) - 1),
    "tags": _tags,
    "retries": checks.whole(0, 1_000_000),
    "on_preempt": checks.one_of("kill", "suspend", "requeue", "finish"),
    "effects": checks.one_of("sandbox", "outside"),
    "expected_runtime": _seconds,
    "reads": checks.several(_file, "texts", "['in.dat']"),
    "key": checks.text,
    "retry_failed": checks.flag,
    "pilot": pilot_named,
    "site": checks.line,
    "backfill": checks.flag,
    "grace": checks.number(0, 3600, "seconds"),
    "alternatives": checks.several(_alternative, "Resources", "[ph.Resources(cores=8)]", MAX_ALTERNATIVES),
}
_OPTIONS = Table(CallOptions, _COMMON)
TASK_CHECKS: dict[str, Check] = _COMMON | {
    "executable": checks.filled(checks.path, "name the program to run"),
    "arguments": checks.arguments,
    "named_env": _absent("pilots prepare no environments; write pre_exec=['. /path/to/env/bin/activate']"),
    "pre_exec": _shell_lines,
    "post_exec": _shell_lines,
    "input_staging": _directives("input_staging"),
    "output_staging": _directives("output_staging"),
    "stdout": checks.path,
    "stderr": checks.path,
    "container": _absent("write the command that enters it as executable and arguments"),
    "launcher": _launcher,
}
_TASKS = Table(TaskDescription, TASK_CHECKS)


def shape_of(request: TaskDescription | CallOptions) -> Shape:
    """Return the resource request of a description."""
    return Shape(
        ranks=request.ranks,
        cores=request.cores_per_rank,
        gpu_shares=round(request.gpus_per_rank * GPU_SHARES),
        memory=request.mem_per_rank,
        ranks_per_node=request.ranks_per_node,
        colocate=str(request.tags.get("colocate", "")),
        exclusive=bool(request.tags.get("exclusive", False)),
        runtime_bucket=runtime_bucket(request.expected_runtime),
        # Whether it takes one is seen from the program where it runs.
        launcher=isinstance(request, TaskDescription) and request.ranks > 1 and request.launcher != "fork",
        alternatives=tuple(
            Shape(cores=each.cores, gpu_shares=round(each.gpus * GPU_SHARES), memory=each.memory)
            for each in request.alternatives
        ),
    )


class PilotDescription(
    msgspec.Struct, metaclass=Described, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A placeholder job that holds an allocation and runs one agent.

    Attributes:
        resource: ``"local"``, or a platform such as ``"slurm"`` or ``"ornl.frontier"``.
        nodes: how many nodes. On a batch system, nodes without ``cores`` are whole nodes. Default 0 (from ``cores``).
        cores: how many cores on all nodes together. On a batch system, cores without ``nodes`` lie on whatever nodes it
            chooses. Default 0: all of the machine (local), of the nodes, or of one node.
        gpus: how many GPUs on all nodes together. Default 0: those that the platform is known to have on each node.
        memory: MB on all nodes together, 0 for "not counted".
        runtime: minutes of wall time. Default 60.
        queue, project, qos, reservation, constraint: as the batch system names them (partition, account, …).
        exclusive: ask for whole nodes.
        name: display name, usable in ``TaskDescription.pilot``.
        site: label of the site, usable in ``TaskDescription.site``.
        renew: submit a successor in time before the wall time ends, as long as the session has work or is open.
        lease: seconds for which a node goes on without word of its agent before it ends its tasks. Default 10.
        requeue: let the batch system start the job again after a node failed or it was preempted; it goes on as the
            same pilot. Default: the job ends.
        job_name: name of the job in the batch system. Default made from session and pilot.
        modules: environment modules that the job loads first.
        pre_launch: shell lines of the job, before anything of ours starts; a failing line ends the job.
        system_args: further arguments for the batch system, e.g. ``["--licenses=scratch"]``; they overrule ours.
        noop: run everything but the processes, for measuring overheads; tasks end at once with no output.
        simulated_nodes: with ``noop``, how many nodes the agent pretends to have. Default 1.
    """

    resource: str = "local"
    nodes: int = 0
    cores: int = 0
    gpus: int = 0
    memory: int = 0
    runtime: float = 60.0
    queue: str = ""
    project: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    exclusive: bool = False
    name: str = ""
    site: str = ""
    noop: bool = False
    simulated_nodes: int = 1
    renew: bool = False
    lease: float = 10.0
    requeue: bool = False
    job_name: str = ""
    modules: list[str] = []
    pre_launch: list[str] = []
    system_args: list[str] = []

    def verify(self) -> Self:
        """Return the description with plain values: itself, where all are already.

        Raises:
            ValueError: the description cannot be meant; the message names the attribute and the remedy.
        """
        made = _PILOTS.plain(self)
        if made.simulated_nodes > 1 and not made.noop:
            raise ValueError("simulated_nodes: above one only with noop=True")
        if made.resource == "local" and max(made.cores, made.gpus) * made.simulated_nodes > MAX_HERE:
            raise ValueError(f"cores, gpus: a local pilot has at most {MAX_HERE}")
        return made


def _wall_time(name: str, value: Any) -> int | float:
    made = checks.as_number(name, value, "minutes")
    if not 0 < made <= MAX_RUNTIME:
        raise ValueError(f"{name}: {checks.shown(value)} minutes is not a wall time; it is above 0, at most a year")
    return made


def _pilot_name(name: str, value: Any) -> str:
    made = checks.line(name, value)
    if made.isdecimal():
        raise ValueError(f"{name}: {checks.shown(made)} would be taken for the number of a pilot; add a letter")
    return made


def _system_arg(name: str, value: Any) -> str:
    made = checks.printable(name, value)
    if not made.startswith("-"):
        raise ValueError(f"{name}: {checks.shown(made)} is no option; write e.g. '--licenses=scratch'")
    return made


_amount = checks.whole(0, 1 << 26)
_module = checks.filled(checks.printable, "name a module")
_PILOTS = Table(
    PilotDescription,
    {
        "resource": checks.filled(checks.printable, "name where the pilot runs, e.g. 'local' or 'slurm'"),
        "nodes": checks.whole(0, MAX_RANKS),
        "cores": _amount,
        "gpus": _amount,
        "memory": checks.whole(0, 1 << 40),
        "runtime": _wall_time,
        "exclusive": checks.flag,
        "name": _pilot_name,
        "site": checks.line,
        "noop": checks.flag,
        "simulated_nodes": checks.whole(1, MAX_RANKS),
        "renew": checks.flag,
        "lease": checks.number(1, 3600, "seconds"),
        "requeue": checks.flag,
        "modules": checks.several(_module, "texts", "['gcc']"),
        "pre_launch": checks.several(checks.printable, "texts, one for each shell line", "['module load gcc']"),
        "system_args": checks.several(_system_arg, "texts", "['--licenses=scratch']"),
        **dict.fromkeys(("queue", "project", "qos", "reservation", "constraint", "job_name"), checks.printable),
    },
)


__all__ = ["CallOptions", "PilotDescription", "Resources", "TaskDescription", "shape_of"]
