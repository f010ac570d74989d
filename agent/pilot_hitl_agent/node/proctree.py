"""Processes as the kernel shows them: who is below whom, what they carry in their environment, and signals to many.

The spawner loads this file by path, so it imports next to nothing and nothing of ours.

Run as ``proctree.py MARK``, it ends everything that carries a pilot's mark: what is left of one whose root was killed.
"""

from __future__ import annotations

import os
import select
import sys
import time

MARK_VARIABLE = "PILOT_HITL_MARK"
LAST_WAIT = 10.0
"""Seconds in which a killed process should end."""
_PF_EXITING = 4


def descendants(pid: int) -> list[int]:
    """Return the process ids below one, parents first."""
    found: list[int] = []
    ahead = [pid]
    while ahead:
        below = children_of(ahead.pop())
        found.extend(below)
        ahead.extend(below)
    return found


def group_of(pid: int) -> int:
    """Return the process group, 0 when the process is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def variable_of(pid: int, name: str) -> str | None:
    """Return a variable of a process's first environment, None when it has none or may not be read."""
    text = _content(f"/proc/{pid}/environ")
    if text is None:
        return None
    text = b"\0" + text
    start = text.find(b"\0" + name.encode() + b"=")
    if start < 0:
        return None
    start += len(name) + 2
    return os.fsdecode(text[start : text.find(b"\0", start)])


def token_hidden(pid: int) -> bool:
    """Return whether a process shows an environment, or hides it from us, so that looking again is of no use."""
    return _content(f"/proc/{pid}/environ") != b""


def is_exiting(pid: int) -> bool:
    """Return whether a process is gone, or about to be."""
    fields = _stat(pid)
    return len(fields) < 7 or fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING)


def state_of(pid: int) -> str:
    """Return the kernel's letter for what a process does (D: uninterruptible sleep), empty when it is gone."""
    fields = _stat(pid)
    return fields[0].decode() if fields else ""


def started(pid: int) -> str:
    """Return when a process started, in ticks since the machine did; "0" when it is gone."""
    fields = _stat(pid)
    return fields[19].decode() if len(fields) > 19 else "0"


def _stat(pid: int) -> list[bytes]:
    """Return what follows the name in a process's ``stat``: state, parent, …; empty when it is gone."""
    text = _content(f"/proc/{pid}/stat") or b""
    # The name may hold spaces and parentheses; what follows its last one does not.
    return text[text.rfind(b")") + 2 :].split()


def kill_marked(mark: str, spare: frozenset[int] = frozenset()) -> int:
    """Kill everything of this user that carries a pilot's mark, but this process, its ancestors and ``spare``.

    After return all of it is gone: its files are closed and its locks free, so what it did may be done anew. Only what
    has not ended within :data:`LAST_WAIT` seconds, in an uninterruptible sleep, is not waited for.

    Returns:
        How many processes were killed. New ones that a killed one had just started are found too.
    """
    keep = {0, 1, os.getpid(), *spare, *_ancestors()}
    uid, killed = os.getuid(), set()
    for _ in range(100):
        found = False
        for entry in os.listdir("/proc"):  # no pathlib here
            if not entry.isdigit() or (pid := int(entry)) in keep:
                continue
            try:
                mine = os.stat(f"/proc/{pid}").st_uid == uid  # no pathlib here
            except OSError:
                continue
            if mine and variable_of(pid, MARK_VARIABLE) == mark:
                killed.add((pid, started(pid)))
                send(pid, 9)
                found = True
        if not found:
            break
        time.sleep(0.002)
    # A process that ends shows no environment from then on, and closes its files only when its memory is given back.
    limit = time.monotonic() + LAST_WAIT
    for pid, began in killed:
        _wait_for(pid, began, limit)
    return len(killed)


def _wait_for(pid: int, began: str, limit: float) -> None:
    """Wait until a process that started then has ended with all its threads, or for ``limit``, monotonic."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if started(pid) == began:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            poller.poll(max(0.0, limit - time.monotonic()) * 1000)
    finally:
        os.close(handle)


def _ancestors() -> list[int]:
    above = dict(parents())
    found, pid = [], os.getppid()
    while pid > 1 and pid not in found:
        found.append(pid)
        pid = above.get(pid, 0)
    return found


def parents() -> list[tuple[int, int]]:
    """Return ``(pid, parent)`` of every process that can be seen."""
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # no pathlib here
    return [(number, int(fields[1])) for number in numbers if len(fields := _stat(number)) > 1]


def children_of(pid: int) -> list[int]:
    """Return the process ids right below one."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # no pathlib here
    except OSError:
        return found
    for thread in threads:
        text = _content(f"/proc/{pid}/task/{thread}/children")
        if text is None and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # no pathlib here
            return [child for child, parent in parents() if parent == pid]
        found.extend(int(child) for child in (text or b"").split())
    return found


def _content(path: str) -> bytes | None:
    """Return what a file of the kernel's holds; None when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    text = b""
    try:
        while chunk := os.read(fd, 1 << 16):
            text += chunk
    except OSError:
        return None
    finally:
        os.close(fd)
    return text


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if it is there."""
    try:  # noqa: SIM105 - contextlib costs as much to import as this whole module
        os.kill(pid, number)
    except OSError:
        # Gone, or a set-uid program that is not ours to signal.
        pass


def send_group(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether somebody was there."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def kill_below(pid: int, number: int) -> None:
    """Send a signal to a process and everything below it."""
    below = descendants(pid)
    send(pid, number)
    for child in below:
        send(child, number)


if __name__ == "__main__":
    kill_marked(sys.argv[1])
