"""``pilot-hitl inbox``: questions to people, with or without a hub."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from pilot_hitl._templates import seconds
from pilot_hitl.cli._audit import read_audit
from pilot_hitl.cli._home import SESSION_VARIABLE, JsonOption, home, session_names, session_places
from pilot_hitl.cli._show import Row, cell, note, put, put_json, put_object, put_rows
from pilot_hitl.cli._start import through_hub
from pilot_hitl.cli._tool import NoHub, Tool, closed_in, closed_sessions, connect
from pilot_hitl.errors import AnswerRefused, DescriptionError, HubUnreachable, UnknownCheckpoint
from pilot_hitl.inbox import forms, requests, spool
from pilot_hitl.inbox.requests import Request
from pilot_hitl.inbox.spool import SpooledAnswer
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.places import SessionPlaces

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Questions to people.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As inbox list shows it, or a checkpoint's name.")]
_ALWAYS: dict[str, Json] = {"id": "", "session": "", "name": "", "question": "", "choices": [], "state": ""}
_COLUMNS = ("id", "name", "iteration", "state", "question", "choices", "assignees", "deadline_at", "queued")


@app.command("list")
def list_requests(
    *,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Only this session.", envvar=SESSION_VARIABLE, show_default="all")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Closed ones too (asks the hub).")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the questions that wait for an answer."""
    if session:
        session_places(session)
    rows = [row for row in _known(everything=everything) if session in ("", row["session"])]
    if as_json:
        put_json([dict(row) for row in rows])
        return
    short: list[Row] = [{**row, "question": _first_line(row.get("question"))} for row in rows]
    put_rows(short, _COLUMNS, "No open requests.")


@app.command()
def show(wanted: IdArgument, *, as_json: JsonOption = False) -> None:
    """Show one question, what belongs to it, and how to answer."""
    request = _find(wanted)
    if as_json:
        put_json(dict(request))
        return
    put_object({key: request.get(key) for key in ("id", "name", "iteration", "state", "assignees", "opened_at")})
    put()
    put(str(request.get("question") or ""))
    items = request.get("show")
    for item in items if isinstance(items, list) else []:
        put()
        _show_item(item, str(request["session"]))
    put()
    left = {"answer": forms.describe(*_form(request)), "deadline_at": request.get("deadline_at")}
    for key in ("default", "predicted", "value", "by", "answered_at", "comment", "queued"):
        left[key] = request.get(key)
    record = request.get("record")
    left["record"] = record or None
    put_object(left)
    if request.get("state") in ("OPEN", "", None):
        put(f"\nAnswer with: pilot-hitl inbox answer {request.get('id')} VALUE")


