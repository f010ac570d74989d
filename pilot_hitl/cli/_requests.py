"""Finding the question that a command means: at the hub for the sessions that it holds, in files for all others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import NamedTuple

from pilot_hitl.cli._home import home, session_names
from pilot_hitl.cli._show import Row
from pilot_hitl.cli._tool import NoHub, closed_in, closed_sessions, connect
from pilot_hitl.errors import AnswerRefused, SessionError, UnknownCheckpoint
from pilot_hitl.inbox import forms, requests, spool
from pilot_hitl.inbox.requests import Known
from pilot_hitl.inbox.spool import Taken
from pilot_hitl.inbox.standing import Placed, Standing, standings
from pilot_hitl.inbox.stored import stored
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire.places import SessionPlaces

_ALWAYS: dict[str, Json] = {"id": "", "session": "", "name": "", "question": "", "choices": [], "state": ""}
QUEUED, EXPIRED = "QUEUED", "EXPIRED"
"""States of an open question of a session that nobody holds: a queued answer will be taken, or the deadline passed."""


class Meant(NamedTuple):
    """A question as it is now, and the generation that was named, 0 for none."""

    row: Row
    known: Known
    said: int


def find(wanted: str, *, files_only: bool = False) -> Meant:
    """Return the question that is meant; ``files_only`` asks no hub.

    Raises:
        UnknownCheckpoint: there is none, or there are several.
        HubUnreachable: a hub holds its session and does not answer.
    """
    named = requests.parse_id(wanted)
    if named is not None:
        if not files_only and held(named.session):
            return _of_hub(wanted)
        return _pick(_of_files(named.session, everything=True), wanted)
    rows = _all_of_files(everything=False) if files_only else known_requests()
    with contextlib.suppress(UnknownCheckpoint):
        return _pick(rows, wanted)
    # Its state tells what became of it.
    return _pick(_all_of_files(everything=True) if files_only else known_requests(everything=True), wanted)


def known_requests(*, everything: bool = False) -> list[Row]:
    """Return the questions of all sessions; only those that wait for an answer unless ``everything`` is wanted."""
    closed: set[str] | None = None
    rows: list[Row] = []
    with contextlib.suppress(NoHub), connect(home()) as tool:
        told = tool.query("sessions")
        found = tool.query("inbox", all=everything or None)
        rows = [{**_ALWAYS, **item} for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        closed = closed_in(told)
    return rows + _all_of_files(everything=everything, of=closed)


def held(session: str) -> bool:
    """Return whether a hub runs and holds this session, so that it is asked and told instead of the files."""
    closed = closed_sessions(home())
    return closed is not None and session not in closed


def waiting(session: str, row: Row) -> list[Placed]:
    """Return the answers in the spool to one question and what each of them stands for, as far as files tell."""
    named = requests.parse_id(str(row["id"]))
    number = named.number if named is not None else 0
    assignees = row.get("assignees")

    def fits(taken: Taken) -> bool:
        answer = taken.answer
        if answer.generation != row.get("generation", 1) or is_late(row, taken.at):
            return False
        if answer.withdraws:
            return True
        if isinstance(assignees, list) and assignees and taken.who not in assignees:
            return False
        with contextlib.suppress(AnswerRefused):
            forms.parse_answer(answer.value, *form_of(row))
            return True
        return False

    mine = [each for each in spool.waiting(SessionPlaces(home(), session)) if each.answer.checkpoint == number]
    return standings(mine, fits)


def is_late(row: Row, moment: float) -> bool:
    """Return whether an answer of this moment comes after the deadline of a question."""
    deadline = row.get("deadline_at")
    return isinstance(deadline, int | float) and deadline < moment


def form_of(row: Row) -> tuple[Json, list[Json]]:
    """Return form and choices of a question; without a form, the choices are the form."""
    listed = row.get("choices")
    choices = listed if isinstance(listed, list) else []
    form = row.get("form")
    if form in (None, ""):
        return (forms.form_of(choices) if choices else True), choices
    return form, choices


def as_known(row: Row) -> Known:
    """Return by what a question can be found."""
    named = requests.parse_id(str(row["id"]))
    if named is None:
        raise UnknownCheckpoint(f"a question is called {row['id']!r}, which is no id")
    generation = row.get("generation")
    present = generation if isinstance(generation, int) else 1
    return Known(named.session, named.number, present, str(row["name"]), not _is_closed(row))


def _of_hub(wanted: str) -> Meant:
    with connect(home()) as tool:
        found = tool.query("request", id=wanted)
    if not isinstance(found, dict):
        raise UnknownCheckpoint(f"there is no request {wanted!r}; pilot-hitl inbox list shows what is open")
    return _pick([{**_ALWAYS, "id": wanted, **found}], wanted)


def _pick(rows: list[Row], wanted: str) -> Meant:
    known = [as_known(row) for row in rows]
    meant, said = requests.find(known, wanted)
    if said > meant.generation:
        raise UnknownCheckpoint(f"{wanted!r} was never asked: {meant.id} is the last version of that question")
    return Meant(rows[known.index(meant)], meant, said)


def _all_of_files(*, everything: bool, of: set[str] | None = None) -> list[Row]:
    names: Iterable[str] = session_names() if of is None else [name for name in session_names() if name in of]
    return [row for name in names for row in _of_files(name, everything=everything)]


def _of_files(session: str, *, everything: bool) -> list[Row]:
    """Return the questions of a session that no hub holds: the published ones, and the closed ones of its store."""
    places = SessionPlaces(home(), session)
    rows: list[Row] = [_offline(session, requests.as_json(each)) for each in requests.published(places)]
    if not everything:
        return rows
    with contextlib.suppress(SessionError):  # what is published can be answered all the same
        # A hub that was killed may not have taken back what its store says is closed.
        kept = {row["id"]: row for row in stored(places)}
        rows = [row for row in rows if not _is_closed(kept.get(row["id"], row))]
        there = {row["id"] for row in rows}
        rows += [row for row in kept.values() if row["id"] not in there]
    return sorted(rows, key=lambda row: as_known(row).number)


def _is_closed(row: Row) -> bool:
    # Without a record it is open as far as anybody acted: its deadline passed while nobody held its session.
    return row.get("state") in ("ANSWERED", "EXPIRED", "WITHDRAWN") and "record" in row


def _offline(session: str, row: Row) -> Row:
    """Return an open question with what nobody acted upon yet: the answers that wait, and its deadline."""
    counting = sum(placed.standing is Standing.COUNTS for placed in waiting(session, row))
    if is_late(row, time.time()):
        return {**row, "state": QUEUED if counting else EXPIRED, "queued": counting}
    return {**row, "queued": counting}
