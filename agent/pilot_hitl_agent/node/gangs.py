"""Gangs: executables of several ranks that a launcher starts, perhaps on several nodes, as one node sees them.

The part that *leads* writes the gang's folder and runs the launcher; the others start nothing. Each daemon owns the
ranks of its own node all the same, finds them by their environment, signals them and sees them end.
"""

from __future__ import annotations

import marshal
import os
import re
import shutil
import signal
import socket
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import GPU_SHARES, Slot
from pilot_hitl.model.templates import ExecutableTemplate
from pilot_hitl.wire.current import ADDRESS_VARIABLE, RANK_VARIABLE, RANKS_VARIABLE, TASK_VARIABLE, attempt_text
from pilot_hitl.wire.node import Launch, Share
from pilot_hitl.wire.places import MARK_VARIABLE
from pilot_hitl_agent.node import launchers, shim
from pilot_hitl_agent.node.launchers import Choice, Command, Flavour, Found, Gang, Host
from pilot_hitl_agent.node.presence import Seen, Watch, look, send
from pilot_hitl_agent.node.settings import NodeSettings

SHIM = str(Path(shim.__file__).resolve())
ENDED, STOPPED = "ended", "stopped"
_PORTS = (20000, 12000)
"""First port and count: below those that the kernel gives out by itself."""
_SIGNALLED = 128
"""Launchers tell the signal that ended a rank as an exit code above this, as shells do."""
_REMEDIES = {
    "openmpi": 'use launcher="srun:pmix" or launcher="mpirun"',
    "mpich": 'use launcher="srun:pmi2" or launcher="mpiexec"',
    "intel": 'use launcher="srun:pmi2" or launcher="mpiexec"',
    "cray": 'use launcher="srun:cray_shasta"',
}
_SRUN = re.compile(
    r"^srun: error: ([^\s:]+): tasks? ([\d,-]+): "
    r"(?:Exited with exit code (\d+)|([A-Z][A-Za-z ]+?))(?: \(core dumped\))?$",
    re.MULTILINE,
)
_NO_PMI = (b"OMPI was not built with SLURM", b"PMI support and therefore cannot", b"ORTE was not built with")


class Part(msgspec.Struct):
    """The part of a gang on this node.

    Attributes:
        attempt: value of the attempt's variable, by which its processes are known.
        folder: of the gang's files.
        leads: it runs the launcher.
        ending: the last signal that ends it, 0 while it is not to end.
        choice: how it was started; None until that is known, and for parts that do not lead.
        waits: the launcher may not be run yet.
        over: all that is left to do is to wait until its processes are gone.
    """

    attempt: str
    folder: str
    leads: bool
    flavour: Flavour
    ending: int = 0
    choice: Choice | None = None
    waits: bool = False
    over: bool = False
    began: float = 0.0


