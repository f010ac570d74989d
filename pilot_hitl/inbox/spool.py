"""The spool: answers given while no hub runs.

::

    spool/tmp/   being written
          new/   given: whole, on disk, waiting for the hub
          done/  taken in: the hub's commit holds them
          bad/   not an answer; kept for a person to look at

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
from pilot_hitl.wire.places import SessionPlaces

SCHEMA = "pilot-hitl/answer"
VERSION = 1

_ID = re.compile(r"^[0-9A-Za-z_-]{1,64}$")
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
        value: the answer as JSON text.
        comment: for the record.
        by: who says to have answered; the owner of the file is who did.
        channel: how it came.
    """

    schema: str = SCHEMA
    version: int = VERSION
    answer_id: str = msgspec.field(default_factory=new_id)
    checkpoint: int
    value: str
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
        (places.spool / name).mkdir(mode=0o700, parents=True, exist_ok=True)
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
            _set_aside(places, path, error)
    return sorted(taken, key=lambda item: (item.at, item.answer.answer_id))


def done(places: SessionPlaces, taken: Taken) -> None:
    """Move an answer to ``done/``; call it after the commit that holds the answer (or its refusal). May be repeated.

    Raises:
        OSError: it cannot be moved.
    """
    ended = places.spool / "done"
    ended.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        taken.path.rename(ended / taken.path.name)
    except FileNotFoundError:
        return  # moved before
    sync_folder(ended)


def queued(places: SessionPlaces) -> dict[int, int]:
    """Return how many answers wait for each request number. Moves nothing."""
    counts: dict[int, int] = {}
    for path in _files(folder(places)):
        try:
            number = _read(path).answer.checkpoint
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            continue
        counts[number] = counts.get(number, 0) + 1
    return counts


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


def _set_aside(places: SessionPlaces, path: Path, error: Exception) -> None:
    bad = places.spool / "bad"
    _log.warning("%s is not an answer (%s); it was moved to %s", path, error, bad)
    try:
        bad.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(bad / f"{path.name}.{secrets.token_hex(4)}")
    except OSError as fault:
        _log.warning("%s cannot be moved to %s: %s", path, bad, fault)
