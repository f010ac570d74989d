"""Content-addressed files for values that are too large to travel inline."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from pilot_hitl.wire.modes import own_file, own_folder

Buffer = bytes | bytearray | memoryview
DIGEST_BYTES = 20


class BlobMissing(OSError):
    """A referenced value is not in the session's blob folder."""


class BlobStore:
    """Files named by the hash of their content, below one folder.

    Equal values are stored once. A file is complete and on disk before its name exists, so a reader never sees half
    of one and a reference that was handed out survives loss of power.
    """

    def __init__(self, folder: Path) -> None:
        """Use ``folder``; it is made when the first blob is put."""
        self.folder = folder

    def put(self, parts: Iterable[Buffer]) -> tuple[bytes, int]:
        """Store the concatenation of ``parts`` and return ``(digest, size)``.

        Raises:
            OSError: the file system refused (full, read-only, quota).
        """
        pieces = [memoryview(part).cast("B") for part in parts]
        state = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for piece in pieces:
            state.update(piece)
        digest = state.digest()
        size = sum(len(piece) for piece in pieces)
        target = self.path(digest)
        if not target.exists():
            self._write(target, pieces)
        return digest, size

    def get(self, digest: bytes) -> bytearray:
        """Return the content; it is writable, so arrays rebuilt upon it are too.

        Raises:
            BlobMissing: there is no such file.
        """
        try:
            with self.path(digest).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                content = bytearray(size)
                view, done = memoryview(content), 0
                while done < size:
                    count = file.readinto(view[done:])
                    if not count:
                        raise BlobMissing(f"{self.path(digest)} is shorter than it was")
                    done += count
                return content
        except FileNotFoundError as error:
            raise BlobMissing(f"the value stored as {self.path(digest)} is gone") from error

    def path(self, digest: bytes) -> Path:
        """Return where a blob lies."""
        name = digest.hex()
        return self.folder / name[:2] / name

    def _write(self, target: Path, pieces: list[memoryview]) -> None:
        own_folder(target.parent)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(own_file(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=0) as file:
                for piece in pieces:
                    done = 0
                    while done < len(piece):
                        done += file.write(piece[done:])
                os.fsync(file.fileno())
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        for folder in (target.parent, self.folder):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
