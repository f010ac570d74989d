"""What users describe: tasks and pilots. Attribute names and meanings are RADICAL-Pilot's wherever it has one.

Source of names: ``radical.pilot`` 1.104 ``TaskDescription`` and ``PilotDescription``. Ours beside them:
``container, retries, on_preempt, effects, expected_runtime, reads, key, site, backfill, grace, alternatives``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pilot_hitl.model.resources import GPU_SHARES, Resources, Shape, runtime_bucket

OnPreempt = Literal["kill", "suspend", "requeue", "finish"]
Effects = Literal["sandbox", "outside"]
MAX_RANKS = 1_000_000
MAX_ALTERNATIVES = 8
LAUNCHERS = ("", "fork", "srun", "mpirun", "mpiexec", "prte", "flux")
"""Values of ``TaskDescription.launcher``."""
MAX_RUNTIME = 366 * 24 * 60
"""Minutes."""


class TaskDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One executable task: ``ranks`` processes of ``executable arguments…``.

    Attributes:
        executable: program; an absolute path, a name looked up in PATH, or a path relative to the sandbox.
        arguments: its arguments, as text.
        name: display name; default the executable's.
        ranks: processes that start together. Default 1.
        cores_per_rank: whole cores each rank is bound to. Default 1.
        gpus_per_rank: GPUs of each rank; a fraction shares one device. Default 0.
        mem_per_rank: MB of each rank, 0 for "not counted". Default 0.
        alternatives: other amounts a rank that would do, as ``[ph.Resources(cores=8)]`` beside ``gpus_per_rank=1``:
            taken in this order when what is asked for first is not free, or not there. ``cores`` of each rank are then
            those of the alternative; the task sees what it got by its CPU mask and ``CUDA_VISIBLE_DEVICES``.
        ranks_per_node: upper bound of ranks on one node, 0 for none.
        environment: variables set for the task, over those that the script had when the pilot was submitted
            (``submit_pilot``): what the script sets in ``os.environ`` later reaches its tasks only here. The same for
            calls, whose interpreter is started with them.
        named_env: an environment that the pilot prepared.
        pre_exec: shell lines run before the executable, in the same shell and sandbox; a failing line fails the task.
        post_exec: shell lines run after it.
        input_staging: directives (``"source > target"`` or a mapping with ``source``, ``target``, ``action``).
        output_staging: same, done once the task counts as done (after commit, for speculative tasks).
        sandbox: working directory. Default: a folder of the attempt's own. A speculative attempt always runs in a
            folder of its own; what it wrote appears in ``sandbox`` when its branch is committed.
        stdout: file (relative to the sandbox) for standard output. Default: captured.
        stderr: file for standard error. Default: captured.
        timeout: seconds of run time after which the attempt is ended with cause TIMEOUT; 0 for none.
        priority: higher goes first within its tier. Default 0.
        tags: ``{"colocate": text}``, ``{"exclusive": True}``.
        container: image to run in.
        retries: how many times an attempt that failed by itself is tried again. Default 0.
        on_preempt: what happens when its cores are wanted for a higher tier. Default ``"kill"``.
        effects: ``"outside"`` when it changes things outside its sandbox, so it never runs speculatively and is never
            run again by itself. Default ``"sandbox"``.
        expected_runtime: seconds; 0 for unknown. A task that cannot end before its pilot does is not started.
        reads: files it reads, for placement near them.
        key: resume key; default a fingerprint of this description.
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
    input_staging: list[str | dict[str, Any]] = []
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
    reads: list[str] = []
    key: str = ""
    pilot: str = ""
    site: str = ""
    backfill: bool = False
    grace: float = 5.0
    launcher: str = ""
    alternatives: list[Resources] = []

    def verify(self) -> None:
        """Check what can be checked without a pilot.

        Raises:
            ValueError: the description cannot be meant; the message names the attribute and the remedy.
        """
        if not self.executable or not isinstance(self.executable, str):
            raise ValueError("executable: name the program to run, e.g. TaskDescription(executable='/bin/date')")
        if "\0" in self.executable or any("\0" in str(item) for item in self.arguments):
            raise ValueError("executable, arguments: a program cannot be given a NUL character")
        for item in self.arguments:
            if not isinstance(item, str):
                raise ValueError(f"arguments: every item is text, so write {str(item)!r} instead of {item!r}")
        for key, value in self.environment.items():
            if not key or "=" in key or "\0" in key + str(value) or not isinstance(value, str):
                raise ValueError(f"environment: {key!r}={value!r} is not a text variable")
        method, _, plugin = self.launcher.partition(":")
        if method not in LAUNCHERS or (plugin and method != "srun") or (":" in self.launcher and not plugin):
            known = ", ".join(name for name in LAUNCHERS if name)
            raise ValueError(f"launcher: {self.launcher!r} is none of {known}, or srun:PLUGIN such as srun:pmix")
        verify_request(self)


class CallOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
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
    key: str = ""
    pilot: str = ""
    site: str = ""
    backfill: bool = False
    grace: float = 5.0
    alternatives: list[Resources] = []

    def verify(self) -> None:
        """Check what can be checked without a pilot.

        Raises:
            ValueError: see :meth:`TaskDescription.verify`.
        """
        verify_request(self)


def verify_request(request: TaskDescription | CallOptions) -> None:
    """Check the resource request and the policies that executables and calls share.

    Raises:
        ValueError: a value is out of range.
    """
    for attribute, least, most in (
        ("ranks", 1, MAX_RANKS),
        ("cores_per_rank", 1, 1 << 20),
        ("gpus_per_rank", 0, 1 << 16),
        ("mem_per_rank", 0, 1 << 40),
        ("ranks_per_node", 0, MAX_RANKS),
        ("timeout", 0, 1e9),
        ("retries", 0, 1_000_000),
        ("expected_runtime", 0, 1e9),
        ("grace", 0, 3600),
        ("priority", -(1 << 31), (1 << 31) - 1),
    ):
        value = getattr(request, attribute)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{attribute}: {value!r} is not between {least} and {most}")
    for attribute in ("ranks", "cores_per_rank", "mem_per_rank", "ranks_per_node", "retries", "priority"):
        if not isinstance(getattr(request, attribute), int):
            raise ValueError(f"{attribute}: {getattr(request, attribute)!r} is not a whole number")
    if request.gpus_per_rank > 1 and request.gpus_per_rank != int(request.gpus_per_rank):
        raise ValueError(f"gpus_per_rank: {request.gpus_per_rank} is above one, so it must be whole")
    if request.on_preempt not in ("kill", "suspend", "requeue", "finish"):
        raise ValueError(f"on_preempt: {request.on_preempt!r} is none of kill, suspend, requeue, finish")
    if request.effects not in ("sandbox", "outside"):
        raise ValueError(f"effects: {request.effects!r} is neither 'sandbox' nor 'outside'")
    _verify_alternatives(request.alternatives)
    for tag in request.tags:
        if tag not in ("colocate", "exclusive"):
            raise ValueError(f"tags: {tag!r} is unknown; known are colocate, exclusive")


def _verify_alternatives(alternatives: list[Resources]) -> None:
    if len(alternatives) > MAX_ALTERNATIVES:
        raise ValueError(f"alternatives: {len(alternatives)} are more than {MAX_ALTERNATIVES}")
    for each in alternatives:
        if not isinstance(each, Resources):
            raise ValueError(f"alternatives: {each!r} is no Resources; write [ph.Resources(cores=8)]")
        if each.cores < 1:
            raise ValueError(f"alternatives: {each} has no core, and a rank needs at least one")
        if each.gpus > 1 and each.gpus != int(each.gpus):
            raise ValueError(f"alternatives: gpus={each.gpus} is above one, so it must be whole")


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


class PilotDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
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

    def verify(self) -> None:
        """Check what can be checked without the batch system.

        Raises:
            ValueError: the description cannot be meant.
        """
        if not self.resource:
            raise ValueError("resource: name where the pilot runs, e.g. 'local' or 'slurm'")
        for attribute in ("nodes", "cores", "gpus", "memory"):
            value = getattr(self, attribute)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{attribute}: {value!r} is not a whole number of at least 0")
        if not isinstance(self.runtime, int | float) or not 0 < self.runtime <= MAX_RUNTIME:
            raise ValueError(f"runtime: {self.runtime!r} minutes is not a wall time")
        if not isinstance(self.lease, int | float) or not 1 <= self.lease <= 3600:
            raise ValueError(f"lease: {self.lease!r} seconds is not between 1 and 3600")
        self._verify_texts()
        if self.simulated_nodes < 1 or (self.simulated_nodes > 1 and not self.noop):
            raise ValueError("simulated_nodes: above one only with noop=True")

    def _verify_texts(self) -> None:
        """Check what ends up as a word or a line of a batch script."""
        for attribute in ("queue", "project", "qos", "reservation", "constraint", "job_name"):
            _verify_line(attribute, getattr(self, attribute))
        for attribute in ("modules", "pre_launch", "system_args"):
            lines = getattr(self, attribute)
            if isinstance(lines, str):
                raise ValueError(f"{attribute}: give a list, e.g. {attribute}=[{lines!r}]")
            for line in lines:
                _verify_line(attribute, line)
        for line in self.system_args:
            if not line.startswith("-"):
                raise ValueError(f"system_args: {line!r} is no option; write e.g. '--licenses=scratch'")


def _verify_line(attribute: str, text: object) -> None:
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"{attribute}: {text!r} is not one line of text")


__all__ = ["CallOptions", "PilotDescription", "Resources", "TaskDescription", "shape_of", "verify_request"]
