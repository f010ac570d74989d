"""Slurm, pure: what its commands say, read and put into words for people."""

from __future__ import annotations

import re

import msgspec

from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.states import PilotState

FORMAT = "%i|%A|%T|%S|%e|%D|%N|%k|%r"
"""What squeue is asked for: a line is read by :func:`parse_queue`. The reason comes last, it may hold anything."""
_FIELDS = 9
_ID = re.compile(r"(\d+)(?:;(\S+))?")
_SAID = re.compile(r"Submitted batch job (\d+)")
_PER_JOB = re.compile(r"(Assoc|QOS)(Max|Min)\w*PerJob(Limit)?")
HOPELESS = {
    "PartitionTimeLimit": ("runtime", "the partition allows less; 'sinfo -o \"%P %l\"' shows how much"),
    "PartitionNodeLimit": ("nodes cores", "the partition does not give so many; 'sinfo -o \"%P %D %s\"' shows it"),
    "PartitionConfig": ("nodes cores memory gpus", "the partition has no such nodes; 'sinfo -o \"%P %D %c %m %G\"'"),
    "BadConstraints": ("constraint nodes cores memory gpus", "no node is like that; 'sinfo -o \"%P %f %c %m %G\"'"),
    "InvalidAccount": ("project", "it may not be used; 'sacctmgr show associations user=$USER' lists yours"),
    "AccountNotAllowed": ("project queue", "not allowed together; 'scontrol show partition' says who may use which"),
    "InvalidQOS": ("qos", "it may not be used; 'sacctmgr show associations user=$USER format=account,qos' lists yours"),
    "QOSNotAllowed": ("qos queue", "not allowed together; 'scontrol show partition' says which go"),
    "DependencyNeverSatisfied": ("system_args", "what the job depends on did not end as it should"),
}
"""Reasons for which a job that waits will never run: attributes to change, and what is wrong with them."""
REASONS = {
    "Resources": "enough nodes are not free yet",
    "Priority": "jobs of higher priority go first",
    "None": "the scheduler has not looked at it yet",
    "BeginTime": "its earliest start has not come, as after a requeue",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Reservation": "its reservation has not begun",
    "Dependency": "it waits for another job",
    "JobHeldUser": "it is held; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "Licenses": "licenses are in use",
    "JobArrayTaskLimit": "as many tasks of its array run as may",
    "Cleaning": "its earlier run is being cleaned up",
}
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
LIVING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """What squeue says of a job.

    Attributes:
        id: as people write it; ``42_3`` for a task of an array.
        state: Slurm's own word.
        started, ends: seconds since 1970, 0 when not known; before it runs, what Slurm expects.
        count, nodes: how many nodes, and Slurm's list of them.
        comment: by which we find it.
        reason: Slurm's own word.
    """

    id: str
    state: str
    started: float = 0.0
    ends: float = 0.0
    count: int = 0
    nodes: str = ""
    comment: str = ""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it has no nodes (any more)."""
        return self.state in WAITING

    @property
    def lives(self) -> bool:
        """Whether processes of it may run."""
        return self.state in LIVING


def hopeless(view: JobView, description: PilotDescription) -> str:
    """Return why a job that waits will never run, and what to change; empty when it may run."""
    if view.state != "PENDING":
        return ""
    if _PER_JOB.fullmatch(view.reason):
        return "it is beyond a limit that the account or QOS sets for every job; 'sacctmgr show qos' lists them"
    attributes, words = HOPELESS.get(view.reason, ("", ""))
    return f"{_asked(attributes, description)}: {words}" if words else ""


def _asked(attributes: str, description: PilotDescription) -> str:
    """Return what a description says of some attributes; those that it leaves open only when all are."""
    values = {name: getattr(description, name) for name in attributes.split()}
    said = [f"{name}={value!r}" for name, value in values.items() if value]
    return ", ".join(said or values)


def parse_id(said: str) -> str:
    """Return the job's id from what sbatch wrote, through whatever a wrapper or a login shell wrote around it.

    Raises:
        ValueError: there is none, or more than one line that could be it; the message quotes it all.
    """
    lines = [line.strip() for line in said.splitlines()]
    found = [match[1] for line in lines if (match := _ID.fullmatch(line))]
    if not found:
        found = _SAID.findall(said)
    if len(set(found)) == 1:
        return str(found[0])
    which = "no line of it is a job id" if not found else f"any of {', '.join(found)} could be the job id"
    raise ValueError(f"sbatch succeeded and said {quoted(said)}, but {which}")


def quoted(said: str, limit: int = 400) -> str:
    """Return what a command said as one line in quotes."""
    text = "; ".join(filter(None, (line.strip() for line in said.splitlines()))) or "nothing"
    return f"“{text if len(text) <= limit else text[:limit] + '…'}”"


def parse_queue(said: str) -> dict[str, JobView]:
    """Return squeue's answer (:data:`FORMAT`) by the job's id; other lines are noise."""
    found = {}
    for line in said.splitlines():
        fields = line.strip().split("|", _FIELDS - 1)
        if len(fields) != _FIELDS or not fields[1].isdigit():
            continue
        name, _, state, started, ends, count, nodes, comment, reason = fields
        found[name] = JobView(
            id=name,
            state=state,
            started=_moment(started),
            ends=_moment(ends),
            count=int(count) if count.isdigit() else 0,
            nodes="" if nodes == "(null)" else nodes,
            comment="" if comment == "(null)" else comment,
            reason=reason.strip("()"),
        )
    return found


def _moment(text: str) -> float:
    """Return a time of squeue, 0 for N/A."""
    return float(text) if text.isdigit() else 0.0


def parse_accounting(said: str) -> dict[str, tuple[str, str]]:
    """Return ``(state, exit code)`` by job of what ``sacct -nPX -o JobID,State,ExitCode`` said."""
    found = {}
    for line in said.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 3 and fields[1]:
            # "CANCELLED by 1000"
            found[fields[0]] = (fields[1].split()[0], fields[2])
    return found


def parse_config(said: str) -> dict[str, str]:
    """Return what ``scontrol show config`` said, by key."""
    pairs = (line.partition("=") for line in said.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def controller(config: dict[str, str]) -> tuple[str, bool]:
    """Return the address of the first controller, and whether the site wrote one down: ``name(address)``."""
    for key in ("SlurmctldHost[0]", "SlurmctldHost", "ControlMachine"):
        if config.get(key):
            name, bracket, address = config[key].partition("(")
            return address.rstrip(")") or name, bool(bracket)
    return "", False


def waiting_words(view: JobView) -> str:
    """Return why a pilot has no agent yet."""
    if view.waits:
        reason = view.reason.split(",")[0].strip()
        words = REASONS.get(reason)
        why = f"{view.reason} ({words})" if words else view.reason or "no reason given"
        return f"job {view.id} is {view.state}: {why}"
    if view.state == "RUNNING":
        return f"job {view.id} runs on {view.nodes}; its agent has not reported yet"
    return f"job {view.id} is {view.state} on {view.nodes}"


def verdict(job: str, state: str, *, reported: bool, stopped: bool, detail: str = "") -> tuple[PilotState, str]:
    """Return what a job's end means for its pilot.

    Args:
        job: its id.
        state: Slurm's word for the end; empty when Slurm no longer knows the job.
        reported: whether its agent ever reported.
        stopped: whether we told it to end.
        detail: exit code or the last words of its log, for ends that were not wanted.
    """
    if stopped:
        return PilotState.DONE, f"stopped (job {job})"
    kind, words = _ENDS.get(state, (PilotState.FAILED, f"ended as {state}" if state else _UNKNOWN))
    if kind is PilotState.DONE and not reported:
        kind, words = PilotState.FAILED, f"{words} before its agent reported"
    if state == "CANCELLED" and not reported:
        words = "was canceled by somebody before it ran"
    tail = f"; {detail}" if detail and kind is PilotState.FAILED else ""
    return kind, f"job {job} {words}{tail}"


_UNKNOWN = "has ended, and Slurm no longer knows how"
_ENDS: dict[str, tuple[PilotState, str]] = {
    "COMPLETED": (PilotState.DONE, "ended"),
    "TIMEOUT": (PilotState.DONE, "reached its wall time"),
    "DEADLINE": (PilotState.FAILED, "could not run before its deadline (DEADLINE)"),
    "CANCELLED": (PilotState.CANCELED, "was canceled by somebody, as with scancel"),
    "PREEMPTED": (PilotState.FAILED, "was preempted by a job of higher priority (PREEMPTED)"),
    "NODE_FAIL": (PilotState.FAILED, "lost a node that it could not go on without (NODE_FAIL)"),
    "BOOT_FAIL": (PilotState.FAILED, "did not start because a node did not boot (BOOT_FAIL)"),
    "OUT_OF_MEMORY": (PilotState.FAILED, "used more memory than it had asked for (OUT_OF_MEMORY)"),
    "FAILED": (PilotState.FAILED, "ended badly (FAILED)"),
    "REVOKED": (PilotState.FAILED, "runs on another cluster of the federation (REVOKED)"),
}

_REMEDIES: tuple[tuple[str, str, str], ...] = (
    ("account", "project queue", "'sacctmgr show associations user=$USER' lists your accounts"),
    ("partition", "queue", "'sinfo -s' lists the partitions"),
    ("qos", "qos", "'sacctmgr show associations user=$USER format=account,qos' lists yours"),
    ("time limit", "runtime", "'sinfo -o \"%P %l\"' shows the longest wall time of each partition"),
    ("feature", "constraint", "'sinfo -o \"%P %f\"' lists the features of the nodes"),
    ("reservation", "reservation", "'scontrol show reservation' lists them"),
    ("gres", "gpus", "'sinfo -o \"%P %G\"' shows the GPUs of the nodes"),
    ("memory", "memory", "'sinfo -o \"%P %m\"' shows the memory of the nodes"),
    ("node count", "nodes", "'sinfo -o \"%P %D %c\"' shows how many nodes there are"),
    ("processors", "cores", "'sinfo -o \"%P %D %c\"' shows how many nodes and CPUs there are"),
    ("node configuration", "nodes cores memory gpus", "'sinfo -o \"%P %D %c %m %G\"' shows what there is"),
    ("unrecognized option", "system_args", "'sbatch --help' lists the options"),
    ("license", "system_args", "'scontrol show licenses' lists them"),
    ("array", "pilots", "'scontrol show config' names MaxArraySize; submit fewer pilots at once"),
)
UNREACHABLE = (
    "unable to contact slurm controller",
    "timed out",
    "connection refused",
    "connection reset",
    "connect failure",
    "communication connection failure",
    "transport endpoint is not connected",
    "zero bytes were transmitted",
    "controller not responding",
    "in standby mode",
    "temporarily unable",
    "temporarily unavailable",
)
"""What commands say that were not answered, or are to ask again."""


def refusal(said: str, description: PilotDescription, host: str) -> str:
    """Return why sbatch took no job, in one sentence: what, where, its own words, and what to do."""
    low = said.lower()
    for words, attributes, remedy in _REMEDIES:
        if words in low:
            return f"sbatch on {host} refused {_asked(attributes, description)}: {quoted(said)}; {remedy}"
    return f"sbatch on {host} refused the pilot: {quoted(said)}; change its description or ask the site"


def is_unreachable(said: str) -> bool:
    """Return whether a command failed because the controller does not answer."""
    low = said.lower()
    return any(words in low for words in UNREACHABLE)
