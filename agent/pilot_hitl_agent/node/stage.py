"""The stager: brings files into a sandbox, becomes or runs the program, and brings files out of the sandbox.

It runs in the attempt's own process tree, so that a large copy never holds up the daemon and is killed with the task.
Like the spawner it is run by path under ``python -I -S``, must not import anything of ours, and imports next to
nothing::

    stage.py JOB [PROGRAM ARGUMENT…]

``JOB`` is a marshalled :data:`Job` in hexadecimal digits, or ``@`` and the path of a file that holds it. What it did it
appends to the job's report, a line each (:mod:`.steps` reads them); nothing of it is ever said on the task's own
standard error.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module signal imports enum
import marshal
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Move = tuple[str, str, str, str, str, bool, str]
    """``(text, action, root, source, target, folder, whose)``: see ``model.staging.Directive``; ``target`` is absolute,
    and ``whose`` names the task whose sandbox ``root`` is."""
    Job = tuple[str, list[Move], list[Move]]
    """``(report, before the program, after it)``"""

TREE = "tree"
"""An action beside those of directives: a copy of a folder that keeps the links in it."""
FAILED = 121
"""Exit code when a step of its own failed."""
_BLOCK = 1 << 24
_ENOENT, _EACCES, _EXDEV, _ENOEXEC, _ENOTDIR = 2, 13, 18, 8, 20
_SHELL = "/bin/sh"
_INHERITED = (int(_signal.SIGPIPE), int(_signal.SIGXFSZ))
"""Python ignores these two; an ignored signal would be inherited by the program."""


class StagingError(Exception):
    """A directive cannot be done; the text says why."""


class Stager:
    """Does directives; remembers the targets, as no two may have the same."""

    def __init__(self) -> None:
        """Begin with none."""
        self.targets: dict[str, str] = {}

    def do(self, move: Move) -> list[str]:
        """Do one directive and return the paths that it made.

        Raises:
            StagingError: it cannot be done.
        """
        _, action, root, given, target, into_folder, whose = move
        try:
            sources, is_pattern = matches(root, given)
            if action == TREE and not sources:
                # A folder that nothing was put into is not kept.
                os.makedirs(target, exist_ok=True)
            elif not sources:
                what = os.strerror(_ENOENT) + (", nothing matches it" if has_pattern(given) else "")
                raise StagingError(f"{os.path.join(root, given)}: {what}{f' ({whose})' if whose else ''}")
            if is_pattern and not into_folder:
                raise StagingError("it is a pattern, so its target is a folder: end that with '/'")
            return [self._one(action, source, target, into_folder, given.endswith("/")) for source in sources]
        except OSError as error:
            name = error.filename2 or error.filename
            raise StagingError(f"{os.fsdecode(name)}: {error.strerror}" if name else str(error.strerror)) from None
        except ValueError as error:
            # A name that no file can have.
            raise StagingError(str(error)) from None

    def _one(self, action: str, source: str, target: str, into_folder: bool, must_be_folder: bool) -> str:
        try:
            facts = os.stat(source)
        except OSError as error:
            if not os.path.islink(source):
                raise
            raise StagingError(f"{source}: the link leads to {os.readlink(source)}, which is not there") from error
        is_folder = stat.S_ISDIR(facts.st_mode)
        if must_be_folder and not is_folder:
            raise StagingError(f"{source}: it is no folder")
        if into_folder or (not is_folder and os.path.isdir(target)):
            target = os.path.join(target, base_name(source))
        target = os.path.normpath(target)
        before = self.targets.setdefault(target, source)
        if before != source:
            raise StagingError(f"{before} and {source} have the same target {target}")
        if is_same(source, target):
            # It is where it is meant to be.
            return target
        if is_folder and is_below(target, source):
            raise StagingError(f"{source}: a folder cannot be staged into itself ({target})")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if action == "link":
            link(source, target)
        elif action == "move":
            move(source, target)
        else:
            copy(source, target, follow=action != TREE, trail=())
        return target


# --- finding ----------------------------------------------------------------------------------------------------------


def matches(root: str, given: str) -> tuple[list[str], bool]:
    """Return what a source names below a root, and whether it did so as a pattern. A file of that very name wins."""
    literal = os.path.join(root, given.rstrip("/") or ".")
    if os.path.lexists(literal):
        return [literal], False
    if not has_pattern(given):
        return [], False
    found = [root]
    for part in given.split("/"):
        if not part or part == ".":
            continue
        if has_pattern(part):
            found = [
                os.path.join(folder, name)
                for folder in found
                for name in names_in(folder)
                if (name[0] != "." or part[0] == ".") and fits(name, part)
            ]
        else:
            found = [path for folder in found if os.path.lexists(path := os.path.join(folder, part))]
    if given.endswith("/"):
        found = [path for path in found if os.path.isdir(path)]
    return found, True


def names_in(folder: str) -> list[str]:
    """Return the names in a folder, sorted; none when it is no folder.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def has_pattern(text: str) -> bool:
    """Return whether a path may be a pattern."""
    return "*" in text or "?" in text or "[" in text


