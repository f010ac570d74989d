"""How far a session's file was written, noted beside it: that what was lost is not taken for never written.

SQLite opens a file whose log (``…-wal``) is missing, damaged or of another age as what it finds, and an empty one as a
new one, without a word. So commits are numbered, in the header of the file (``user_version``), which makes the number
part of each; and the last number is noted in ``session.mark`` once the commit is on disk. That costs little: the header
is written anyway when a file grows, and the note is a write in place that nobody waits for.

A file was damaged when one of these does not hold:

* what SQLite finds is not older than the mark, nor than the header that the file has without its log;
* the file without its log is as old as the log's first commit wants it: a log begins anew only after all that was in it
  went into the file;
* the file is as long as its header says, but for pages that are in the log.

Damage inside of pages goes unnoticed, since SQLite's pages have no checksums, and so does a log that is lost right
after a hub was killed while it moved the log's content into the file.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pilot_hitl.errors import SessionError
from pilot_hitl.wire.modes import own_file

NAME = "session.mark"
_LENGTH = 16
"""Always so many bytes, written in place: that needs no room on a disk that is full."""
_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_WAL_HEADER = struct.Struct(">8I")
"""Magic, version, page size, sequence, two salts, two checksums."""
_WAL_MAGIC = (0x377F0682, 0x377F0683)
_FRAME = struct.Struct(">6I")
"""Page, size of the file in pages after a commit, the two salts, two checksums."""
_NUMBER_AT, _PAGES_AT, _PAGE_SIZE_AT = 60, 28, 16
_BESIDE = ("pilots", "blobs")
"""Folders that are made by sessions that have a file."""


class Mark:
    """The mark of one file.

    Attributes:
        number: of the last commit that is known to have been on disk; 0 for none.
    """

    def __init__(self, database: Path) -> None:
        """Look at the files; call it before SQLite makes or removes any.

        Raises:
            SessionError: one of them lost something.
        """
        self._database = database
        self._path = database.with_name(NAME)
        self._log = database.with_name(f"{database.name}-wal")
        self._handle = -1
        self.number = 0
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.number = int(self._path.read_text(encoding="ascii"))
        empty = not database.exists() or not database.stat().st_size
        if empty and (self.number or any(database.with_name(name).is_dir() for name in _BESIDE)):
            self._refuse("is empty or gone, and it was not")
        self._in_file = 0 if empty else self._look_at_file()
        wanted = next((number for page, number in _frames(self._log) if page == 1), 0) - 1
        if self._in_file < wanted:
            log = f"{self._log.name} beside it, which goes on after commit {wanted}"
            self._refuse(f"is older (commit {self._in_file}) than {log}")

    def check(self, number: int) -> None:
        """Compare with the last commit that SQLite finds.

        Raises:
            SessionError: there were later ones.
        """
        last = max(self.number, self._in_file)
        if number < last:
            what = f"{self._log.name} beside it is missing, damaged or an old one"
            self._refuse(f"is older than it was (commit {number}, not {last}): {what}")

    def write(self, number: int) -> None:
        """Note that a commit is on disk; without room for the note, loss is not noticed later."""
        with contextlib.suppress(OSError):
            if self._handle < 0:
                self._handle = own_file(self._path, os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._handle, b"%*d\n" % (_LENGTH - 1, number), 0)

    def close(self) -> None:
        """Write no more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _look_at_file(self) -> int:
        """Return the number in the file's own header; 0 where there is none, which its log may heal."""
        with self._database.open("rb") as file:
            header = file.read(_HEADER)
            size = os.fstat(file.fileno()).st_size
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            return 0
        page = int.from_bytes(header[_PAGE_SIZE_AT : _PAGE_SIZE_AT + 2], "big")
        page = 65536 if page == 1 else page
        pages = int.from_bytes(header[_PAGES_AT : _PAGES_AT + 4], "big")
        if size < page * pages:
            # A hub that was killed while it moved pages from the log into the file has left them in the log.
            missing = set(range(size // page + 1, pages + 1)).difference(page for page, _ in _frames(self._log))
            if missing:
                self._refuse(f"was cut off: it has {size} bytes of {page * pages}")
        return int.from_bytes(header[_NUMBER_AT : _NUMBER_AT + 4], "big")

    def _refuse(self, what: str) -> None:
        name = self._database.parent.name
        raise SessionError(
            f"{self._database} {what}. Put back what is missing, or a copy of the whole folder; to begin again without "
            f"it, run pilot-hitl session rm {name}, or open the session with fresh=True"
        )


def _frames(wal: Path) -> Iterator[tuple[int, int]]:
    """Yield the pages that a log holds, with the commit's number where that is page 1 and else 0."""
    with contextlib.suppress(OSError), wal.open("rb") as file:
        head = file.read(_WAL_HEADER.size)
        if len(head) < _WAL_HEADER.size:
            return
        magic, _version, size, _sequence, *salts, _one, _other = _WAL_HEADER.unpack(head)
        if magic not in _WAL_MAGIC:
            return
        at, end = _WAL_HEADER.size, os.fstat(file.fileno()).st_size
        while at + _FRAME.size + size <= end:
            page, _pages, *found, _one, _other = _FRAME.unpack(os.pread(file.fileno(), _FRAME.size, at))
            if found != salts:  # from here on it is what was there before it began anew
                return
            number = os.pread(file.fileno(), 4, at + _FRAME.size + _NUMBER_AT) if page == 1 else b""
            yield page, int.from_bytes(number, "big")
            at += _FRAME.size + size
