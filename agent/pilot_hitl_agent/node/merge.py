"""Puts what attempts left in folders of their own where it was asked for. Run by path; it imports nothing of ours.

::

    python -I -S merge.py FROM TO          one folder into another one; says on standard error why it cannot be
    python -I -S merge.py --jobs FILE      a JSON list of [FROM, TO], in order; prints a JSON list of reasons ("": done)
    python -I -S merge.py --remove FILE    a JSON list of folders that nobody wants any more

Whoever looks sees a file of before or the whole new one, nothing between. Done twice it is done once. What was there
under the same name is replaced, as by a program that writes it anew: a link is followed, a folder is merged. ``FROM``
stays as it is: a file is the same file under two names, or a copy where the file system has no such thing.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys

CHUNK = 1 << 20
_SAME = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
"""What a file system says that cannot give a file a second name there."""


class _Merge:
    """One folder into another one."""

    def __init__(self, origin: str, place: str) -> None:
        self._origin = origin
        self._place = place

    def run(self) -> None:
        """Do it.

        Raises:
            OSError: something cannot be put in place; what came before it is there.
        """
        os.makedirs(self._place, exist_ok=True)
        if os.path.isdir(self._origin):
            self._folder(self._origin, self._place)

    def _folder(self, source: str, target: str) -> None:
        for entry in sorted(os.scandir(source), key=lambda each: each.name):
            there = f"{target}/{entry.name}"
            if entry.is_symlink():
                self._link(entry.path, there)
            elif entry.is_dir():
                self._subfolder(entry.path, there)
            else:
                self._file(entry.path, there)

    def _subfolder(self, source: str, there: str) -> None:
        try:
            os.mkdir(there)
        except FileExistsError:
            if not os.path.isdir(there):
                raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is to be put", there) from None
            self._folder(source, there)
            return
        self._folder(source, there)
        # Last, because nothing can be put into what is not to be written.
        os.chmod(there, stat.S_IMODE(os.stat(source).st_mode))

    def _file(self, source: str, there: str) -> None:
        if os.path.islink(there):
            there = os.path.realpath(there)
        try:
            os.link(source, there, follow_symlinks=False)
        except FileExistsError:
            self._replace(source, there)
        except OSError as error:
            if error.errno not in _SAME:
                raise
            self._replace(source, there)

    def _replace(self, source: str, there: str) -> None:
        if os.path.isdir(there):
            raise IsADirectoryError(errno.EISDIR, "a folder is where a file is to be put", there)
        if os.path.lexists(there) and os.path.samestat(os.lstat(source), os.lstat(there)):
            return
        with _Partial(there) as partial:
            try:
                os.link(source, partial, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _SAME:
                    raise
                _copy(source, partial)

    def _link(self, source: str, there: str) -> None:
        if os.path.isdir(there) and not os.path.islink(there):
            raise IsADirectoryError(errno.EISDIR, "a folder is where a link is to be put", there)
        to = os.readlink(source)
        if to == self._origin or to.startswith(f"{self._origin}/"):
            to = self._place + to[len(self._origin) :]
        with _Partial(there) as partial:
            os.symlink(to, partial)


class _Partial:
    """A name beside a path, whose file takes the path over once it is whole."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = f"{os.path.dirname(path)}/.pilot-hitl-{os.urandom(6).hex()}"

    def __enter__(self) -> str:
        return self._name

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            os.replace(self._name, self._path)
        elif os.path.lexists(self._name):
            os.unlink(self._name)


def _copy(source: str, target: str) -> None:
    facts = os.lstat(source)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a folder nor a link, and cannot be copied", source)
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
        os.fchmod(writer.fileno(), stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def merge(origin: str, place: str) -> str:
    """Put the content of a folder into another one, which is made if it must be; return why not, or nothing."""
    try:
        _Merge(origin, place).run()
    except OSError as error:
        return f"{error.filename or place}: {error.strerror}"
    return ""


def remove(folder: str) -> None:
    """Remove a folder with all that is in it, also what its owner made unreadable for himself."""
    for path, folders, _files in os.walk(folder):
        for name in folders:
            below = os.path.join(path, name)
            if not os.path.islink(below):
                os.chmod(below, stat.S_IRWXU)
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Do what the command line asks for."""
    first, second = arguments
    if first == "--jobs":
        with open(second, encoding="utf-8") as file:
            reasons = [merge(origin, place) for origin, place in json.load(file)]
        sys.stdout.write(json.dumps(reasons))
        return 0
    if first == "--remove":
        with open(second, encoding="utf-8") as file:
            for folder in json.load(file):
                remove(folder)
        return 0
    why = merge(first, second)
    sys.stderr.write(why)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
