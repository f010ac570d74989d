"""The rank shim: what a launcher starts on every slot of a gang. It becomes one rank of the program.

It learns from the launcher's variables which rank it is, takes that rank's cores, devices and variables from the job
file, makes sure that the launcher and the program's MPI understand each other, and replaces itself by the program.
Like the spawner it is run by path under ``python -I -S``, must not import anything of ours, and imports next to
nothing::

    shim.py FOLDER/job
    shim.py --all FOLDER/job     starts all ranks on this node, and ends with the first that fails

The job file is marshalled, as importing json would take four times as long as all the rest. Its folder is on the file
system that all nodes share. When it is gone, the attempt is over. The daemon of a node leaves word in ``state.NODE``
for ranks that come up later: ``ended`` or ``stopped``.
"""

from __future__ import annotations

import marshal
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

JOB, WARNING = "job", "warning"
LOOKS = (0.5, 2.5, 7.0)
"""Seconds between looks at a program that does not show its MPI from outside."""
_LIBRARIES = (("libmpi.so.40", "openmpi"), ("libmpich.so.12", "mpich"), ("libmpi.so.12", "mpich"))
FAILED = 121
"""Exit code when it could not become the rank; a line on standard error that starts with the job's secret says why."""
CHECK_VARIABLE = "PILOT_HITL_MPI_CHECK"
"""Set to 0 for a program whose MPI is more able than its file shows."""
ALL = "--all"
_LOCAL = "PILOT_HITL_SHIM_RANK"
_RANKS = {
    "local": (_LOCAL,),
    "srun": ("SLURM_PROCID",),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "PMIX_RANK"),
    "mpiexec": ("PMI_RANK", "PMIX_RANK"),
    "prte": ("PMIX_RANK",),
    "flux": ("FLUX_TASK_RANK",),
}
_OTHERS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "FLUX_TASK_RANK", "SLURM_PROCID")
_MISSING = frozenset((2, 13, 20, 40, 21, 1))  # ENOENT, EACCES, ENOTDIR, ELOOP, EISDIR, EPERM
_ENOEXEC = 8
_SIGSTOP = 19
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "ppc64le": 261}
_MPOL_PREFERRED = 1
_NODES = "/sys/devices/system/node"


def rank_of(variables: Any, method: str) -> int:
    """Return the rank that a launcher gave this process; -1 when it gave none.

    A launcher may itself have been started by another one, so its own variable goes before all others.
    """
    for name in (*_RANKS.get(method, ()), *_OTHERS):
        text = variables.get(name, "")
        if text.isdigit():
            return int(text)
    return -1


def place_of(shares: Any, rank: int) -> tuple[int, int, int]:
    """Return ``(share, index in it, ranks of it)`` of a rank.

    Raises:
        IndexError: there is no such rank.
    """
    before = 0
    for number, share in enumerate(shares):
        here = len(share["ranks"])
        if before <= rank < before + here:
            return number, rank - before, here
        before += here
    raise IndexError(rank)


def mismatch(flavour: str, pmix_too: bool, variables: Any) -> str:
    """Return what a program's MPI waits for in vain, given what the launcher set; empty when they fit."""
    pmix = "PMIX_RANK" in variables
    pmi = "PMI_RANK" in variables or "PMI_FD" in variables or "PMI_PORT" in variables
    cray = "PMI_CONTROL_PORT" in variables or "PALS_RANKID" in variables
    if flavour == "openmpi" and not (pmix or pmi or "OMPI_COMM_WORLD_RANK" in variables):
        return "PMIx"
    if flavour in ("mpich", "intel") and not (pmi or cray or (pmix and pmix_too)):
        return "PMI-1 or PMI-2"
    if flavour == "cray" and not (pmi or cray or pmix):
        return "Cray's PMI"
    return ""


def rank_variables(job: Any, rank: int) -> dict[str, str]:
    """Return the variables of one rank: ours and those that torch.distributed reads."""
    number, index, here = place_of(job["shares"], rank)
    share = job["shares"][number]
    variables = dict(job["variables"])
    variables.update(share["variables"])
    variables.update(share["ranks"][index]["variables"])
    variables["PILOT_HITL_RANK"] = variables["RANK"] = str(rank)
    variables["LOCAL_RANK"] = str(index)
    variables["LOCAL_WORLD_SIZE"] = str(here)
    variables["NODE_RANK"] = variables["GROUP_RANK"] = str(number)
    return variables