@app.command(context_settings={"ignore_unknown_options": True})
def answer(
    wanted: IdArgument,
    value: Annotated[str, typer.Argument(help="One of the choices, JSON, or text.")],
    *,
    comment: Annotated[str, typer.Option("--comment", "-c", help="For the record.")] = "",
    to_spool: Annotated[
        bool, typer.Option("--spool", help="Leave the answer as a file even when a hub runs here.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question.

    Says 'accepted' when the hub has it on disk, 'queued' when no hub runs and it waits as a file.
    """
    if to_spool:
        said = _queue(wanted, value, comment, fallback=False)
    else:
        request = _find(wanted)
        held = _held(str(request["session"]))
        said = _tell(request, value, comment) if held else _queue(str(request["id"]), value, comment, fallback=True)
    if as_json:
        put_json(dict(said))
        return
    if said["status"] == "accepted":
        put(f"accepted: {said['id']} = {canonical(said['value'])}")
        return
    put(f"queued: {said['id']} = {canonical(said['value'])}")
    put(str(said["next"]))


@app.command()
def extend(
    wanted: IdArgument,
    duration: Annotated[str, typer.Argument(help="From now on, such as 2h, 90min or 1h 30m; 'none' for no deadline.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Move a question's deadline. When no hub holds its session, one is started that does."""
    after = 0.0 if duration.strip().lower() == "none" else seconds(duration)
    if not after and duration.strip().lower() != "none":
        raise DescriptionError(f"{duration!r} would end it now: write how long from now, or 'none' for no deadline")
    request = _find(wanted)
    session, number = requests.parse_id(str(request["id"])) or ("", 0)
    me = spool.user_name(os.getuid())

    def move(tool: Tool) -> Json:
        tool.query("session", session=session)  # opens it
        with connect(home(), session) as speaking:
            return speaking.extend(number, after, me)

    said = through_hub(home(), session, move, timeout=30.0, role="observer")
    facts: Row = {"id": request["id"], "deadline_at": said.get("deadline_at") if isinstance(said, dict) else None}
    if as_json:
        put_json(dict(facts))
        return
    when = facts["deadline_at"]
    put(f"{facts['id']} has " + ("no deadline now" if when is None else f"until {cell('deadline_at', when)}"))


@app.command()
def audit(
    wanted: Annotated[str, typer.Argument(metavar="ID|SESSION", help="One request, or all of a session.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what happened to a request, or to all of a session: asked, shown, answered, refused."""
    named = requests.parse_id(wanted)
    session, number = named or (wanted, 0)
    if named is None and not SessionPlaces(home(), wanted).folder.is_dir():
        wanted = str(_search(_known(everything=True), wanted)["id"])
        session, number = requests.parse_id(wanted) or ("", 0)
    if not _held(session):
        found: Json = read_audit(session_places(session), number)
    else:
        with connect(home(), session) as tool:
            found = tool.query("audit", id=wanted) if number else tool.query("audit", session=session)
    if as_json:
        put_json(found)
        return
    entries = found.get("entries") if isinstance(found, dict) else found
    if isinstance(found, dict):
        put_object({key: item for key, item in found.items() if key != "entries"})
    rows: list[Row] = [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []
    put_rows(rows, ("at", "checkpoint", "kind", "by", "value", "facts"), "Nothing happened yet.")


def _tell(request: Row, text: str, comment: str) -> dict[str, Json]:
    """Give an answer to the hub; it is on disk when this returns."""
    form, choices = _form(request)
    value = forms.parse_answer(text, form, choices)
    named = requests.parse_id(str(request["id"]))
    if named is None:
        raise HubUnreachable(f"the hub calls the request {request['id']!r}, which is no id")
    session, number = named
    with connect(home(), session) as tool:
        record = tool.answer(number, canonical(value), comment, spool.user_name(os.getuid()))
    facts = record if isinstance(record, dict) else {}
    if facts.get("accepted") is not True:
        raise AnswerRefused(str(facts.get("message") or "the hub did not accept the answer"))
    return {**facts, "status": "accepted", "id": request["id"], "value": value, "comment": comment}


def _queue(wanted: str, text: str, comment: str, *, fallback: bool) -> dict[str, Json]:
    """Validate an answer and leave it in the spool; with ``fallback`` a hub that came up meanwhile is told instead."""
    request = requests.find_request(requests.read_requests(home()), wanted)
    value = forms.parse_answer(text, request.form, request.choices)
    where = session_places(request.session)
    waiting = spool.queued(where).get(request.number, 0)
    me = spool.user_name(os.getuid())
    given = SpooledAnswer(checkpoint=request.number, value=canonical(value), comment=comment, by=me)
    path = spool.write_answer(where, given)
    if fallback and _held(request.session) and _take_back(path):
        # A hub started in between and may have looked at the spool before our file was there.
        return _tell(requests.as_json(request), text, comment)
    _warn(request, me, waiting)
    return {
        "status": "queued",
        "id": request.id,
        "value": value,
        "comment": comment,
        "answer_id": given.answer_id,
        "file": str(path),
        "next": (
            f"It waits on disk and is accepted or refused when session {request.session} is next opened: "
            f"run its script again, or pilot-hitl session resume {request.session}"
        ),
    }


def _warn(request: Request, me: str, waiting: int) -> None:
    """Say what may make the hub refuse a queued answer."""
    if waiting:
        note(f"{waiting} earlier answer(s) to {request.id} wait already; the first valid one counts.")
    if request.assignees and me not in request.assignees:
        note(f"{request.id} is for {', '.join(request.assignees)}; as {me} you may be refused.")
    if request.deadline_at is not None and request.deadline_at < time.time():
        note(f"The deadline was {cell('deadline_at', request.deadline_at)}; a late answer is kept but not applied.")


def _take_back(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False  # the hub has it
    return True


def _find(wanted: str) -> Row:
    """The request that is meant, from the hub when it holds the session."""
    named = requests.parse_id(wanted)
    if named is None:
        wanted = str(_search(_known(), wanted)["id"])
        named = requests.parse_id(wanted)
    if named is None or not _held(named[0]):
        return _offline(requests.find_request(requests.read_requests(home()), wanted))
    with connect(home()) as tool:
        found = tool.query("request", id=wanted)
    if not isinstance(found, dict):
        raise UnknownCheckpoint(f"there is no request {wanted!r}; pilot-hitl inbox list shows what is open")
    return {**_ALWAYS, "id": wanted, **found}


def _held(session: str) -> bool:
    """Whether a hub runs and holds this session, so that it is asked and told instead of the files."""
    closed = closed_sessions(home())
    return closed is not None and session not in closed


def _known(*, everything: bool = False) -> list[Row]:
    """The requests of all sessions: from the hub for those that it holds, as published for the others."""
    closed: set[str] | None = None
    rows: list[Row] = []
    with contextlib.suppress(NoHub), connect(home()) as tool:
        told = tool.query("sessions")
        rows = _rows(tool.query("inbox", all=everything or None))
        closed = closed_in(told)
    if everything and (closed is None or closed & set(session_names())):
        note("Of sessions that no hub holds only the open requests are known.")
    return rows + [
        _offline(item) for item in requests.read_requests(home()) if closed is None or item.session in closed
    ]


def _search(rows: list[Row], wanted: str) -> Row:
    """The only row with this checkpoint name (``name`` or ``session/name``)."""
    named = [row for row in rows if wanted in (row["id"], row["name"], f"{row['session']}/{row['name']}")]
    if len(named) == 1:
        return named[0]
    if named:
        raise UnknownCheckpoint(f"{wanted!r} names several requests: {', '.join(str(row['id']) for row in named)}")
    raise UnknownCheckpoint(f"there is no request {wanted!r}; pilot-hitl inbox list shows what is open")


def _rows(value: Json) -> list[Row]:
    return [{**_ALWAYS, **item} for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _offline(request: Request) -> Row:
    queued = spool.queued(SessionPlaces(home(), request.session)).get(request.number, 0)
    return {**requests.as_json(request), "queued": queued}


def _form(request: Row) -> tuple[Json, list[Json]]:
    """Form and choices of a request; without a form, the choices are the form."""
    listed = request.get("choices")
    choices = listed if isinstance(listed, list) else []
    form = request.get("form")
    if form in (None, ""):
        return (forms.form_of(choices) if choices else True), choices
    return form, choices


def _first_line(question: Json) -> str:
    lines = str(question or "").strip().splitlines()
    first = lines[0].lstrip("# ") if lines else ""
    return first if len(first) <= 72 else f"{first[:71]}…"


def _show_item(item: Json, session: str) -> None:
    """Write one thing that a request shows; what has no text form is named by its file."""
    if not isinstance(item, dict):
        put(cell("", item))
        return
    kind = str(item.get("kind") or "")
    title = str(item.get("title") or item.get("name") or "")
    if title:
        put(f"{title}:")
    if kind in ("text", "markdown"):
        put(str(item.get("text") or ""))
        return
    columns, rows = item.get("columns"), item.get("rows")
    if kind == "table" and isinstance(rows, list):
        names = [str(name) for name in columns] if isinstance(columns, list) else []
        put_rows([_table_row(names, row) for row in rows], names, "(an empty table)")
        return
    hidden = {"kind", "title", "data", "blob"}
    facts = {"kind": kind, **{key: value for key, value in item.items() if key not in hidden}}
    if isinstance(blob := item.get("blob"), str):
        facts["file"] = str(BlobStore(session_places(session).folder / "blobs").path(bytes.fromhex(blob)))
    put_object(facts)


def _table_row(names: list[str], row: Json) -> Row:
    if isinstance(row, dict):
        return row
    values = row if isinstance(row, list) else [row]
    return {(names[index] if index < len(names) else str(index + 1)): value for index, value in enumerate(values)}