def fits(name: str, pattern: str) -> bool:
    """Return whether a name fits one part of a pattern, as in a shell: ``*``, ``?``, ``[a-z]``, ``[!a-z]``."""
    at = in_pattern = 0
    star, resume = -1, 0
    while at < len(name):
        end = one(name[at], pattern, in_pattern) if in_pattern < len(pattern) else -1
        if in_pattern < len(pattern) and pattern[in_pattern] == "*":
            star, resume = in_pattern, at
            in_pattern += 1
        elif end >= 0:
            at, in_pattern = at + 1, end
        elif star >= 0:
            # Let the last star take one more.
            resume += 1
            at, in_pattern = resume, star + 1
        else:
            return False
    return not pattern[in_pattern:].strip("*")


def one(character: str, pattern: str, at: int) -> int:
    """Return where a pattern goes on when what stands at ``at`` takes the character; -1 when it does not."""
    wanted = pattern[at]
    if wanted == "?":
        return at + 1
    # A bracket that is first in a set belongs to it.
    end = pattern.find("]", at + (3 if pattern[at + 1 : at + 2] in ("!", "^") else 2)) if wanted == "[" else -1
    if end < 0:
        return at + 1 if wanted == character else -1
    letters = pattern[at + 1 : end]
    negated = letters[0] in "!^"
    letters = letters[negated:]
    found, index = False, 0
    while index < len(letters):
        first = last = letters[index]
        if letters[index + 1 : index + 2] == "-" and index + 2 < len(letters):
            last = letters[index + 2]
            index += 2
        found = found or first <= character <= last
        index += 1
    return end + 1 if found != negated else -1


def base_name(path: str) -> str:
    """Return the last part of a path."""
    return os.path.basename(path.rstrip("/"))


def is_same(source: str, target: str) -> bool:
    """Return whether two paths are one file, which is not a link from the one to the other."""
    try:
        return os.path.samestat(os.lstat(source), os.lstat(target)) or os.path.realpath(source) == os.path.join(
            os.path.realpath(os.path.dirname(target)), os.path.basename(target)
        )
    except OSError:
        return False


def is_below(target: str, folder: str) -> bool:
    """Return whether a path lies below a folder."""
    inner = os.path.realpath(os.path.dirname(target))
    outer = os.path.realpath(folder)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


# --- doing ------------------------------------------------------------------------------------------------------------


def link(source: str, target: str) -> None:
    """Make a link to a file or folder; a file or link that is there is replaced.

    Raises:
        OSError, StagingError: it cannot be made.
    """
    if os.path.isdir(target) and not os.path.islink(target):
        raise StagingError(f"{target}: there is a folder of that name already")
    new = beside(target)
    os.symlink(os.path.abspath(source), new)
    os.replace(new, target)


def move(source: str, target: str) -> None:
    """Move a file or folder; behind a link, its bytes arrive and the link goes.

    Raises:
        OSError: it cannot be moved.
    """
    is_link = os.path.islink(source)
    if not is_link and not (os.path.isdir(target) and os.path.isdir(source)):
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != _EXDEV:
                raise
        else:
            return
    copy(source, target, follow=is_link, trail=())
    remove(source)


def remove(path: str) -> None:
    """Remove a file, a link, or a folder with all that is in it.

    Raises:
        OSError: it cannot be removed.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    for name in os.listdir(path):
        remove(os.path.join(path, name))
    os.rmdir(path)


def copy(source: str, target: str, *, follow: bool, trail: tuple[tuple[int, int], ...]) -> None:
    """Copy a file or a whole folder with modes, times and attributes.

    ``follow``: what links lead to is copied; else links are. ``trail`` are the folders that it is inside of.

    Raises:
        OSError, StagingError: it cannot be copied.
    """
    facts = os.stat(source) if follow else os.lstat(source)
    if stat.S_ISDIR(facts.st_mode):
        here = (facts.st_dev, facts.st_ino)
        if here in trail:
            raise StagingError(f"{source}: the link leads back to a folder that it lies in")
        if os.path.islink(target):
            os.unlink(target)
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            copy(os.path.join(source, name), os.path.join(target, name), follow=follow, trail=(*trail, here))
        keep_facts(source, target, facts, follow=follow)
        return
    if os.path.isdir(target) and not os.path.islink(target):
        raise StagingError(f"{target}: there is a folder of that name already")
    if is_special(target):
        copy_bytes(source, target)
        return
    new = beside(target)
    try:
        make(source, new, facts)
        keep_facts(source, new, facts, follow=follow)
        # What was there is replaced, never written through: it may be a link to somebody's file.
        os.replace(new, target)
    finally:
        if os.path.lexists(new):
            os.unlink(new)


def make(source: str, target: str, facts: os.stat_result) -> None:
    """Make what a source that is no folder is: a file with its bytes, a link, or a pipe.

    Raises:
        OSError, StagingError: it cannot be made.
    """
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(facts.st_mode):
        copy_bytes(source, target)
    elif stat.S_ISFIFO(facts.st_mode):
        os.mkfifo(target)
    else:
        raise StagingError(f"{source}: it is neither file nor folder, and cannot be staged")


def copy_bytes(source: str, target: str) -> None:
    """Copy what is in a file, by the file system itself where it can.

    Raises:
        OSError: it cannot be read or written.
    """
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                while os.copy_file_range(reading, writing, _BLOCK):
                    pass
            except OSError:
                # Not between these two file systems; what is missing is copied below, and a real fault shows there.
                pass
            while block := os.read(reading, _BLOCK):
                view = memoryview(block)
                while view:
                    view = view[os.write(writing, view) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from None
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def keep_facts(source: str, target: str, facts: os.stat_result, *, follow: bool) -> None:
    """Give a copy the mode, the times and, where that is possible, owner and attributes of its original."""
    is_link = stat.S_ISLNK(facts.st_mode)
    try:
        if not os.geteuid():
            os.chown(target, facts.st_uid, facts.st_gid, follow_symlinks=False)
        for name in () if is_link else os.listxattr(source, follow_symlinks=follow):
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=follow))
    except OSError:
        # Its file system knows none, or they are not ours to give.
        pass
    if not is_link:
        os.chmod(target, stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)


def is_special(target: str) -> bool:
    """Return whether a target is a device or a pipe, which is written to instead of being replaced."""
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def beside(target: str) -> str:
    """Return a name next to a target that nothing has."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:180]}.{os.getpid()}.staged")


