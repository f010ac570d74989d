"""Reading a session's audit without a hub: it is the one table that people must be able to check at any time."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping

from pilot_hitl.errors import SessionError, UnknownCheckpoint
from pilot_hitl.inbox import audit, forms
from pilot_hitl.model.canonical import Json, cut
from pilot_hitl.wire.places import SessionPlaces

LONGEST = 72
"""Characters of a text that are shown in a line."""


def read_audit(places: SessionPlaces, checkpoint: int = 0) -> list[Json]:
    """Return the entries of a session, or of one request; a last entry of kind ``fault`` when the chain is broken.

    Raises:
        SessionError: there is no store, or it cannot be read.
        UnknownCheckpoint: nothing is recorded of this request.
    """
    rows = _rows(places)
    entries: list[Json] = []
    for content, digest in rows:
        entry = _entry(content)
        if checkpoint in (0, entry.get("checkpoint")):
            entries.append({**entry, "hash": digest.hex()})
    if checkpoint and not entries:
        raise UnknownCheckpoint(f"nothing is recorded of request {places.name}/{checkpoint}")
    fault = audit.verify(rows, places.name)
    if fault is not None:
        entries.append({"kind": "fault", "at": time.time(), "facts": {"index": fault.index, "why": fault.reason}})
    return entries


def _rows(places: SessionPlaces) -> list[tuple[bytes, bytes]]:
    import sqlite3

    if not places.database.exists():
        raise SessionError(f"session {places.name!r} has no store yet, so nothing is recorded")
    try:
        database = sqlite3.connect(f"{places.database.as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            found = database.execute("SELECT content, hash FROM audit ORDER BY sequence").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise SessionError(f"{places.database} cannot be read as a session: {error}") from error
    return [(bytes(content), bytes(digest)) for content, digest in found]


def _entry(content: bytes) -> dict[str, Json]:
    try:
        return audit.read(content)
    except ValueError as error:
        return {"kind": "unreadable", "facts": {"why": str(error)}}


def in_words(entry: Mapping[str, Json]) -> dict[str, Json]:
    """Return an entry as people read it: forms in words, what was shown by its kinds, texts in their first line."""
    facts = entry.get("facts")
    if not isinstance(facts, dict):
        return dict(entry)
    said: dict[str, Json] = {}
    for key, value in facts.items():
        text = _words(key, value)
        if text not in (None, "", [], {}, False):
            said[key] = text
    return {**entry, "facts": said}


def _words(key: str, value: Json) -> Json:
    if key in ("form", "show", "predicted") and isinstance(value, str) and value:
        with contextlib.suppress(ValueError):  # then it is shown as it is
            value = json.loads(value)
    if key == "form" and not isinstance(value, str):
        return forms.describe(value)
    if key == "show" and isinstance(value, list):
        kinds = Counter(str(item.get("kind", "value")) for item in value if isinstance(item, dict))
        return ", ".join(kind if count == 1 else f"{count} of kind {kind}" for kind, count in kinds.items())
    if isinstance(value, str):
        return cut(" ".join(value.split()), LONGEST)
    return value