class Gangs:
    """The gangs' files, processes and command lines on one node."""

    def __init__(self, settings: NodeSettings, watch: Watch) -> None:
        """See ends of processes through ``watch``; its owners are tasks."""
        self._settings = settings
        self._watch = watch
        self._folder = Path(settings.pilot_folder) / "gangs"
        self.job = settings.job.get("SLURM_JOB_ID", "")

    def part(self, launch: Launch, name: str, flavour: Flavour) -> Part:
        """Return a new part of a gang on this node."""
        text = attempt_text(name, launch.epoch, launch.run)
        folder = f"{self._folder}/{name}.{launch.epoch}.{launch.run}"
        return Part(text, folder, launch.leads(self._settings.node), flavour)

    # --- starting -----------------------------------------------------------------------------------------------------

    def choose(self, part: Part, launch: Launch, asked: str, found: Found) -> Choice:
        """Return how to start a gang.

        Raises:
            NoLauncherError: nothing here can.
        """
        nodes = max(1, len(launch.layout))
        part.choice = launchers.choose(
            asked, part.flavour, found, nodes=nodes, slurm=bool(self.job), where=self._settings.inventory.name
        )
        return part.choice

    def write(self, part: Part, launch: Launch, job: Job) -> Command:
        """Make the gang's folder and files; returns the command that starts it.

        Raises:
            OSError: they cannot be written.
        """
        choice = part.choice
        if choice is None:
            raise RuntimeError("a gang is written before it is known how to start it")
        shares = launchers.in_launch_order(choice.method, self._layout(launch))
        gang = Gang(
            title=job.name,
            hosts=tuple(Host(share.name, len(share.slots)) for share in shares),
            folder=part.folder,
            program=(sys.executable, "-I", "-S", SHIM, f"{part.folder}/{shim.JOB}"),
            job=self.job,
            binds=choice.tool.binds if choice.method == "srun" else self._binds,
            pinned=self._settings.inventory.pinned,
            gpus=any(slot.gpus for share in shares for slot in share.slots),
            root=os.geteuid() == 0,
            timeout=job.template.timeout,
        )
        command = launchers.compose(choice.method, gang, choice.tool, choice.plugin)
        files: dict[str, bytes] = {name: text.encode() for name, text in command.files.items()}
        files[shim.JOB] = marshal.dumps(self._job(part, shares, launch, job))
        os.makedirs(part.folder, mode=0o700, exist_ok=True)
        for name, content in files.items():
            Path(part.folder, name).write_bytes(content)
        return command

    _binds = True

    def learn(self, found: Found) -> None:
        """Note what else is to be known of this site."""
        tool = found.of_family("slurm")
        self._binds = tool.binds if tool is not None else True

    def _layout(self, launch: Launch) -> tuple[Share, ...]:
        if launch.layout:
            return launch.layout
        settings = self._settings
        cpus = tuple(settings.cpus(slot.cores) for slot in launch.slots)
        return (Share(settings.node, settings.inventory.name, "", launch.slots, cpus),)

    def _job(self, part: Part, shares: tuple[Share, ...], launch: Launch, job: Job) -> dict[str, object]:
        choice = part.choice
        method, launcher = (choice.method, f"launcher={choice.text!r}") if choice else ("", "")
        variables = {**self._settings.job, TASK_VARIABLE: job.name, RANKS_VARIABLE: str(launch.ranks)}
        variables.update(self.meeting(shares, launch, part.attempt, one=True))
        if shim.CHECK_VARIABLE in job.variables:
            variables[shim.CHECK_VARIABLE] = job.variables[shim.CHECK_VARIABLE]
        return {
            "secret": job.secret,
            "method": method,
            "launcher": launcher,
            "flavour": "" if part.flavour.interpreted else part.flavour.name,
            "pmix": part.flavour.pmix,
            "called": {"openmpi": "an Open MPI program", "mpich": "an MPICH program"}.get(
                part.flavour.name, "an MPI program"
            ),
            "remedy": remedy(part.flavour),
            "program": job.template.executable,
            "argv": job.argv,
            "cwd": job.folder,
            "variables": variables,
            "shares": [
                {
                    "node": share.node,
                    "name": share.name,
                    "variables": {
                        MARK_VARIABLE: self._mark(share.node, len(shares)),
                        **({ADDRESS_VARIABLE: share.address} if share.address else {}),
                    },
                    "ranks": [
                        {
                            "cpus": list(share.cpus[index]) if index < len(share.cpus) else [],
                            "variables": resource_variables(slot, with_threads=job.with_threads),
                        }
                        for index, slot in enumerate(share.slots)
                    ],
                }
                for share in shares
            ],
        }

    def _mark(self, node: int, parts: int) -> str:
        """Return the mark of a node's processes: on pilots of several nodes it ends with the node's number."""
        base, _, mine = self._settings.mark.rpartition("/")
        return f"{base}/{node}" if parts > 1 and mine == str(self._settings.node) else self._settings.mark

    def meeting(self, shares: tuple[Share, ...], launch: Launch, attempt: str, *, one: bool) -> dict[str, str]:
        """Return where ranks that want to find each other by themselves (torch.distributed) meet.

        The port follows from the attempt, so that all nodes name the same one without a word; where this node alone
        names it (``one``) and rank 0 is here, it is a free one.
        """
        first, count = _PORTS
        port = first + zlib.crc32(f"{self._settings.mark.rpartition('/')[0]} {attempt}".encode()) % count
        if one and shares[0].node == self._settings.node:
            port = _free_port(port)
        address = shares[0].address or "127.0.0.1"
        return {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(launch.ranks)}

    def direct_variables(self, launch: Launch, attempt: str) -> list[dict[str, str]]:
        """Return what each of the ranks is told that this node starts itself."""
        layout = self._layout(launch)
        node = self._settings.node
        place = next((number for number, share in enumerate(layout) if share.node == node), 0)
        first = launch.first_rank(node)
        common = {
            **self.meeting(layout, launch, attempt, one=len(layout) == 1),
            RANKS_VARIABLE: str(launch.ranks), "LOCAL_WORLD_SIZE": str(len(launch.slots)),
            "NODE_RANK": str(place), "GROUP_RANK": str(place),
        }  # fmt: skip
        return [
            {**common, RANK_VARIABLE: str(first + index), "RANK": str(first + index), "LOCAL_RANK": str(index)}
            for index in range(len(launch.slots))
        ]

    # --- signals and ends ---------------------------------------------------------------------------------------------

    def seen(self, part: Part) -> Seen:
        """Return the processes of a part that live now."""
        return look(part.attempt, self._settings.mark, SHIM)

    def signal(self, part: Part, number: int) -> int:
        """Signal the ranks on this node, and those that are still to come; returns how many there are now."""
        if number == signal.SIGCONT:
            if not part.ending:
                self._say(part, "")
        else:
            self._say(part, STOPPED if number == signal.SIGSTOP else ENDED)
        seen = self.seen(part)
        if number in (signal.SIGTERM, signal.SIGKILL):
            part.ending = number
        send(seen.ranks, number)
        if number == signal.SIGTERM:
            # A stopped process would sleep through its SIGTERM.
            send(seen.ranks, signal.SIGCONT)
        elif number == signal.SIGKILL and not part.leads:
            send(seen.others, number)
        return len(seen.ranks)

    def gone(self, part: Part, task: int, *, kill: bool) -> bool:
        """Return whether nothing of a part is left on this node; what is left is watched, and killed on demand."""
        if self._watch.watches(task):
            return False
        while True:
            seen = self.seen(part)
            left = [*seen.ranks, *seen.others] if kill else seen.ranks
            if kill:
                send(left, signal.SIGKILL)
            if self._watch.add(task, left):
                return False
            if not left:
                return True

    def close(self, part: Part) -> str:
        """Remove what a gang has left behind; returns the warning that was among it, mostly none."""
        if not part.leads:
            return ""
        try:
            warning = Path(part.folder, shim.WARNING).read_text(encoding="utf-8")
        except OSError:
            warning = ""
        shutil.rmtree(part.folder, ignore_errors=True)
        return warning

    def _say(self, part: Part, word: str) -> None:
        path = Path(part.folder, f"state.{self._settings.node}")
        try:
            if not word:
                path.unlink(missing_ok=True)
            else:
                path.write_text(word, encoding="ascii")
        except OSError:
            # The folder is not there yet, or not any more: then no rank finds its job file either.
            return