def numa_node(cpus: Any, root: str = _NODES) -> int:
    """Return the memory node that all these CPUs belong to; -1 when it is several, or there is only one."""
    found = -1
    count = 0
    try:
        entries = [entry for entry in os.listdir(root) if entry[4:].isdigit() and entry.startswith("node")]
        for entry in entries:
            count += 1
            with open(f"{root}/{entry}/cpulist", encoding="ascii") as file:  # no pathlib here
                theirs = parse_cpus(file.read())
            if all(cpu in theirs for cpu in cpus):
                found = int(entry[4:])
    except (OSError, ValueError):
        return -1
    return found if count > 1 else -1


def parse_cpus(text: str) -> set[int]:
    """Read the kernel's notation of CPU lists: ``0-3,8``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found


def prefer_memory(node: int) -> None:
    """Let memory come from a node of memory as long as it has some; without effect where the kernel cannot."""
    import ctypes

    number = _SET_MEMPOLICY.get(os.uname().machine)
    if number is not None:
        mask = ctypes.c_ulong(1 << node)
        ctypes.CDLL(None).syscall(number, _MPOL_PREFERRED, ctypes.byref(mask), 8 * ctypes.sizeof(mask))


def state_of(folder: str, node: int) -> str:
    """Return what the daemon of a node has left for ranks that come up later; empty for nothing."""
    try:
        with open(f"{folder}/state.{node}", encoding="ascii") as file:  # no pathlib here
            return file.read()
    except OSError:
        return ""


def mapped_mpi(pid: int) -> str:
    """Return whose MPI library a process, or one below it, has in its memory; empty for none."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:  # no pathlib here
            text = file.read()
        threads = os.listdir(f"/proc/{pid}/task")  # no pathlib here
    except OSError:
        return ""
    for name, flavour in _LIBRARIES:
        if f"/{name}" in text:
            return flavour
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:  # no pathlib here
                children = file.read().split()
        except OSError:
            continue
        for child in children:
            if found := mapped_mpi(int(child)):
                return found
    return ""


def leave_witness(job: Any, folder: str, rank: int, variables: dict[str, str]) -> None:
    """See later which MPI a program uses that does not show it, and leave word when the launcher does not serve it.

    It is one process for each gang, beside its first rank, nobody's child and with nothing open.
    """
    if rank or job["flavour"] or not _checks(job, variables):
        return
    pid = os.getpid()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    for fd in (0, 1, 2):
        os.close(fd)
    for seconds in LOOKS:
        time.sleep(seconds)
        flavour = mapped_mpi(pid)
        lacks = mismatch(flavour, False, variables)
        if lacks:
            _leave_word(job, folder, flavour, lacks)
        if flavour:
            break
    os._exit(0)


