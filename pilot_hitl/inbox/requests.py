"""Open requests, published as JSON files, so that they can be read and answered while no hub runs.

``sessions/NAME/requests/<n>.json`` is there as long as request ``n`` is open. The store is the truth; these files are
its shadow: the hub writes and removes them after its commits and may write them all anew at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pilot_hitl.errors import AnswerRefused, UnknownCheckpoint
from pilot_hitl.inbox.files import read_plain, write_whole
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire.messages import Ask
from pilot_hitl.wire.modes import own_folder
from pilot_hitl.wire.places import SessionPlaces

SCHEMA = "pilot-hitl/request"
VERSION = 1

_log = logging.getLogger(__name__)


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """One request to people, as published.

    Attributes:
        schema, version: of this format; a reader refuses a higher version.
        id: ``<session>/<n>``, from its second generation on ``<session>/<n>@<generation>``.
        session, name, iteration: of the checkpoint.
        generation: how often it was asked, each time another question (or once more after it was taken back).
        changed: why it was asked again: which parts of it changed, in words.
        earlier: what became of the generations before, objects with ``generation, state, answer, by, answered_at`` ….
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
    generation: int = 1
    changed: list[str] = []
    earlier: list[Any] = []
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
        named = parse_id(self.id)
        return named.number if named is not None else 0


class Named(NamedTuple):
    """What an id says; ``generation`` is 0 when it names none."""

    session: str
    number: int
    generation: int


def request_id(session: str, number: int, generation: int = 1) -> str:
    """Return the id by which people name a request, and the generation of it that they see."""
    return f"{session}/{number}" if generation <= 1 else f"{session}/{number}@{generation}"


def parse_id(text: str) -> Named | None:
    """Return what an id like ``mesh-study/3`` or ``mesh-study/3@2`` says; None when the text is not one."""
    text, generation = split_generation(text)
    session, slash, number = text.rpartition("/")
    if slash and session and _is_number(number):
        return Named(session, int(number), generation)
    return None


def split_generation(text: str) -> tuple[str, int]:
    """Return a text and the generation that it ends with, as ``name@2`` does; 0 without one."""
    before, sign, generation = text.rpartition("@")
    if sign and before and _is_number(generation) and int(generation):
        return before, int(generation)
    return text, 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def from_ask(
    session: str,
    number: int,
    ask: Ask,
    *,
    state: CheckpointState,
    opened: float,
    deadline: float,
    generation: int,
    record: dict[str, Json],
) -> Request:
    """Return a request as the store holds it: as it was asked last, and what its record says of earlier times.

    Raises:
        ValueError: a text of it is not JSON.
    """
    changed, earlier = record.get("changed"), record.get("earlier")
    return Request(
        id=request_id(session, number, generation),
        session=session,
        name=ask.name,
        iteration=ask.iteration,
        generation=generation,
        changed=[str(each) for each in changed] if isinstance(changed, list) else [],
        earlier=earlier if isinstance(earlier, list) else [],
        question=ask.question,
        choices=[json.loads(choice) for choice in ask.choices],
        form=json.loads(ask.form) if ask.form else {},
        show=json.loads(ask.show) if ask.show else [],
        state=state.name,
        assignees=ask.assignees,
        opened_at=opened,
        deadline_at=deadline or None,
        default=json.loads(ask.default) if ask.default else msgspec.UNSET,
        predicted=json.loads(ask.predict) if ask.predict and ask.show_prediction else msgspec.UNSET,
    )


def publish(places: SessionPlaces, request: Request) -> Path:
    """Write a request's file, whole and on disk; an older one of the same number is replaced.

    Raises:
        OSError: it cannot be written.
    """
    own_folder(places.requests)
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


class Known(NamedTuple):
    """By what a request can be found."""

    session: str
    number: int
    generation: int
    name: str
    open: bool = True

    @property
    def id(self) -> str:
        """As :func:`request_id` says it."""
        return request_id(self.session, self.number, self.generation)


def find(known: Sequence[Known], wanted: str) -> tuple[Known, int]:
    """Return the request with this id, or the only one with this checkpoint name (``name`` or ``session/name``).

    Of several with one name the only open one is meant. Beside it the generation that the text names, 0 for none.

    Raises:
        UnknownCheckpoint: there is none, or there are several; the message names them.
    """
    named = parse_id(wanted)
    ways = [
        ([each for each in known if named is not None and each[:2] == named[:2]], named.generation if named else 0),
        *((_called(known, text), generation) for text, generation in ((wanted, 0), split_generation(wanted))),
    ]
    for found, generation in ways:
        several = [each for each in found if each.open] if len(found) > 1 else []
        if len(found) == 1 or len(several) == 1:
            return (several or found)[0], generation
        if found:
            raise UnknownCheckpoint(f"{wanted!r} names several requests: {', '.join(each.id for each in found)}")
    raise UnknownCheckpoint(f"there is no request {wanted!r}; pilot-hitl inbox list shows what is open")


def _called(known: Sequence[Known], text: str) -> list[Known]:
    return [each for each in known if text in (each.name, f"{each.session}/{each.name}")]


def generation_meant(known: Known, said: int) -> int:
    """Return the generation that an answer is to, when its author said this one, or none (0).

    Without one the only generation that there has been is meant. Of several nobody can know which of them was seen.

    Raises:
        AnswerRefused: there were several, and none was said.
    """
    if said or known.generation <= 1:
        return said or 1
    error = AnswerRefused(
        f"{request_id(known.session, known.number)} was asked {known.generation} times, and what it asks changed: look "
        f"at it, and name the version that you answer, {known.id} for the present one: pilot-hitl inbox show {known.id}"
    )
    error.code = "asked-again"
    raise error


def as_json(request: Request) -> dict[str, Json]:
    """Return the request as a JSON object."""
    plain: dict[str, Json] = msgspec.to_builtins(request)
    return plain


def view(request: Request, answer: str, record: dict[str, Json]) -> dict[str, Json]:
    """Return a request as a JSON object, with its answer (canonical JSON) and record once it is closed."""
    facts = as_json(request)
    if CheckpointState[request.state].closed:
        facts["answer"] = json.loads(answer) if answer else None
        facts["record"] = {key: value for key, value in record.items() if key not in ("earlier", "changed")}
    return facts


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
    if request.id != request_id(session, number, request.generation) or request.session != session:
        return f"it says that it is {request.id}"
    return ""
