"""The processes of an attempt on this node, wherever they hang: found by their environment, seen to end by the kernel.

Ranks that a launcher started are children of Slurm's or of the launcher's daemons, not of our spawner. All that ties
them to their attempt are the variables that they were started with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from pilot_hitl.wire.current import ATTEMPT_VARIABLE, RANK_VARIABLE
from pilot_hitl.wire.places import MARK_VARIABLE
from pilot_hitl_agent.node.proctree import descendants

_ATTEMPT = f"{ATTEMPT_VARIABLE}=".encode()
_RANK = f"{RANK_VARIABLE}=".encode()
_MARK = f"{MARK_VARIABLE}=".encode()


class Seen:
    """Processes found now.

    Attributes:
        ranks: of the program, with everything below them, and shims that are about to become one.
        others: pieces of launchers.
    """

    __slots__ = ("others", "ranks")

    def __init__(self, ranks: list[int], others: list[int]) -> None:
        self.ranks = ranks
        self.others = others


def look(attempt: str, mark: str, shim: str) -> Seen:
    """Find what belongs to an attempt of the pilot that ``mark`` names, as far as it is this node's.

    Ranks carry the mark of their own node; pieces of launchers carry that of the node that ran the launcher.
    """
    wanted = _ATTEMPT + os.fsencode(attempt)
    ranks: list[int] = []
    others: list[int] = []
    for pid, variables in _environments():
        if wanted not in variables:
            continue
        theirs = next((os.fsdecode(each[len(_MARK) :]) for each in variables if each.startswith(_MARK)), "")
        if _runs(pid, shim):
            if _same_pilot(theirs, mark):
                ranks.append(pid)
        elif any(each.startswith(_RANK) for each in variables):
            if theirs == mark:
                ranks.append(pid)
        elif _same_pilot(theirs, mark):
            others.append(pid)
    known = {*ranks, *others}
    for pid in list(ranks):
        # What cleared its environment is still below its rank.
        below = [child for child in descendants(pid) if child not in known]
        known.update(below)
        ranks.extend(below)
    return Seen(ranks, others)


def ranks_of_node(mark: str) -> list[int]:
    """Find the ranks of all attempts that carry a node's mark."""
    wanted = _MARK + os.fsencode(mark)
    return [
        pid
        for pid, variables in _environments()
        if wanted in variables
        and any(each.startswith(_RANK) for each in variables)
        and any(each.startswith(_ATTEMPT) for each in variables)
    ]


def ranks_of_attempt(attempt: str, mark: str) -> dict[bytes, list[int]]:
    """Return the processes of an attempt that carry a node's mark, by the number of their rank."""
    wanted, own = _ATTEMPT + os.fsencode(attempt), _MARK + os.fsencode(mark)
    found: dict[bytes, list[int]] = {}
    for pid, variables in _environments():
        if wanted in variables and own in variables:
            rank = next((each for each in variables if each.startswith(_RANK)), b"")
            if rank:
                found.setdefault(rank, []).append(pid)
    return found


def send(pids: list[int], number: int) -> None:
    """Signal processes; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Watch:
    """Tells when processes that are nobody's children here are gone."""

    def __init__(self, watch: Callable[[int, bool], None], unwatch: Callable[[int], None]) -> None:
        """Poll descriptors through ``watch``; none is open before :meth:`add`."""
        self._watch = watch
        self._unwatch = unwatch
        self._owners: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def add(self, owner: int, pids: list[int]) -> int:
        """Watch processes for ``owner``; returns how many of them still live, which may be none."""
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                # Gone already.
                continue
            self._owners[fd] = owner
            self._left[owner] = self._left.get(owner, 0) + 1
            self._watch(fd, False)
        return self._left.get(owner, 0)

    def watches(self, owner: int) -> bool:
        """Return whether anything is waited for."""
        return owner in self._left

    def ended(self, fd: int) -> int | None:
        """Take the end of one; returns the owner of whom it was the last one, 0 when others are left.

        None: the descriptor is none of these.
        """
        owner = self._owners.pop(fd, None)
        if owner is None:
            return None
        self._unwatch(fd)
        os.close(fd)
        self._left[owner] -= 1
        if self._left[owner]:
            return 0
        del self._left[owner]
        return owner

    def close(self) -> None:
        """Watch nothing any more."""
        for fd in list(self._owners):
            self._unwatch(fd)
            os.close(fd)
        self._owners.clear()
        self._left.clear()


def _environments() -> list[tuple[int, list[bytes]]]:
    """Return the first environment of each process of this user, but this one and its ancestors."""
    uid, found = os.getuid(), []
    spare = {os.getpid(), os.getppid()}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spare:
            continue
        try:
            fd = os.open(f"/proc/{entry}/environ", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_uid != uid:
                continue
            text = b""
            while chunk := os.read(fd, 1 << 16):
                text += chunk
        except OSError:
            continue
        finally:
            os.close(fd)
        if text:
            found.append((int(entry), text.split(b"\0")))
    return found


def _runs(pid: int, shim: str) -> bool:
    """Return whether a process is a rank shim that has not become its rank yet (not the one that starts all ranks)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return False
    return os.fsencode(shim) in words[1:4] and b"--all" not in words[4:5]


def _same_pilot(theirs: str, mine: str) -> bool:
    return theirs == mine or (bool(theirs) and theirs.rpartition("/")[0] == mine.rpartition("/")[0] != "")
