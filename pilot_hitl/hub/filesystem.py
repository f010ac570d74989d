"""What kind of file system a path is on, because SQLite's write-ahead log is safe only on a local one."""

from __future__ import annotations

import os
from pathlib import Path

NETWORK = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "panfs", "orangefs", "pvfs2", "glusterfs", "9p"}
)


def kind_of(path: Path) -> str:
    """Return the kernel's name of the file system that holds ``path`` (which need not exist yet)."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    device = existing.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        mount = fields[4].encode().decode("unicode_escape", errors="replace")
        if fields[2] == wanted:
            return after.split()[0]
        if str(existing.resolve()).startswith(mount) and len(mount) > len(best):
            best, kind = mount, after.split()[0]
    return kind


def is_local(path: Path) -> bool:
    """Return whether every process that could open ``path`` runs on this host."""
    kind = kind_of(path)
    return kind not in NETWORK and not kind.startswith("fuse")
