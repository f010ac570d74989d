"""Slurm, pure: what is submitted, as text. Nothing here runs a command or reads a file.

How its answers are read stands in :mod:`pilot_hitl.launch.slurmwords`; who runs the commands in
:mod:`pilot_hitl.hub.batch`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

import msgspec

from pilot_hitl.launch.platforms import Platform
from pilot_hitl.model.descriptions import PilotDescription

TRY_FILE = "try"
"""In a pilot's folder: which try to submit it is the present one. A job of an earlier one ends at once."""
JOB_FILE = "job"
"""In a pilot's folder, written by the job itself: its id, so that a hub that died in between finds it again."""
PASSED = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "MODULEPATH", "MODULESHOME", "PATH", "SHELL",
    "SLURM_CONF", "TZ", "USER", "LMOD_CMD", "LMOD_PKG", "LMOD_ROOT", "LMOD_DIR",
)  # fmt: skip
"""Variables that commands of Slurm, and with them the job, get from the client. The rest would leak: ``SLURM_*`` of an
allocation in which the client may run changes what sbatch asks for, and tasks get the client's environment anyhow."""
PREFERENCES = {
    "SBATCH_ACCOUNT": "project",
    "SBATCH_PARTITION": "queue",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_CONSTRAINT": "constraint",
}
"""What people set once for all their jobs: kept where the description says nothing."""
WARNING_SHARE, LEAST_WARNING, MOST_WARNING = 0.05, 60, 600
"""Slurm tells the job so early that its wall time ends: a share of it, between so many seconds."""
COMMENT = "pilot-hitl:"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be submitted: one pilot, or several equal ones as an array.

    Attributes:
        description: of each of them.
        platform: where.
        session: name of the session.
        mark: of the home and the session, to find the job by.
        pilots: their numbers; the array's indices are the same.
        folder: of the session's pilots; each one has a folder with its number in there.
        python, spawner: what starts a node.
        number: of the try to submit it, see :mod:`pilot_hitl.launch.submission`.
    """

    description: PilotDescription
    platform: Platform
    session: str
    mark: str
    pilots: tuple[int, ...]
    folder: str
    python: str
    spawner: str
    number: int = 1

    @property
    def comment(self) -> str:
        """By which the job is found when nobody heard its id."""
        return comment(self.mark, self.pilots[0], self.number)


def refusal(description: PilotDescription, platform: Platform) -> str:
    """Return why a pilot cannot be submitted there, whatever Slurm says; empty when it can be tried."""
    if platform.system != "slurm":
        return f"resource {platform.name!r} is run by {platform.system}, and this release submits to Slurm only"
    missing = [attribute for attribute in platform.requires if not getattr(description, attribute, "")]
    if missing:
        return f"resource {platform.name!r} wants {' and '.join(missing)}: PilotDescription({missing[0]}='…')"
    if description.noop and description.simulated_nodes > 1:
        return "simulated_nodes: a pilot on a batch system has the nodes of its job; leave it out"
    return ""


def comment(mark: str, pilot: int, number: int) -> str:
    """Return the comment of the job of a try to submit a pilot, or the array that it is the first of."""
    return f"{COMMENT}{mark}/{pilot}.{number}"


def owner(job: str, comment: str, mark: str) -> tuple[int, int] | None:
    """Return which pilot of a session, and which try to submit it, a job is of; None when it is of another session.

    Args:
        job: its id as people write it; ``42_3`` is the array's task for pilot 3.
        comment: the job's.
        mark: of the session.
    """
    if not comment.startswith(f"{COMMENT}{mark}/"):
        return None
    pilot, _, number = comment.rpartition("/")[2].partition(".")
    _, array, index = job.partition("_")
    pilot = index if array else pilot
    return (int(pilot), int(number)) if pilot.isdigit() and number.isdigit() else None


def is_ours(comment: str, mark: str) -> bool:
    """Return whether a job may be of this session: a cluster that was set up anew counts its jobs from 1 again."""
    return not comment.startswith(COMMENT) or comment.startswith(f"{COMMENT}{mark}/")


def command(job: Job, sbatch: str = "sbatch") -> list[str]:
    """Return the command that submits the job; all options stand in the script."""
    return [sbatch, "--parsable", f"{job.folder}/{job.pilots[0]}/batch.sh"]


def environment(client: Mapping[str, str], description: PilotDescription) -> dict[str, str]:
    """Return what commands of Slurm get of a client's environment, and what the job starts with."""
    kept = {name: client[name] for name in PASSED if client.get(name)}
    for name, attribute in PREFERENCES.items():
        if client.get(name) and not getattr(description, attribute):
            kept[name] = client[name]
    return kept


