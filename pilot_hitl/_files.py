"""Looking at the files that work depends on, each once for everything that is submitted together.

Of a program these are the executable and the files that its arguments name, where they are the user's own; the sources
of its ``input_staging``; and what ``reads`` names. Of a call they are the paths among its arguments, the
:class:`~pilot_hitl.model.files.File` and the paths of files that its function captured, and what ``reads`` names.

What belongs to the system does not count: what lies in its folders, and what root owns while the user is somebody else.
"""

from __future__ import annotations

import glob
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from pilot_hitl.errors import DescriptionError
from pilot_hitl.model.descriptions import TaskDescription
from pilot_hitl.model.files import NOTHING, TAKEN, File, FileState
from pilot_hitl.model.staging import PILOT, SANDBOX, SESSION, Directive, has_pattern

DIGEST_BYTES = 16
MAX_ENTRIES = 50_000
"""Files below a folder that are looked at; one with more is known by what lies directly in it."""
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/lib", "/etc/", "/dev/", "/proc/", "/sys/", "/nix/store/")
_SKIPPED = frozenset({"__pycache__", ".git"})
_BLOCK = 1 << 20
_programs: dict[tuple[str, str], str] = {}
"""Where programs lie by name and PATH; empty for those of the system."""
_hashes: dict[tuple[str, int, int, int, int], bytes] = {}
"""Content hashes by path, inode, size and times: a file that did not change is read once a process."""


class PathArgument(File):
    """A plain path among the arguments of a call: what it names may be made by the call itself."""

    __slots__ = ()


class CapturedPath(PathArgument):
    """A plain path that a function captured: it counts where it names a file, and not as a folder."""

    __slots__ = ()


class Look:
    """One look at files. For one bulk: what is asked for twice is looked at once."""

    def __init__(self, session: Path) -> None:
        """See ``session:///`` as this folder; what is written below it while work goes on never counts."""
        self._session = str(session)
        self._seen: dict[tuple[str, bool], FileState] = {}
        self._argued: dict[str, FileState | None] = {}

    # --- of programs ----------------------------------------------------------------------------------------------

    def of_task(self, task: TaskDescription, inward: Iterable[Directive], sandbox: str) -> list[FileState]:
        """Return the files that a program depends on; ``sandbox`` is the one that was asked for, absolute."""
        found: dict[str, FileState] = {}

        def add(state: FileState | None) -> None:
            if state is not None:
                found.setdefault(state.path, state)

        if program := _program(task, sandbox):
            add(self.state(program))
        for text in task.arguments:
            add(self._argument(text, sandbox))
        for each in inward:
            add(self._staged(each))
        for named in task.reads:
            add(self.named(named))
        return list(found.values())

    def _argument(self, text: str, sandbox: str) -> FileState | None:
        """Return the user's own file that an argument names, as it is or after its first ``=``."""
        if text in self._argued:
            return self._argued[text]
        found = None
        option, equals, rest = text.partition("=")
        for name in (text, rest) if equals and option.startswith("-") else (text,):
            if not name or name[0] == "-" or len(name) > 4096 or "\0" in name or name.isdecimal():
                continue
            for folder in (sandbox, "") if sandbox and not os.path.isabs(name) else ("",):
                found = found or self._own_file(os.path.join(folder, name))  # text on the wire
        self._argued[text] = found
        return found

    def _own_file(self, named: str) -> FileState | None:
        try:
            path = os.path.abspath(named)  # text on the wire
        except OSError:
            return None  # the script's working directory is gone, and nothing lies in it
        if path.startswith(_SYSTEM):
            return None
        try:
            facts = os.stat(path)  # a Path costs as much again, and most arguments name no file
        except (OSError, ValueError):
            return None
        return _state(path, facts) if stat.S_ISREG(facts.st_mode) and _is_ours(facts) else None

    def _staged(self, directive: Directive) -> FileState | None:
        """Return what a directive's source names; None where only the agent, or another task, knows it."""
        root = directive.root
        if root in (SANDBOX, PILOT):
            return None
        path = os.path.join(self._session if root == SESSION else root, directive.source)  # text on the wire
        state = self._matching(path)
        if directive.action == "move" and not state.there:
            return FileState(state.path, TAKEN)
        return state

    # --- of both --------------------------------------------------------------------------------------------------

    def named(self, named: str | File) -> FileState:
        """Return what somebody named as a file that is read: a path, a pattern, or a :class:`File`."""
        if isinstance(named, File):
            state = self.state(named.path, hashed=named.hashed)
            return FileState(state.path, NOTHING) if isinstance(named, CapturedPath) and state.several else state
        try:
            path = os.path.abspath(os.path.expanduser(named))  # text on the wire
        except OSError as error:
            raise DescriptionError(
                f"reads: {named!r} is relative, and this script's working directory is gone"
            ) from error
        return self._matching(path)

    def of_argument(self, file: File) -> FileState:
        """Return what a call's own argument names.

        Raises:
            DescriptionError: its content is meant, and it is not there.
        """
        state = self.state(file.path, hashed=file.hashed)
        if not isinstance(file, PathArgument) and not state.there:
            raise DescriptionError(f"{file!r}: there is no such file; make it first, or pass a plain path")
        return state

    def state(self, path: str, *, hashed: bool = False) -> FileState:
        """Return what is at an absolute path now."""
        known = self._seen.get((path, hashed))
        if known is None:
            known = self._seen[path, hashed] = self._look(path, hashed)
        return known

    def _look(self, path: str, hashed: bool) -> FileState:
        try:
            facts = os.stat(path)  # as above
            if stat.S_ISDIR(facts.st_mode):
                return self._several(path, [path], hashed)
            if not stat.S_ISREG(facts.st_mode):
                return FileState(path, 0)  # a device has no content of its own
            return _state(path, facts, hashed=hashed)
        except (OSError, ValueError):
            return FileState(path, NOTHING)

    def _matching(self, path: str) -> FileState:
        if not has_pattern(path) or os.path.lexists(path):
            return self.state(os.path.normpath(path))
        known = self._seen.get((path, False))
        if known is None:
            found = sorted(glob.glob(path.replace("[^", "[!")))  # as the agent will find them
            state = self._several(path, found, hashed=False) if found else FileState(path, NOTHING)
            known = self._seen[path, False] = state
        return known

    def _several(self, path: str, tops: list[str], hashed: bool) -> FileState:
        """Return what is known of files and of all below folders, as one."""
        entries = self._entries(tops)
        if entries is None:
            entries = [each for top in tops for each in _directly_in(top)]
        newest, content = 0, blake2b(digest_size=DIGEST_BYTES)
        for name, facts in sorted(entries, key=lambda entry: entry[0]):
            newest = max(newest, facts.st_mtime_ns)
            mark = _hash_of(name, facts).hex() if hashed and stat.S_ISREG(facts.st_mode) else str(facts.st_mtime_ns)
            told = f"{os.path.relpath(name, path) if len(tops) == 1 else name}\0{facts.st_size}\0{mark}\n"
            content.update(told.encode("utf-8", "surrogateescape"))
        return FileState(path, len(entries), 0 if hashed else newest, content.digest(), several=True)

    def _entries(self, tops: list[str]) -> list[tuple[str, os.stat_result]] | None:
        """Return all files below, with their facts; None when they are too many."""
        entries: list[tuple[str, os.stat_result]] = []
        folders: set[tuple[int, int]] = set()  # links may lead back to where they are
        todo = list(tops)
        while todo:
            top = todo.pop()
            try:
                facts = os.stat(top)  # as above
            except OSError:
                continue  # a link to nothing
            mark = (facts.st_dev, facts.st_ino)
            if not stat.S_ISDIR(facts.st_mode):
                entries.append((top, facts))
            elif top != self._session and os.path.basename(top) not in _SKIPPED and mark not in folders:
                folders.add(mark)
                todo.extend(f"{top}/{name}" for name in _names_in(top))
            if len(entries) + len(todo) > MAX_ENTRIES:
                return None
        return entries


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # names are joined as text
    except OSError:
        return []


