"""The spool: answers given while no hub runs, and taken back.

::

    spool/tmp/   being written
          new/   given: whole, on disk, waiting for the hub
          done/  taken in: the hub's commit holds them
          bad/   not an answer; kept for a person to look at
          reading.json  what a hub looks into at this moment

A file is renamed into ``new/`` only once it is on disk, and moved to ``done/`` only after the hub's commit. A hub that
dies between the two takes the same answer again, and knows it by ``answer_id``.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import secrets
from pathlib import Path

import msgspec

from pilot_hitl.inbox.files import read_plain, sync_folder, write_whole
from pilot_hitl.wire.modes import own_folder
from pilot_hitl.wire.places import SessionPlaces

SCHEMA = "pilot-hitl/answer"
VERSION = 2

_ID = re.compile(r"^[0-9A-Za-z_-]{1,64}$")
_NAME_BYTES = 200
"""Bytes of a file's name that are kept when it is set aside; 255 is what a file system takes."""
_READING = "reading.json"
_told: set[Path] = set()
"""Files that cannot be set aside: told of once by this process."""
_log = logging.getLogger(__name__)


def new_id() -> str:
    """Return a random answer id."""
    return secrets.token_hex(16)


class SpooledAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """One answer, as it lies in a file.

    Attributes:
        schema, version: of this format; a reader refuses a higher version.
        answer_id: random; the file is named after it.
        checkpoint: the request's number in its session.
        generation: of the question that was seen, against whose form the value was checked.
        value: the answer as JSON text.
        withdraws: it is no answer: what its author answered before, and nobody acted upon, does not count.
        comment: for the record.
        by: who says to have answered; the owner of the file is who did.
        channel: how it came.
    """

    schema: str = SCHEMA
    version: int = VERSION
    answer_id: str = msgspec.field(default_factory=new_id)
    checkpoint: int
    generation: int
    value: str = ""
    withdraws: bool = False
    comment: str = ""
    by: str = ""
    channel: str = "spool"


class Taken(msgspec.Struct, frozen=True):
    """An answer that waits in ``new/``.

    Attributes:
        answer: what the file says.
        path: the file.
        uid: owner of the file: this user answered.
        at: seconds since 1970 by the file server's clock: when it was given.
    """

    answer: SpooledAnswer
    path: Path
    uid: int
    at: float

    @property
    def who(self) -> str:
        """Login name of the file's owner, ``uid:<n>`` when the system knows none."""
        return user_name(self.uid)


def user_name(uid: int) -> str:
    """Return the login name behind a uid, ``uid:<n>`` when the system knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid:{uid}"


def write_answer(places: SessionPlaces, answer: SpooledAnswer) -> Path:
    """Put an answer into the spool; on return it is on disk and the next hub takes it in.

    Raises:
        OSError: it cannot be written; then nothing of it stays.
        ValueError: ``answer_id`` cannot name a file.
    """
    if not _ID.match(answer.answer_id):
        raise ValueError(f"{answer.answer_id!r} cannot be an answer id")
    for name in ("tmp", "new"):
        own_folder(places.spool / name)
    target = places.spool / "new" / f"{answer.answer_id}.json"
    if target.exists() or (places.spool / "done" / target.name).exists():
        raise FileExistsError(f"{target} was given already")
    write_whole(places.spool / "tmp", target, msgspec.json.encode(answer) + b"\n")
    return target


def folder(places: SessionPlaces) -> Path:
    """Return where answers wait."""
    return places.spool / "new"


def take(places: SessionPlaces) -> list[Taken]:
    """Return the answers that wait, in the order in which they were given. What is not an answer goes to ``bad/``.

    They stay in ``new/`` until :func:`done`, so this may return the same answer again.
    """
    taken = []
    for path in _files(folder(places)):
        try:
            taken.append(_read(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            set_aside(places, path, str(error))
    return sorted(taken, key=lambda item: (item.at, item.answer.answer_id))


def done(places: SessionPlaces, taken: Taken) -> None:
    """Move an answer to ``done/``; call it after the commit that holds the answer (or its refusal). May be repeated.

    Raises:
        OSError: it cannot be moved.
    """
    ended = places.spool / "done"
    own_folder(ended)
    try:
        taken.path.rename(ended / taken.path.name)
    except FileNotFoundError:
        return  # moved before
    sync_folder(ended)


def waiting(places: SessionPlaces) -> list[Taken]:
    """Return the answers that wait, in the order in which they were given. Moves nothing."""
    found = []
    for path in _files(folder(places)):
        try:
            found.append(_read(path))
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            continue
    return sorted(found, key=lambda item: (item.at, item.answer.answer_id))


def begin_reading(places: SessionPlaces, path: Path) -> int:
    """Note that a waiting answer is looked into; return how often that began and did not end, this time included.

    So a file that ends whoever reads it is found out. Nothing is synced: only the end of a process is meant.

    Raises:
        OSError: it cannot be noted.
    """
    begun = _begun(places)
    begun[path.name] = begun.get(path.name, 0) + 1
    _note_begun(places, begun)
    return begun[path.name]


def end_reading(places: SessionPlaces, path: Path) -> None:
    """Note that the reader has survived.

    Raises:
        OSError: it cannot be noted.
    """
    begun = _begun(places)
    if begun.pop(path.name, None) is not None:
        _note_begun(places, begun)


def _begun(places: SessionPlaces) -> dict[str, int]:
    try:
        return msgspec.json.decode((places.spool / _READING).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}


def _note_begun(places: SessionPlaces, begun: dict[str, int]) -> None:
    if begun:
        (places.spool / _READING).write_bytes(msgspec.json.encode(begun))
    else:
        (places.spool / _READING).unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path) -> Taken:
    content, facts = read_plain(path)
    if facts.st_nlink > 1:
        # A second name for somebody else's file would make that somebody the one who answered.
        raise ValueError("the file has another name elsewhere")
    answer = msgspec.json.decode(content, type=SpooledAnswer)
    if answer.schema != SCHEMA or answer.version > VERSION:
        raise ValueError(f"{answer.schema} version {answer.version} is not of this release")
    if path.name != f"{answer.answer_id}.json" or not _ID.match(answer.answer_id):
        raise ValueError(f"a file of this name cannot hold answer {answer.answer_id!r}")
    # Another user could set an earlier modification time to slip under a deadline; nobody can set the change time.
    # One's own files keep the modification time, which survives a copy of the home.
    at = facts.st_mtime if facts.st_uid == os.getuid() else max(facts.st_mtime, facts.st_ctime)
    return Taken(answer=answer, path=path, uid=facts.st_uid, at=at)


def set_aside(places: SessionPlaces, path: Path, why: str) -> None:
    """Move what is no answer to ``bad/``, and log it. What cannot be moved is logged once."""
    bad = places.spool / "bad"
    if path in _told:
        return
    try:
        own_folder(bad)
        path.rename(bad / f"{_begin(path.name)}.{secrets.token_hex(4)}")
    except OSError as fault:
        _told.add(path)
        _log.warning("%r is not an answer (%r), and cannot be moved to %s: %s", str(path), why, bad, fault)
        return
    _log.warning("%r is not an answer (%r); it was moved to %s", str(path), why, bad)


def _begin(name: str) -> str:
    """Return as much of a file's name as leaves room for a suffix."""
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