def warning(runtime: float) -> int:
    """Return how many seconds before its wall time (in minutes) ends a job is told."""
    seconds = runtime * 60
    return int(max(5.0, min(max(LEAST_WARNING, min(MOST_WARNING, seconds * WARNING_SHARE)), seconds / 4)))


def node_size(description: PilotDescription, platform: Platform) -> tuple[int, int, int]:
    """Return ``(cores, gpus, MB)`` that are used on each node, 0 for all that the job has there."""
    nodes = nodes_asked(description, platform)
    if not nodes:
        return 0, 0, 0
    cores = math.ceil(description.cores / nodes) if description.cores else 0
    gpus = math.ceil(description.gpus / nodes) if description.gpus else platform.gpus_per_node
    return cores, gpus, math.ceil(description.memory / nodes) if description.memory else 0


def nodes_asked(description: PilotDescription, platform: Platform) -> int:
    """Return how many nodes are asked for; 0: Slurm chooses them by cores."""
    if description.nodes:
        return description.nodes
    if not description.cores:
        return 1
    return math.ceil(description.cores / platform.cores_per_node) if platform.cores_per_node else 0


def options(job: Job) -> list[str]:
    """Return sbatch's options, as they stand in the script."""
    asked, platform = job.description, job.platform
    queue, _, queue_qos = (asked.queue or platform.queue).partition(":")
    project, _, project_reservation = (asked.project or platform.project).partition(":")
    seconds = math.ceil(asked.runtime * 60)
    named = [
        ("job-name", asked.job_name or f"{job.session}.{job.pilots[0]}"),
        ("comment", job.comment),
        ("account", project),
        ("partition", queue),
        ("qos", asked.qos or queue_qos or platform.qos),
        ("reservation", asked.reservation or project_reservation),
        ("constraint", asked.constraint or platform.constraint),
        ("time", f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"),
        ("signal", f"B:TERM@{warning(asked.runtime)}"),
        ("output", _pattern(f"{job.folder}/{'%a' if len(job.pilots) > 1 else job.pilots[0]}/logs/batch.log", job)),
        ("array", _indices(job.pilots) if len(job.pilots) > 1 else ""),
    ]
    lines = [f"--{name}={_quoted(value)}" for name, value in named if value]
    lines += ["--open-mode=append", "--export=ALL", "--no-kill", "--requeue" if asked.requeue else "--no-requeue"]
    return [*lines, *_size(asked, platform), *platform.system_args, *asked.system_args]


def _size(asked: PilotDescription, platform: Platform) -> list[str]:
    nodes = nodes_asked(asked, platform)
    if not nodes:
        lines = [f"--ntasks={asked.cores}"]
        lines += [f"--gpus={asked.gpus}"] if asked.gpus else []
        lines += [f"--mem-per-cpu={math.ceil(asked.memory / asked.cores)}M"] if asked.memory else []
        return [*lines, "--exclusive"] if asked.exclusive else lines
    cores, gpus, memory = node_size(asked, platform)
    lines = [f"--nodes={nodes}", "--ntasks-per-node=1"]
    whole = asked.exclusive or platform.exclusive or not cores
    lines += ["--exclusive"] if whole else [f"--cpus-per-task={cores}"]
    lines += [platform.gpu_option.format(gpus)] if gpus else []
    if memory or whole:
        lines.append(f"--mem={memory}M" if memory else "--mem=0")
    return lines


def _indices(numbers: Sequence[int]) -> str:
    """Return numbers as an array's indices: ``3-6``, or ``3,5-6``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _pattern(path: str, job: Job) -> str:
    """Return a file name for Slurm, which takes ``%`` for its own."""
    return job.folder.replace("%", "%%") + path.removeprefix(job.folder)


def _quoted(value: str) -> str:
    """Return a value as sbatch reads it on a line of the script."""
    if value and all(letter.isalnum() or letter in "-_=+:,./@%&|*[]()" for letter in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


MODULES = """\
if ! type module >/dev/null 2>&1; then
    for file in "${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh
    do
        if [ -r "$file" ]; then . "$file"; break; fi
    done
fi
"""

SCRIPT = """\
#!/bin/bash
{options}

# Session {session}, {what}. Written by pilot-hitl; submitted as it stands.
folder={folder}/{number}
read -r try 2>/dev/null <"$folder/{try_file}"
if [ "${{try:-{try_number}}}" != {try_number} ]; then
    echo "another job was submitted for this pilot meanwhile, because nobody heard of this one" >&2
    exit 0
fi
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}}}
echo "${{job:-$SLURM_JOB_ID}} ${{SLURM_RESTART_COUNT:-0}}" >"$folder/.job.$SLURM_JOB_ID" &&
    mv "$folder/.job.$SLURM_JOB_ID" "$folder/{job_file}"