def _leave_word(job: Any, folder: str, flavour: str, lacks: str) -> None:
    whose = {"openmpi": "Open MPI", "mpich": "an MPICH"}[flavour]
    text = (
        f"{job['program']} runs with {whose} library, which waits for {lacks}; {job['launcher']} does not give that: "
        "its ranks may run as that many programs of one rank each"
    )
    try:
        fd = os.open(f"{folder}/{WARNING}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)  # whatever the task's umask is
        os.write(fd, text.encode())
        os.close(fd)
    except OSError:
        # The attempt is over.
        return


def fail(job: Any, text: str, code: int = 0) -> None:
    """Say why this cannot become the rank, and exit."""
    os.write(2, f"\n{job['secret']}:{code}:{text}\n".encode(errors="replace"))
    os._exit(FAILED)


def become(job: Any, folder: str) -> None:
    """Become the rank; returns only by not returning."""
    variables = dict(os.environ)
    rank = rank_of(variables, job["method"])
    here = variables.get("SLURMD_NODENAME", "") or os.uname().nodename
    if rank < 0:
        fail(job, f"shim {job['launcher']} told the process on {here} no rank, so there is no telling which it is")
    try:
        number, index, _ = place_of(job["shares"], rank)
    except IndexError:
        fail(job, f"shim {job['launcher']} started a rank {rank} on {here}, one more than were asked for")
        return
    share = job["shares"][number]
    meant = share["name"]
    if "SLURMD_NODENAME" in variables and meant and variables["SLURMD_NODENAME"] != meant and len(job["shares"]) > 1:
        fail(job, f"shim {job['launcher']} started rank {rank} on {here} instead of {meant}")
    _check_mpi(job, rank, here, variables)
    try:
        os.chdir(job["cwd"])
    except OSError as error:
        fail(job, f"shim the working directory {job['cwd']} cannot be entered on {here}: {error.strerror}")
    cpus = share["ranks"][index]["cpus"]
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            fail(job, f"shim rank {rank} cannot be bound to the cores {cpus} of {here}: {error.strerror}")
        if (memory := numa_node(cpus)) >= 0:
            prefer_memory(memory)
    variables.update(rank_variables(job, rank))
    variables.pop(_LOCAL, None)
    variables.pop("OLDPWD", None)
    variables["PWD"] = job["cwd"]
    leave_witness(job, folder, rank, variables)
    _wait_for_leave(folder, share["node"])
    _execute(job, here, variables)


def _checks(job: Any, variables: dict[str, str]) -> bool:
    return bool(job["variables"].get(CHECK_VARIABLE, variables.get(CHECK_VARIABLE, "")) != "0")


def _check_mpi(job: Any, rank: int, here: str, variables: dict[str, str]) -> None:
    if not _checks(job, variables):
        return
    lacks = mismatch(job["flavour"], job["pmix"], variables)
    if lacks:
        fail(
            job,
            f"shim {job['program']} is {job['called']} and waits for {lacks}, which {job['launcher']} does not give "
            f"(seen by rank {rank} on {here}): its ranks would run as that many programs of one rank each; "
            f"{job['remedy']}",
        )


def _wait_for_leave(folder: str, node: int) -> None:
    while (state := state_of(folder, node)) == "stopped":
        os.kill(os.getpid(), _SIGSTOP)
    if state == "ended" or not os.path.exists(f"{folder}/{JOB}"):  # no pathlib here
        os._exit(FAILED)


def _execute(job: Any, here: str, variables: dict[str, str]) -> None:
    argv = job["argv"]
    try:
        os.execve(argv[0], argv, variables)
    except OSError as error:
        number, why = error.errno or 5, error.strerror
    if number == _ENOEXEC:
        # As every shell does: a script without a first line is the shell's.
        os.execve("/bin/sh", ["/bin/sh", *argv], variables)
    what = "program" if number in _MISSING else "shim cannot start"
    fail(job, f"{what} {argv[0]} on {here}: {why}")


def start_all(job: Any, folder: str) -> int:
    """Start all ranks and wait for them; returns the exit code of the first that failed, when it failed."""
    ranks: dict[int, int] = {}
    status = 0
    for rank in range(len(job["shares"][0]["ranks"])):
        pid = os.fork()
        if not pid:
            os.setsid()
            os.environ[_LOCAL] = str(rank)
            become(job, folder)
        ranks[pid] = rank
    while ranks:
        pid, raw = os.wait()
        if ranks.pop(pid, None) is None:
            continue
        code = os.waitstatus_to_exitcode(raw)
        if code and not status:
            status = code if code > 0 else 128 - code
            for other in ranks:
                os.kill(other, 9)
    return status


def main(arguments: list[str]) -> int:
    """Run; returns only when there is nothing to become."""
    every = arguments[:1] == [ALL]
    if len(arguments) != 1 + every:
        sys.stderr.write("usage: shim.py [--all] FOLDER/job\n")
        return 2
    try:
        with open(arguments[-1], "rb") as file:  # no pathlib here
            job = marshal.load(file)
    except FileNotFoundError:
        # The attempt ended while this process was on its way.
        return FAILED
    folder = os.path.dirname(arguments[-1])  # no pathlib here
    if every:
        return start_all(job, folder)
    become(job, folder)
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
