"""Open requests, published as JSON files, so that they can be read and answered while no hub runs.

``sessions/NAME/requests/<n>.json`` is there as long as request ``n`` is open. The store is the truth; these files are
its shadow: the hub writes and removes them after its commits and may write them all anew at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.errors import UnknownCheckpoint
from pilot_hitl.inbox.files import read_plain, write_whole
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire.places import SessionPlaces

SCHEMA = "pilot-hitl/request"
VERSION = 1

_log = logging.getLogger(__name__)


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """One request to people, as published.

    Attributes:
        schema, version: of this format; a reader refuses a higher version.
        id: ``<session>/<n>``.
        session, name, iteration: of the checkpoint.
        question: Markdown.
        choices: JSON values, empty when the form is not a choice.
        form: the JSON Schema of an answer.
        show: what to show, objects with ``kind`` and fields.
        state: name of a :class:`~pilot_hitl.model.states.CheckpointState`.
        assignees: who may answer; empty for anybody who may write to the session.
        opened_at, deadline_at: seconds since 1970; None for no deadline.
        default: applied at the deadline; absent when there is none.
        predicted: ``[[answer, probability], …]`` that the asker expects; absent unless those who answer shall see it.
    """

    schema: str = SCHEMA
    version: int = VERSION
    id: str
    session: str
    name: str
    iteration: int = 0
    question: str = ""
    # Json is recursive, which msgspec cannot decode by type; what it yields for Any is exactly Json.
    choices: list[Any] = []
    form: Any = {}
    show: list[Any] = []
    state: str = "OPEN"
    assignees: list[str] = []
    opened_at: float = 0.0
    deadline_at: float | None = None
    default: Any = msgspec.UNSET
    predicted: Any = msgspec.UNSET

    @property
    def number(self) -> int:
        """The checkpoint's number in its session."""
        return int(self.id.rpartition("/")[2])


def request_id(session: str, number: int) -> str:
    """Return the id by which people name a request."""
    return f"{session}/{number}"


def parse_id(text: str) -> tuple[str, int] | None:
    """Return session and number of an id like ``mesh-study/3``; None when the text is not one."""
    session, slash, number = text.rpartition("/")
    if slash and session and number.isascii() and number.isdigit():
        return session, int(number)
    return None


def from_texts(
    *, session: str, number: int, choices: Sequence[str], form: str, show: str, default: str, **rest: Any
) -> Request:
    """Return a request from JSON texts as the wire and the store hold them; ``rest`` are fields of the request.

    Empty ``form`` allows anything; empty ``default`` is none.

    Raises:
        ValueError: a text is not JSON.
    """
    return Request(
        id=request_id(session, number),
        session=session,
        choices=[json.loads(choice) for choice in choices],
        form=json.loads(form) if form else {},
        show=json.loads(show) if show else [],
        default=json.loads(default) if default else msgspec.UNSET,
        **rest,
    )


def publish(places: SessionPlaces, request: Request) -> Path:
    """Write a request's file, whole and on disk; an older one of the same number is replaced.

    Raises:
        OSError: it cannot be written.
    """
    places.requests.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = _path(places, request.number)
    write_whole(places.requests, target, msgspec.json.format(msgspec.json.encode(request), indent=2) + b"\n")
    return target


def unpublish(places: SessionPlaces, number: int) -> None:
    """Remove a request's file; nothing happens when there is none.

    Raises:
        OSError: it cannot be removed.
    """
    _path(places, number).unlink(missing_ok=True)


def published(places: SessionPlaces) -> list[Request]:
    """Return the open requests of one session, by number. A broken file is skipped with a warning."""
    requests = [request for path in _files(places.requests) if (request := _read(path, places.name)) is not None]
    return sorted(requests, key=lambda request: request.number)


def read_requests(home: Path) -> list[Request]:
    """Return the open requests of all sessions of a home, by session and number."""
    try:
        names = sorted(entry.name for entry in (home / "sessions").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [request for name in names for request in published(SessionPlaces(home, name))]


def find_request(requests: Sequence[Request], wanted: str) -> Request:
    """Return the request with this id, or the only one with this checkpoint name (``name`` or ``session/name``).

    Raises:
        UnknownCheckpoint: there is none, or there are several; the message names them.
    """
    for request in requests:
        if request.id == wanted:
            return request
    session, _slash, name = wanted.rpartition("/")
    named = [item for item in requests if item.name == wanted or (item.session == session and item.name == name)]
    if len(named) == 1:
        return named[0]
    if named:
        raise UnknownCheckpoint(f"{wanted!r} names several open requests: {', '.join(item.id for item in named)}")
    raise UnknownCheckpoint(f"there is no open request {wanted!r}; pilot-hitl inbox list shows what is open")


def as_json(request: Request) -> dict[str, Json]:
    """Return the request as a JSON object."""
    plain: dict[str, Json] = msgspec.to_builtins(request)
    return plain


def _path(places: SessionPlaces, number: int) -> Path:
    return places.requests / f"{number}.json"


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == ".json" and path.stem.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        _log.warning("requests of %s cannot be read: %s", folder.parent.name, error)
        return []


def _read(path: Path, session: str) -> Request | None:
    try:
        content, _facts = read_plain(path)
        request = msgspec.json.decode(content, type=Request)
    except FileNotFoundError:
        return None  # answered meanwhile
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        reason = str(error)
    else:
        reason = _strange(request, session, int(path.stem))
        if not reason:
            return request
    _log.warning("%s is not a request and was skipped: %s", path, reason)
    return None


def _strange(request: Request, session: str, number: int) -> str:
    """Why a well-formed file is still not this request; empty when it is."""
    if request.schema != SCHEMA or request.version > VERSION:
        return f"{request.schema} version {request.version} is not of this release"
    if request.id != request_id(session, number) or request.session != session:
        return f"it says that it is {request.id}"
    return ""
