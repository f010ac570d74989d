"""What a launch method is told, and what it answers."""

from __future__ import annotations

import msgspec


class NoLauncherError(Exception):
    """There is no way to start it here; the message names what is missing and the remedy."""


class Host(msgspec.Struct, frozen=True):
    """One node of a gang: ``name`` as the batch system knows it, and how many ranks come up there."""

    name: str
    ranks: int


class Gang(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a command line may depend on.

    Attributes:
        title: for the launcher's own lists of what runs.
        hosts: in launch order (:func:`.methods.in_launch_order`); the first ranks are those of the first host.
        folder: where the launcher's small files lie; every node of the gang sees it.
        program: what each rank is started with: the shim.
        job: Slurm's number of the allocation; empty outside of Slurm.
        binds: whether Slurm binds tasks by itself unless told not to.
        pinned: whether ranks have real cores of their own.
        gpus: whether any rank has a GPU.
        root: whether this is root.
        timeout: seconds after which the run is ended anyway; 0 for never.
    """

    title: str
    hosts: tuple[Host, ...]
    folder: str
    program: tuple[str, ...]
    job: str = ""
    binds: bool = True
    pinned: bool = True
    gpus: bool = False
    root: bool = False
    timeout: float = 0.0

    @property
    def ranks(self) -> int:
        """Ranks on all hosts."""
        return sum(host.ranks for host in self.hosts)


class Command(msgspec.Struct, frozen=True):
    """How to run a launcher.

    Attributes:
        argv: its command line, the path first.
        environment: variables to set over the task's own.
        files: name → content, to be written into the gang's folder first.
    """

    argv: list[str]
    environment: dict[str, str] = {}
    files: dict[str, str] = {}


def step_options(gang: Gang) -> list[str]:
    """Return srun's options of every step inside the pilot's own: beside it, with nothing taken from it.

    A step without ``--gres=none`` may use all devices of the job, which is wanted when ranks have some: the shim then
    says which. Without it on a job that has GPUs, steps that need none would still be given them all.
    """
    options = ["--overlap", "--overcommit", "--mem=0"]
    if not gang.gpus:
        options.append("--gres=none")
    if gang.binds:
        options.append("--cpu-bind=none")
    return options