unset SLURM_CPU_BIND SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_LIST SLURM_MEM_BIND
{before}
# The wall time is near: the agent lets finish what can. If it is on another node, it knows the time by itself.
warn() {{
    local pid= host=
    read -r pid host 2>/dev/null <"$folder/agent.pid"
    if [ -n "$pid" ] && [ "$host" = "$(hostname)" ]; then kill -USR1 "$pid" 2>/dev/null; fi
}}
trap warn TERM

# One step, with one process a node that lives as long as the job: it starts all else.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
    --no-kill --kill-on-bad-exit=0 --wait=0 --overlap --cpu-bind=none --mpi=none --export=ALL --input=none \\
    --job-name=pilot --open-mode=append --output={output} \\
    {python} -I -S {spawner} "$folder/config.json" &
members=$!
while :; do
    wait "$members"
    code=$?
    # Above 128: perhaps it was the signal that ended the wait, and not the step.
    if [ "$code" -le 128 ] || ! kill -0 "$members" 2>/dev/null; then break; fi
done
exit "$code"
"""


def script(job: Job) -> str:
    """Return the batch script of a job: options for sbatch, then what runs on its first node."""
    asked = job.description
    array = len(job.pilots) > 1
    before = []
    if asked.modules:
        before += [MODULES.rstrip(), *(f"module load {shlex.quote(name)} || exit 1" for name in asked.modules)]
    before += [f"{line} || exit 1" for line in (*job.platform.pre_launch, *asked.pre_launch)]
    output = f"{job.folder}".replace("%", "%%") + "/" + ("%a" if array else str(job.pilots[0])) + "/logs/node-%n.log"
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {line}" for line in options(job)),
        session=job.session,
        what=f"pilots {_indices(job.pilots)}" if array else f"pilot {job.pilots[0]}",
        folder=shlex.quote(job.folder),
        number="$SLURM_ARRAY_TASK_ID" if array else job.pilots[0],
        job_file=JOB_FILE,
        try_file=TRY_FILE,
        try_number=job.number,
        before="\n".join(["", *before, ""]) if before else "",
        output=shlex.quote(output),
        python=shlex.quote(job.python),
        spawner=shlex.quote(job.spawner),
    )
