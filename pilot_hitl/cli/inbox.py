"""``pilot-hitl inbox``: questions to people, with or without a hub."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, TypeGuard

import typer

from pilot_hitl._templates import seconds
from pilot_hitl.cli import _requests
from pilot_hitl.cli._audit import in_words, read_audit
from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import SESSION_VARIABLE, JsonOption, home, session_places
from pilot_hitl.cli._requests import Meant, form_of, held, is_late
from pilot_hitl.cli._show import Row, cell, note, put, put_json, put_object, put_rows, put_table
from pilot_hitl.cli._start import through_hub
from pilot_hitl.cli._tool import Tool, connect
from pilot_hitl.errors import AnswerRefused, DescriptionError
from pilot_hitl.inbox import changes, forms, requests, spool
from pilot_hitl.inbox.spool import SpooledAnswer
from pilot_hitl.inbox.standing import Placed, Standing
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.places import SessionPlaces

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Questions to people.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As inbox list shows it, or a checkpoint's name.")]
_COLUMNS = (
    "id", "name", "iteration", "state", "question", "choices", "answer", "assignees", "deadline_at", "queued", "again",
)  # fmt: skip


@app.command("list")
def list_requests(
    *,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Only this session.", envvar=SESSION_VARIABLE, show_default="all")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Closed ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the questions that wait for an answer."""
    if session:
        session_places(session)
    rows = [row for row in _requests.known_requests(everything=everything) if session in ("", row["session"])]
    if as_json:
        put_json([dict(row) for row in rows])
        return
    put_rows([_short(row) for row in rows], _COLUMNS, "No open requests.")


@app.command()
def show(wanted: IdArgument, *, as_json: JsonOption = False) -> None:
    """Show one question, what belongs to it, what became of it, and how to answer."""
    row, known, said = _requests.find(wanted)
    queued = [] if held(known.session) else _requests.waiting(known.session, row)
    if queued:
        row = {**row, "queued_answers": [_queued(placed) for placed in queued]}
    if as_json:
        put_json(dict(row))
        return
    if 0 < said < known.generation:
        note(f"{wanted} was asked again since; this is how it is asked now.")
    put_object({key: row.get(key) for key in ("id", "name", "iteration", "state", "assignees", "opened_at")})
    put()
    put(str(row.get("question") or ""))
    items = row.get("show")
    for item in items if isinstance(items, list) else []:
        put()
        _show_item(item, known.session)
    put()
    put_object(_facts(row))
    _put_next(row, known.id)


def _facts(row: Row) -> Row:
    """What can be answered, what was, and what became of earlier versions of the question."""
    form, choices = form_of(row)
    facts: dict[str, Json] = {"choices" if choices else "form": forms.describe(form, choices)}
    answer = row.get("answer")
    facts["answer"] = None if answer is None else forms.choice_text(answer)
    for key in ("deadline_at", "default", "predicted", "value", "by", "answered_at", "comment", "queued"):
        facts[key] = row.get(key)
    facts["asked_again"] = _again(row)
    earlier = row.get("earlier")
    known = [each for each in earlier if isinstance(each, dict)] if isinstance(earlier, list) else []
    facts["earlier"] = [
        {"version": each.get("generation"), "opened_at": each.get("opened_at"), "outcome": changes.became(each)}
        for each in known
    ]
    record = row.get("record")
    hidden = ("state", "generation", "reopened", "opened_at")
    facts["record"] = {key: each for key, each in record.items() if key not in hidden} if _is_row(record) else None
    facts["queued_answers"] = row.get("queued_answers")
    return facts