# --- running ----------------------------------------------------------------------------------------------------------


class Report:
    """What was done, for the daemon."""

    def __init__(self, path: str) -> None:
        """Append to a file."""
        self._path = path

    def add(self, *lines: str) -> None:
        """Add lines.

        Raises:
            OSError: it cannot be written.
        """
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, "".join(f"{line}\n" for line in lines).encode())
        finally:
            os.close(fd)


def hidden(text: str) -> str:
    """Return a text as one word."""
    return text.encode("utf-8", "surrogateescape").hex()


def stage(moves: Iterable[Move], report: Report, *, out: bool) -> bool:
    """Do directives, in order, until one fails; the report says which outputs they made, or why one failed."""
    stager = Stager()
    lines: list[str] = []
    done = True
    for each in moves:
        try:
            made = stager.do(each)
        except StagingError as error:
            lines.append(f"failed {hidden(f'{each[0]}: {error}')}")
            done = False
            break
        if out and each[1] != TREE:
            lines += [f"out {hidden(path)}" for path in made]
    report.add(*lines, *(("put" if out else "staged",) if done else ()))
    return done


def candidates(program: str) -> Iterator[str]:
    """Yield where a program may lie, as every shell looks for it."""
    if "/" in program:
        yield program
        return
    for folder in os.environ.get("PATH", os.defpath).split(":"):
        yield os.path.join(folder or ".", program)


def become(argv: list[str]) -> int:
    """Replace this process by a program; returns the error when it cannot be run."""
    for number in _INHERITED:
        _signal.signal(number, _signal.SIG_DFL)
    worst = _ENOENT
    for path in candidates(argv[0]):
        try:
            os.execve(path, argv, os.environ)
        except OSError as error:
            number = error.errno or 5
        if number == _ENOEXEC:
            # As every shell does: a script without a first line is the shell's.
            os.execve(_SHELL, [_SHELL, path, *argv[1:]], os.environ)
        if number in (_EACCES, _ENOENT):
            worst = max(worst, number)
        elif number != _ENOTDIR:
            return number
    return worst


def run(argv: list[str], report: Report) -> int | None:
    """Run a program to its end and return how it ended; None when it cannot be run, which the report says."""
    _signal.signal(_signal.SIGTERM, _nothing)
    _signal.signal(_signal.SIGINT, _nothing)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        for number in (int(_signal.SIGTERM), int(_signal.SIGINT)):
            _signal.signal(number, _signal.SIG_DFL)
        if _told:
            os._exit(128 + _told[0])
        os.write(writing, str(become(argv)).encode())
        os._exit(127)
    os.close(writing)
    said = os.read(reading, 16)
    _, status = os.waitpid(pid, 0)
    if said:
        report.add(f"unrun {said.decode()}")
        return None
    code = os.waitstatus_to_exitcode(status)
    report.add(f"over {code}")
    return code


_told: list[int] = []


def _nothing(number: int, _frame: object) -> None:
    """Wait for the program's own end; it was told as well."""
    _told.append(number)


def main(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    text, *argv = arguments
    if text.startswith("@"):
        with open(text[1:], "rb") as file:  # no pathlib here
            job: Job = marshal.load(file)
    else:
        job = marshal.loads(bytes.fromhex(text))
    report = Report(job[0])
    if job[1] and not stage(job[1], report, out=False):
        return FAILED
    code: int | None = 0
    if argv and not job[2]:
        report.add(f"unrun {become(argv)}")
        return FAILED
    if argv:
        code = run(argv, report)
        if code is None:
            return FAILED
        if code or _told:
            return code if code >= 0 else 128 - code
    return 0 if stage(job[2], report, out=True) else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
