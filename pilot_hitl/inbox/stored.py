"""All requests of a session as its store holds them, closed ones too, read beside whoever owns it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pilot_hitl.errors import SessionError
from pilot_hitl.inbox import requests
from pilot_hitl.model.canonical import Json
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire.messages import Ask
from pilot_hitl.wire.places import SessionPlaces

_ROWS = (
    "SELECT number, ask, record, answer, state, opened, deadline, generation FROM checkpoint "
    "WHERE ? IN (0, number) ORDER BY number"
)
_ask = msgspec.msgpack.Decoder(Ask)


def stored(places: SessionPlaces, number: int = 0) -> list[dict[str, Json]]:
    """Return the requests of a session (or the one of this number) as :func:`requests.view` does; none without a store.

    Raises:
        SessionError: the store cannot be read.
    """
    import sqlite3  # most commands do without

    if not places.database.exists():
        return []
    try:
        database = sqlite3.connect(f"{places.database.as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            rows = database.execute(_ROWS, (number,)).fetchall()
        finally:
            database.close()
        return [_view(places.name, *row) for row in rows]
    except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
        raise SessionError(f"{places.database} cannot be read as a session: {error}") from error


def _view(session: str, number: int, blob: bytes, told: str, answer: str, *facts: Any) -> dict[str, Json]:
    state, opened, deadline, generation = facts
    record: dict[str, Json] = json.loads(told)
    request = requests.from_ask(
        session,
        number,
        _ask.decode(blob),
        state=CheckpointState(state),
        opened=opened,
        deadline=deadline,
        generation=generation,
        record=record,
    )
    return requests.view(request, answer, record)