def _directly_in(folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    for name in _names_in(folder):
        path = f"{folder}/{name}"
        try:
            found.append((path, os.stat(path)))  # as above
        except OSError:
            continue
    return found


def _program(task: TaskDescription, sandbox: str) -> str:
    """Return where the program lies when it is the user's own; empty otherwise, and when it is not there yet."""
    name, places = task.executable, task.environment.get("PATH", os.environ.get("PATH", ""))
    if "/" in name and not os.path.isabs(name):
        return os.path.abspath(os.path.join(sandbox, name)) if sandbox else ""  # text on the wire
    known = _programs.get((name, places))
    if known is None:
        path = name if "/" in name else shutil.which(name, path=places) or ""
        known = "" if not path or _is_of_the_system(path) else os.path.abspath(path)
        if path:
            _programs[name, places] = known
    return known


def _is_of_the_system(path: str) -> bool:
    real = os.path.realpath(path)
    if real.startswith(_SYSTEM) or real == os.path.realpath(sys.executable):
        return True
    try:
        return not _is_ours(os.stat(real))
    except OSError:
        return False


def _is_ours(facts: os.stat_result) -> bool:
    """Return whether a file belongs to a person: root's do only while the user is root."""
    return facts.st_uid != 0 or os.geteuid() == 0


def _state(path: str, facts: os.stat_result, *, hashed: bool = False) -> FileState:
    if hashed:
        return FileState(path, facts.st_size, 0, _hash_of(path, facts))
    return FileState(path, facts.st_size, facts.st_mtime_ns)


def _hash_of(path: str, facts: os.stat_result) -> bytes:
    """Return the hash of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    key = (path, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    known = _hashes.get(key)
    if known is None:
        state = blake2b(digest_size=DIGEST_BYTES)
        with open(path, "rb") as file:  # as above
            while block := file.read(_BLOCK):
                state.update(block)
        known = _hashes[key] = state.digest()
    return known