def _put_next(row: Row, id_: str) -> None:
    """Say what to do, or what happens without."""
    state = row.get("state")
    if state in ("OPEN", "", None):
        put(f"\nAnswer with: pilot-hitl inbox answer {id_} VALUE")
    elif state in (_requests.EXPIRED, _requests.QUEUED) and "record" not in row:
        default = row.get("default")
        taken = "no answer" if default is None else forms.choice_text(default)
        what = "the queued answer" if state == _requests.QUEUED else taken
        put(f"\nIts deadline has passed: {what} is taken when session {row['session']} is next opened.")


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

    Says 'accepted' when the hub has it on disk, 'queued' when no hub runs and it waits as a file. Until somebody has
    acted on it, another answer of yours replaces a queued one, and inbox withdraw takes it back. A question that was
    asked again with changes is answered by ID@N, as inbox list shows it.
    """
    meant = _requests.find(wanted, files_only=to_spool)
    generation = requests.generation_meant(meant.known, meant.said)
    if not to_spool and held(meant.known.session):
        said = _tell(meant, generation, value, comment)
    else:
        said = _queue(meant, generation, value, comment, fallback=not to_spool)
    if as_json:
        put_json(dict(said))
        return
    put(f"{said['status']}: {said['id']} = {canonical(said['value'])}")
    if said["status"] == "queued":
        put(str(said["next"]))


@app.command()
def withdraw(wanted: IdArgument, *, as_json: JsonOption = False) -> None:
    """Take back an answer of yours that waits as a file, before anybody acted on it."""
    row, known, said = _requests.find(wanted)
    mine = [
        placed
        for placed in _requests.waiting(known.session, row)
        if placed.standing is not Standing.WITHDRAWN and _is_mine(placed, said)
    ]
    if not mine:
        became = f"it is {row['state']}" if row.get("state") else "it was taken in"
        raise AnswerRefused(
            f"no answer of yours to {known.id} waits, so there is nothing to take back ({became}); "
            f"pilot-hitl inbox show {known.id} tells how it stands"
        )
    if is_late(row, time.time()) and not held(known.session):
        counting = [placed for placed in mine if placed.standing is Standing.COUNTS]
        stays = f"{counting[-1].taken.answer.value} counts" if counting else "it is late, and will not be applied"
        raise AnswerRefused(f"the deadline of {known.id} has passed, so nothing is taken back any more: {stays}")
    where = SessionPlaces(home(), known.session)
    me = spool.user_name(os.getuid())
    for generation in {placed.taken.answer.generation for placed in mine}:
        gone = SpooledAnswer(checkpoint=known.number, generation=generation, withdraws=True, by=me, channel="cli")
        spool.write_answer(where, gone)
    last = mine[-1].taken.answer.value
    if held(known.session) and _counted(known.id, last, me):
        # A hub started in between and took the answer in before our word was there.
        raise AnswerRefused(f"the answer to {known.id} was acted upon before it was taken back: it counts")
    if as_json:
        put_json({"status": "withdrawn", "id": known.id, "value": forms.read_json(last)})
        return
    put(f"withdrawn: {known.id} = {last}")
    put("Both are on record when its session is next opened. The question can be answered again.")


def _is_mine(placed: Placed, generation: int) -> bool:
    answer = placed.taken.answer
    counts = placed.standing in (Standing.COUNTS, Standing.UNFIT) and not answer.withdraws
    return counts and placed.taken.uid == os.getuid() and generation in (0, answer.generation)


def _counted(id_: str, value: str, who: str) -> bool:
    """Whether a hub has taken this answer of this person."""
    row = _requests.find(id_).row
    record = row.get("record")
    return _is_row(record) and record.get("by") == who and canonical(row.get("answer")) == value


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
    _row, known, generation = _requests.find(wanted)
    me = spool.user_name(os.getuid())

    def move(tool: Tool) -> Json:
        tool.query("session", session=known.session)  # opens it
        with connect(home(), known.session) as speaking:
            return speaking.extend(known.number, after, me, generation)

    said = through_hub(home(), known.session, move, timeout=30.0, role="observer")
    facts: Row = {"id": known.id, "deadline_at": said.get("deadline_at") if isinstance(said, dict) else None}
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
    session, number = (named.session, named.number) if named is not None else (wanted, 0)
    if named is None and not SessionPlaces(home(), wanted).folder.is_dir():
        known = _requests.find(wanted).known
        session, number = known.session, known.number
    if not held(session):
        found: Json = read_audit(session_places(session), number)
    else:
        id_ = requests.request_id(session, number)
        with connect(home(), session) as tool:
            found = tool.query("audit", id=id_) if number else tool.query("audit", session=session)
    if as_json:
        put_json(found)
        return
    entries = found.get("entries") if isinstance(found, dict) else found
    if isinstance(found, dict):
        put_object({key: item for key, item in found.items() if key != "entries"})
    listed = entries if isinstance(entries, list) else []
    rows: list[Row] = [in_words(item) for item in listed if isinstance(item, dict)]
    put_rows(rows, ("at", "checkpoint", "kind", "by", "value", "facts"), "Nothing happened yet.")


def _tell(meant: Meant, generation: int, text: str, comment: str) -> dict[str, Json]:
    """Give an answer to the hub; it is on disk when this returns."""
    row, known, _said = meant
    value: Json = text
    given = text
    if generation == known.generation:
        value = forms.parse_answer(text, *form_of(row))
        given = canonical(value)
    with connect(home(), known.session) as tool:
        record = tool.answer(known.number, generation, given, comment, spool.user_name(os.getuid()))
    facts = record if isinstance(record, dict) else {}
    if facts.get("accepted") is not True:
        raise AnswerRefused(str(facts.get("message") or "the hub did not accept the answer"))
    return {**facts, "status": "accepted", "id": known.id, "value": value, "comment": comment}


def _queue(meant: Meant, generation: int, text: str, comment: str, *, fallback: bool) -> dict[str, Json]:
    """Validate an answer and leave it in the spool; with ``fallback`` a hub that came up meanwhile is told instead."""
    row, known, _said = meant
    if not known.open:
        raise AnswerRefused(f"{known.id} takes no answer: {_outcome(row)}")
    me = spool.user_name(os.getuid())
    where = session_places(known.session)
    if generation != known.generation:
        # It can never count, and is kept for the record.
        spool.write_answer(where, SpooledAnswer(
            checkpoint=known.number, generation=generation, value=canonical(text), comment=comment, by=me, channel="cli"
        ))  # fmt: skip
        raise AnswerRefused(
            f"{requests.request_id(known.session, known.number)} was asked again since version {generation} of it "
            f"({_again(row)}), so this answer does not count: pilot-hitl inbox show {known.id}"
        )
    value = forms.parse_answer(text, *form_of(row))
    before = [placed for placed in _requests.waiting(known.session, row) if placed.standing is Standing.COUNTS]
    given = SpooledAnswer(
        checkpoint=known.number, generation=generation, value=canonical(value), comment=comment, by=me
    )
    path = spool.write_answer(where, given)
    if fallback and held(known.session) and _take_back(path):
        # A hub started in between and may have looked at the spool before our file was there.
        return _tell(meant, generation, text, comment)
    _warn(row, known.id, me, before)
    return {
        "status": "queued",
        "id": known.id,
        "value": value,
        "comment": comment,
        "answer_id": given.answer_id,
        "file": str(path),
        "next": (
            f"It waits on disk and is accepted or refused when session {known.session} is next opened: "
            f"run its script again, or pilot-hitl session resume {known.session}"
            if fallback
            else f"It lies on disk. A hub that holds session {known.session} takes it in by itself, within seconds; "
            "without one it is accepted or refused when the session is next opened"
        ),
    }


def _warn(row: Row, id_: str, me: str, before: list[Placed]) -> None:
    """Say what a queued answer replaces, and what may make the hub refuse it."""
    assignees = row.get("assignees")
    allowed = [str(each) for each in assignees] if isinstance(assignees, list) else []
    if allowed and me not in allowed:
        note(f"{id_} is for {', '.join(allowed)}; as {me} you may be refused.")
    if is_late(row, time.time()):
        note(f"The deadline was {cell('deadline_at', row.get('deadline_at'))}; a late answer is kept but not applied.")
        return
    for placed in before:
        if placed.taken.uid == os.getuid():
            note(f"It replaces your earlier answer {cell('', placed.taken.answer.value)}.")
    others = sum(placed.taken.uid != os.getuid() for placed in before)
    if others:
        note(f"{others} earlier answer(s) of other people to {id_} wait already; the first valid one counts.")


def _take_back(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False  # the hub has it
    return True


def _outcome(row: Row) -> str:
    """What became of a closed question, in words."""
    record = row.get("record")
    facts = {**record, "state": row.get("state")} if _is_row(record) else {"state": row.get("state")}
    if row.get("answer") is not None:
        facts["answer"] = row["answer"]
    return changes.became(facts)


def _again(row: Row) -> str:
    """Why a question is asked again, and what its last version came to; empty for one that is asked once."""
    generation, changed, earlier = row.get("generation"), row.get("changed"), row.get("earlier")
    if not isinstance(generation, int) or generation <= 1:
        return ""
    parts = [str(each) for each in changed] if isinstance(changed, list) else []
    why = changes.why(parts)
    last = changes.became(earlier[-1]) if parts and isinstance(earlier, list) and earlier else ""
    return f"{why}; before, {last}" if last else why


def _queued(placed: Placed) -> dict[str, Json]:
    answer = placed.taken.answer
    return {
        "value": "(taken back)" if answer.withdraws else forms.read_json(answer.value),
        "by": placed.taken.who,
        "given_at": placed.taken.at,
        "version": answer.generation,
        "comment": answer.comment,
        "standing": placed.standing.value,
    }


def _is_row(value: Json) -> TypeGuard[dict[str, Json]]:
    return isinstance(value, dict)


def _short(row: Row) -> Row:
    """A question as a line of a list."""
    listed, answer = row.get("choices"), row.get("answer")
    choices = forms.describe_choices(listed) if isinstance(listed, list) and listed else ""
    said = "" if answer is None else forms.choice_text(answer)
    return {
        **row,
        "question": _first_line(row.get("question")),
        "choices": choices,
        "answer": said,
        "again": _again(row),
    }


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
        put_table(names, [_cells(names, row) for row in rows], "(an empty table)")
        return
    hidden = {"kind", "title", "data", "blob"}
    facts = {"kind": kind, **{key: value for key, value in item.items() if key not in hidden}}
    if isinstance(blob := item.get("blob"), str):
        facts["file"] = str(BlobStore(session_places(session).folder / "blobs").path(bytes.fromhex(blob)))
    put_object(facts)


def _cells(names: list[str], row: Json) -> list[Json]:
    if isinstance(row, dict):
        return [row.get(name) for name in names]
    return row if isinstance(row, list) else [row]
