"""Where things lie: the home of a user's sessions, and the short-lived folder of sockets.

::

    $PILOT_HITL_HOME (default ~/.pilot-hitl), 0700
    ├── hub/            keys.json (0600), hub.lock, hub.log, address.json
    └── sessions/NAME/
        ├── session.sqlite
        ├── blobs/      values above 64 kB, by content
        ├── spool/      tmp/ new/ done/: answers given without a server
        ├── requests/   open questions, published as JSON
        └── pilots/N/   logs/ (slot logs, agent.log), tasks/ (a folder an attempt), journal
    $XDG_RUNTIME_DIR or /tmp: pilot-hitl-UID-HASH/, 0700: hub.sock, door.sock, s-*.sock
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

import msgspec

from pilot_hitl.wire.modes import own_folder
from pilot_hitl.wire.processes import start_time

HOME_VARIABLE = "PILOT_HITL_HOME"
MARK_VARIABLE = "PILOT_HITL_MARK"
"""In the environment of every process of a pilot: ``<home hash>/<session>/<pilot>``; strays are found by it."""
SOCKET_PATH_LIMIT = 107
HUB_SOCKET, DOOR_SOCKET = "hub.sock", "door.sock"
"""Where the hub listens for its own machine, and for what its doorman lets in."""
_REMOVED = ".removed-"
LONGEST_SOCKET = "s-0123456789-100000-4194304.sock"
"""Name of the longest path in that folder: a replica's, with the largest number and process id; see ``services``."""


def home() -> Path:
    """Return the absolute folder that holds this user's sessions; it need not exist."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".pilot-hitl").absolute()


def home_hash(folder: Path) -> str:
    """Return a short name for a home, the same whatever path leads to it."""
    return hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=5).hexdigest()


def runtime_folder(home_folder: Path) -> Path:
    """Return the folder for this home's sockets; it need not exist. Short, because socket paths must be.

    Processes with other variables look elsewhere: a hub says in its address which folder it took.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not _is_usable(base):
        base = tempfile.gettempdir()
    name = f"pilot-hitl-{os.getuid()}-{home_hash(home_folder)}"
    if len(os.fsencode(f"{base}/{name}/{LONGEST_SOCKET}")) > SOCKET_PATH_LIMIT:
        base = "/tmp"  # noqa: S108 - the folder below is 0700 and its owner is checked
    return Path(base) / name


def _is_usable(base: str) -> bool:
    """Whether this is a folder of ours in which something can be made: after su, say, it is somebody else's."""
    if not os.path.isabs(base):  # text of a variable
        return False
    try:
        return os.stat(base).st_uid == os.getuid() and os.access(base, os.W_OK | os.X_OK)
    except (OSError, ValueError):
        return False


def sweep_sockets(folder: Path, *names: str) -> None:
    """Remove the sockets of replicas that were killed, and those of these names: nobody else does.

    The folder goes too when it is empty. Call it with ``names`` only while no hub can be there.
    """
    for path in folder.glob("s-*.sock"):
        pid = path.stem.rpartition("-")[2]
        if pid.isdigit() and not start_time(int(pid)):
            path.unlink(missing_ok=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if names:
        with contextlib.suppress(OSError):  # somebody else's socket may still be in it
            folder.rmdir()


class HubAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a home's hub listens: ``hub/address.json``.

    Attributes:
        host: where it runs; ``ipc`` can be used there alone.
        ipc, tcp: endpoints; ``tcp`` is empty until a pilot on other hosts needs it.
    """

    host: str
    ipc: str
    tcp: str = ""


def hub_address(home_folder: Path) -> HubAddress | None:
    """Return where the home's hub listens, or listened last; None when there is no word of any."""
    try:
        return msgspec.json.decode((home_folder / "hub" / "address.json").read_bytes(), type=HubAddress)
    except (OSError, msgspec.MsgspecError):
        return None


def publish_hub_address(home_folder: Path, address: HubAddress) -> None:
    """Tell where the hub listens; readers see the old text or the new one, nothing between.

    Raises:
        OSError: it cannot be written.
    """
    path = home_folder / "hub" / "address.json"
    partial = path.with_name(f".address.{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(address))
    partial.replace(path)


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can enter, or check that it is one.

    Raises:
        PermissionError: it belongs to somebody else or others may enter it.
    """
    with contextlib.suppress(FileExistsError):  # what it is, is looked at below
        own_folder(folder)
    check_private(folder)
    return folder


def check_private(folder: Path) -> None:
    """Refuse a folder that others made, or may enter.

    Raises:
        PermissionError: it is one, or no folder, or a link.
        OSError: it does not exist, or cannot be looked at.
    """
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        what = "" if stat.S_ISDIR(facts.st_mode) else "it is no folder, "
        raise PermissionError(
            f"{folder} must be a folder of yours that nobody else can enter ({what}owner uid {facts.st_uid}, mode "
            f"{stat.S_IMODE(facts.st_mode):o}): run chmod 700 on it, remove it, or set {HOME_VARIABLE} to another place"
        )


class SessionPlaces:
    """Paths of one session. Makes nothing by itself."""

    def __init__(self, home_folder: Path, name: str) -> None:
        """Name the paths of session ``name`` under ``home_folder``."""
        self.name = name
        self.folder = home_folder / "sessions" / name
        self.database = self.folder / "session.sqlite"
        self.blobs = self.folder / "blobs"
        self.spool = self.folder / "spool"
        self.requests = self.folder / "requests"
        self.mark = f"{home_hash(home_folder)}/{name}"

    def remove(self) -> None:
        """Remove the session with everything in its folder; nothing happens where there is none.

        Raises:
            OSError: it cannot be removed, and is whole, or its remains have a name that is no session's.
            NotADirectoryError: its folder is a link: what lies elsewhere is nobody's to remove by another name.
        """
        if self.folder.is_symlink():
            raise NotADirectoryError(
                f"{self.folder} is a link to {self.folder.readlink()}, and what lies there is left alone: remove that "
                f"folder yourself if it is to go, and the link with rm {self.folder}"
            )
        # Renamed first: a session that is half removed must not look like a whole one.
        doomed = self.folder.with_name(f"{_REMOVED}{secrets.token_hex(6)}")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(doomed)
        for each in self.folder.parent.glob(f"{_REMOVED}*"):  # and what an earlier removal left that was cut short
            if not each.is_symlink():
                shutil.rmtree(each)

    def pilot(self, pilot: int) -> Path:
        """Return the folder of a pilot."""
        return self.folder / "pilots" / str(pilot)