class Job(msgspec.Struct):
    """What the ranks of a gang are to run.

    Attributes:
        argv: absolute program, or relative to ``folder``.
        folder: their working directory.
        variables: of the task, over which the ranks' own are set.
        with_threads: say how many threads a rank may use.
    """

    name: str
    template: ExecutableTemplate
    argv: list[str]
    folder: str
    secret: str
    variables: Mapping[str, str]
    with_threads: bool


def resource_variables(slot: Slot, *, with_threads: bool) -> dict[str, str]:
    """Return the variables that say what a slot may use."""
    found = {}
    if with_threads:
        found["OMP_NUM_THREADS"] = str(slot.cores.bit_count() or 1)
    if slot.gpus:
        devices = ",".join(map(str, slot.gpus))
        found["CUDA_VISIBLE_DEVICES"] = found["ROCR_VISIBLE_DEVICES"] = devices
        if 0 < slot.gpu_shares < GPU_SHARES:
            found["PILOT_HITL_GPU_SHARE"] = f"{slot.gpu_shares / GPU_SHARES:g}"
    return found


def exit_status(code: int) -> int:
    """Return the status of the rank that a launcher's exit code stands for; negative is a signal."""
    number = code - _SIGNALLED
    return -number if 0 < number < signal.NSIG and number in signal.valid_signals() else code


def first_to_fail(stderr: bytes) -> tuple[int, str, str] | None:
    """Return ``(status, which rank, where)`` of the rank that failed first, as srun tells it.

    srun's own exit code is the highest of all ranks: mostly that of those that it killed because one had failed.
    """
    found = _SRUN.search(stderr.decode(errors="replace"))
    if found is None:
        return None
    host, which, code, how = found.groups()
    where = f"rank {which}"
    if code:
        return int(code), where, host
    number = next((each for each in signal.valid_signals() if signal.strsignal(each) == how), 0)
    return (-number, where, host) if number else None


def remedy(flavour: Flavour) -> str:
    """Return what starts programs of an MPI as one."""
    return _REMEDIES.get(flavour.name, 'use launcher="mpirun" or "mpiexec" of the same MPI')


def told_by_shim(secret: str, stderr: bytes) -> tuple[str, str, bytes] | None:
    """Return ``(kind, sentence, the rest)`` when a rank says on standard error why it never became one."""
    start = b"\n" + secret.encode() + b":"
    at = stderr.find(start)
    if at < 0:
        return None
    lines = stderr.split(b"\n")
    ours = secret.encode() + b":"
    told = next(line for line in lines if line.startswith(ours)).decode(errors="replace")
    rest = b"\n".join(line for line in lines if line and not line.startswith(ours))
    _, _, text = told.split(":", 2)
    kind, _, sentence = text.partition(" ")
    return (kind, sentence, rest) if kind in ("shim", "program") else None


def told_by_mpi(part: Part, program: str, host: str, stderr: bytes) -> Failure | None:
    """Return what it means when Open MPI complains about what started it."""
    if part.choice is None or not any(each in stderr for each in _NO_PMI):
        return None
    text = (
        f"{program} is an Open MPI program and cannot use what launcher={part.choice.text!r} gives it "
        f"to its ranks; {_REMEDIES['openmpi']}"
    )
    return Failure(Cause.SETUP, text, host, 0, stderr[-2000:].decode(errors="replace"))


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return wanted
